"""What breaks under a running server: nobody waits for ever, neighbours go on, and the error says what it is."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.abuse.gates import Gate, decoder_of, encoder_of
from tests.abuse.serving import Background, problem, stoppable, transcribe
from tests.conftest import ROOT, Recording

import qwen3asr
from qwen3asr import Recognizer
from qwen3asr.errors import BackendFailed, DiskFull, EngineFailed, Qwen3AsrError
from qwen3asr.server import ServerSettings
from qwen3asr_export import export


def _raise(error: BaseException) -> Callable[[Any], Any]:
    def act(_: Any) -> Any:
        raise error

    return act


# --- sessions that fail ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [BackendFailed("it", ValueError("x")), MemoryError("no room"), OSError("gone")])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_session_that_raises_harms_its_own_request_only(
    private: Recognizer, recordings: dict[str, Recording], error: Exception, step: int
) -> None:
    """Calls of the decoder: prefill, then steps; the neighbour is decoded beside it, then and afterwards."""
    decoder, calls, run = decoder_of(private), 0, decoder_of(private).run
    spoken, wanted = recordings["german"], recordings["spanish"]

    def failing(ids: Any, audio: Any, take: Any, slots: range, past: Any) -> Any:
        nonlocal calls
        calls += slots.start == 0
        if calls >= step and slots.start == 0:
            raise error
        return run(ids, audio, take, slots, past)

    decoder.run = failing  # type: ignore[method-assign]
    with stoppable(private) as server, ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda each: transcribe(server.url, each.path.read_bytes()), (spoken, wanted)))
        failed = [answer for answer in both if answer.status_code != 200]
        assert failed
        assert {(answer.status_code, problem(answer)["code"]) for answer in failed} == {(500, "internal_error")}
        texts = {answer.json()["text"] for answer in both if answer.status_code == 200}
        assert texts <= {spoken.text, wanted.text}
        decoder.run = run  # type: ignore[method-assign]
        assert transcribe(server.url, wanted.path.read_bytes()).json()["text"] == wanted.text
        assert server.lifecycle.running == 0


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_answers_that_are_not_finite_are_an_error_and_no_text(
    private: Recognizer, recordings: dict[str, Recording], part: str
) -> None:
    session = encoder_of(private) if part == "encoder" else decoder_of(private)
    run = session.run

    def poisoned(*arguments: Any) -> Any:
        result = run(*arguments)
        (result if part == "encoder" else result.logprobs)[...] = np.nan
        return result

    session.run = poisoned  # type: ignore[method-assign]
    with private, pytest.raises(Qwen3AsrError, match="NaN or infinity"):
        private.transcribe(recordings["german"].path)
    del session.run  # type: ignore[misc]


def test_a_dead_worker_thread_is_told_to_its_callers_and_the_next_request_is_served(
    private: Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    step = private.engine._batch._step
    spoken = recordings["german"]
    with stoppable(private) as server:
        private.engine._batch._step = _raise(SystemExit())  # type: ignore[method-assign]
        answer = transcribe(server.url, spoken.path.read_bytes())
        assert (answer.status_code, problem(answer)["code"]) == (503, "model_failed")
        private.engine._batch._step = step  # type: ignore[method-assign]
        assert transcribe(server.url, spoken.path.read_bytes()).json()["text"] == spoken.text


def test_where_the_system_gives_no_thread_the_request_is_refused_and_nothing_is_left(
    private: Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job used to stay in the queue, where nobody waited for it."""
    start = threading.Thread.start

    def refusing(thread: threading.Thread) -> None:
        if thread.name == "qwen3asr-engine":
            raise RuntimeError("can't start new thread")
        start(thread)

    with private, monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refusing)
        with pytest.raises(EngineFailed, match="can't start new thread"):
            private.transcribe(recordings["german"].path)
        assert not private.engine._batch.tasks
        patch.undo()
        assert private.transcribe(recordings["german"].path).text == recordings["german"].text


def test_no_disk_for_an_upload_is_said_and_the_next_one_is_served(
    private: Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    spoken = recordings["german"]
    with stoppable(private) as server:
        with monkeypatch.context() as patch:
            patch.setattr(tempfile.SpooledTemporaryFile, "write", full)
            answer = transcribe(server.url, spoken.path.read_bytes())
            assert (answer.status_code, problem(answer)["code"]) == (500, "internal_error")
        assert transcribe(server.url, spoken.path.read_bytes()).json()["text"] == spoken.text
        assert server.lifecycle.running == 0


# --- disk, bundle, clock ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 200_000, 1_000_000])
def test_a_disk_that_fills_during_an_export_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The graphs' weights are written by Python: the write that would pass ``after`` bytes finds no room."""
    import io

    written, open_file = 0, io.open

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        stream = open_file(file, mode, *arguments, **options)
        if "w" not in mode or tmp_path not in Path(os.fsdecode(file)).parents:
            return stream
        write = stream.write

        class Full:
            def __getattr__(self, name: str) -> Any:
                return getattr(stream, name)

            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: object) -> None:
                stream.close()

            def write(self, data: Any) -> int:
                nonlocal written
                written += len(data)
                if written > after:
                    raise OSError(errno.ENOSPC, "no space left on device")
                return int(write(data))

        return Full()

    monkeypatch.setattr("io.open", opened)
    monkeypatch.setattr("builtins.open", opened)
    with pytest.raises(DiskFull, match="free"):
        export(ROOT / "examples/tiny/asr", tmp_path / "asr", precision="fp32", check=False)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_bundle_that_goes_while_it_is_served(
    asr_bundle: Path, tmp_path: Path, recordings: dict[str, Recording], change: str
) -> None:
    """What is loaded stays good; a folder is replaced by renaming, as export does it."""
    folder = Path(shutil.copytree(asr_bundle, tmp_path / "asr"))
    with qwen3asr.load(folder, slots=1) as model:
        before = model.transcribe(recordings["german"].path)
        folder.rename(tmp_path / "old")
        if change == "replaced":
            shutil.copytree(asr_bundle, folder)
        shutil.rmtree(tmp_path / "old")
        assert model.transcribe(recordings["german"].path) == before
        assert model.transcribe(recordings["spanish"].path).text == recordings["spanish"].text


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_the_wall_clock_may_jump(
    private: Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """Deadlines and limits are of the monotonic clock: none ends early, and none never."""
    gate, real = Gate(decoder_of(private), first=2), time.time
    with stoppable(private, ServerSettings(request_seconds=30)) as server:
        inside = Background(lambda: transcribe(server.url, recordings["german"].path.read_bytes()))
        assert gate.reached.wait(20)
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        gate.open.set()
        assert inside.result().json()["text"] == recordings["german"].text
