"""The Pipecat services in real pipelines, over the tiny trained model."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import soundfile
import soxr
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADParams
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterimTranscriptionFrame,
    InterruptionFrame,
    MetricsFrame,
    StartFrame,
    STTMetadataFrame,
    STTMuteFrame,
    STTUpdateSettingsFrame,
    TextFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import ProcessingMetricsData, TTFBMetricsData
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.tts_service import TTSService
from pipecat.tests.utils import run_test
from pipecat.transcriptions.language import Language
from pipecat.workers.runner import WorkerRunner
from tests.conftest import ROOT, Recording
from tests.integrations.quickstart import run_quickstart
from tests.integrations.stalls import TURNS, Stall, assert_never_blocked, longest_stall

import qwen3asr
from qwen3asr import LANGUAGES, Recognizer
from qwen3asr.errors import AlignerMissing, EngineBusy, EngineClosed, LanguageUnknown, RequestInvalid, StreamBehind
from qwen3asr.hearing import EngineEar
from qwen3asr_plugins.pipecat import (
    Qwen3AlignmentProcessor,
    Qwen3ASRStreamingSTTService,
    Qwen3ASRSTTService,
    Qwen3CaptionFrame,
)
from qwen3asr_plugins.pipecat.turns import UserTurns

F = TypeVar("F", bound=Frame)
Service = Qwen3ASRSTTService | Qwen3ASRStreamingSTTService
BOTH = pytest.mark.parametrize("kind", [Qwen3ASRSTTService, Qwen3ASRStreamingSTTService])
SPOKEN = ("english", "german-short", "spanish", "chinese")
PATIENCE = 30.0


def _pcm(recording: Recording, rate: int = 16_000) -> bytes:
    samples, original = soundfile.read(recording.path, dtype="float32")
    resampled = samples if rate == original else soxr.resample(samples, original, rate)
    return bytes((np.clip(resampled, -1, 1) * 32767).astype(np.int16).tobytes())


def _quiet(seconds: float, rate: int = 16_000) -> bytes:
    return bytes(2 * round(seconds * rate))


def _audio(pcm: bytes, rate: int = 16_000) -> Iterator[InputAudioRawFrame]:
    """As a transport gives it: 20 ms a frame."""
    size = rate // 50 * 2
    return (InputAudioRawFrame(pcm[at : at + size], rate, 1) for at in range(0, len(pcm), size))


def _turn(pcm: bytes, rate: int = 16_000) -> list[Frame]:
    """A turn whose first 0.2 s the VAD needed to hear it, and the 0.2 s that it needed to hear its end."""
    early = rate // 5 * 2
    return [
        *_audio(_quiet(0.5, rate) + pcm[:early], rate),
        VADUserStartedSpeakingFrame(start_secs=0.2),
        *_audio(pcm[early:] + _quiet(0.2, rate), rate),
        VADUserStoppedSpeakingFrame(stop_secs=0.2),
    ]


def _of(frames: Sequence[Frame], kind: type[F]) -> list[F]:
    return [frame for frame in frames if isinstance(frame, kind)]


def _finals(frames: Sequence[Frame]) -> list[str]:
    return [frame.text for frame in _of(frames, TranscriptionFrame)]


def _words(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [word for segment in result["segments"] for word in segment["words"]]


class Log(FrameProcessor):
    """Lets all frames pass and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self._news = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.frames.append(frame)
        self._news.set()
        await self.push_frame(frame, direction)

    async def until(self, kind: type[Frame], count: int = 1) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(_of(self.frames, kind)) < count:
                self._news.clear()
                await self._news.wait()


class Call:
    """A pipeline that runs, with a log at either end."""

    def __init__(self, worker: PipelineWorker, before: Log, behind: Log, running: asyncio.Task[None]) -> None:
        self.worker, self.before, self.behind, self._running = worker, before, behind, running

    async def send(self, *frames: Frame) -> None:
        for frame in frames:
            await self.worker.queue_frame(frame)

    async def settle(self) -> None:
        assert await self.worker.flush_pipeline()

    async def end(self) -> list[Frame]:
        await self.send(EndFrame())
        await asyncio.wait_for(self._running, PATIENCE)
        return self.behind.frames


@asynccontextmanager
async def _call(*processors: FrameProcessor, rate: int = 16_000, tracing: bool = False) -> AsyncIterator[Call]:
    before, behind = Log(), Log()
    worker = PipelineWorker(
        Pipeline([before, *processors, behind]),
        params=PipelineParams(audio_in_sample_rate=rate, enable_metrics=True),
        cancel_on_idle_timeout=False,
        enable_tracing=tracing,
        enable_rtvi=False,
    )
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    try:
        await behind.until(StartFrame)
        yield Call(worker, before, behind, running)
    finally:
        await worker.cancel()
        await asyncio.wait_for(running, PATIENCE)


def _hear(service: FrameProcessor, frames: Sequence[Frame], rate: int = 16_000) -> tuple[list[Frame], list[Frame]]:
    params = PipelineParams(audio_in_sample_rate=rate, enable_metrics=True)
    down, up = asyncio.run(run_test(service, frames_to_send=frames, pipeline_params=params))
    return list(down), list(up)


# --- text --------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", SPOKEN)
def test_one_final_a_turn_has_what_was_said(
    model: Recognizer, recordings: dict[str, Recording], kind: type[Service], name: str
) -> None:
    wanted = recordings[name]
    down, up = _hear(kind(model=model, ttfs_p99_latency=0.4), _turn(_pcm(wanted)))
    (final,) = _of(down, TranscriptionFrame)
    assert final.text == wanted.text
    assert final.finalized
    assert final.language is not None
    assert LANGUAGES[str(wanted.language)] == final.language.value
    assert (final.result["text"], final.result["language"]) == (wanted.text, wanted.language)
    assert final.result["finish_reason"] == "stop"
    assert not _of(up, ErrorFrame)
    assert len(_of(down, InputAudioRawFrame)) == len(_of(_turn(_pcm(wanted)), InputAudioRawFrame))


