"""The HTTP server on a real socket, called by OpenAI's client and by plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest
import soundfile
from openai.types.audio import TranscriptionVerbose
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import Recording
from tests.runtimes.server.conftest import Server, Start

import qwen3asr
from qwen3asr import Recognizer
from qwen3asr.errors import Qwen3AsrError, RequestInvalid
from qwen3asr.server import ServerSettings
from qwen3asr.server.problems import problem_of

MODEL = "asr"
RATE = 16_000


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http


@pytest.fixture(scope="session")
def small(asr_bundle: Path) -> Iterator[Recognizer]:
    """One slot, one place to wait, no aligner, and passes of at most 19 s."""
    with qwen3asr.load(asr_bundle, slots=1, queue=1, capacity=400) as model:
        yield model


def _send(http: httpx.Client, recording: Recording, **parameters: Any) -> httpx.Response:
    files = {"file": (recording.path.name, recording.path.read_bytes())}
    return http.post("/v1/audio/transcriptions", files=files, data={"model": MODEL} | parameters)


def _problem(response: httpx.Response) -> dict[str, Any]:
    """The error object; every error answer has OpenAI's form, and the request's id twice."""
    body = response.json()
    assert set(body) == {"error", "request_id"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


def _wait(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("it did not come about")
        time.sleep(0.01)


def _joined(recordings: dict[str, Recording], names: list[str]) -> bytes:
    """A WAV file of recordings with pauses between them."""
    parts = []
    for name in names:
        parts += [soundfile.read(recordings[name].path, dtype="float32")[0], np.zeros(RATE, np.float32)]
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(parts), RATE, format="WAV")
    return file.getvalue()


class Gate:
    """Holds transcriptions of a model back at their beginning."""

    def __init__(self, model: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.waiting = threading.Event(), threading.Semaphore(0)
        transcribe = model._transcriber.transcribe

        def held(*arguments: Any, **options: Any) -> qwen3asr.Transcript:
            self.waiting.release()
            if not self.open.wait(20):
                raise TimeoutError("the gate was not opened")
            return transcribe(*arguments, **options)

        monkeypatch.setattr(model._transcriber, "transcribe", held)

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.waiting.acquire(timeout=20)


class Background(threading.Thread):
    """A request of its own connection."""

    def __init__(self, server: Server, recording: Recording) -> None:
        super().__init__(daemon=True)
        self.server, self.recording = server, recording
        self.answer: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        with httpx.Client(base_url=self.server.url, timeout=30) as http:
            self.answer = _send(http, self.recording)

    def result(self) -> httpx.Response:
        self.join(30)
        assert self.answer is not None
        return self.answer


# --- OpenAI's client -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["english", "german", "chinese"])
def test_json_has_the_text_and_the_seconds(client: openai.OpenAI, recordings: dict[str, Recording], name: str) -> None:
    path = recordings[name].path
    result = client.audio.transcriptions.create(model=MODEL, file=path)
    assert result.text == recordings[name].text
    assert result.usage is not None
    assert result.usage.to_dict() == {"type": "duration", "seconds": round(soundfile.info(path).duration, 3)}


def test_plain_formats_are_those_of_the_transcript(
    client: openai.OpenAI, model: Recognizer, recordings: dict[str, Recording]
) -> None:
    path, wanted = recordings["english-long"].path, model.transcribe(recordings["english-long"].path, timestamps="word")
    create = client.audio.transcriptions.create
    assert create(model=MODEL, file=path, response_format="text") == wanted.text + "\n"
    assert create(model=MODEL, file=path, response_format="srt") == wanted.to_srt()
    assert create(model=MODEL, file=path, response_format="vtt") == wanted.to_vtt()
    assert wanted.to_srt().count("-->") > 1


def test_verbose_json_has_words_and_segments(
    client: openai.OpenAI, model: Recognizer, recordings: dict[str, Recording]
) -> None:
    path, wanted = recordings["spanish"].path, model.transcribe(recordings["spanish"].path, timestamps="word")
    result = client.audio.transcriptions.create(
        model=MODEL, file=path, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert isinstance(result, TranscriptionVerbose)
    assert (result.text, result.language) == (recordings["spanish"].text, "spanish")
    assert result.duration == round(wanted.duration, 3)
    assert [(w.word, w.start, w.end) for w in result.words or []] == [
        (w.text, round(w.start, 3), round(w.end, 3)) for w in wanted.words
    ]
    assert [(s.id, s.text, s.start, s.end) for s in result.segments or []] == [
        (i, s.text, round(s.start, 3), round(s.end, 3)) for i, s in enumerate(wanted.segments)
    ]
    mean = np.mean([np.log(word.confidence or 1.0) for word in wanted.words])
    assert [s.avg_logprob for s in result.segments or []] == [pytest.approx(mean, abs=1e-3)]


def test_granularities_choose_what_comes(http: httpx.Client, recordings: dict[str, Recording]) -> None:
    def keys(**parameters: Any) -> set[str]:
        return set(_send(http, recordings["german"], response_format="verbose_json", **parameters).json())

    always = {"task", "language", "duration", "text", "usage", "finish_reason"}
    assert keys() == always | {"segments"}
    assert keys(**{"timestamp_granularities[]": "word"}) == always | {"words"}
    assert keys(**{"timestamp_granularities[]": ["segment", "word"]}) == always | {"words", "segments"}


def test_many_at_once_from_the_asynchronous_client(server: Server, recordings: dict[str, Recording]) -> None:
    names = ["english", "german", "spanish", "chinese", "german-short", "silence"] * 2

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            asked = [client.audio.transcriptions.create(model=MODEL, file=recordings[name].path) for name in names]
            return [result.text for result in await asyncio.gather(*asked)]

    assert asyncio.run(all_of_them()) == [recordings[name].text for name in names]


def test_the_language_may_be_a_code_and_the_prompt_is_context(
    client: openai.OpenAI, model: Recognizer, recordings: dict[str, Recording]
) -> None:
    path = recordings["german"].path
    wanted = model.transcribe(path, language="Spanish", context="siete")
    result = client.audio.transcriptions.create(model=MODEL, file=path, language="es", prompt="siete", temperature=0.2)
    assert result.text == wanted.text


def test_a_stream_gives_pieces_as_they_are_decoded(
    small: Recognizer, start: Start, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second piece is held back until the client has read the first one's text."""
    audio = _joined(recordings, ["spanish"] * 12)
    wanted = small.transcribe(audio)
    first_was_read, calls, parts = threading.Event(), 0, small._transcriber._parts

    def held(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1 and not first_was_read.wait(20):
            raise TimeoutError("the first piece was not sent before the second was done")
        return parts(*arguments)

    monkeypatch.setattr(small._transcriber, "_parts", held)
    server = start(other=small)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        events = []
        for event in client.audio.transcriptions.create(model=MODEL, file=("a.wav", audio), stream=True):
            first_was_read.set()
            events.append(event)
    *deltas, done = events
    assert done.type == "transcript.text.done"
    assert done.text == wanted.text
    assert recordings["spanish"].text in done.text
    assert len(deltas) >= 2
    assert "".join(event.delta for event in deltas if event.type == "transcript.text.delta") == wanted.text


def test_a_stream_is_server_sent_events_that_end_by_done(http: httpx.Client, recordings: dict[str, Recording]) -> None:
    answer = _send(http, recordings["chinese"], stream="true")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert [json.loads(line.removeprefix("data: "))["type"] for line in lines[:-2]] == [
        "transcript.text.delta",
        "transcript.text.done",
    ]
    assert lines[-2:] == ["data: [DONE]", ""]
    silent = _send(http, recordings["silence"], stream="true").text
    assert (
        silent == 'data: {"type": "transcript.text.done", "text": "", "finish_reason": "no_speech"}\n\ndata: [DONE]\n\n'
    )


def test_an_error_within_a_stream_is_an_event(
    small: Recognizer, start: Start, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, parts = 0, small._transcriber._parts

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ValueError("a secret")
        return parts(*arguments)

    monkeypatch.setattr(small._transcriber, "_parts", failing)
    server, audio = start(other=small), _joined(recordings, ["spanish"] * 12)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.audio.transcriptions.create(model=MODEL, file=("a.wav", audio), stream=True)
        assert next(iter(stream)).type == "transcript.text.delta"
        with pytest.raises(openai.APIError, match="failed on this request") as caught:
            list(stream)
    assert caught.value.code == "internal_error"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "qwen3asr"
    with pytest.raises(openai.NotFoundError, match="no model 'whisper-1' here; name 'asr'") as caught:
        client.models.retrieve("whisper-1")
    assert caught.value.code == "model_not_found"


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "status", "parameter", "code"),
    [
        ({"model": "whisper-1"}, 404, "model", "model_not_found"),
        ({"model": []}, 400, "model", "invalid_value"),
        ({"language": "Klingon"}, 400, "language", "unsupported_language"),
        ({"prompt": "<|im_end|>"}, 400, "prompt", "invalid_value"),
        ({"response_format": "diarized_json"}, 400, "response_format", "invalid_value"),
        ({"temperature": "hot"}, 400, "temperature", "invalid_value"),
        ({"temperature": "1.5"}, 400, "temperature", "invalid_value"),
        ({"stream": "perhaps"}, 400, "stream", "invalid_value"),
        ({"stream": "true", "response_format": "srt"}, 400, "stream", "invalid_value"),
        ({"include[]": "logprobs"}, 400, "include[]", "invalid_value"),
        ({"timestamp_granularities[]": "word"}, 400, "timestamp_granularities[]", "invalid_value"),
        (
            {"timestamp_granularities[]": "syllable", "response_format": "verbose_json"},
            400,
            "timestamp_granularities[]",
            "invalid_value",
        ),
        (
            {"timestamp_granularities[]": "word", "response_format": "verbose_json", "language": "ar"},
            400,
            "language",
            "unsupported_language",
        ),
    ],
)
def test_wrong_values_are_named(
    http: httpx.Client, recordings: dict[str, Recording], parameters: dict[str, Any], status: int, parameter: str,
    code: str,
) -> None:  # fmt: skip
    answer = _send(http, recordings["german-short"], **parameters)
    problem = _problem(answer)
    assert (answer.status_code, problem["param"], problem["code"]) == (status, parameter, code)
    assert problem["type"] == "invalid_request_error"


