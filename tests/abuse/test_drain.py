"""Servers that stop, models that are closed and clients that go, in the middle of work."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import soundfile
from tests.abuse.gates import Gate, decoder_of
from tests.abuse.serving import MODEL, PATH, Background, problem, stoppable, transcribe, wait_for
from tests.conftest import Recording

import qwen3asr
from qwen3asr import Recognizer
from qwen3asr.errors import EngineClosed
from qwen3asr.server import ServerSettings

BRIEF = ServerSettings(drain_seconds=0.2)


# --- the drain time runs out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_request_inside_the_model_when_the_drain_time_runs_out_is_answered(
    private: Recognizer, recordings: dict[str, Recording], stream: str
) -> None:
    audio, gate = recordings["german"].path.read_bytes(), Gate(decoder_of(private), first=3)
    with stoppable(private, BRIEF) as server:
        inside = Background(lambda: transcribe(server.url, audio, stream=stream))
        assert gate.reached.wait(20)
        server.stop()
        wait_for(lambda: private.engine.closing)
        gate.open.set()
        answer = inside.result()
        assert (answer.status_code, problem(answer)["code"]) == (503, "server_stopping")
        assert answer.headers["Retry-After"] == "1"


def test_requests_that_wait_for_a_slot_when_the_drain_time_runs_out_are_answered(
    private: Recognizer, recordings: dict[str, Recording]
) -> None:
    audio, gate = recordings["german"].path.read_bytes(), Gate(decoder_of(private))
    with stoppable(private, BRIEF) as server:
        waiting = [Background(lambda: transcribe(server.url, audio)) for _ in range(6)]
        assert gate.reached.wait(20)
        wait_for(lambda: server.lifecycle.running == 6)
        server.stop()
        wait_for(lambda: private.engine.closing)
        gate.open.set()
        assert [problem(each.result())["code"] for each in waiting] == ["server_stopping"] * 6


def test_an_upload_that_is_not_done_when_the_drain_time_runs_out_is_answered(private: Recognizer) -> None:
    def endless() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(400):
            time.sleep(0.05)
            yield bytes(1_000)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with stoppable(private, BRIEF) as server:
        upload = Background(lambda: httpx.post(server.url + PATH, content=endless(), headers=headers, timeout=30))
        wait_for(lambda: server.lifecycle.running == 1)
        server.stop()
        answer = upload.result()
        assert (answer.status_code, problem(answer)["code"]) == (503, "server_stopping")


def test_an_alignment_under_way_when_the_drain_time_runs_out_is_answered(
    asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording]
) -> None:
    """It cannot be cancelled; its client is told all the same, and the server does not wait for it to close."""
    model, spoken = qwen3asr.load(asr_bundle, aligner=aligner_bundle, slots=8), recordings["german"]
    gate = Gate(model._aligner._encoder._session)  # type: ignore[union-attr]

    def align() -> httpx.Response:
        files, data = {"file": spoken.path.read_bytes()}, {"text": spoken.text}
        return httpx.post(f"{server.url}/v1/audio/alignments", files=files, data=data, timeout=30)

    with stoppable(model, BRIEF) as server:
        aligning = [Background(align) for _ in range(8)]
        assert gate.reached.wait(20)
        wait_for(lambda: server.lifecycle.running == 8)
        server.stop()
        assert [problem(each.result())["code"] for each in aligning] == ["server_stopping"] * 8
        gate.open.set()


def test_a_client_that_leaves_before_a_streams_first_text_is_no_error(
    private: Recognizer, recordings: dict[str, Recording], caplog: pytest.LogCaptureFixture
) -> None:
    """Its events used to be closed while they were still being made, which the log called a failed request."""
    gate, spoken = Gate(decoder_of(private), first=2), recordings["german"]
    with stoppable(private) as server:
        files, data = {"file": spoken.path.read_bytes()}, {"model": MODEL, "stream": "true"}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + PATH, files=files, data=data, timeout=0.5)
        wait_for(lambda: server.lifecycle.running == 0)
        gate.open.set()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


# --- closing, signals, clients that die ------------------------------------------------------------------------


def test_an_engine_closed_under_open_streams_ends_each_with_its_error(
    private: Recognizer, recordings: dict[str, Recording]
) -> None:
    samples, _ = soundfile.read(recordings["german"].path, dtype="float32")
    gate = Gate(decoder_of(private), first=2)

    async def scene() -> list[Any]:
        streams = [private.stream_async() for _ in range(4)]
        for stream in streams:
            await stream.push(samples)
        while not gate.reached.is_set():
            await asyncio.sleep(0.01)
        closing = asyncio.create_task(asyncio.to_thread(private.close))
        while not private.engine.closing:
            await asyncio.sleep(0.01)
        gate.open.set()
        endings = await asyncio.gather(*(stream.finish() for stream in streams), return_exceptions=True)
        await closing
        return endings

    endings = asyncio.run(asyncio.wait_for(scene(), 60))
    assert {type(each) for each in endings} == {EngineClosed}


def test_a_pool_that_was_closed_since_the_check_is_a_closed_engine(
    private: Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between the two used to be an internal error."""
    monkeypatch.setattr(private, "_request", lambda **_: private.close())
    with pytest.raises(EngineClosed):
        asyncio.run(private.transcribe_async(recordings["german"].path))


def test_a_client_that_is_killed_leaves_nothing_behind(private: Recognizer, recordings: dict[str, Recording]) -> None:
    gate, spoken = Gate(decoder_of(private), first=2), recordings["german"]
    code = (
        "import sys, httpx2\n"
        f"httpx2.post(sys.argv[1], files={{'file': open(sys.argv[2], 'rb')}}, data={{'model': {MODEL!r}}})"
    )
    with stoppable(private) as server:
        client = subprocess.Popen([sys.executable, "-c", code, server.url + PATH, str(spoken.path)])
        assert gate.reached.wait(30)
        client.send_signal(signal.SIGKILL)
        client.wait()
        wait_for(lambda: server.lifecycle.running == 0)
        gate.open.set()
        wait_for(lambda: not private.engine._batch.tasks)
        assert transcribe(server.url, spoken.path.read_bytes()).json()["text"] == spoken.text
    assert private.metrics.snapshot().finished["cancelled"] == 1