@BOTH
def test_word_times_count_from_the_first_sample_of_the_turn(
    model: Recognizer, recordings: dict[str, Recording], kind: type[Service]
) -> None:
    wanted = recordings["english"]
    down, _ = _hear(kind(model=model, settings=kind.Settings(timestamps="word")), _turn(_pcm(wanted)))
    (final,) = _of(down, TranscriptionFrame)
    words = _words(final.result)
    assert [word["text"] for word in words] == wanted.text.split()
    true = np.array([float(str(word["start"])) for word in wanted.words]) + 0.5  # of silence before the first word
    assert np.abs(np.array([word["start"] for word in words]) - true).mean() < 0.1
    assert all(0 < word["confidence"] <= 1 for word in words)


@BOTH
def test_a_result_says_when_its_audio_began_and_how_long_it_was(
    model: Recognizer, recordings: dict[str, Recording], kind: type[Service]
) -> None:
    """In segments and words too, Pipecat's padding is not among it."""
    wanted = recordings["english"]
    settings = kind.Settings(timestamps="word")
    turn = [frame for frame in _turn(_pcm(wanted)) if not _is_silent(frame)]
    down, _ = _hear(kind(model=model, settings=settings), turn)
    (began,) = _of(turn, VADUserStartedSpeakingFrame)
    before = turn[: turn.index(began)]
    pre_roll = sum(frame.num_frames for frame in _of(before, InputAudioRawFrame)) / 16_000
    (final,) = _of(down, TranscriptionFrame)
    for frame in [final, *_of(down, InterimTranscriptionFrame)]:
        assert frame.result["pre_roll"] == pytest.approx(pre_roll)
        assert frame.result["start_time"] == pytest.approx(began.timestamp - pre_roll, abs=0.001)
    seconds = sum(frame.num_frames for frame in _of(turn, InputAudioRawFrame)) / 16_000
    assert final.result["duration"] == pytest.approx(seconds, abs=0.03)  # of frames that the model hears
    assert final.result["segments"][-1]["end"] <= seconds
    assert _words(final.result)[-1]["end"] <= seconds


def _is_silent(frame: Frame) -> bool:
    return isinstance(frame, InputAudioRawFrame) and not any(frame.audio)


@BOTH
def test_silence_makes_no_transcript(model: Recognizer, kind: type[Service]) -> None:
    down, up = _hear(kind(model=model), _turn(_quiet(2)))
    assert not _of(down, TranscriptionFrame)
    assert not _of(down, InterimTranscriptionFrame)
    assert not _of(up, ErrorFrame)


class _Vad(SileroVADAnalyzer):
    """Silero's model takes 8 and 16 kHz; of other rates it gets every third sample."""

    def set_sample_rate(self, sample_rate: int) -> None:
        self._fold = {24_000: 3, 48_000: 3}.get(sample_rate, 1)
        super().set_sample_rate(sample_rate // self._fold)

    async def analyze_audio(self, buffer: bytes) -> Any:
        return await super().analyze_audio(np.frombuffer(buffer, np.int16)[:: self._fold].tobytes())


@BOTH
@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])
def test_a_pipeline_of_any_rate_with_a_real_vad(
    model: Recognizer, recordings: dict[str, Recording], kind: type[Service], rate: int
) -> None:
    wanted = recordings["english"]

    async def scene() -> list[Frame]:
        vad = VADProcessor(vad_analyzer=_Vad(params=VADParams(stop_secs=0.8, min_volume=0.0)))
        async with _call(vad, kind(model=model), rate=rate) as call:
            await call.send(*_audio(_quiet(1, rate) + _pcm(wanted, rate) + _quiet(2, rate), rate))
            await call.before.until(VADUserStoppedSpeakingFrame)
            return await call.end()

    assert _finals(asyncio.run(scene())) == [wanted.text]


# --- while the user speaks ---------------------------------------------------------------------------------------


def test_interims_grow_while_the_user_speaks(model: Recognizer, recordings: dict[str, Recording]) -> None:
    wanted = recordings["english"]

    async def scene() -> list[Frame]:
        settings = Qwen3ASRStreamingSTTService.Settings(step_seconds=0.5)
        async with _call(Qwen3ASRStreamingSTTService(model=model, settings=settings)) as call:
            pcm, half = _pcm(wanted), len(_pcm(wanted)) // 2 // 320 * 320
            await call.send(VADUserStartedSpeakingFrame(), *_audio(pcm[:half]))
            await call.behind.until(InterimTranscriptionFrame)
            assert not _finals(call.behind.frames)
            heard = len(_of(call.behind.frames, InterimTranscriptionFrame))
            await call.send(*_audio(pcm[half:]))
            await call.behind.until(InterimTranscriptionFrame, heard + 1)
            await call.send(VADUserStoppedSpeakingFrame(stop_secs=0.2))
            return await call.end()

    frames = asyncio.run(scene())
    assert _finals(frames) == [wanted.text]
    interims = _of(frames, InterimTranscriptionFrame)
    assert len(interims) >= 2
    committed = [frame.result["committed"] for frame in interims]
    for frame, sure, later in zip(interims, committed, [*committed[1:], wanted.text], strict=True):
        assert frame.text.startswith(sure)
        assert later.startswith(sure)
        assert frame.language == Language.EN
    assert committed[-1]