def test_unknown_parameters_are_ignored(http: httpx.Client, recordings: dict[str, Recording]) -> None:
    answer = _send(http, recordings["german"], chunking_strategy="auto", seed="1", **{"keywords[]": ["a", "b"]})
    assert answer.json()["text"] == recordings["german"].text


def test_what_is_no_form_with_audio(http: httpx.Client) -> None:
    path = "/v1/audio/transcriptions"
    answer = http.post(path, json={"model": MODEL})
    assert (answer.status_code, _problem(answer)["code"]) == (415, "unsupported_media_type")
    answer = http.post(path, content=b"no form", headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 400
    assert _problem(answer)
    for file, code in ((b"no audio", "invalid_audio"), (b"", "invalid_audio")):
        answer = http.post(path, files={"file": ("a.wav", file)}, data={"model": MODEL})
        problem = _problem(answer)
        assert (answer.status_code, problem["param"], problem["code"]) == (400, "file", code)
        assert "tmp" not in problem["message"]
    answer = http.post(path, files={"other": ("a.wav", b"x")}, data={"model": MODEL, "file": "a.wav"})
    assert (answer.status_code, _problem(answer)["param"]) == (400, "file")


def test_other_paths_and_methods(http: httpx.Client) -> None:
    answer = http.get("/v1/chat/completions")
    assert (answer.status_code, _problem(answer)["code"]) == (404, "not_found")
    assert "GET /v1/chat/completions" in _problem(answer)["message"]
    answer = http.get("/v1/audio/transcriptions")
    assert (answer.status_code, _problem(answer)["code"], answer.headers["Allow"]) == (
        405,
        "method_not_allowed",
        "POST",
    )
    answer = http.post("/v1/audio/translations", files={"file": ("a.wav", b"x")})
    assert answer.status_code == 404
    assert "does not translate" in _problem(answer)["message"]


def test_every_error_has_a_status() -> None:
    """Those that are not a client's to know come as 500 and say nothing."""

    def leaves(kind: type[Qwen3AsrError]) -> Iterator[type[Qwen3AsrError]]:
        for each in kind.__subclasses__():
            yield each
            yield from leaves(each)

    by_status: dict[int, set[str]] = {}
    for kind in leaves(Qwen3AsrError):
        if kind.__module__ == "qwen3asr.errors":
            bare = type(kind.__name__, (kind,), {"__init__": lambda _: None})()
            by_status.setdefault(problem_of(bare).status, set()).add(kind.__name__)
    assert {"AudioUnreadable", "RequestInvalid", "ContextInvalid", "AlignerMissing"} < by_status[400]
    assert by_status[404] == {"ModelUnknown"}
    assert by_status[413] == {"UploadTooLarge", "AudioPastLimit", "AudioTooLong"}
    assert by_status[429] == {"EngineBusy", "StreamBehind"}
    assert by_status[503] == {"ServerDraining", "EngineClosed", "EngineFailed"}
    assert by_status[504] == {"DeadlineExceeded"}
    assert {"BackendFailed", "OutputNotFinite", "KvMemoryShort", "BundleInvalid"} < by_status[500]


# --- limits ----------------------------------------------------------------------------------------------------


def test_an_upload_without_a_length_ends_at_the_limit(start: Start) -> None:
    """Of 200 MB little is sent: the client is answered, then the connection ends."""
    server, sent = start(ServerSettings(max_upload_bytes=1_000_000)), 0
    lines = ["POST /v1/audio/transcriptions HTTP/1.1", "Host: x", "Transfer-Encoding: chunked"]
    head = "\r\n".join([*lines, "Content-Type: multipart/form-data; boundary=x", "", ""]).encode()
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        reader = ThreadPoolExecutor(1)
        answer = reader.submit(connection.recv, 10_000)
        connection.sendall(head + b"%x\r\n%b\r\n" % (len(form), form))
        with contextlib.suppress(OSError):
            for _ in range(2_000):
                connection.sendall(b"186a0\r\n" + bytes(100_000) + b"\r\n")
                sent += 1
        said = answer.result(20)
    reader.shutdown()
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"upload_too_large" in said
    assert b"1 MB" in said
    assert sent < 1_000  # the limit, what is thrown away, and what the socket's buffers hold


def test_a_client_that_sends_on_is_not_cut_off(start: Start) -> None:
    """The connection was once reset under it, and the answer lost."""
    server = start(ServerSettings(api_keys=("key",)))
    lines = ["POST /v1/audio/transcriptions HTTP/1.1", "Host: x", "Content-Length: 4000000", "", ""]
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall("\r\n".join(lines).encode() + bytes(1_000_000))
        stream = connection.makefile("rb")
        assert stream.readline().startswith(b"HTTP/1.1 401 ")
        connection.sendall(bytes(3_000_000))
        assert b"invalid_api_key" in stream.read()  # and then the end, not an error


def test_an_upload_that_tells_its_length_is_not_read_at_all(start: Start) -> None:
    server = start(ServerSettings(max_upload_bytes=1_000_000))
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "1000001"}
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        lines = ["POST /v1/audio/transcriptions HTTP/1.1", "Host: x", *(f"{k}: {v}" for k, v in headers.items())]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert connection.makefile("rb").readline().startswith(b"HTTP/1.1 413 ")


