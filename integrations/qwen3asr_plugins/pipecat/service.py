"""What both services share, and the one that transcribes a segment at a time."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    STTMuteFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.services.stt_service import SegmentedSTTService, STTService
from pipecat.transcriptions.language import Language
from pipecat.utils.time import time_now_iso8601
from pipecat.utils.tracing.service_decorators import traced_stt
from pipecat.utils.types import assert_given

import qwen3asr
from qwen3asr import Recognizer, Transcript
from qwen3asr.errors import EngineClosed, Qwen3AsrError, RequestInvalid

from .settings import Qwen3ASRSTTSettings, model_language, pipecat_language
from .turns import Anchor


class Qwen3ASRService(STTService):
    """What both services share: the model, settings that are checked before they count, and the frames."""

    _settings: Qwen3ASRSTTSettings

    def __init__(
        self,
        *,
        model: Recognizer | str | os.PathLike[str],
        aligner: str | os.PathLike[str] | None,
        settings: Qwen3ASRSTTSettings,
        audio_passthrough: bool,
        ttfs_p99_latency: float | None,
        stt_ttfb_timeout: float,
        name: str | None,
    ) -> None:
        if isinstance(model, Recognizer) and aligner is not None:
            raise RequestInvalid("aligner= goes with the path of a bundle; load the model itself with aligner=")
        self._recognizer = model if isinstance(model, Recognizer) else qwen3asr.load(model, aligner=aligner)
        self._owned = None if isinstance(model, Recognizer) else self._recognizer
        settings.model = self._recognizer.bundle.folder.name
        self._check(settings)
        super().__init__(
            settings=settings, audio_passthrough=audio_passthrough, ttfs_p99_latency=ttfs_p99_latency,
            stt_ttfb_timeout=stt_ttfb_timeout, name=name,
        )  # fmt: skip

    def can_generate_metrics(self) -> bool:
        """Time from the end of speech to the final; of the segmented service processing time too."""
        return True

    def language_to_service_language(self, language: Language) -> str | None:
        """The model's name of a language (``"German"`` of ``de-AT``); ``None`` if it knows none."""
        return model_language(language)

    async def cleanup(self) -> None:
        """Let go of everything; a model that was loaded here is closed. Harmless when done twice."""
        await super().cleanup()  # type: ignore[no-untyped-call]
        owned, self._owned = self._owned, None
        if owned is not None:
            await asyncio.to_thread(owned.close)

    async def _update_settings(self, delta: Any) -> dict[str, Any]:  # Pipecat's classes disagree on its type
        """Refuse, as an error frame, what the model cannot do; the settings then stay as they are."""
        wanted = self._settings.copy()
        wanted.apply_update(delta)
        try:
            self._check(wanted)
        except Qwen3AsrError as error:
            await self._report("the settings stay as they are", error)
            return {}
        changed = await super()._update_settings(delta)
        self._warn_unhandled_updated_settings(changed.keys() & {"model"})  # type: ignore[no-untyped-call]
        return changed

    def _check(self, settings: Qwen3ASRSTTSettings) -> None:
        """Raises a Qwen3AsrError where no audio could make the settings good."""
        self._recognizer.check(
            language=assert_given(settings.language),
            context=assert_given(settings.context),
            timestamps=assert_given(settings.timestamps),
        )

    async def _report(self, what: str, error: Qwen3AsrError) -> None:
        """As an error frame; after a closed model Pipecat may go on with another service."""
        closed = isinstance(error, EngineClosed)
        await self.push_error(f"{what}: {error}", exception=error, force_treat_as_permanent=closed)

    async def _final(self, transcript: Transcript, result: dict[str, Any]) -> TranscriptionFrame:
        language = pipecat_language(transcript.language)
        await self._handle_transcription(transcript.text, True, language)
        return TranscriptionFrame(
            transcript.text, self._user_id, time_now_iso8601(), language, result=result, finalized=True
        )

    async def _handle_transcription(self, transcript: str, is_final: bool, language: Language | None = None) -> None:
        """For :func:`traced_stt`, which traces the ``push_frame`` of the class that it is used in."""


@dataclass(frozen=True, slots=True)
class _Said:
    """A segment that waits to be transcribed: where its times count from, and its length without Pipecat's padding."""

    anchor: Anchor
    seconds: float


