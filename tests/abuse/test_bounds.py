"""What the project promises about strangers' input: nothing is run, fetched, or read that was not asked for."""

from __future__ import annotations

import ast
import hmac
import io
import socket
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import soundfile
from tests.abuse.limits import memory
from tests.abuse.serving import PATH, problem, transcribe
from tests.conftest import ROOT, Recording
from tests.runtimes.server.conftest import Server, Start
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from qwen3asr.audio import read_audio
from qwen3asr.errors import AudioUnreadable, Qwen3AsrError
from qwen3asr.server import ServerSettings
from qwen3asr.server.auth import permits

SOURCES = sorted((ROOT / "runtimes").rglob("*.py")) + sorted((ROOT / "export").rglob("*.py"))


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_runs_code_is_read_from_files(path: Path) -> None:
    """No pickles, nor what loads them; checkpoints are safetensors, arrays plain."""
    tree = ast.parse(path.read_text("utf-8"))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    for name, call in _calls(tree):
        assert name not in ("torch.load", "eval", "exec", "yaml.load", "os.system"), f"line {call.lineno}"
        for word in call.keywords:
            trusted = isinstance(word.value, ast.Constant) and word.value.value is True
            assert not (trusted and word.arg in ("allow_pickle", "trust_remote_code", "shell")), f"line {call.lineno}"


# --- files and the network -------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> Any:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "text", ["http://127.0.0.1:1/a.wav", "HTTPS://example.org/a.wav", "ftp://127.0.0.1/a", "file:///etc/passwd"]
)
def test_no_address_is_fetched(text: str) -> None:
    with pytest.raises(Qwen3AsrError):
        read_audio(text)


@pytest.fixture
def secret(recordings: dict[str, Recording], tmp_path: Path) -> Path:
    """Audio on the server's disk, in a form that playlists take."""
    path = tmp_path / "secret.ts"
    command = ["ffmpeg", "-loglevel", "error", "-i", recordings["german"].path, "-c:a", "aac", path]
    subprocess.run(list(map(str, command)), check=True)
    return path


def _playlists(secret: Path, url: str) -> dict[str, str]:
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    return {
        "hls": hls.format(secret),
        "hls-file": hls.format(f"file:{secret}"),
        "hls-url": hls.format(f"{url}/a.ts"),
        "concat": f"ffconcat version 1.0\nfile '{secret.name}'\n",
        "concat-absolute": f"ffconcat version 1.0\nfile '{secret}'\n",
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 {url}\nt=0 0\nm=audio 9 RTP/AVP 0\n",
        "dash": f'<?xml version="1.0"?><MPD type="static" xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet '
        f'mimeType="audio/mp4"><Representation id="0"><BaseURL>{secret}</BaseURL></Representation></AdaptationSet>'
        "</Period></MPD>",
    }


@pytest.mark.parametrize("kind", ["hls", "hls-file", "hls-url", "concat", "concat-absolute", "sdp", "dash"])
def test_a_playlist_cannot_have_other_files_read(secret: Path, kind: str) -> None:
    """An uploaded HLS playlist used to be answered with what is said in any audio file of the server's."""
    text = _playlists(secret, "http://127.0.0.1:1")[kind]
    beside = secret.with_name(f"list.{'m3u8' if kind.startswith('hls') else kind}")
    beside.write_text(text)
    for source in (text.encode(), beside):
        with pytest.raises(AudioUnreadable):
            read_audio(source)


@pytest.mark.parametrize("suffix", ["m4a", "webm", "mp4", "mkv", "aac", "amr", "avi", "mov", "wma", "ts"])
def test_recordings_of_any_container_are_still_read(
    recordings: dict[str, Recording], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"clip.{suffix}"
    rate = ["-ar", "8000", "-ac", "1", "-b:a", "12.2k"] if suffix == "amr" else []
    command = ["ffmpeg", "-loglevel", "error", "-i", recordings["german"].path, *rate, path]
    if subprocess.run(list(map(str, command)), check=False, capture_output=True).returncode:
        pytest.skip(f"this ffmpeg writes no {suffix}")
    assert read_audio(path).duration == pytest.approx(read_audio(path.read_bytes()).duration)
    assert read_audio(path).duration == pytest.approx(soundfile.info(recordings["german"].path).duration, abs=0.2)


# --- bombs -----------------------------------------------------------------------------------------------------


def _silence(kind: str, hours: float) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8_000, 1, format=kind, subtype="OPUS" if kind == "OGG" else None) as out:
        for _ in range(round(hours * 60)):
            out.write(np.zeros(8_000 * 60, np.int16))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["FLAC", "OGG"])
def test_long_silence_in_a_small_file_stops_at_the_limit(start: Start, kind: str) -> None:
    bomb = _silence(kind, 0.25)
    assert len(bomb) < 2_000_000
    server = start(ServerSettings(max_audio_seconds=60))
    with memory(150):
        answer = transcribe(server.url, bomb)
    assert (answer.status_code, problem(answer)["code"]) == (413, "audio_too_long")


def test_a_compressed_body_is_not_unpacked(server: Server) -> None:
    body = zlib.compress(bytes(50_000_000))
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Encoding": "deflate"}
    with memory(100):
        answer = httpx.post(server.url + PATH, content=body, headers=headers)
    assert answer.status_code == 400
    problem(answer)


def test_a_compressed_message_stops_at_the_limit(server: Server) -> None:
    with memory(150), connect(server.url.replace("http", "ws") + "/v1/realtime", max_size=None) as session:
        session.recv(timeout=10)
        with pytest.raises(ConnectionClosed) as closed:
            session.send("\0" * 64_000_000)
            session.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


# --- keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["Bearer one", "Bearer no", "Bearer ", "Basic one", None, "Bearer \u00e9"])
def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    compared, real = [], hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    before = len(compared)
    assert permits(["one", "two", "three"], given) == (given == "Bearer one")
    assert compared[before:] == [b"one", b"two", b"three"]