def test_the_final_takes_one_step_of_the_model_after_the_vad_s_stop(
    model: Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    hear = EngineEar.hear

    def counted(self: EngineEar, **options: Any) -> Any:
        steps.append(1)
        return hear(self, **options)

    monkeypatch.setattr(EngineEar, "hear", counted)

    async def scene() -> tuple[int, int, list[str]]:
        service = Qwen3ASRStreamingSTTService(
            model=model, settings=Qwen3ASRStreamingSTTService.Settings(step_seconds=0.5)
        )
        async with _call(service) as call:
            *turn, stop = _turn(_pcm(recordings["english"]))
            await call.send(*turn)
            await call.settle()
            assert service._turn is not None
            await service._turn.stream.drain()  # all audio is heard
            before = len(steps)
            await call.send(stop)
            await call.behind.until(TranscriptionFrame)
            return before, len(steps) - before, _finals(await call.end())

    before, after, finals = asyncio.run(scene())
    assert finals == [recordings["english"].text]
    assert before > 1
    assert after == 1


def test_the_vad_alone_decides_what_is_speech(model: Recognizer, recordings: dict[str, Recording]) -> None:
    """Quiet speech from the first sample on, and a pause: a detector of the stream's own would hear two segments."""
    wanted = recordings["english"]
    quiet = (np.frombuffer(_pcm(wanted), np.int16) * 0.02).astype(np.int16).tobytes()
    down, _ = _hear(
        Qwen3ASRStreamingSTTService(model=model),
        [
            VADUserStartedSpeakingFrame(),
            *_audio(quiet + _quiet(1.5) + quiet),
            VADUserStoppedSpeakingFrame(stop_secs=0.2),
        ],
    )
    (final,) = _of(down, TranscriptionFrame)
    (segment,) = final.result["segments"]
    assert segment["start"] == 0
    assert segment["end"] == final.result["duration"] == pytest.approx(2 * len(quiet) / 32_000 + 1.5, abs=0.01)
    assert final.text == f"{wanted.text} {wanted.text}"


def test_a_long_turn_makes_one_final(model: Recognizer, recordings: dict[str, Recording]) -> None:
    names = ["spanish", "english", "german"] * 4
    pcm = b"".join(_pcm(recordings[name]) + _quiet(0.5) for name in names)
    assert len(pcm) / 32_000 > 35
    down, _ = _hear(Qwen3ASRStreamingSTTService(model=model), _turn(pcm))
    (final,) = _of(down, TranscriptionFrame)
    segments = final.result["segments"]
    assert len(segments) >= 2
    assert final.text == qwen3asr.join_texts(segment["text"] for segment in segments)
    interims = _of(down, InterimTranscriptionFrame)
    assert all(frame.text.startswith(segments[0]["text"]) for frame in interims if frame.result["start"] > 0)


def test_chinese_segments_are_joined_without_a_space(model: Recognizer, recordings: dict[str, Recording]) -> None:
    pcm = (_pcm(recordings["chinese"]) + _quiet(0.3)) * 12
    down, _ = _hear(
        Qwen3ASRStreamingSTTService(
            model=model, settings=Qwen3ASRStreamingSTTService.Settings(language=Language.ZH_CN)
        ),
        _turn(pcm),
    )
    (final,) = _of(down, TranscriptionFrame)
    assert len(final.result["segments"]) >= 2
    assert final.text == "".join(segment["text"] for segment in final.result["segments"])


def test_nothing_is_heard_in_two_turns(model: Recognizer, recordings: dict[str, Recording]) -> None:
    """The second begins before the pre-roll is full again, and before the first has its final."""
    one, two = recordings["english"], recordings["spanish"]
    down, _ = _hear(
        Qwen3ASRStreamingSTTService(model=model),
        [
            *_turn(_pcm(one)),
            VADUserStartedSpeakingFrame(),
            *_audio(_pcm(two)),
            VADUserStoppedSpeakingFrame(stop_secs=0.2),
        ],
    )
    assert _finals(down) == [one.text, two.text]
    assert [frame.result["pre_roll"] for frame in _of(down, TranscriptionFrame)] == [pytest.approx(0.7), 0.0]


def test_finals_come_in_the_order_of_the_turns(model: Recognizer, recordings: dict[str, Recording]) -> None:
    """The second turn is decoded long before the first."""
    short = recordings["german-short"]
    down, _ = _hear(
        Qwen3ASRStreamingSTTService(model=model),
        [*_turn(_pcm(recordings["english"]) * 15), *_turn(_pcm(short))],
    )
    first, second = _of(down, TranscriptionFrame)
    assert first.result["duration"] > 55
    assert second.text == short.text


def test_audio_that_comes_too_fast_is_told(model: Recognizer, recordings: dict[str, Recording]) -> None:
    wanted = recordings["english"]
    minutes = [InputAudioRawFrame(_quiet(61), 16_000, 1) for _ in range(4)]
    down, up = _hear(
        Qwen3ASRStreamingSTTService(model=model),
        [VADUserStartedSpeakingFrame(), *minutes, VADUserStoppedSpeakingFrame(stop_secs=0.2), *_turn(_pcm(wanted))],
    )
    assert [type(frame.exception) for frame in _of(up, ErrorFrame)] == [StreamBehind]
    assert _finals(down)[-1] == wanted.text


# --- what comes in between ---------------------------------------------------------------------------------------


@BOTH
def test_an_interruption_takes_nothing_from_the_user(
    model: Recognizer, recordings: dict[str, Recording], kind: type[Service]
) -> None:
    wanted = recordings["english"]
    frames = _turn(_pcm(wanted))
    frames.insert(len(frames) // 2, InterruptionFrame())
    down, _ = _hear(kind(model=model), frames)
    assert _finals(down) == [wanted.text]
    assert _of(down, InterruptionFrame)


@BOTH
def test_what_is_said_while_muted_is_not_heard(
    model: Recognizer, recordings: dict[str, Recording], kind: type[Service]
) -> None:
    one, two = recordings["english"], recordings["spanish"]
    down, _ = _hear(
        kind(model=model),
        [STTMuteFrame(mute=True), *_turn(_pcm(one)), STTMuteFrame(mute=False), *_turn(_pcm(two))],
    )
    assert _finals(down) == [two.text]


@BOTH
@pytest.mark.parametrize("while_speaking", [True, False])
def test_muting_in_the_middle_of_a_turn_drops_what_was_said_in_it(
    model: Recognizer, recordings: dict[str, Recording], kind: type[Service], while_speaking: bool
) -> None:
    """Unmuted while the user still speaks, or after the turn."""
    one, two, three = (_pcm(recordings[name]) for name in ("english", "german-short", "spanish"))
    stop = VADUserStoppedSpeakingFrame(stop_secs=0.2)
    unmuted = [*_audio(three + _quiet(0.2)), stop] if while_speaking else _turn(three)
    down, up = _hear(
        kind(model=model),
        [
            *_turn(one)[:-1],
            STTMuteFrame(mute=True),
            *_audio(two),
            *([] if while_speaking else [stop]),
            STTMuteFrame(mute=False),
            *unmuted,
        ],
    )
    (final,) = _of(down, TranscriptionFrame)
    assert final.text == recordings["spanish"].text
    assert final.result["duration"] < len(three) / 32_000 + 1.1
    assert final.result["pre_roll"] == pytest.approx(0.0 if while_speaking else 0.7)
    assert abs(final.result["start_time"] - time.time()) < PATIENCE
    assert not _of(up, ErrorFrame)


@BOTH
def test_the_context_is_the_model_s_from_the_start_and_as_it_changes(
    model: Recognizer, recordings: dict[str, Recording], kind: type[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[object] = []
    name = "transcribe_async" if kind is Qwen3ASRSTTService else "stream_async"
    ask = getattr(Recognizer, name)

    def spied(*arguments: Any, **options: Any) -> Any:
        contexts.append(options["context"])
        return ask(*arguments, **options)

    monkeypatch.setattr(Recognizer, name, spied)

    async def scene() -> list[Frame]:
        async with _call(kind(model=model, settings=kind.Settings(context="Anna, green"))) as call:
            await call.send(*_turn(_pcm(recordings["english"])))
            await call.behind.until(TranscriptionFrame, 1)
            await call.send(STTUpdateSettingsFrame(delta=kind.Settings(context="Berta")))
            await call.settle()
            await call.send(*_turn(_pcm(recordings["spanish"])))
            await call.behind.until(TranscriptionFrame, 2)
            return await call.end()

    assert _finals(asyncio.run(scene())) == [recordings[name].text for name in ("english", "spanish")]
    assert contexts == ["Anna, green", "Berta"]


@BOTH
def test_settings_change_in_the_middle_of_a_call(
    model: Recognizer, recordings: dict[str, Recording], kind: type[Service]
) -> None:
    async def scene() -> tuple[list[Frame], list[Frame]]:
        service = kind(model=model)
        async with _call(service) as call:
            await call.send(*_turn(_pcm(recordings["english"])))
            await call.behind.until(TranscriptionFrame, 1)
            await call.send(STTUpdateSettingsFrame(delta=kind.Settings(language=Language.DE_AT, timestamps="word")))
            await call.settle()
            await call.send(*_turn(_pcm(recordings["german-short"])))
            await call.behind.until(TranscriptionFrame, 2)
            await call.send(STTUpdateSettingsFrame(delta=kind.Settings(language=Language.HE)))
            await call.settle()
            await call.before.until(ErrorFrame)
            await call.send(*_turn(_pcm(recordings["german-short"])))
            await call.behind.until(TranscriptionFrame, 3)
            return await call.end(), call.before.frames

    down, up = asyncio.run(scene())
    assert _finals(down) == [recordings[name].text for name in ("english", "german-short", "german-short")]
    finals = _of(down, TranscriptionFrame)
    assert [frame.language for frame in finals] == [Language.EN, Language.DE, Language.DE]
    assert [bool(_words(frame.result)) for frame in finals] == [False, True, True]
    (refused,) = _of(up, ErrorFrame)
    assert isinstance(refused.exception, LanguageUnknown)
    assert "the settings stay as they are" in refused.error


def test_a_step_out_of_range_is_refused(model: Recognizer) -> None:
    with pytest.raises(RequestInvalid, match="step_seconds"):
        Qwen3ASRStreamingSTTService(model=model, settings=Qwen3ASRStreamingSTTService.Settings(step_seconds=0.0))


# --- metrics -----------------------------------------------------------------------------------------------------


@BOTH
def test_metrics_and_latency_are_told(model: Recognizer, recordings: dict[str, Recording], kind: type[Service]) -> None:
    service = kind(model=model, ttfs_p99_latency=0.4)
    down, _ = _hear(service, _turn(_pcm(recordings["english"])))
    data = [data for frame in _of(down, MetricsFrame) for data in frame.data if data.processor == service.name]
    assert [one.value > 0 for one in data if isinstance(one, TTFBMetricsData) and one.value] == [True]
    processing = [one.value > 0 for one in data if isinstance(one, ProcessingMetricsData) and one.value]
    assert processing == ([True] if kind is Qwen3ASRSTTService else [])  # a stream has no request to be timed
    assert _of(down, STTMetadataFrame)[0].ttfs_p99_latency == 0.4


@BOTH
@pytest.mark.parametrize(("timeout", "measured"), [(0.0, False), (PATIENCE, True)])
def test_a_final_that_pipecat_does_not_wait_for_is_not_measured(
    model: Recognizer, recordings: dict[str, Recording], kind: type[Service], timeout: float, measured: bool
) -> None:
    service = kind(model=model, stt_ttfb_timeout=timeout)
    down, _ = _hear(service, _turn(_pcm(recordings["english"])))
    assert _finals(down)
    data = [data for frame in _of(down, MetricsFrame) for data in frame.data if data.processor == service.name]
    assert any(isinstance(one, TTFBMetricsData) and one.value for one in data) is measured


@BOTH
def test_a_trace_has_a_span_for_each_final(
    model: Recognizer, recordings: dict[str, Recording], kind: type[Service]
) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))

    async def scene() -> None:
        async with _call(kind(model=model), tracing=True) as call:
            for number, name in enumerate(("english", "spanish"), 1):
                await call.send(*_turn(_pcm(recordings[name])))
                await call.behind.until(TranscriptionFrame, number)
            await call.end()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "get_tracer", provider.get_tracer)
        asyncio.run(scene())
    found = [dict(span.attributes or {}) for span in spans.get_finished_spans() if span.name == "stt"]
    assert [one["transcript"] for one in found] == [recordings[name].text for name in ("english", "spanish")]
    for one in found:
        assert (one["is_final"], one["gen_ai.request.model"]) == (True, model.bundle.folder.name)
        assert float(str(one["metrics.ttfb"])) > 0


# --- many, and ends ----------------------------------------------------------------------------------------------


@BOTH
def test_eight_services_share_one_model(
    model: Recognizer, recordings: dict[str, Recording], kind: type[Service]
) -> None:
    async def one(name: str) -> list[str]:
        async with _call(kind(model=model)) as call:
            await call.send(*_turn(_pcm(recordings[name])))
            return _finals(await call.end())

    async def scene() -> list[list[str]]:
        return await asyncio.gather(*map(one, SPOKEN * 2))

    assert asyncio.run(scene()) == [[recordings[name].text] for name in SPOKEN * 2]


@BOTH
def test_services_killed_in_a_turn_leave_nothing_behind(
    asr_bundle: Path, recordings: dict[str, Recording], kind: type[Service]
) -> None:
    """The model takes two streams, or requests, at a time: a third of them would be refused."""

    async def scene(small: Recognizer) -> list[str]:
        frames = _turn(_pcm(recordings["english"]) * 2)
        for _ in range(3):
            async with _call(kind(model=small)) as call:
                await call.send(*(frames if kind is Qwen3ASRSTTService else frames[:-1]))
                if kind is Qwen3ASRStreamingSTTService:
                    await call.behind.until(InterimTranscriptionFrame)
                else:
                    await call.behind.until(VADUserStoppedSpeakingFrame)
        async with _call(kind(model=small)) as call:
            await call.send(*_turn(_pcm(recordings["english"])))
            return _finals(await call.end())

    with qwen3asr.load(asr_bundle, slots=1, queue=1) as small:
        assert asyncio.run(scene(small)) == [recordings["english"].text]
        with small.stream() as stream:
            stream.push(np.frombuffer(_pcm(recordings["english"]), np.int16))


@BOTH
def test_cleanup_twice_closes_a_model_that_was_loaded_here(
    asr_bundle: Path, recordings: dict[str, Recording], kind: type[Service]
) -> None:
    async def scene() -> Recognizer:
        service = kind(model=asr_bundle)
        async with _call(service) as call:
            await call.send(*_turn(_pcm(recordings["english"])))
            assert _finals(await call.end()) == [recordings["english"].text]
        await service.cleanup()
        await service.cleanup()
        return service._recognizer

    loaded = asyncio.run(scene())
    with pytest.raises((EngineClosed, RuntimeError)):
        loaded.transcribe(recordings["english"].path)


def test_cleanup_leaves_a_shared_model_open(model: Recognizer, recordings: dict[str, Recording]) -> None:
    async def scene() -> None:
        for kind in (Qwen3ASRSTTService, Qwen3ASRStreamingSTTService):
            service = kind(model=model)
            await service.cleanup()
            await service.cleanup()

    asyncio.run(scene())
    assert model.transcribe(recordings["english"].path).text == recordings["english"].text


@BOTH
def test_a_closed_model_makes_the_service_unusable(
    asr_bundle: Path, recordings: dict[str, Recording], kind: type[Service]
) -> None:
    small = qwen3asr.load(asr_bundle)
    service = kind(model=small)
    small._engine.close()
    down, up = _hear(service, _turn(_pcm(recordings["english"])))
    small.close()
    assert not _of(down, TranscriptionFrame)
    (error,) = _of(up, ErrorFrame)
    assert isinstance(error.exception, EngineClosed)
    assert "lost" in error.error
    assert not service.is_usable


def test_after_an_error_the_call_goes_on(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    """The model takes two streams at a time; two others are open during the first turn."""
    wanted = recordings["english"]

    async def scene(small: Recognizer) -> tuple[list[Frame], list[Frame]]:
        async with _call(Qwen3ASRStreamingSTTService(model=small)) as call:
            others = [small.stream(), small.stream()]
            for stream in others:
                await asyncio.to_thread(stream.push, np.frombuffer(_pcm(wanted), np.int16))
            await call.send(*_turn(_pcm(wanted)))
            await call.before.until(ErrorFrame)
            for stream in others:
                stream.close()
            await call.send(*_turn(_pcm(wanted)))
            return await call.end(), call.before.frames

    with qwen3asr.load(asr_bundle, slots=1, queue=1) as small:
        down, up = asyncio.run(scene(small))
    assert _finals(down) == [wanted.text]
    assert [type(frame.exception) for frame in _of(up, ErrorFrame)] == [EngineBusy]


@BOTH
def test_what_makes_no_sense_is_refused_when_the_service_is_made(
    asr_bundle: Path, model: Recognizer, kind: type[Service]
) -> None:
    with pytest.raises(LanguageUnknown):
        kind(model=model, settings=kind.Settings(language=Language.HE))
    with pytest.raises(RequestInvalid, match="load the model itself"):
        kind(model=model, aligner=asr_bundle)
    with qwen3asr.load(asr_bundle) as bare, pytest.raises(AlignerMissing):
        kind(model=bare, settings=kind.Settings(timestamps="word"))


def test_every_language_has_a_name_on_both_sides(model: Recognizer) -> None:
    service = Qwen3ASRSTTService(model=model)
    assert {service.language_to_service_language(Language(code)) for code in LANGUAGES.values()} == set(LANGUAGES)
    for language, name in [(Language.EN_US, "English"), (Language.ZH_HK, "Cantonese"), (Language.ZH_TW, "Chinese")]:
        assert service.language_to_service_language(language) == name
    assert service.language_to_service_language(Language.HE) is None


# --- the event loop ----------------------------------------------------------------------------------------------


@BOTH
def test_the_event_loop_is_never_blocked(
    model: Recognizer, recordings: dict[str, Recording], kind: type[Service]
) -> None:
    async def scene() -> list[Stall]:
        stalls: list[Stall] = []
        async with _call(kind(model=model, settings=kind.Settings(timestamps="word"))) as call:
            for number in range(TURNS):

                async def turn(finals: int = number + 1) -> None:
                    for frame in _turn(_pcm(recordings["english"])):
                        await call.send(frame)
                        await asyncio.sleep(0)
                    await call.behind.until(TranscriptionFrame, finals)

                stalls.append(await longest_stall(turn))
        return stalls

    assert_never_blocked(asyncio.run(scene()))


# --- word times for other services -------------------------------------------------------------------------------


class _OtherService(FrameProcessor):
    """A service without word times: says what it is told to when the user stops speaking."""

    def __init__(self, texts: Sequence[str], language: Language | None = Language.EN) -> None:
        super().__init__()
        self._texts, self._language = iter(texts), language

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, VADUserStoppedSpeakingFrame):
            text = next(self._texts)
            await self.push_frame(TranscriptionFrame(text, "user", "now", self._language, result={"id": text}))


def _aligned(model: Recognizer, other: FrameProcessor, *turns: Sequence[Frame]) -> list[Frame]:
    async def scene() -> list[Frame]:
        async with _call(other, Qwen3AlignmentProcessor(aligner=model)) as call:
            for number, turn in enumerate(turns, 1):
                await call.send(*turn)
                await call.behind.until(TranscriptionFrame, number)
            return await call.end()

    return asyncio.run(scene())


def test_words_of_another_service_get_times(model: Recognizer, recordings: dict[str, Recording]) -> None:
    wanted, next_one = recordings["english"], recordings["german-short"]
    text = wanted.text.replace(" ", ", ") + "."
    turns = [*_audio(_quiet(20)), *_turn(_pcm(wanted))], _turn(_pcm(next_one))
    one, two = _of(_aligned(model, _OtherService([text, next_one.text], None), *turns), TranscriptionFrame)
    assert (one.text, one.user_id, one.result["provider_result"]) == (text, "user", {"id": text})
    words = _words(one.result)
    assert " ".join(word["text"] for word in words) == wanted.text
    true = np.array([float(str(word["start"])) for word in wanted.words])
    lead = 1.0 - 0.2  # of pre-roll, less what was said before the VAD's start
    assert np.abs(np.array([word["start"] for word in words]) - true - lead).mean() < 0.15
    assert [word["text"] for word in _words(two.result)] == next_one.text.split()

    (began,) = _of(turns[0], VADUserStartedSpeakingFrame)
    assert one.result["pre_roll"] == pytest.approx(1.0)
    assert one.result["start_time"] == pytest.approx(began.timestamp - 1.0, abs=0.001)


class _Spy:
    """An aligner that notes what it is asked: seconds and text."""

    def __init__(self, model: Recognizer) -> None:
        self._model, self.asked = model, list[tuple[float, str]]()

    def align(self, samples: Any, text: str, **options: Any) -> Any:
        self.asked.append((round(len(samples) / options["sample_rate"], 2), text))
        return self._model.align(samples, text, **options)


def _final(text: str) -> TranscriptionFrame:
    return TranscriptionFrame(text, "user", "now", Language.EN)


def _aligned_late(model: Recognizer, *frames: Frame, finals: int, **options: Any) -> tuple[_Spy, list[Frame]]:
    """All frames, the finals among them, come to the processor before the first alignment is done."""
    spy: Any = _Spy(model)

    async def scene() -> list[Frame]:
        async with _call(Qwen3AlignmentProcessor(aligner=spy, **options)) as call:
            await call.send(*frames)
            await call.behind.until(TranscriptionFrame, finals)
            return await call.end()

    return spy, asyncio.run(scene())


def _turn_of(seconds: float, rate: int = 16_000, **stop: Any) -> list[Frame]:
    """Between the VAD's start and its stop; the first has no pre-roll."""
    frames = _audio(_quiet(seconds, rate), rate)
    return [VADUserStartedSpeakingFrame(), *frames, VADUserStoppedSpeakingFrame(**stop)]


@pytest.mark.parametrize("third", [[], _turn_of(4.0)[:-1]])
def test_a_final_is_of_the_oldest_turn_that_is_over(model: Recognizer, third: list[Frame]) -> None:
    """Two turns are over, and a third goes on, when the first final comes."""
    spy, _ = _aligned_late(
        model,
        *[*_turn_of(2.0), *_turn_of(3.0, 8_000), *third, _final("one"), _final("two"), _final("three")],
        finals=3,
    )
    assert spy.asked == [(2.0, "one"), (3.0, "two")]


def test_a_turn_without_a_final_is_given_up(model: Recognizer) -> None:
    noise = _turn_of(2.0, timestamp=time.time() - 60)
    assert _aligned_late(model, *noise, *_turn_of(3.0), _final("one"), finals=1)[0].asked == [(3.0, "one")]
    spy, _ = _aligned_late(model, *noise, *_turn_of(3.0), _final("one"), finals=1, final_within=90.0)
    assert spy.asked == [(2.0, "one")]
    slow = STTMetadataFrame(service_name="slow", ttfs_p99_latency=45.0)
    assert _aligned_late(model, slow, *noise, _final("one"), finals=1)[0].asked == [(2.0, "one")]


def test_turns_that_wait_are_bounded_and_so_is_their_audio() -> None:
    turns = UserTurns(longest=1.0)
    for number in range(10):
        turns.begin(VADUserStartedSpeakingFrame(timestamp=100.0 * number))
        for frame in _audio(_quiet(1 + number / 10)):
            turns.hear(frame)
        turns.end(VADUserStoppedSpeakingFrame(timestamp=time.time()))
    waiting = list(iter(lambda: turns.claim(60.0), None))
    assert len(waiting) == 8
    assert all(turn.clip.seconds == pytest.approx(1.0) for turn in waiting)
    assert waiting[0].anchor.start_time == pytest.approx(200.2)  # its first 0.2 s are gone


def test_all_that_cannot_be_aligned_goes_on_as_it_is(model: Recognizer, recordings: dict[str, Recording]) -> None:
    pcm = _pcm(recordings["english"])
    assert _finals(_aligned(model, _OtherService(["merhaba"], Language.TR), _turn(pcm))) == ["merhaba"]
    frames = [TranscriptionFrame("before all audio", "user", "now", Language.EN), TextFrame("other")]
    down, _ = _hear(Qwen3AlignmentProcessor(aligner=model), frames)
    assert _finals(down) == ["before all audio"]
    assert [frame.text for frame in _of(down, TextFrame) if type(frame) is TextFrame] == ["other"]


def test_words_that_are_there_already_stay(model: Recognizer, recordings: dict[str, Recording]) -> None:
    service = Qwen3ASRSTTService(model=model, settings=Qwen3ASRSTTService.Settings(timestamps="word"))
    (final,) = _of(_aligned(model, service, _turn(_pcm(recordings["english"]))), TranscriptionFrame)
    assert _words(final.result)
    assert "provider_result" not in final.result


def test_only_transcripts_wait_for_their_words(model: Recognizer, recordings: dict[str, Recording]) -> None:
    """The aligner does not answer before the frames behind the first transcript have passed."""
    wanted = recordings["english"].text
    passed = asyncio.Event()

    class Slow:
        def align(self, *arguments: Any, **options: Any) -> Any:
            asyncio.run_coroutine_threadsafe(_wait(passed), loop).result(PATIENCE)
            return model.align(*arguments, **options)

    async def scene() -> list[Frame]:
        nonlocal loop
        loop = asyncio.get_running_loop()
        slow: Any = Slow()
        async with _call(_OtherService([wanted]), Qwen3AlignmentProcessor(aligner=slow)) as call:
            await call.send(*_turn(_pcm(recordings["english"])), TextFrame("behind"))
            await call.behind.until(TextFrame)
            await call.send(TranscriptionFrame("without audio", "user", "now"), TextFrame("behind all"))
            await call.behind.until(TextFrame, 2)
            assert not _finals(call.behind.frames)
            passed.set()
            return await call.end()

    loop: asyncio.AbstractEventLoop
    down = asyncio.run(scene())
    assert _finals(down) == [wanted, "without audio"]
    assert _words(_of(down, TranscriptionFrame)[0].result)
    assert isinstance(down[-1], EndFrame)


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


# --- word times for what a TTS service says ----------------------------------------------------------------------


class _Voice(TTSService):
    """A service that says the texts of recordings with their voices, without word times."""

    def __init__(self, recordings: dict[str, Recording]) -> None:
        super().__init__(push_start_frame=True, push_stop_frames=True, sample_rate=16_000)
        self._voices = {recordings[name].text: _pcm(recordings[name]) for name in SPOKEN}

    def can_generate_metrics(self) -> bool:
        return False

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        pcm = self._voices[text.rstrip(".")]
        for at in range(0, len(pcm), 6_400):
            yield TTSAudioRawFrame(pcm[at : at + 6_400], 16_000, 1, context_id=context_id)


def test_what_a_tts_service_says_gets_captions(model: Recognizer, recordings: dict[str, Recording]) -> None:
    said = recordings["english"]
    text = f"{said.text}."

    async def scene() -> list[Frame]:
        async with _call(_Voice(recordings), Qwen3AlignmentProcessor(aligner=model)) as call:
            await call.send(TTSSpeakFrame(text), TTSSpeakFrame(recordings["spanish"].text))
            await call.behind.until(Qwen3CaptionFrame, 2)
            return await call.end()

    frames = asyncio.run(scene())
    one, two = _of(frames, Qwen3CaptionFrame)
    texts = _of(frames, TTSTextFrame)
    assert [frame.text for frame in texts] == [text, recordings["spanish"].text]
    assert [(frame.text, frame.context_id) for frame in (one, two)] == [(t.text, t.context_id) for t in texts]
    words = _words(one.result)
    assert [word["text"] for word in words] == said.text.split()
    true = np.array([float(str(word["start"])) for word in said.words])
    assert np.abs(np.array([word["start"] for word in words]) - true).mean() < 0.1
    assert one.result["duration"] == pytest.approx(len(_pcm(said)) / 32_000, abs=0.001)
    assert [word["text"] for word in _words(two.result)] == recordings["spanish"].text.split()


def _speech(pcm: bytes) -> list[Frame]:
    return [TTSAudioRawFrame(pcm[at : at + 6_400], 16_000, 1, context_id="a") for at in range(0, len(pcm), 6_400)]


def _text(text: str, pts: int | None = None) -> TTSTextFrame:
    frame = TTSTextFrame(text, text_type="sentence", context_id="a")
    frame.pts = pts
    return frame


def _captions(model: Recognizer, *frames: Frame) -> list[Qwen3CaptionFrame]:
    async def scene() -> list[Frame]:
        async with _call(Qwen3AlignmentProcessor(aligner=model)) as call:
            await call.send(*frames)
            return await call.end()

    return _of(asyncio.run(scene()), Qwen3CaptionFrame)


def test_captions_of_a_context_tell_where_their_audio_is_in_it(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    one, two = recordings["english"], recordings["spanish"]
    start, stop = TTSStartedFrame(context_id="a"), TTSStoppedFrame(context_id="a")
    first, second = _speech(_pcm(one)), _speech(_pcm(two))
    seconds = len(_pcm(one)) / 32_000

    told = _captions(model, start, *first, _text(one.text), *second, _text(two.text), stop)
    assert [(frame.text, frame.result["offset"]) for frame in told] == [
        (one.text, 0.0), (two.text, pytest.approx(seconds, abs=0.001)),
    ]  # fmt: skip
    (whole,) = _captions(model, start, _text(one.text), *first, _text(two.text), *second, stop)  # text before audio
    assert whole.text == f"{one.text} {two.text}"
    words = _words(whole.result)
    assert [word["text"] for word in words] == whole.text.split()
    assert words[len(one.words)]["start"] >= seconds - 0.2
    assert not _captions(model, start, *first, *[_text(word, pts=1) for word in one.text.split()], stop)
    assert not _captions(model, *first, _text(one.text))  # of no context


def test_an_interruption_takes_back_captions_and_no_tts_frame_waits(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    """The aligner does not answer before all frames have passed."""
    passed = asyncio.Event()

    class Slow:
        def align(self, *arguments: Any, **options: Any) -> Any:
            asyncio.run_coroutine_threadsafe(_wait(passed), loop).result(PATIENCE)
            return model.align(*arguments, **options)

    async def scene() -> list[Frame]:
        nonlocal loop
        loop = asyncio.get_running_loop()
        slow: Any = Slow()
        said = [TTSStartedFrame(context_id="a"), *_speech(_pcm(recordings["english"])), _text("hello")]
        async with _call(Qwen3AlignmentProcessor(aligner=slow)) as call:
            await call.send(*said, TTSStoppedFrame(context_id="a"))
            await call.behind.until(TTSStoppedFrame)
            await call.send(InterruptionFrame())
            await call.behind.until(InterruptionFrame)
            await call.send(*said, TTSStoppedFrame(context_id="a"))
            await call.behind.until(TTSStoppedFrame, 2)
            passed.set()
            return await call.end()

    loop: asyncio.AbstractEventLoop
    assert len(_of(asyncio.run(scene()), Qwen3CaptionFrame)) == 1


# --- around it ---------------------------------------------------------------------------------------------------


def test_a_missing_pipecat_is_named() -> None:
    code = "import sys; sys.modules['pipecat'] = None; import qwen3asr_plugins.pipecat"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'qwen3asr[pipecat]'" in done.stderr


def test_the_example_prints_interims_finals_and_words(
    asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording]
) -> None:
    command = [sys.executable, ROOT / "examples/pipecat_agent.py", asr_bundle, recordings["english"].path]
    done = subprocess.run(
        [*map(os.fspath, command), os.fspath(aligner_bundle)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"final    en: {recordings['english'].text}" in lines
    assert any(line.startswith("interim") for line in lines)
    assert sum(line.startswith("    ") for line in lines) == len(recordings["english"].text.split())


def test_the_readme_s_pipeline_hears(
    asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = run_quickstart("Pipecat", "LiveKit", asr_bundle, tmp_path, monkeypatch)
    vad, stt = known["pipeline"].processors[1:-1]
    assert isinstance(vad, VADProcessor)
    patient = VADProcessor(vad_analyzer=SileroVADAnalyzer(params=VADParams(stop_secs=0.8)))  # of slow speakers

    async def scene() -> list[Frame]:
        async with _call(patient, stt) as call:
            await call.send(*_audio(_quiet(1) + _pcm(recordings["english"]) + _quiet(2)))
            await call.before.until(VADUserStoppedSpeakingFrame)
            return await call.end()

    assert _finals(asyncio.run(scene())) == [recordings["english"].text]
    known["model"].close()
