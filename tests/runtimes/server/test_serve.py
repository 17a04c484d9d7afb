"""``qwen3asr serve`` as a process: its options, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
import uvicorn
from tests.conftest import ROOT, Recording
from tests.server_process import ServerProcess, server_process

import qwen3asr
from qwen3asr import cli
from qwen3asr.server import ServerSettings, create_app, running
from qwen3asr.server.lifecycle import Lifecycle
from qwen3asr.server.running import _Server


class Upload(threading.Thread):
    """A request whose last part is sent when it is told to."""

    def __init__(self, url: str, recording: Recording, model: str) -> None:
        super().__init__(daemon=True)
        self.url, self.go_on = url, threading.Event()
        self.parts = [
            f'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n'.encode(),
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.flac"\r\n\r\n',
            recording.path.read_bytes() + b"\r\n--x--\r\n",
        ]
        self.answer: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        with httpx.Client(base_url=self.url, timeout=30) as http, contextlib.suppress(httpx.RemoteProtocolError):
            self.answer = http.post("/v1/audio/transcriptions", content=self.body(), headers=headers)

    def body(self) -> Iterator[bytes]:
        yield from self.parts[:2]
        self.go_on.wait(20)
        yield self.parts[2]

    def result(self) -> httpx.Response:
        self.join(30)
        assert self.answer is not None
        return self.answer


def _begun(process: ServerProcess, recording: Recording, model: str) -> Upload:
    """An upload that the server has begun to read, and waits for."""
    upload = Upload(process.url, recording, model)
    until = time.monotonic() + 20
    while "qwen3asr_server_requests 1.0" not in httpx.get(f"{process.url}/metrics").text:
        if time.monotonic() > until:
            raise TimeoutError("the upload did not begin")
    return upload


def test_a_signal_lets_requests_finish(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    with server_process(asr_bundle) as process:
        upload = _begun(process, recordings["german"], asr_bundle.name)
        process.signal(signal.SIGTERM)
        process.read("stopping: 1 requests are under way")
        assert httpx.get(f"{process.url}/ready").status_code == 503
        assert httpx.get(f"{process.url}/health").status_code == 200
        upload.go_on.set()
        answer = upload.result()
        assert answer.status_code == 200, answer.text
        assert (answer.status_code, answer.json()["text"]) == (200, recordings["german"].text)
        assert process.end() == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{process.url}/health")
    assert recordings["german"].text not in process.log


def test_a_second_signal_ends_at_once(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    with server_process(asr_bundle) as process:
        _begun(process, recordings["german"], asr_bundle.name)
        process.signal(signal.SIGTERM)
        process.read("stopping: 1 requests")
        process.signal(signal.SIGTERM)
        assert process.end() == -signal.SIGTERM


def test_what_is_not_done_in_time_is_broken_off(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    with server_process(asr_bundle, "--drain-seconds", "0.1") as process:
        _begun(process, recordings["german"], asr_bundle.name)
        process.signal(signal.SIGTERM)
        assert process.end() == 0
    assert "1 requests are broken off" in process.log


def test_options_reach_the_server(asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording]) -> None:
    options = ["--aligner", aligner_bundle, "--model-name", "tiny", "--slots", "2", "--max-upload-mb", "0.5"]
    options += ["--max-seconds", "5", "--cors-origin", "https://example.org", "--no-page", "--host", "0.0.0.0"]
    with (
        server_process(asr_bundle, *options, QWEN3ASR_API_KEY="one two") as process,
        httpx.Client(base_url=process.url, headers={"Authorization": "Bearer two"}) as http,
    ):
        assert [entry["id"] for entry in http.get("/v1/models").json()["data"]] == ["tiny"]
        assert http.get("/v1/models", headers={"Authorization": "Bearer one"}).status_code == 200
        assert http.get("/v1/models", headers={"Authorization": "Bearer one two"}).status_code == 401
        assert http.get("/").status_code == 404
        files = {"file": recordings["spanish"].path.read_bytes()}
        data = {"model": "tiny", "response_format": "verbose_json", "timestamp_granularities[]": "word"}
        words = http.post("/v1/audio/transcriptions", files=files, data=data).json()["words"]
        assert [word["word"] for word in words] == recordings["spanish"].text.split()
        for file, code in (
            (recordings["english-long"].path.read_bytes(), "audio_too_long"),
            (bytes(500_001), "upload_too_large"),
        ):
            answer = http.post("/v1/audio/transcriptions", files={"file": file}, data=data)
            assert answer.json()["error"]["code"] == code
        allowed = http.get("/health", headers={"Origin": "https://example.org"}).headers
        assert allowed["Access-Control-Allow-Origin"] == "https://example.org"
    assert "anybody may call" not in process.log


def test_the_example_prints_the_text(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    example, spoken = ROOT / "examples/openai_client.py", recordings["spanish"]
    with server_process(asr_bundle) as process:
        done = subprocess.run(
            [sys.executable, example, f"{process.url}/v1", spoken.path], capture_output=True, text=True, check=True
        )
        process.signal(signal.SIGINT)
        assert process.end() == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("spanish, ")
    assert [line.endswith(spoken.text) for line in lines] == [False, True, True]


def test_it_says_that_it_listens_when_a_signal_can_stop_it(
    model: qwen3asr.Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for that line may send one at once."""

    async def scene() -> object:
        said: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def note(message: str, *_: object) -> None:
            if message.startswith("listening"):
                said.set_result(signal.getsignal(signal.SIGTERM))

        monkeypatch.setattr(running._log, "info", note)
        serving = asyncio.create_task(running.serve(model, port=0))
        handler = await asyncio.wait_for(said, 20)
        assert getattr(handler, "__name__", None) == "handle_exit"
        signal.raise_signal(signal.SIGTERM)
        return await asyncio.wait_for(serving, 20)

    asyncio.run(scene())


