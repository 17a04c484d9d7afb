"""Long audio, many clips, deadlines and cancelling, on the tiny trained models."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tests.conftest import Recording

import qwen3asr
from qwen3asr import EchoGuard, Guards, LoopGuard, Progress, Recognizer, Transcript
from qwen3asr.errors import (
    AudioNotFound,
    AudioTooLong,
    DeadlineExceeded,
    EngineBusy,
    EngineClosed,
    KvMemoryShort,
    Qwen3AsrError,
    RequestInvalid,
)
from qwen3asr.features import Samples
from qwen3asr.generate import Generation
from qwen3asr.longform import pieces
from qwen3asr.request import Cancellation, Request
from qwen3asr.transcription import Transcriber, _Run
from qwen3asr.vad import EnergyDetector

RATE = 16_000


def _samples(recording: Recording) -> Samples:
    return np.asarray(soundfile.read(recording.path, dtype="float32")[0])


def _long(recordings: dict[str, Recording], names: list[str], gap: float = 1.0) -> Samples:
    """Recordings one after the other, with pauses of faint noise."""
    rng = np.random.default_rng(0)
    parts = []
    for name in names:
        parts += [_samples(recordings[name]), rng.normal(0, 1e-4, int(gap * RATE)).astype(np.float32)]
    return np.concatenate(parts)


# --- long audio ------------------------------------------------------------------------------------------------


def test_long_audio_is_cut_at_pauses_and_every_word_is_right(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    names = ["spanish", "spanish"] * 6
    result = model.transcribe(_long(recordings, names), piece_seconds=7.0, timestamps="word")
    assert result.text == " ".join(recordings[name].text for name in names)
    assert (result.language, result.finish_reason) == ("Spanish", "stop")
    assert {segment.language for segment in result.segments} == {"Spanish"}
    starts = [word.start for word in result.words]
    assert starts == sorted(starts)
    assert len(result.words) == 4 * len(names)
    assert all(result.text[slice(*word.span)] == word.text for word in result.words)
    each = len(_samples(recordings["spanish"])) / RATE + 1.0
    firsts = np.array(starts[::4]) - each * np.arange(len(names))
    true = float(str(recordings["spanish"].words[0]["start"]))
    assert np.abs(firsts - true).max() < 0.5


def test_a_long_text_is_that_of_its_pieces_alone(model: Recognizer, recordings: dict[str, Recording]) -> None:
    audio = _long(recordings, ["english", "german", "chinese", "silence", "spanish", "english-long"])
    cut = list(pieces([audio], longest=9.0, detector=EnergyDetector()))
    alone = [model.transcribe(piece.samples, split=False) for piece in cut]
    reports: list[Progress] = []
    whole = model.transcribe(audio, piece_seconds=9.0, progress=reports.append)
    said = [result.text for result in alone if result.text]
    position = 0
    for text in said:  # in order, whatever stands between them
        position = whole.text.index(text, position) + len(text)
    assert len(whole.text.replace(" ", "")) == sum(len(text.replace(" ", "")) for text in said)
    assert [report.done for report in reports] == pytest.approx([piece.end for piece in cut])
    assert {report.total for report in reports} == {len(audio) / RATE}
    assert [segment for report in reports for segment in report.segments if segment.text]
    assert whole.duration == len(audio) / RATE


def test_a_piece_whose_text_would_be_cut_goes_on_in_halves(
    model: Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text past the budget was once lost without a word."""
    audio = _long(recordings, ["spanish"] * 4)
    monkeypatch.setattr(Transcriber, "budget", lambda *_: 9)  # "language Spanish<asr_text>" and one recording's words
    result = model.transcribe(audio)
    assert (result.text, result.finish_reason) == (" ".join([recordings["spanish"].text] * 4), "stop")


def test_what_cannot_go_on_says_that_it_is_cut(
    model: Recognizer,
    recordings: dict[str, Recording],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Transcriber, "budget", lambda *_: 4)
    with caplog.at_level(logging.WARNING, "qwen3asr"):
        result = model.transcribe(recordings["spanish"].path)
    assert result.finish_reason == "length"
    assert "the text is cut after 4 tokens" in caplog.text


