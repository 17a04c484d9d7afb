"""The service that transcribes while the user speaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InterimTranscriptionFrame,
    STTMuteFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.transcriptions.language import Language
from pipecat.utils.time import time_now_iso8601
from pipecat.utils.tracing.service_decorators import traced_stt
from pipecat.utils.types import assert_given

import qwen3asr
from qwen3asr import Final, Partial, Recognizer, StreamSettings
from qwen3asr.errors import Qwen3AsrError, StreamEnded

from .service import Qwen3ASRService
from .settings import Qwen3ASRStreamingSTTSettings, Qwen3ASRSTTSettings, pipecat_language
from .turns import PRE_ROLL_SECONDS, Anchor, keep_last


@dataclass(slots=True, eq=False)
class _Turn:
    """What the user says from the VAD's start to its stop."""

    stream: qwen3asr.AsyncStream
    anchor: Anchor
    finals: list[Final] = field(default_factory=list)
    follower: asyncio.Task[None] | None = None
    finisher: asyncio.Task[None] | None = None


class Qwen3ASRStreamingSTTService(Qwen3ASRService):
    """``InterimTranscriptionFrame``s while the user speaks, and one final ``TranscriptionFrame`` a turn of the VAD.

    An interim has the text of the turn so far; its ``result`` says which part of it is ``committed`` and will not
    change. The final comes one step of the model after the VAD's stop. The times of both count from ``start_time``, as
    those of :class:`Qwen3ASRSTTService`. A turn of more than 30 s is decoded in several segments, and still makes one
    final.

    The VAD alone decides what is speech. An interruption changes nothing: it is the user who speaks. Muting drops the
    open turn; what is said in it after unmuting is heard. A turn that is still open when the pipeline ends is
    transcribed to its end; a cancelled pipeline drops it.

    Metrics are the time to the final and the seconds of audio. There is no processing time: decoding goes on all the
    while that the user speaks, as in any of Pipecat's streaming services.
    """

    Settings = Qwen3ASRStreamingSTTSettings
    _settings: Qwen3ASRStreamingSTTSettings

    def __init__(
        self,
        *,
        model: Recognizer | str | os.PathLike[str],
        aligner: str | os.PathLike[str] | None = None,
        settings: Qwen3ASRStreamingSTTSettings | None = None,
        audio_passthrough: bool = True,
        ttfs_p99_latency: float | None = None,
        stt_ttfb_timeout: float = 2.0,
        name: str | None = None,
    ) -> None:
        """Make a service; arguments and errors as those of :class:`Qwen3ASRSTTService`.

        Settings differ from: language detected, no context, no word times, a step each second.
        """
        store = self.Settings(language=None, context="", timestamps=None, step_seconds=1.0)
        if settings is not None:
            store.apply_update(settings)
        super().__init__(
            model=model, aligner=aligner, settings=store, audio_passthrough=audio_passthrough,
            ttfs_p99_latency=ttfs_p99_latency, stt_ttfb_timeout=stt_ttfb_timeout, name=name,
        )  # fmt: skip
        self._heard_before = bytearray()  # the turn, if the VAD then says so
        self._turn: _Turn | None = None  # that of the user who speaks now
        self._turns: list[_Turn] = []  # those that have not made their final yet

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Open a turn where the VAD hears the user, and end it where it does not any more."""
        was_muted = self.is_muted
        await super().process_frame(frame, direction)
        if isinstance(frame, VADUserStartedSpeakingFrame) and not was_muted:
            await self._begin_turn(Anchor.before(frame.timestamp, len(self._heard_before) / 2 / self.sample_rate))
        elif isinstance(frame, VADUserStoppedSpeakingFrame):
            await self._end_turn()
        elif isinstance(frame, STTMuteFrame) and frame.mute:
            self._heard_before.clear()  # what is said later does not follow on it
            await self._drop([] if self._turn is None else [self._turn])
        elif isinstance(frame, STTMuteFrame) and was_muted and self._user_speaking:
            await self._begin_turn(Anchor(time.time()))

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame | None, None]:
        """Give 16-bit mono audio at the pipeline's rate to the open turn, or keep it for the next; yields nothing."""
        if self._turn is not None:
            await self._hear(self._turn, audio)
        else:
            self._heard_before += audio
            keep_last(self._heard_before, round(PRE_ROLL_SECONDS * self.sample_rate) * 2)
        yield None

    async def stop(self, frame: EndFrame) -> None:
        """Wait for what was said: its finals go before the end."""
        await self._end_turn()
        if self._turns:
            await asyncio.wait([turn.follower for turn in self._turns if turn.follower is not None])
        await super().stop(frame)

    async def cancel(self, frame: CancelFrame) -> None:
        """Drop what was said."""
        await super().cancel(frame)
        await self._drop(self._turns)

    async def cleanup(self) -> None:
        """Let go of everything; see :class:`Qwen3ASRSTTService`."""
        await self._drop(self._turns)
        await super().cleanup()

    def _check(self, settings: Qwen3ASRSTTSettings) -> None:
        super()._check(settings)
        if isinstance(settings, Qwen3ASRStreamingSTTSettings):
            StreamSettings(step_seconds=assert_given(settings.step_seconds))

    @traced_stt
    async def _handle_transcription(self, transcript: str, is_final: bool, language: Language | None = None) -> None:
        await super()._handle_transcription(transcript, is_final, language)

    # --- a turn ------------------------------------------------------------------------------------------------

    async def _begin_turn(self, anchor: Anchor) -> None:
        if self._turn is not None or not self.is_usable:
            return
        settings = self._settings
        try:
            stream = self._recognizer.stream_async(
                language=assert_given(settings.language),
                context=assert_given(settings.context),
                timestamps=assert_given(settings.timestamps),
                sample_rate=self.sample_rate,
                settings=StreamSettings(step_seconds=assert_given(settings.step_seconds)),
                detector=_AllSpeech(),
            )
        except Qwen3AsrError as error:
            await self._report("a turn is lost", error)
            return
        turn = _Turn(stream, anchor)
        before = self._turns[-1].follower if self._turns else None
        turn.follower = self.create_task(self._follow(turn, before), "follow")
        self._turn = turn
        self._turns.append(turn)
        audio = bytes(self._heard_before)
        self._heard_before.clear()
        await self._hear(turn, audio)

    async def _hear(self, turn: _Turn, audio: bytes) -> None:
        try:
            await turn.stream.push(np.frombuffer(audio, np.int16))
        except StreamEnded:
            self._turn = None  # by an error that its follower reports
        except Qwen3AsrError as error:
            await self._report("the rest of a turn is lost", error)
            await self._end_turn()

    async def _end_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            # before the final, so that tracing can attach it
            await self.emit_stt_usage_metrics()  # type: ignore[no-untyped-call]
            turn.finisher = self.create_task(_finish(turn.stream), "finish")

    async def _follow(self, turn: _Turn, before: asyncio.Task[None] | None) -> None:
        """Turn events into frames, behind those of the turn before."""
        try:
            if before is not None:
                await asyncio.wait([before])
            await self._push_events(turn)
            transcript = qwen3asr.transcript_of(turn.finals)
            if transcript.text:
                await self.push_frame(await self._final(transcript, transcript.to_dict() | turn.anchor.to_dict()))
        finally:
            self._turns = [other for other in self._turns if other is not turn]

    async def _push_events(self, turn: _Turn) -> None:
        try:
            async for event in turn.stream:
                if isinstance(event, Final):
                    turn.finals.append(event)
                else:
                    await self._push_interim(turn, event)
        except Qwen3AsrError as error:
            await self._report("the rest of a turn is lost", error)

    async def _push_interim(self, turn: _Turn, event: Partial) -> None:
        closed = [final.text for final in turn.finals]
        text = qwen3asr.join_texts([*closed, event.text])
        if not text:
            return
        committed = qwen3asr.join_texts([*closed, event.committed])
        result = asdict(event) | {"text": text, "committed": committed} | turn.anchor.to_dict()
        language = pipecat_language(event.language)
        await self.push_frame(
            InterimTranscriptionFrame(text, self._user_id, time_now_iso8601(), language, result=result)
        )

    async def _drop(self, turns: list[_Turn]) -> None:
        self._turns = [turn for turn in self._turns if turn not in turns]
        self._turn = None if self._turn in turns else self._turn
        for turn in turns:
            for task in (turn.follower, turn.finisher):
                if task is not None and not task.done():
                    await self.cancel_task(task)
            await turn.stream.aclose()


class _AllSpeech:
    """A :class:`qwen3asr.SpeechDetector` that hears speech in everything: the pipeline's VAD has decided already."""

    def probabilities(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.ones(len(samples) // qwen3asr.FRAME, np.float32)

    def reset(self) -> None:
        pass


async def _finish(stream: qwen3asr.AsyncStream) -> None:
    with contextlib.suppress(Qwen3AsrError):  # told to the one who iterates over the stream
        await stream.finish()