class Qwen3ASRSTTService(Qwen3ASRService, SegmentedSTTService):
    """One final ``TranscriptionFrame`` for each segment of speech that the VAD finds; none where nothing was said.

    ``result`` is :meth:`qwen3asr.Transcript.to_dict`: text, language, confidence, finish reason, and segments, with
    words if ``timestamps`` asks for them; its times count from ``start_time`` (in seconds of ``time.time()``), which is
    ``pre_roll`` seconds before the VAD's start. Errors of the model become error frames; the next segment is tried
    again. Muting drops what was said in the open segment; what is said in it after unmuting is heard.
    """

    Settings = Qwen3ASRSTTSettings

    def __init__(
        self,
        *,
        model: Recognizer | str | os.PathLike[str],
        aligner: str | os.PathLike[str] | None = None,
        settings: Qwen3ASRSTTSettings | None = None,
        audio_passthrough: bool = True,
        ttfs_p99_latency: float | None = None,
        stt_ttfb_timeout: float = 2.0,
        name: str | None = None,
    ) -> None:
        """Make a service.

        Args:
            model: a loaded model, which services share and their owner closes; or the folder of a bundle, which is
                loaded here (it takes seconds) and closed by :meth:`cleanup`.
            aligner: with a folder: that of the aligner, for word times.
            settings: what is to differ from: language detected, no context, no word times.
            audio_passthrough: audio frames go on down the pipeline.
            ttfs_p99_latency: seconds; see the module's text for how to measure it.
            stt_ttfb_timeout: seconds after the VAD's stop that Pipecat measures; a final that comes later has no
                latency in its metrics.
            name: of the processor.

        Raises:
            Qwen3AsrError: a subclass for each cause, such as ``LanguageUnknown`` and ``AlignerMissing``.
        """
        store = self.Settings(language=None, context="", timestamps=None)
        if settings is not None:
            store.apply_update(settings)
        super().__init__(
            model=model, aligner=aligner, settings=store, audio_passthrough=audio_passthrough,
            ttfs_p99_latency=ttfs_p99_latency, stt_ttfb_timeout=stt_ttfb_timeout, name=name,
        )  # fmt: skip
        self._begun: Anchor | None = None  # of the segment that the user speaks; none while nobody does, or muted
        self._said: deque[_Said] = deque()  # as Pipecat's queue of segments

    @property
    def _buffered(self) -> float:
        """Seconds of audio that Pipecat keeps for the segment."""
        return len(self._audio_buffer) / 2 / self.sample_rate

    @property
    def wants_wav_segments(self) -> bool:
        """No: ``run_stt`` gets the samples themselves."""
        return False

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Note where segments begin and end; Pipecat does the rest."""
        if isinstance(frame, VADUserStartedSpeakingFrame):
            self._begun = self._begun or Anchor.before(frame.timestamp, self._buffered)
        elif isinstance(frame, VADUserStoppedSpeakingFrame):
            if self.is_usable:  # else Pipecat drops the segment
                anchor = self._begun or Anchor.before(frame.timestamp, self._buffered)
                self._said.append(_Said(anchor, self._buffered))
            self._begun = None
        elif isinstance(frame, STTMuteFrame) and frame.mute:
            self._audio_buffer.clear()  # what is said later does not follow on it
            self._begun = None
        elif isinstance(frame, STTMuteFrame) and self.is_muted and self._user_speaking:
            self._begun = Anchor(time.time())
        await super().process_frame(frame, direction)

    async def process_audio_frame(self, frame: InputAudioRawFrame, direction: FrameDirection) -> None:
        """Keep audio for the segment, unless muted."""
        if not self.is_muted:
            await super().process_audio_frame(frame, direction)

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame | None, None]:
        """The transcript of a segment, 16-bit mono at the pipeline's rate."""
        settings, said = self._settings, self._said.popleft()
        await self.start_processing_metrics()
        try:
            transcript = await self._recognizer.transcribe_async(
                np.frombuffer(audio, np.int16),
                sample_rate=self.sample_rate,
                language=assert_given(settings.language),
                context=assert_given(settings.context),
                timestamps=assert_given(settings.timestamps),
            )
        except Qwen3AsrError as error:
            await self._report("a segment is lost", error)
            return
        finally:
            await self.stop_processing_metrics()
        if transcript.text:
            result = _cut(transcript, said.seconds).to_dict() | said.anchor.to_dict()
            yield await self._final(transcript, result)

    @traced_stt
    async def _handle_transcription(self, transcript: str, is_final: bool, language: Language | None = None) -> None:
        await super()._handle_transcription(transcript, is_final, language)


def _cut(transcript: Transcript, seconds: float) -> Transcript:
    """Without the silence that Pipecat appended."""
    segments = tuple(
        replace(
            segment,
            end=min(segment.end, seconds),
            words=tuple(replace(word, end=min(word.end, seconds)) for word in segment.words),
        )
        for segment in transcript.segments
    )
    return replace(transcript, duration=seconds, segments=segments)