def test_audio_that_needs_more_than_a_pass_is_refused_where_it_may_not_be_split(asr_bundle: Path) -> None:
    small = qwen3asr.load(asr_bundle, capacity=400)
    silence = np.zeros(21 * RATE, np.float32)
    assert small.transcribe(silence).finish_reason == "no_speech"
    assert small.transcribe(silence[: 19 * RATE], split=False).duration == 19.0
    with pytest.raises(AudioTooLong, match=r"21\.0 s of audio .* takes (19|20)\.. s; load the model with a larger"):
        small.transcribe(silence, split=False)
    file = io.BytesIO()
    soundfile.write(file, silence, RATE, format="WAV")
    with pytest.raises(AudioTooLong):
        small.transcribe(file.getvalue(), split=False)
    with pytest.raises(RequestInvalid, match=r"takes 19\.\d s of audio in a pass beside"):
        small.transcribe(silence, piece_seconds=30)


def test_a_text_longer_than_the_aligner_takes_is_aligned_piece_by_piece(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    """The tiny aligner takes 32 s."""
    names = ["spanish"] * 14
    text = ", ".join(recordings[name].text for name in names) + "."
    words = model.align(_long(recordings, names), text, language="es", piece_seconds=7.0)
    assert [word.text for word in words] == text.replace(",", "").replace(".", "").split()
    assert all(text[slice(*word.span)] == word.text for word in words)
    starts = [word.start for word in words]
    assert starts == sorted(starts)
    each = len(_samples(recordings["spanish"])) / RATE + 1.0
    late = np.array(starts[::4]) - each * np.arange(len(names))
    assert np.median(np.abs(late)) < 0.5


# --- many clips ------------------------------------------------------------------------------------------------

NAMES = ["english", "german", "spanish", "chinese", "german-short", "silence"]


def test_a_batch_gives_each_clips_text_in_order(model: Recognizer, recordings: dict[str, Recording]) -> None:
    opened = 0

    def paths() -> Iterator[Path]:
        nonlocal opened
        for name in NAMES * 4:
            opened += 1
            yield recordings[name].path

    results = model.transcribe_each(paths())
    first = next(results)
    assert opened <= model.kv_cache.slots + 1  # read as they are needed
    assert [str(result) for result in [first, *results]] == [recordings[name].text for name in NAMES * 4]


def test_a_clip_that_fails_is_reported_and_the_others_go_on(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    clips = [recordings["english"].path, "nowhere.wav", recordings["german"].path]
    first, second, third = model.transcribe_each(clips)
    assert (str(first), str(third)) == (recordings["english"].text, recordings["german"].text)
    assert isinstance(second, AudioNotFound)
    with pytest.raises(AudioNotFound):
        model.transcribe_batch(clips)


def test_options_are_checked_before_the_first_clip_is_read(model: Recognizer) -> None:
    with pytest.raises(RequestInvalid):
        model.transcribe_each(iter(lambda: pytest.fail("read"), None), max_new_tokens=0)


def test_asyncio_transcribes_beside_other_work(model: Recognizer, recordings: dict[str, Recording]) -> None:
    async def scene() -> list[Transcript]:
        return list(await asyncio.gather(*(model.transcribe_async(recordings[name].path) for name in NAMES)))

    assert [result.text for result in asyncio.run(scene())] == [recordings[name].text for name in NAMES]


def test_a_cancelled_request_gives_up_its_place(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    alone = qwen3asr.load(asr_bundle, slots=1)
    audio = _long(recordings, ["spanish"] * 200)

    async def scene() -> str:
        begun = threading.Event()
        long = asyncio.create_task(alone.transcribe_async(audio, piece_seconds=7.0))
        while not alone.metrics.snapshot().submitted:
            await asyncio.sleep(0)
        long.cancel()
        result = await alone.transcribe_async(recordings["german"].path)
        begun.set()
        with pytest.raises(asyncio.CancelledError):
            await long
        return result.text

    assert asyncio.run(scene()) == recordings["german"].text
    alone.close(drain=True)
    assert alone.metrics.snapshot().submitted < 50


def test_a_timeout_ends_a_long_transcription(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    with qwen3asr.load(asr_bundle) as own:
        with pytest.raises(DeadlineExceeded, match=r"within its 0\.2 s"):
            own.transcribe(_long(recordings, ["spanish"] * 400), piece_seconds=7.0, timeout=0.2)
        with pytest.raises(RequestInvalid, match="leaves no time"):
            own.check(timeout=0.0)


def test_a_timeout_counts_while_a_request_waits_for_a_thread(
    asr_bundle: Path, recordings: dict[str, Recording]
) -> None:
    """It began only when one of the model's threads took the request up."""
    with qwen3asr.load(asr_bundle, slots=1) as own:
        go = threading.Event()
        for _ in range(2):  # all that there are
            own._threads.submit(go.wait)

        async def scene() -> None:
            task = asyncio.create_task(own.transcribe_async(recordings["german"].path, timeout=0.1))
            await asyncio.wait([task], timeout=0.2)
            go.set()
            with pytest.raises(DeadlineExceeded):
                await task

        asyncio.run(scene())
        assert own.metrics.snapshot().submitted == 0


def test_a_pass_that_is_out_of_time_tells_the_time_of_the_request() -> None:
    """It told what was left to the pass: 0.0 s."""
    run, future = _Run(Request(timeout=5.0), "clip", Cancellation(), 0.0, patient=False), Future[Generation]()
    future.set_exception(DeadlineExceeded(0.01))
    with pytest.raises(DeadlineExceeded, match=r"within its 5\.0 s"):
        run.wait(future)


def test_draining_finishes_what_was_begun_to_its_last_piece(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    """Later pieces of a long file were refused, and the file with them."""
    own = qwen3asr.load(asr_bundle, slots=1)
    closer = threading.Thread(target=own.close, kwargs={"drain": True})

    def close(_: Progress) -> None:
        if closer.ident is None:
            closer.start()
            while not own._callers.closed:
                closer.join(0.001)
            with pytest.raises(EngineClosed):
                own.transcribe(recordings["german"].path)

    result = own.transcribe(_long(recordings, ["spanish"] * 6), piece_seconds=7.0, progress=close)
    assert result.text == " ".join([recordings["spanish"].text] * 6)
    closer.join(60)
    assert not closer.is_alive()
    with pytest.raises(EngineClosed):
        list(own.transcribe_each([recordings["german"].path]))


@pytest.mark.parametrize(("slots", "most"), [(1, 1), (2, 1), (3, 2)])
def test_a_long_file_leaves_a_slot_to_others(
    asr_bundle: Path, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch, slots: int, most: int
) -> None:
    """Its pieces took all slots, and who came later waited for one of them to end."""
    begun, ended, held = 0, 0, list[int]()
    attempt, parts = Transcriber._attempt, Transcriber._parts

    def begin(*arguments: Any) -> Any:
        nonlocal begun
        begun += 1
        held.append(begun - ended)
        return attempt(*arguments)

    def end(*arguments: Any) -> Any:
        nonlocal ended
        ended += 1
        return parts(*arguments)

    monkeypatch.setattr(Transcriber, "_attempt", begin)
    monkeypatch.setattr(Transcriber, "_parts", end)
    with qwen3asr.load(asr_bundle, slots=slots) as own:
        own.transcribe(_long(recordings, ["spanish"] * 6), piece_seconds=7.0)
    assert max(held) == most


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_that_bounds_nothing_is_refused(model: Recognizer, seconds: float) -> None:
    with pytest.raises(RequestInvalid, match="max_seconds"):
        model.check(max_seconds=seconds)
    with pytest.raises(RequestInvalid, match="max_seconds"):
        model.align(np.zeros(RATE, np.float32), "eins", max_seconds=seconds)


def test_a_full_queue_refuses_and_a_closed_model_says_so(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    small = qwen3asr.load(asr_bundle, slots=1, queue=1)

    async def crowd() -> list[object]:
        clips = [small.transcribe_async(recordings["german"].path) for _ in range(8)]
        return list(await asyncio.gather(*clips, return_exceptions=True))

    results = asyncio.run(crowd())
    refused = [result for result in results if isinstance(result, EngineBusy)]
    assert 1 <= len(refused) <= 6
    assert all(isinstance(result, Transcript) for result in results if not isinstance(result, Qwen3AsrError))
    small.close()
    with pytest.raises(EngineClosed):
        small.transcribe(recordings["german"].path)
    with pytest.raises(EngineClosed):
        asyncio.run(small.transcribe_async(recordings["german"].path))


# --- guards ----------------------------------------------------------------------------------------------------


def test_long_silence_costs_nothing_and_invents_nothing(asr_bundle: Path) -> None:
    """The tiny recogniser writes words on half a minute of digital silence, if it is asked."""
    silence = np.zeros(30 * RATE, np.float32)
    with qwen3asr.load(asr_bundle) as guarded:
        result = guarded.transcribe(silence)
        assert (result.text, result.language, result.finish_reason) == ("", None, "no_speech")
        counted = guarded.metrics.snapshot()
        assert (counted.submitted, counted.no_speech) == (0, 1)
    with qwen3asr.load(asr_bundle, guards=Guards.off()) as unguarded:
        assert unguarded.transcribe(silence).text


def test_words_on_steady_noise_are_dropped(asr_bundle: Path) -> None:
    rng = np.random.default_rng(3)
    with qwen3asr.load(asr_bundle) as guarded:
        for level in (0.003, 0.03):
            noise = rng.normal(0, level, 12 * RATE).astype(np.float32)
            assert guarded.transcribe(noise).text == ""


def test_a_loop_ends_the_text_and_says_so(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    """It ends with "vier vier": with a guard this strict, a loop."""
    strict = Guards(loop=LoopGuard(copies=1, fewest=2))
    with qwen3asr.load(asr_bundle, guards=strict) as guarded:
        result = guarded.transcribe(recordings["german"].path, split=False)
        cut = recordings["german"].text.removesuffix(" vier")
        assert (result.text, result.finish_reason, result.language) == (cut, "loop", "German")
        submitted = guarded.metrics.snapshot().submitted
        assert guarded.transcribe(recordings["german"].path).text.startswith("heute heute")
        assert guarded.metrics.snapshot().submitted == submitted + 3  # and again in two halves
    with qwen3asr.load(asr_bundle, guards=Guards(loop=None)) as unguarded:
        assert unguarded.transcribe(recordings["german"].path).text == recordings["german"].text


@pytest.mark.parametrize("really_said", [True, False])
def test_a_text_of_the_contexts_own_words_is_decoded_again_without_it(
    asr_bundle: Path, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch, really_said: bool
) -> None:
    wanted = recordings["german-short"]
    heard: list[str] = []

    def echo(_: EchoGuard, without_context: str) -> bool:
        heard.append(without_context)
        return not really_said

    monkeypatch.setattr(EchoGuard, "echo", echo)
    with qwen3asr.load(asr_bundle) as own:
        result = own.transcribe(wanted.path, context=f"drei, {wanted.text}")
        assert heard == [wanted.text]
        assert (result.text, result.finish_reason) == ((wanted.text, "stop") if really_said else ("", "no_speech"))
        own.transcribe(wanted.path, context="drei, hola")  # other words: nothing to suspect
    with qwen3asr.load(asr_bundle, guards=Guards(echo=None)) as unguarded:
        assert unguarded.transcribe(wanted.path, context=wanted.text).text == wanted.text
    assert len(heard) == 1


# --- memory ----------------------------------------------------------------------------------------------------


def test_slots_and_capacity_are_shown_and_what_does_not_fit_is_refused(
    asr_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "qwen3asr"):
        own = qwen3asr.load(asr_bundle, slots=3, capacity=1000)
    cache = own.kv_cache
    assert (cache.slots, cache.capacity) == (3, 1000)
    assert "KV cache of 3 slots of 1000 tokens" in caplog.text
    spec = own.bundle.spec
    assert cache.bytes == 3 * 1000 * 2 * spec.layers * spec.kv_heads * spec.head_dim * 4
    with pytest.raises(KvMemoryShort, match="fit"):
        qwen3asr.load(asr_bundle, slots=10_000_000)
    with pytest.raises(RequestInvalid):
        qwen3asr.load(asr_bundle, slots=0)


def test_slots_are_counted_in_what_the_weights_leave(asr_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were counted in all that was free before the weights came."""
    with qwen3asr.load(asr_bundle, slots=1, capacity=1000) as own:
        free = own.bundle.bytes + 6 * own.kv_cache.bytes
    monkeypatch.setattr("qwen3asr.backends.free_bytes", lambda: free)
    with qwen3asr.load(asr_bundle, capacity=1000) as own:
        assert own.kv_cache.slots == 3  # half of them
