"""The LiveKit plugin in LiveKit's own streams, adapters and sessions, over the tiny trained model."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr
from livekit import rtc
from livekit.agents import Agent, AgentSession, APIConnectOptions, APIError, APITimeoutError, LanguageCode, inference
from livekit.agents.metrics import STTMetrics
from livekit.agents.stt import FallbackAdapter, SpeechData, SpeechEvent, SpeechEventType, StreamAdapter, STTError
from livekit.agents.stt import RecognizeStream as AnyStream
from livekit.agents.voice.events import UserInputTranscribedEvent
from livekit.agents.voice.io import AudioInput
from tests.conftest import ROOT, Recording
from tests.integrations.quickstart import run_quickstart
from tests.integrations.stalls import TURNS, Stall, assert_never_blocked, longest_stall

import qwen3asr
from qwen3asr import LANGUAGES, EnergyDetector, Final, Partial, Recognizer, StreamSettings
from qwen3asr.errors import (
    AlignerMissing,
    ContextInvalid,
    DeadlineExceeded,
    EngineBusy,
    EngineClosed,
    LanguageUnknown,
    RequestInvalid,
)
from qwen3asr_plugins.livekit import STT

SPOKEN = ("english", "german-short", "spanish", "chinese")
PATIENCE = 30.0
ONCE = APIConnectOptions(max_retry=0)
AT_ONCE = APIConnectOptions(max_retry=3, retry_interval=0.0)
START, INTERIM, FINAL, END, USAGE = (
    SpeechEventType.START_OF_SPEECH,
    SpeechEventType.INTERIM_TRANSCRIPT,
    SpeechEventType.FINAL_TRANSCRIPT,
    SpeechEventType.END_OF_SPEECH,
    SpeechEventType.RECOGNITION_USAGE,
)


def _samples(recording: Recording, rate: int = 16_000) -> npt.NDArray[np.int16]:
    samples, original = soundfile.read(recording.path, dtype="float32")
    resampled = samples if rate == original else soxr.resample(samples, original, rate)
    return np.clip(resampled * 32768, -32768, 32767).astype(np.int16)


def _quiet(seconds: float, rate: int = 16_000) -> npt.NDArray[np.int16]:
    return np.zeros(round(seconds * rate), np.int16)


def _frames(*parts: npt.NDArray[np.int16], rate: int = 16_000, channels: int = 1) -> Iterator[rtc.AudioFrame]:
    """20 ms each, as a room gives them."""
    samples = np.repeat(np.concatenate(parts)[:, None], channels, axis=1)
    for at in range(0, len(samples), rate // 50):
        part = samples[at : at + rate // 50]
        yield rtc.AudioFrame(part.tobytes(), rate, channels, len(part))


def _spoken(recording: Recording, rate: int = 16_000, channels: int = 1) -> list[rtc.AudioFrame]:
    """With a second of silence before and a pause behind."""
    return list(_frames(_quiet(1, rate), _samples(recording, rate), _quiet(1.2, rate), rate=rate, channels=channels))


def _push(stream: AnyStream, frames: Sequence[rtc.AudioFrame]) -> None:
    for frame in frames:
        stream.push_frame(frame)


async def _rest(stream: AnyStream) -> list[SpeechEvent]:
    async with asyncio.timeout(PATIENCE):
        return [event async for event in stream]


async def _until(stream: AnyStream, kind: SpeechEventType) -> list[SpeechEvent]:
    events: list[SpeechEvent] = []
    async with asyncio.timeout(PATIENCE):
        while not events or events[-1].type is not kind:
            events.append(await anext(stream))
    return events


def _heard(speech: STT, frames: Sequence[rtc.AudioFrame], **options: Any) -> list[SpeechEvent]:
    async def scene() -> list[SpeechEvent]:
        async with speech.stream(**options) as stream:
            _push(stream, frames)
            stream.end_input()
            return await _rest(stream)

    return asyncio.run(scene())


def _texts(events: Sequence[SpeechEvent], kind: SpeechEventType = FINAL) -> list[str]:
    return [event.alternatives[0].text for event in events if event.type is kind]


def _finals(events: Sequence[SpeechEvent]) -> list[SpeechData]:
    return [event.alternatives[0] for event in events if event.type is FINAL]


def _usage(events: Sequence[SpeechEvent]) -> float:
    return sum(event.recognition_usage.audio_duration for event in events if event.recognition_usage)


def _kinds(events: Sequence[SpeechEvent]) -> list[SpeechEventType]:
    """Without usage, and many interims as one."""
    kinds = [event.type for event in events if event.type is not USAGE]
    return [kind for at, kind in enumerate(kinds) if at == 0 or (kind, kinds[at - 1]) != (INTERIM, INTERIM)]


# --- a recording at a time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 2)])
def test_recognize_gives_what_was_said(
    model: Recognizer, recordings: dict[str, Recording], name: str, rate: int, channels: int
) -> None:
    wanted = recordings[name]
    frames = list(_frames(_samples(wanted, rate), rate=rate, channels=channels))
    event = asyncio.run(STT(model=model).recognize(frames))
    assert event.type is FINAL
    (said,) = event.alternatives
    assert said.text == wanted.text
    assert said.language == LANGUAGES[str(wanted.language)]
    assert isinstance(said.language, LanguageCode)
    assert 0.5 < said.confidence <= 1
    assert said.words is None


def test_recognize_takes_one_frame_and_gives_word_times(model: Recognizer, recordings: dict[str, Recording]) -> None:
    wanted = recordings["english"]
    frame = rtc.combine_audio_frames(_spoken(wanted))
    (said,) = asyncio.run(STT(model=model, timestamps="word").recognize(frame)).alternatives
    assert said.words is not None
    assert [str(word) for word in said.words] == wanted.text.split()
    true = np.array([float(str(word["start"])) for word in wanted.words]) + 1.0
    assert np.abs(np.array([word.start_time for word in said.words]) - true).mean() < 0.1
    assert all(0 < float(word.confidence or 0) <= 1 for word in said.words)
    assert said.end_time == said.words[-1].end_time


def test_a_language_for_one_call_only(model: Recognizer, recordings: dict[str, Recording]) -> None:
    frames = list(_frames(_samples(recordings["english"])))

    async def scene() -> list[str]:
        speech = STT(model=model, language="spanish")
        events = [await speech.recognize(frames, language="de-AT"), await speech.recognize(frames)]
        return [event.alternatives[0].language for event in events]

    assert asyncio.run(scene()) == ["de", "es"]


def test_silence_is_an_empty_text(model: Recognizer) -> None:
    (said,) = asyncio.run(STT(model=model).recognize(list(_frames(_quiet(2))))).alternatives
    assert (said.text, said.language) == ("", "")


def test_metrics_of_both_ways(model: Recognizer, recordings: dict[str, Recording]) -> None:
    frames = _spoken(recordings["english"])
    seconds = sum(frame.duration for frame in frames)
    metrics: list[STTMetrics] = []

    async def scene() -> None:
        speech = STT(model=model)
        speech.on("metrics_collected", metrics.append)
        await speech.recognize(frames)
        async with speech.stream() as stream:
            _push(stream, frames)
            stream.end_input()
            await _rest(stream)

    asyncio.run(scene())
    whole, *streamed = metrics
    assert (whole.streamed, whole.audio_duration) == (False, pytest.approx(seconds))
    assert {one.streamed for one in streamed} == {True}
    assert sum(one.audio_duration for one in streamed) == pytest.approx(seconds)
    assert whole.metadata is not None
    assert (whole.metadata.model_provider, whole.metadata.model_name) == ("qwen3asr", model.bundle.folder.name)


# --- while it is spoken ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPOKEN)
def test_a_stream_tells_start_interim_final_and_end(
    model: Recognizer, recordings: dict[str, Recording], name: str
) -> None:
    wanted = recordings[name]
    events = _heard(STT(model=model), _spoken(wanted))
    assert _texts(events) == [wanted.text]
    assert _kinds(events) in ([START, INTERIM, FINAL, END], [START, FINAL, END])
    (final,) = _finals(events)
    assert final.language == LANGUAGES[str(wanted.language)]
    assert 0.5 < final.confidence <= 1
    spoken = [event.request_id for event in events if event.type is not USAGE]
    assert len(set(spoken)) == 1
    assert spoken[0]


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (44_100, 2), (48_000, 1)])
def test_frames_of_any_rate_and_channels(
    model: Recognizer, recordings: dict[str, Recording], rate: int, channels: int
) -> None:
    wanted = recordings["english"]
    assert _texts(_heard(STT(model=model), _spoken(wanted, rate, channels))) == [wanted.text]


def test_an_interim_is_there_before_the_audio_ends_and_a_flush_ends_the_segment(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    one, two = recordings["english"], recordings["chinese"]

    async def scene() -> tuple[list[SpeechEvent], ...]:
        settings = StreamSettings(step_seconds=0.5, end_silence=5.0)  # which no pause here reaches
        async with STT(model=model, settings=settings).stream() as stream:
            samples = _samples(one)
            half = len(samples) // 2
            stream.flush()  # of nothing
            _push(stream, list(_frames(samples[:half])))
            early = await _until(stream, INTERIM)
            _push(stream, list(_frames(samples[half:])))
            stream.flush()
            first = await _until(stream, END)
            _push(stream, _spoken(two))
            stream.flush()
            second = await _until(stream, END)
            stream.end_input()
            await _rest(stream)
            return early, first, second

    early, first, second = asyncio.run(scene())
    assert [event.type for event in early if event.type is not USAGE] == [START, INTERIM]
    assert _texts(first) == [one.text]
    assert _texts(second) == [two.text]
    assert first[-1].request_id != second[-1].request_id


def test_times_are_on_the_stream_s_clock(model: Recognizer, recordings: dict[str, Recording]) -> None:
    """Two turns, a flush between them, and the offset of a session that began 100 s ago."""
    wanted = recordings["english"]
    turn = _spoken(wanted)

    async def scene() -> list[SpeechEvent]:
        async with STT(model=model, timestamps="word").stream() as stream:
            stream.start_time_offset = 100.0
            _push(stream, turn[: len(turn) // 2])
            early = await _until(stream, INTERIM)
            _push(stream, turn[len(turn) // 2 :])
            stream.flush()
            _push(stream, turn)
            stream.end_input()
            return early + await _rest(stream)

    events = asyncio.run(scene())
    finals = _finals(events)
    assert [final.text for final in finals] == [wanted.text] * 2
    true = np.array([float(str(word["start"])) for word in wanted.words])
    before = [101.0, 101.0 + sum(frame.duration for frame in turn)]
    for final, seconds in zip(finals, before, strict=True):
        assert final.words is not None
        assert [str(word) for word in final.words] == wanted.text.split()
        starts = np.array([word.start_time for word in final.words])
        assert np.abs(starts - true - seconds).mean() < 0.1
        assert final.words[0].start_time_offset == pytest.approx(100.0, abs=0.05)
        assert final.end_time == final.words[-1].end_time
        assert seconds - 0.6 < final.start_time < seconds + 0.3
    starts_of = {event.request_id: event.alternatives[0].start_time for event in events if event.type is FINAL}
    interims = [event for event in events if event.type is INTERIM]
    assert interims
    assert all(event.alternatives[0].start_time == starts_of[event.request_id] for event in interims)


def test_a_noise_taken_for_speech_is_taken_back(model: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tiny model never does: an interim, and then a final without text."""

    class Scripted:
        def __init__(self, **options: object) -> None:
            self._events = iter([Partial("uh", "", "English", 0.0, 1.0), Final("", None, 0.0, 1.5, "no_speech")])

        async def push(self, chunk: object) -> None: ...

        async def finish(self) -> None: ...

        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *_: object) -> None: ...

        def __aiter__(self) -> Scripted:
            return self

        async def __anext__(self) -> Partial | Final:
            for event in self._events:
                return event
            raise StopAsyncIteration

    monkeypatch.setattr(model, "stream_async", Scripted)
    events = _heard(STT(model=model), list(_frames(_quiet(2))))
    assert [event.type for event in events if event.type is not USAGE] == [START, INTERIM, INTERIM, END]
    assert _texts(events, INTERIM) == ["uh", ""]