def _flac(seconds: int, *, told: bool = True) -> bytes:
    """Silence, which takes a few kilobytes an hour."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8_000, 1, format="FLAC") as flac:
        for _ in range(seconds // 60):
            flac.write(np.zeros(8_000 * 60, np.int16))
    data = bytearray(file.getvalue())
    if not told:  # the last 36 bits before the checksum: how many samples there are; 0: unknown
        data[21] &= 0xF0
        data[22:26] = bytes(4)
    return bytes(data)


def test_hours_in_a_small_file_are_refused_by_the_header(start: Start, model: Recognizer) -> None:
    server, before = start(ServerSettings(max_audio_seconds=3_600)), model.metrics.snapshot().submitted
    bomb = _flac(2 * 3_600)
    assert len(bomb) < 500_000
    for path, fields in (("transcriptions", {}), ("alignments", {"text": "x"})):
        with httpx.Client(base_url=server.url, timeout=30) as http:
            answer = http.post(f"/v1/audio/{path}", files={"file": ("a.flac", bomb)}, data={"model": MODEL} | fields)
        assert (answer.status_code, _problem(answer)["code"]) == (413, "audio_too_long")
    assert model.metrics.snapshot().submitted == before


def test_what_the_header_does_not_tell_is_refused_while_it_is_decoded(start: Start) -> None:
    server = start(ServerSettings(max_audio_seconds=300))
    with httpx.Client(base_url=server.url, timeout=30) as http:
        for seconds, status in ((240, 200), (600, 413)):
            audio = _flac(seconds, told=False)
            assert soundfile.info(io.BytesIO(audio)).frames > 1 << 62
            answer = http.post("/v1/audio/transcriptions", files={"file": ("a.flac", audio)}, data={"model": MODEL})
            assert answer.status_code == status
    assert _problem(answer)["code"] == "audio_too_long"


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not on the PATH")
def test_what_ffmpeg_unpacks_is_counted_too(start: Start, tmp_path: Path) -> None:
    command = ["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", "anullsrc=r=8000:cl=mono", "-t", "120", "a.m4a"]
    subprocess.run(command, cwd=tmp_path, check=True)
    bomb = (tmp_path / "a.m4a").read_bytes()
    with httpx.Client(base_url=start(ServerSettings(max_audio_seconds=30)).url, timeout=30) as http:
        answer = http.post("/v1/audio/transcriptions", files={"file": ("a.m4a", bomb)}, data={"model": MODEL})
        assert (answer.status_code, _problem(answer)["code"]) == (413, "audio_too_long")


def test_a_full_server_says_when_to_come_again(
    small: Recognizer, start: Start, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, server, spoken = Gate(small, monkeypatch), start(other=small), recordings["german"]
    begun = [Background(server, spoken) for _ in range(2)]  # one slot, one place to wait
    gate.wait_for(2)
    with httpx.Client(base_url=server.url, timeout=30) as http:
        for parameters in ({}, {"stream": "true"}):
            answer = _send(http, spoken, **parameters)
            assert (answer.status_code, _problem(answer)["code"]) == (429, "rate_limit_exceeded")
            assert int(answer.headers["Retry-After"]) >= 1
        gate.open.set()
        assert [one.result().json()["text"] for one in begun] == [spoken.text] * 2
        assert _send(http, spoken).json()["text"] == spoken.text


def test_a_request_that_takes_too_long_is_given_up(
    small: Recognizer, start: Start, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, server = Gate(small, monkeypatch), start(ServerSettings(request_seconds=0.5), small)
    before = small.metrics.snapshot()
    with httpx.Client(base_url=server.url, timeout=30) as http:
        for parameters in ({}, {"stream": "true"}):
            answer = _send(http, recordings["german"], **parameters)
            assert (answer.status_code, _problem(answer)["code"]) == (504, "timeout")
    gate.open.set()
    _wait(lambda: small.metrics.snapshot().finished.get("cancelled", 0) - before.finished.get("cancelled", 0) == 2)
    assert small.transcribe(recordings["german"].path).text == recordings["german"].text


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_client_that_leaves_takes_its_request_along(
    small: Recognizer, start: Start, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    gate, server = Gate(small, monkeypatch), start(other=small)
    lifecycle, before = server.app.state.lifecycle, small.metrics.snapshot()
    with httpx.Client(base_url=server.url, timeout=0.5) as impatient, pytest.raises(httpx.ReadTimeout):
        _send(impatient, recordings["german"], stream=stream)
    _wait(lambda: lifecycle.running == 0)
    gate.open.set()
    _wait(lambda: small.metrics.snapshot().finished.get("cancelled", 0) > before.finished.get("cancelled", 0))
    after = small.metrics.snapshot()
    assert after.tokens == before.tokens  # nothing was decoded for nobody
    assert (after.active_rows, after.queue_depth) == (0, 0)


def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_its_slot(
    small: Recognizer, start: Start, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, calls, parts = threading.Event(), 0, small._transcriber._parts

    def held(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1 and not left.wait(20):
            raise TimeoutError("the client did not leave")
        return parts(*arguments)

    monkeypatch.setattr(small._transcriber, "_parts", held)
    server, audio = start(other=small), _joined(recordings, ["spanish"] * 40)
    with (
        httpx.Client(base_url=server.url, timeout=30) as http,
        http.stream(
            "POST", "/v1/audio/transcriptions", files={"file": audio}, data={"model": MODEL, "stream": "true"}
        ) as answer,
    ):
        assert "transcript.text.delta" in next(answer.iter_lines())
    _wait(lambda: server.app.state.lifecycle.running == 0)
    left.set()
    _wait(lambda: (small.metrics.snapshot().active_rows, small.metrics.snapshot().queue_depth) == (0, 0))
    assert calls <= 3
    assert small.transcribe(recordings["german"].path).text == recordings["german"].text


# --- keys, ids, logs -------------------------------------------------------------------------------------------


def test_any_of_the_keys_opens_and_nothing_else_does(start: Start, recordings: dict[str, Recording]) -> None:
    server = start(ServerSettings(api_keys=("one-key", "schlüssel")))
    with httpx.Client(base_url=server.url, timeout=30) as http:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic one-key"},
                       {"Authorization": "Bearer"}, {"Authorization": "Bearer one-key2"}):  # fmt: skip
            answer = http.get("/v1/models", headers=header)
            assert (answer.status_code, _problem(answer)["code"]) == (401, "invalid_api_key")
        answer = _send(http, recordings["german"])
        assert answer.status_code == 401
        for path in ("/health", "/ready", "/metrics"):
            assert http.get(path).status_code == 200
        for key in ("one-key", "schlüssel"):
            assert http.get("/v1/models", headers={"Authorization": f"Bearer {key}".encode()}).status_code == 200
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="one-key", max_retries=0) as client:
        assert client.audio.transcriptions.create(model=MODEL, file=recordings["german"].path).text
    wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key="two", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()


def test_every_answer_has_an_id_and_the_log_has_it_too(
    http: httpx.Client, recordings: dict[str, Recording], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "qwen3asr")
    assert http.get("/health", headers={"X-Request-ID": "call-7"}).headers["X-Request-ID"] == "call-7"
    for bad in ("", "a b", "x" * 129, "<script>"):
        made = http.get("/health", headers={"X-Request-ID": bad}).headers["X-Request-ID"]
        assert made.startswith("req_")
    answer = _send(http, recordings["german"], prompt="geheim")
    name = answer.headers["X-Request-ID"]
    _wait(lambda: any(name in record.getMessage() for record in caplog.records))
    assert "POST /v1/audio/transcriptions 200" in caplog.text
    for secret in (recordings["german"].text, "geheim", "german.flac"):
        assert secret not in caplog.text


def test_a_failure_tells_the_log_everything_and_the_client_nothing(
    http: httpx.Client, model: Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    from qwen3asr.errors import BackendFailed

    for error in (ValueError("a secret"), BackendFailed("ORT", ValueError("a secret"))):
        caplog.clear()

        def failing(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(model._transcriber, "transcribe", failing)
            answer = _send(http, recordings["german"])
        assert (answer.status_code, _problem(answer)["code"]) == (500, "internal_error")
        assert "secret" not in answer.text
        _wait(lambda: "Traceback" in caplog.text)
        assert "a secret" in caplog.text
        assert answer.headers["X-Request-ID"] in caplog.text
    assert _send(http, recordings["german"]).json()["text"] == recordings["german"].text


def test_other_origins(start: Start) -> None:
    server = start(ServerSettings(cors_origins=("https://example.org",), api_keys=("key",)))
    with httpx.Client(base_url=server.url) as http:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        answer = http.options("/v1/audio/transcriptions", headers={"Origin": "https://example.org"} | asked)
        assert answer.headers["Access-Control-Allow-Origin"] == "https://example.org"
        answer = http.get("/v1/models", headers={"Origin": "https://example.org"})
        assert answer.status_code == 401
        assert answer.headers["Access-Control-Allow-Origin"] == "https://example.org"  # or the page cannot read why
        answer = http.get("/health", headers={"Origin": "https://elsewhere.org"})
        assert "Access-Control-Allow-Origin" not in answer.headers


# --- alignment, health, stopping -------------------------------------------------------------------------------


def test_alignment(http: httpx.Client, model: Recognizer, recordings: dict[str, Recording]) -> None:
    text = recordings["english"].text.capitalize() + "."
    files = {"file": recordings["english"].path.read_bytes()}
    answer = http.post("/v1/audio/alignments", files=files, data={"text": text, "language": "en"})
    wanted = model.align(recordings["english"].path, text, language="en")
    assert answer.json() == {
        "text": text,
        "words": [{"word": w.text, "start": round(w.start, 3), "end": round(w.end, 3)} for w in wanted],
    }
    for fields, parameter in (({}, "text"), ({"text": "x", "language": "Klingon"}, "language")):
        answer = http.post("/v1/audio/alignments", files=files, data=fields)
        assert (answer.status_code, _problem(answer)["param"]) == (400, parameter)


def test_alignments_at_a_time_are_bounded(
    model: Recognizer, start: Start, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, opened, entered, align = start(), threading.Event(), threading.Semaphore(0), model.align

    def held(*arguments: Any, **options: Any) -> Any:
        entered.release()
        opened.wait(20)
        return align(*arguments, **options)

    monkeypatch.setattr(model, "align", held)
    monkeypatch.setattr(type(model), "kv_cache", property(lambda _: qwen3asr.KvCache(2, 1, 1)))
    request = {"files": {"file": recordings["german"].path.read_bytes()}, "data": {"text": recordings["german"].text}}
    with httpx.Client(base_url=server.url, timeout=0.5) as impatient:  # leaves, but its alignment goes on
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                impatient.post("/v1/audio/alignments", **request)
    assert all(entered.acquire(timeout=20) for _ in range(2))
    with httpx.Client(base_url=server.url, timeout=30) as http:
        answer = http.post("/v1/audio/alignments", **request)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
        opened.set()
        _wait(lambda: http.post("/v1/audio/alignments", **request).status_code == 200)


def test_without_an_aligner(small: Recognizer, start: Start, recordings: dict[str, Recording]) -> None:
    server = start(other=small)
    with httpx.Client(base_url=server.url, timeout=30) as http:
        words = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
        answer = _send(http, recordings["german"], **words)
        assert (answer.status_code, _problem(answer)["code"]) == (400, "aligner_missing")
        answer = http.post("/v1/audio/alignments", files={"file": b"x"}, data={"text": "x"})
        assert (answer.status_code, _problem(answer)["code"]) == (400, "aligner_missing")
        answer = _send(http, recordings["german"], response_format="verbose_json")
        assert [segment["text"] for segment in answer.json()["segments"]] == [recordings["german"].text]
        assert answer.json()["segments"][0]["avg_logprob"] < 0
        assert recordings["german"].text in _send(http, recordings["german"], response_format="srt").text


def test_metrics_count_what_the_model_did(http: httpx.Client, recordings: dict[str, Recording]) -> None:
    def submitted() -> float:
        families = text_string_to_metric_families(http.get("/metrics").text)
        return next(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "qwen3asr_requests_submitted_total" and sample.labels == {"model": MODEL}
        )

    before = submitted()
    _send(http, recordings["german"])
    assert submitted() == before + 1


def test_a_draining_server_finishes_what_it_began(
    small: Recognizer, start: Start, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, server, spoken = Gate(small, monkeypatch), start(other=small), recordings["german"]
    with httpx.Client(base_url=server.url, timeout=30) as http:
        assert http.get("/ready").status_code == 200
        begun = Background(server, spoken)
        gate.wait_for(1)
        server.drain()
        _wait(lambda: http.get("/ready").status_code == 503)
        assert http.get("/health").json() == {"status": "alive"}
        answer = _send(http, spoken)
        assert (answer.status_code, _problem(answer)["code"]) == (503, "server_stopping")
        assert answer.headers["Retry-After"] == "1"
        gate.open.set()
        assert begun.result().json()["text"] == spoken.text


def test_a_closed_model_is_not_ready(asr_bundle: Path, start: Start, recordings: dict[str, Recording]) -> None:
    model = qwen3asr.load(asr_bundle, slots=1)
    server = start(other=model)
    model.close()
    with httpx.Client(base_url=server.url, timeout=30) as http:
        for answer in (http.get("/ready"), _send(http, recordings["german"])):
            assert (answer.status_code, _problem(answer)["code"]) == (503, "server_stopping")
        assert http.get("/health").status_code == 200


@pytest.mark.parametrize(
    "settings",
    [{"max_upload_bytes": 0}, {"request_seconds": -1}, {"model_name": ""}, {"api_keys": ("",)}, {"drain_seconds": -1}],
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(RequestInvalid, match=next(iter(settings)).removesuffix("s").replace("api_key", "API key")):
        ServerSettings(**settings)
