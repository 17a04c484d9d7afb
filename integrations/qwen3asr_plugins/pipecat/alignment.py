"""Word times for the transcripts of any service."""

from __future__ import annotations

import asyncio

import numpy as np
import numpy.typing as npt
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InputAudioRawFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

import qwen3asr
from qwen3asr import ALIGNER_LANGUAGES, Recognizer, Transcript
from qwen3asr.errors import Qwen3AsrError

from .languages import model_language
from .preroll import PRE_ROLL_SECONDS, keep_last


class Qwen3AlignmentProcessor(FrameProcessor):
    """Word times for the final ``TranscriptionFrame``s of any service; place it behind that.

    The times are found in the audio that passes by (the service must let it through) between the VAD's starts, less a
    second, and stops since the transcript before; they count from the first sample of that. ``result`` becomes what
    :class:`Qwen3ASRSTTService` gives, with what it was before as ``provider_result``.

    Transcription frames wait for their words, in order; all other frames pass at once. Frames are never dropped: one
    that has words, or a language that the aligner does not know, or for which no audio is left, goes on as it is.
    """

    def __init__(
        self, *, aligner: Recognizer | qwen3asr.Aligner, seconds: float = 60.0, name: str | None = None
    ) -> None:
        """Make a processor.

        Args:
            aligner: :func:`qwen3asr.load_aligner`, or a model that was loaded with one. Any number of processors share
                it.
            seconds: of audio kept at most; of a longer turn, its end.
            name: of the processor.
        """
        super().__init__(name=name)
        self._aligner, self._seconds = aligner, seconds
        self._open, self._over = bytearray(), bytearray()  # audio of the turn that goes on, and of those before
        self._rate, self._channels = 0, 1
        self._speaking = False
        self._waiting: list[asyncio.Task[None]] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Take audio and transcripts; let everything else pass."""
        await super().process_frame(frame, direction)
        if isinstance(frame, TranscriptionFrame) and direction is FrameDirection.DOWNSTREAM:
            before = self._waiting[-1] if self._waiting else None
            self._waiting.append(self.create_task(self._pass_on(frame, self._take(), before), "align"))
            return
        if isinstance(frame, InputAudioRawFrame):
            self._keep(frame)
        elif isinstance(frame, VADUserStartedSpeakingFrame):
            self._speaking = True
        elif isinstance(frame, VADUserStoppedSpeakingFrame):
            self._speaking = False
            self._over += self._open
            self._open.clear()
        elif isinstance(frame, EndFrame) and self._waiting:
            await asyncio.wait(self._waiting)  # the transcripts go before the end
        await self.push_frame(frame, direction)

    async def cleanup(self) -> None:
        """Give up what is being aligned; harmless when done twice."""
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            await self.cancel_task(task)
        await super().cleanup()  # type: ignore[no-untyped-call]

    def _keep(self, frame: InputAudioRawFrame) -> None:
        self._rate, self._channels = frame.sample_rate, frame.num_channels
        second = 2 * self._rate * self._channels
        self._open += frame.audio
        keep_last(self._open, round(self._seconds if self._speaking else PRE_ROLL_SECONDS) * second)
        keep_last(self._over, round(self._seconds) * second)

    def _take(self) -> npt.NDArray[np.int16]:
        """The audio of the turns that are over, or, of a service that does not wait for that, of the open one."""
        audio = self._over or (self._open if self._speaking else bytearray())
        samples = np.frombuffer(bytes(audio), np.int16).reshape(-1, self._channels)
        audio.clear()
        return samples

    async def _pass_on(
        self, frame: TranscriptionFrame, audio: npt.NDArray[np.int16], before: asyncio.Task[None] | None
    ) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
            if len(audio) and frame.text.strip() and not _has_words(frame.result):
                await self._align(frame, audio)
            await self.push_frame(frame)
        finally:
            self._waiting = [task for task in self._waiting if task is not asyncio.current_task()]

    async def _align(self, frame: TranscriptionFrame, audio: npt.NDArray[np.int16]) -> None:
        name = None if frame.language is None else model_language(frame.language)
        if frame.language is not None and name not in ALIGNER_LANGUAGES:
            return
        rate = self._rate
        try:
            words = await asyncio.to_thread(self._aligner.align, audio, frame.text, language=name, sample_rate=rate)
        except Qwen3AsrError as error:
            await self.push_error(f"a transcript goes on without word times: {error}", exception=error)
            return
        transcript = Transcript.from_words(frame.text, words, len(audio) / rate, name)
        frame.result = transcript.to_dict() | {"provider_result": frame.result}


def _has_words(result: object) -> bool:
    """Whether the result of a frame is one of ours, with word times."""
    segments = result.get("segments") if isinstance(result, dict) else None
    return isinstance(segments, list) and any(isinstance(one, dict) and one.get("words") for one in segments)