def test_how_decoding_ended_is_told(
    model: Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream whose model has no room for the whole text, which the tiny one always has."""
    frames = _spoken(recordings["english"])
    assert asyncio.run(STT(model=model).recognize(frames)).alternatives[0].metadata == {"finish_reason": "stop"}
    assert [final.metadata for final in _finals(_heard(STT(model=model), frames))] == [{"finish_reason": "stop"}]
    monkeypatch.setattr("qwen3asr.transcription.Transcriber.budget", lambda *_: 4)
    (cut,) = _finals(_heard(STT(model=model), frames))
    assert cut.metadata == {"finish_reason": "length"}
    assert recordings["english"].text.startswith(cut.text)


def test_silence_tells_only_its_usage(model: Recognizer) -> None:
    events = _heard(STT(model=model), list(_frames(_quiet(12))))
    assert {event.type for event in events} == {USAGE}
    usage = [event.recognition_usage.audio_duration for event in events if event.recognition_usage]
    assert len(usage) == 3
    assert sum(usage) == pytest.approx(12)


def test_a_recording_faster_than_the_model_is_heard_to_its_end(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    """More than the minute of audio that a stream lets wait."""
    turn = list(_frames(_samples(recordings["english"]), _quiet(9)))
    frames = [rtc.combine_audio_frames(turn[at : at + 75]) for at in range(0, len(turn), 75)]
    events = _heard(STT(model=model, settings=StreamSettings(carry_words=0)), frames * 12)
    assert _texts(events) == [recordings["english"].text] * 12


def test_what_is_kept_for_another_attempt_is_bounded(model: Recognizer) -> None:
    async def scene() -> float:
        settings = StreamSettings(longest_seconds=4.0, soft_seconds=2.0, late_seconds=3.0)
        async with STT(model=model, settings=settings).stream() as stream:
            _push(stream, list(_frames(_quiet(30))))
            for _ in range(5):  # of 5 s each
                await _until(stream, USAGE)
            kept = sum(item.duration for item in stream._kept if isinstance(item, rtc.AudioFrame))
            stream.end_input()
            await _rest(stream)
            assert not stream._kept
            return kept

    assert 0 < asyncio.run(scene()) < 10


# --- options -----------------------------------------------------------------------------------------------------


def test_options_change_for_open_streams_with_the_next_segment(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    turn = _spoken(recordings["english"])

    async def scene() -> list[str]:
        speech = STT(model=model, settings=StreamSettings(step_seconds=0.5))
        languages = []
        async with speech.stream() as stream:
            half = len(turn) // 2
            _push(stream, turn[:half])
            await _until(stream, INTERIM)
            speech.update_options(language="de")  # in the midst of a segment, which goes on as it began
            _push(stream, turn[half:])
            languages += (await _until(stream, FINAL))[-1].alternatives
            _push(stream, turn)
            languages += (await _until(stream, FINAL))[-1].alternatives
            speech.update_options(language=None, context="water")
            _push(stream, turn)
            stream.end_input()
            languages += [event.alternatives[0] for event in await _rest(stream) if event.type is FINAL]
        return [said.language for said in languages]

    assert asyncio.run(scene()) == ["en", "de", "en"]


def test_context_and_key_terms_reach_the_model(
    model: Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    stream_async, transcribe_async = Recognizer.stream_async, Recognizer.transcribe_async

    def streamed(self: Recognizer, **options: Any) -> qwen3asr.AsyncStream:
        asked.append(options["context"])
        return stream_async(self, **options)

    def transcribed(self: Recognizer, audio: Any, **options: Any) -> Any:
        asked.append(options["context"])
        return transcribe_async(self, audio, **options)

    monkeypatch.setattr(Recognizer, "stream_async", streamed)
    monkeypatch.setattr(Recognizer, "transcribe_async", transcribed)
    turn = _spoken(recordings["english"])

    async def scene() -> None:
        speech = STT(model=model, context="At home.")
        await speech.recognize(turn)
        speech._update_session_keyterms(["Anna", "green"])
        await speech.recognize(turn)
        speech._update_session_keyterms([])
        speech.update_options(context="")
        async with speech.stream() as stream:
            _push(stream, turn)
            stream.end_input()
            assert _texts(await _rest(stream)) == [recordings["english"].text]

    asyncio.run(scene())
    assert asked == ["At home.", "At home.\nAnna, green", ""]


def test_a_detector_of_its_own_for_each_stream(model: Recognizer, recordings: dict[str, Recording]) -> None:
    made: list[EnergyDetector] = []

    def detector() -> EnergyDetector:
        made.append(EnergyDetector())
        return made[-1]

    speech = STT(model=model, detector=detector)
    for _ in range(2):
        assert _texts(_heard(speech, _spoken(recordings["english"]))) == [recordings["english"].text]
    assert len(made) == 2


def test_capabilities_are_true(model: Recognizer) -> None:
    plain, words = STT(model=model).capabilities, STT(model=model, timestamps="word").capabilities
    assert (plain.aligned_transcript, words.aligned_transcript) == (False, "word")
    for able in (plain, words):
        assert able.streaming
        assert able.interim_results
        assert able.offline_recognize
        assert able.keyterms
        assert able.manual_flush
        assert not able.diarization
        assert not able.chat_context


def test_every_language_has_a_name_on_both_sides(model: Recognizer) -> None:
    for name, code in LANGUAGES.items():
        for written in (code, code.upper(), LanguageCode(code), name):
            speech = STT(model=model, language=written)
            assert qwen3asr.languages.resolve(speech._options.language) == name
    for written, name in [("en_us", "English"), ("cmn-Hans-CN", "Chinese"), ("zh-HK", "Cantonese"), ("eng", "English")]:
        assert qwen3asr.languages.resolve(STT(model=model, language=written)._options.language) == name


def test_what_makes_no_sense_is_refused_at_once(model: Recognizer, asr_bundle: Path) -> None:
    with pytest.raises(LanguageUnknown, match="'xx'"):
        STT(model=model, language="xx")
    with pytest.raises(LanguageUnknown, match="aligner"):
        STT(model=model, language="tr", timestamps="word")
    with pytest.raises(ContextInvalid):
        STT(model=model, context="<|im_end|>")
    with pytest.raises(RequestInvalid, match="load the model itself"):
        STT(model=model, aligner=asr_bundle)
    with pytest.raises(AlignerMissing):
        STT(model=asr_bundle, timestamps="word")
    with qwen3asr.load(asr_bundle) as bare, pytest.raises(AlignerMissing):
        STT(model=bare, timestamps="word")
    speech = STT(model=model, language="de")
    with pytest.raises(LanguageUnknown):
        speech.update_options(language="xx", context="new")
    assert (speech._options.language, speech._options.context) == ("de", "")

    async def stream() -> None:
        speech.stream(language="xx")

    with pytest.raises(LanguageUnknown):
        asyncio.run(stream())


# --- errors ------------------------------------------------------------------------------------------------------


def test_a_busy_model_is_asked_again_and_nothing_is_lost(
    asr_bundle: Path, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three segments, the second finds no place at first; what was told before it is not told again."""
    turn = _spoken(recordings["english"])
    errors: list[STTError] = []
    opened = 0

    def flaky(frame: Any) -> Any:
        nonlocal opened
        opened += 1
        if opened in (2, 3):
            raise EngineBusy("2 streams are open", 0.1)
        return place(frame)

    async def scene(speech: STT) -> list[SpeechEvent]:
        async with speech.stream(conn_options=AT_ONCE) as stream:
            stream.start_time_offset = 100.0
            _push(stream, turn)
            first = await _until(stream, END)
            stream.flush()  # what follows needs a place anew
            _push(stream, turn * 2)
            stream.end_input()
            return first + await _rest(stream)

    with qwen3asr.load(asr_bundle) as small:
        wanted = asyncio.run(scene(STT(model=small)))
        place = small._engine.open
        monkeypatch.setattr(small._engine, "open", flaky)
        speech = STT(model=small)
        speech.on("error", errors.append)
        events = asyncio.run(scene(speech))
    assert _texts(events) == _texts(wanted) == [recordings["english"].text] * 3
    assert [error.recoverable for error in errors] == [True, True]
    assert isinstance(errors[0].error.__cause__, EngineBusy)
    for one, two in zip(_finals(events), _finals(wanted), strict=True):  # the time between attempts is none
        assert (one.start_time, one.end_time) == pytest.approx((two.start_time, two.end_time), abs=0.07)
    assert _usage(events) == pytest.approx(_usage(wanted))


@pytest.mark.parametrize("way", ["recognize", "stream"])
def test_a_busy_model_is_retryable_and_a_closed_one_is_not(
    asr_bundle: Path, recordings: dict[str, Recording], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = _spoken(recordings["english"])

    async def ask(speech: STT) -> None:
        if way == "recognize":
            await speech._recognize_impl(turn, conn_options=ONCE)
        else:
            async with speech.stream(conn_options=ONCE) as stream:
                _push(stream, turn)
                stream.end_input()
                await _rest(stream)

    async def scene(small: Recognizer) -> list[APIError]:
        speech, errors = STT(model=small), []
        others = [small.stream(), small.stream()]
        for other in others:
            await asyncio.to_thread(other.push, _samples(recordings["english"]))
        monkeypatch.setattr(small, "_busy", 2)
        with pytest.raises(APIError) as busy:
            await ask(speech)
        errors.append(busy.value)
        monkeypatch.setattr(small, "_busy", 0)
        for other in others:
            other.close()
        stream = speech.stream(conn_options=AT_ONCE) if way == "stream" else None
        small._engine.close()
        with pytest.raises(APIError) as closed:
            if stream is None:
                await ask(speech)
            else:
                _push(stream, turn)
                await _rest(stream)
        return [*errors, closed.value]

    small = qwen3asr.load(asr_bundle, slots=1, queue=1)
    busy, closed = asyncio.run(scene(small))
    small.close()
    assert (busy.retryable, type(busy.__cause__)) == (True, EngineBusy)
    assert (closed.retryable, type(closed.__cause__)) == (False, EngineClosed)
    assert "load it again" in str(closed)


def test_a_stream_whose_model_is_closed_under_it_fails_without_more_audio(
    asr_bundle: Path, recordings: dict[str, Recording]
) -> None:
    async def scene(small: Recognizer) -> APIError:
        settings = StreamSettings(step_seconds=0.5, end_silence=5.0)
        async with STT(model=small, settings=settings).stream(conn_options=AT_ONCE) as stream:
            _push(stream, _spoken(recordings["english"])[:100])
            await _until(stream, START)
            small._engine.close()
            _push(stream, _spoken(recordings["english"])[100:])  # a step, and then nothing
            with pytest.raises(APIError) as failed:
                await _rest(stream)
            return failed.value

    small = qwen3asr.load(asr_bundle)
    error = asyncio.run(scene(small))
    small.close()
    assert not error.retryable


def test_an_attempt_has_the_time_of_its_connection_options(
    model: Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts: list[float] = []
    transcribe_async = Recognizer.transcribe_async

    def late(self: Recognizer, audio: Any, **options: Any) -> Any:
        timeouts.append(options["timeout"])
        return transcribe_async(self, audio, **options | {"timeout": 1e-6 if len(timeouts) == 1 else None})

    monkeypatch.setattr(Recognizer, "transcribe_async", late)
    frames = list(_frames(_samples(recordings["english"])))
    options = APIConnectOptions(max_retry=1, retry_interval=0.0, timeout=7.0)
    errors: list[STTError] = []

    async def scene() -> str:
        speech = STT(model=model)
        speech.on("error", errors.append)
        return (await speech.recognize(frames, conn_options=options)).alternatives[0].text

    assert asyncio.run(scene()) == recordings["english"].text
    assert timeouts == [7.0, 7.0]
    assert [(type(error.error), error.recoverable) for error in errors] == [(APITimeoutError, True)]
    assert isinstance(errors[0].error.__cause__, DeadlineExceeded)


def test_audio_that_the_model_cannot_take_is_not_asked_for_again(model: Recognizer) -> None:
    errors: list[STTError] = []

    async def scene() -> None:
        speech = STT(model=model)
        speech.on("error", errors.append)
        with pytest.raises(APIError, match="no audio samples"):
            await speech.recognize(rtc.AudioFrame(b"", 16_000, 1, 0))
        with pytest.raises(APIError, match="'xx'"):
            await speech.recognize(list(_frames(_quiet(1))), language="xx")

    asyncio.run(scene())
    assert [error.recoverable for error in errors] == [False, False]


# --- closing -----------------------------------------------------------------------------------------------------


def test_closed_streams_free_their_slots(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    """The model takes two streams at a time: a third of them would be refused."""
    turn = _spoken(recordings["english"])

    async def scene(small: Recognizer) -> list[SpeechEvent]:
        speech = STT(model=small, settings=StreamSettings(step_seconds=0.5))
        for _ in range(3):
            stream = speech.stream(conn_options=ONCE)
            _push(stream, turn[: len(turn) // 2])
            await _until(stream, START)
            await stream.aclose()
            await stream.aclose()
        for _ in range(3):
            left = speech.stream(conn_options=ONCE)
            _push(left, turn[: len(turn) // 2])
            await _until(left, START)
            await speech.aclose()
            with pytest.raises(RuntimeError):
                left.push_frame(turn[0])
        with small.stream() as one, small.stream() as two:  # both places are free
            for other in (one, two):
                await asyncio.to_thread(other.push, _samples(recordings["english"]))
        async with speech.stream(conn_options=ONCE) as stream:
            _push(stream, turn)
            stream.end_input()
            return await _rest(stream)

    with qwen3asr.load(asr_bundle, slots=1, queue=1) as small:
        assert _texts(asyncio.run(scene(small))) == [recordings["english"].text]


def test_a_model_loaded_here_is_closed_here_and_a_shared_one_is_not(
    model: Recognizer, asr_bundle: Path, recordings: dict[str, Recording]
) -> None:
    turn = _spoken(recordings["english"])

    async def scene() -> Recognizer:
        async with STT(model=asr_bundle) as own, STT(model=model) as shared:
            for speech in (own, shared):
                assert (await speech.recognize(turn)).alternatives[0].text == recordings["english"].text
        await own.aclose()
        with pytest.raises(EngineClosed):
            own.stream()
        return own._recognizer

    loaded = asyncio.run(scene())
    with pytest.raises(EngineClosed):
        loaded.transcribe(recordings["english"].path)
    assert model.transcribe(recordings["english"].path).text == recordings["english"].text


def test_eight_streams_share_one_model(model: Recognizer, recordings: dict[str, Recording]) -> None:
    async def one(speech: STT, name: str) -> list[str]:
        async with speech.stream() as stream:
            _push(stream, _spoken(recordings[name]))
            stream.end_input()
            return _texts(await _rest(stream))

    async def scene() -> list[list[str]]:
        speech = STT(model=model)
        return await asyncio.gather(*(one(speech, name) for name in SPOKEN * 2))

    assert asyncio.run(scene()) == [[recordings[name].text] for name in SPOKEN * 2]


# --- in LiveKit's own hands --------------------------------------------------------------------------------------


def _vad() -> inference.VAD:
    """Silero's, which is inside livekit-agents; the words of these recordings stand far apart."""
    return inference.VAD(model="silero", min_silence_duration=1.0, min_speech_duration=0.05)


def test_behind_a_vad_that_cuts_the_audio(model: Recognizer, recordings: dict[str, Recording]) -> None:
    one, two = recordings["english"], recordings["spanish"]

    async def scene() -> list[SpeechEvent]:
        adapter = StreamAdapter(stt=STT(model=model), vad=_vad())
        async with adapter.stream() as stream:
            _push(stream, list(_frames(_quiet(1), _samples(one), _quiet(2), _samples(two), _quiet(2))))
            stream.end_input()
            return await _rest(stream)

    events = asyncio.run(scene())
    assert _texts(events) == [one.text, two.text]
    assert [event.alternatives[0].language for event in events if event.type is FINAL] == ["en", "es"]


def test_another_takes_over_from_a_busy_one(
    asr_bundle: Path, model: Recognizer, recordings: dict[str, Recording]
) -> None:
    async def scene(small: Recognizer) -> list[str]:
        others = [small.stream(), small.stream()]  # one that nobody holds would free its place
        for other in others:
            await asyncio.to_thread(other.push, _samples(recordings["english"]))
        adapter = FallbackAdapter([STT(model=small), STT(model=model)], max_retry_per_stt=0)
        switched = asyncio.Event()
        adapter.on("stt_availability_changed", lambda _: switched.set())
        async with adapter.stream() as stream:
            _push(stream, _spoken(recordings["english"]))
            await asyncio.wait_for(switched.wait(), PATIENCE)
            _push(stream, _spoken(recordings["german-short"]))
            stream.end_input()
            texts = _texts(await _rest(stream))
        await adapter.aclose()
        for other in others:
            other.close()
        return texts

    with qwen3asr.load(asr_bundle, slots=1, queue=1) as small:
        assert asyncio.run(scene(small))[-1:] == [recordings["german-short"].text]


class _Microphone(AudioInput):
    """Gives frames at the speed of speech would take seconds: as fast as they are taken, and then waits."""

    def __init__(self, frames: Sequence[rtc.AudioFrame]) -> None:
        super().__init__(label="microphone")
        self._frames = iter(frames)

    async def __anext__(self) -> rtc.AudioFrame:
        await asyncio.sleep(0)
        frame = next(self._frames, None)
        if frame is None:
            await asyncio.Event().wait()
        return frame  # type: ignore[return-value]


@pytest.mark.parametrize("vad", [True, False])
def test_a_whole_agent_session_without_a_server(model: Recognizer, recordings: dict[str, Recording], vad: bool) -> None:
    """With LiveKit's VAD, whose flush alone ends the segment, and with the stream's own ends of speech alone."""
    wanted = recordings["english"]

    async def scene() -> list[UserInputTranscribedEvent]:
        session: AgentSession[None] = AgentSession(
            stt=STT(model=model, timestamps="word", settings=StreamSettings(end_silence=10.0 if vad else 0.8)),
            vad=_vad() if vad else None,
            turn_handling={"turn_detection": "vad" if vad else "stt"},
        )
        told: list[UserInputTranscribedEvent] = []
        final = asyncio.Event()

        def hear(event: UserInputTranscribedEvent) -> None:
            told.append(event)
            if event.is_final:
                final.set()

        session.on("user_input_transcribed", hear)
        session.input.audio = _Microphone(_spoken(wanted) + list(_frames(_quiet(2))))
        await session.start(Agent(instructions=""), record=False)
        await asyncio.wait_for(final.wait(), PATIENCE)
        await session.aclose()
        return told

    told = asyncio.run(scene())
    finals = [event for event in told if event.is_final]
    assert [event.transcript for event in finals] == [wanted.text]
    assert finals[0].language == "en"


# --- the event loop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["recognize", "stream"])
def test_the_event_loop_is_never_blocked(model: Recognizer, recordings: dict[str, Recording], way: str) -> None:
    turn = _spoken(recordings["english"])

    async def scene() -> list[Stall]:
        speech = STT(model=model, timestamps="word")
        async with speech.stream() as stream:

            async def listen() -> None:
                for frame in turn:
                    stream.push_frame(frame)
                    await asyncio.sleep(0)
                await _until(stream, FINAL)

            async def recognize() -> None:
                await speech.recognize(turn)

            return [await longest_stall(recognize if way == "recognize" else listen) for _ in range(TURNS)]

    assert_never_blocked(asyncio.run(scene()))


# --- around it ---------------------------------------------------------------------------------------------------


def test_a_missing_livekit_is_named() -> None:
    code = "import sys; sys.modules['livekit'] = None; import qwen3asr_plugins.livekit"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'qwen3asr[livekit]'" in done.stderr


def test_the_example_prints_interims_and_the_final(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    command = [sys.executable, ROOT / "examples/livekit_agent.py", asr_bundle, recordings["german-short"].path]
    done = subprocess.run([*map(os.fspath, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"final    de: {recordings['german-short'].text}" in lines
    assert any(line.startswith("interim") for line in lines)


def test_the_readme_s_entrypoint_hears(
    asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session is started with a microphone in place of the room."""
    known = run_quickstart("LiveKit", "Home Assistant", asr_bundle, tmp_path, monkeypatch)
    told: list[UserInputTranscribedEvent] = []

    class Session(AgentSession[None]):
        async def start(self, agent: Agent, *, room: object) -> None:  # type: ignore[override]
            final = asyncio.Event()

            def hear(event: UserInputTranscribedEvent) -> None:
                told.append(event)
                if event.is_final:
                    final.set()

            self.on("user_input_transcribed", hear)
            self.input.audio = _Microphone(_spoken(recordings["english"]) + list(_frames(_quiet(2))))
            await super().start(agent, record=False)
            await asyncio.wait_for(final.wait(), PATIENCE)
            await self.aclose()

    known["AgentSession"] = Session
    asyncio.run(known["entrypoint"](SimpleNamespace(room=None)))
    assert [event.transcript for event in told if event.is_final] == [recordings["english"].text]
    known["model"].close()