def test_wyoming_beside_it(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    client = pytest.importorskip("wyoming.client")
    from wyoming.info import Describe, Info

    async def models(port: int) -> list[str]:
        async with client.AsyncTcpClient("127.0.0.1", port) as connection:
            await connection.write_event(Describe().event())
            event = await connection.read_event()
            if event is None:
                raise ConnectionError
            return [model.name for program in Info.from_event(event).asr for model in program.models]

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with server_process(asr_bundle, "--wyoming", f"tcp://127.0.0.1:{port}") as process:
        assert len(asyncio.run(models(port))) == 1
        assert httpx.get(f"{process.url}/").status_code == 200
        process.signal(signal.SIGINT)
        assert process.end() == 0


def test_what_is_served_beside_stops_at_the_same_time(asr_bundle: Path) -> None:
    """Wyoming took new utterances until HTTP had drained, and the model might be closed under them."""

    async def scene() -> None:
        lifecycle, given, done = Lifecycle(), asyncio.Queue[float](), asyncio.Event()

        async def stop_beside(seconds: float) -> None:
            given.put_nowait(seconds)
            await done.wait()

        with qwen3asr.load(asr_bundle, slots=1) as model:
            config = uvicorn.Config(create_app(model))
            server = _Server(config, model, ServerSettings(drain_seconds=20), lifecycle, stop_beside)
            with lifecycle.work():
                draining = asyncio.create_task(server._drain())
                assert await given.get() == 20
            for _ in range(5):
                await asyncio.sleep(0)
            assert not server.should_exit
            done.set()
            await draining
            assert server.should_exit

    asyncio.run(asyncio.wait_for(scene(), 30))


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The exit code of the command in this process, and what it says."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("qwen3asr.cli.serving._log_to_stderr", lambda: None)

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(["serve", *map(str, arguments)])
        return int(end.value.code or 0), " ".join(capsys.readouterr().err.split())

    return run


def test_what_cannot_be_served(fails: Callable[..., tuple[int, str]], asr_bundle: Path, tmp_path: Path) -> None:
    code, said = fails(tmp_path / "none", "--host", "0.0.0.0")
    assert (code, "there is no bundle at" in said) == (3, True)
    assert said.startswith("warning: 0.0.0.0 may be reached from other machines, and anybody may call")
    code, said = fails(asr_bundle, "--max-upload-mb", "0")
    assert (code, said) == (2, "error: max_upload_bytes=0 lets nothing through; give more than 0")
    for host, warned in (("::1", False), ("localhost", False), ("example.org", True)):
        assert ("anybody may call" in fails(tmp_path / "none", "--host", host)[1]) == warned
    for uri, warned in (("tcp://127.0.0.1:1", False), ("tcp://0.0.0.0:1", True)):
        assert ("Wyoming knows no keys" in fails(tmp_path / "none", "--wyoming", uri)[1]) == warned
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = fails(asr_bundle, "--port", taken.getsockname()[1])
    assert (code, "Address already in use" in said) == (3, True)


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_without_the_extra_the_cure_is_named() -> None:
    hide = "import sys; sys.modules['fastapi'] = None  # as if it were not installed"
    done = _python(f"{hide}\nfrom qwen3asr import cli\ncli.main(['serve', 'bundle'])")
    assert done.returncode == 3
    assert "pip install 'qwen3asr[serve]'" in " ".join(done.stderr.split())


def test_the_command_line_imports_no_server() -> None:
    heavy = ("fastapi", "uvicorn", "pydantic")
    done = _python(f"import sys, qwen3asr.cli; print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout.strip() == "[]"
