"""Word times for the transcripts of any service, and for what a TTS service says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from pipecat.frames.frames import (
    DataFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    STTMetadataFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transcriptions.language import Language

import qwen3asr
from qwen3asr import ALIGNER_LANGUAGES, Recognizer, Transcript
from qwen3asr.errors import Qwen3AsrError

from .settings import model_language
from .turns import Clip, Turn, UserTurns

_log = logging.getLogger("qwen3asr")
_FINAL_WITHIN = 2.0  # seconds; Pipecat too waits so long for a final


@dataclass
class Qwen3CaptionFrame(DataFrame):
    """What a TTS service says, with the times of its words; comes behind the ``TTSTextFrame`` of that text.

    Attributes:
        text: what is said.
        result: as that of a ``TranscriptionFrame`` of :class:`Qwen3ASRSTTService`. Times count from the first sample of
            this text's audio; ``offset`` is how many seconds of the context's audio come before that.
        context_id: of the ``TTSTextFrame``.
    """

    text: str
    result: dict[str, Any]
    context_id: str | None = None


@dataclass(slots=True)
class _Speech:
    """What a TTS service says in one context, as far as it has no times yet."""

    clip: Clip = field(default_factory=Clip)
    texts: list[str] = field(default_factory=list)
    offset: float = 0.0  # seconds of the context's audio before that
    text_first: bool = False  # texts come before their audio, of which only the whole is known


class Qwen3AlignmentProcessor(FrameProcessor):
    """Word times for the final ``TranscriptionFrame``s of any service, or for what a TTS service says.

    **Behind a speech-to-text service**, which has to let audio and the VAD's frames through, and to give one final a
    turn, after the VAD's stop. ``result`` of a final becomes what :class:`Qwen3ASRSTTService` gives, with what it was
    before as ``provider_result``; times count from ``start_time``, up to a second before the VAD's start. Finals wait
    for their words, in order; all other frames pass at once. No frame is dropped: one that has words, or a language
    that the aligner does not know, or for which no audio is there, goes on as it is.

    A final is of the oldest turn that is over and has none yet. A turn without a final, such as a noise, is given up
    when ``final_within`` is over; as nothing in Pipecat's frames says which turn a final is of, one that comes sooner,
    of a short turn right behind a noise, would get the noise's audio.

    **Behind a text-to-speech service**: a :class:`Qwen3CaptionFrame` for each ``TTSTextFrame``, or, of a service whose
    text comes before the audio, for all that is said in a context. No frame is held up. Text of services that tell word
    times themselves (its frames have a ``pts``) is left alone; an interruption takes back what was not told yet.
    """

    def __init__(
        self,
        *,
        aligner: Recognizer | qwen3asr.Aligner,
        seconds: float = 60.0,
        final_within: float | None = None,
        language: Language | None = None,
        name: str | None = None,
    ) -> None:
        """Make a processor.

        Args:
            aligner: :func:`qwen3asr.load_aligner`, or a model that was loaded with one. Any number of processors share
                it.
            seconds: of audio kept at most; of a longer turn, its end.
            final_within: seconds after the VAD's stop that a turn's final may come; by default 2, or twice the
                ``ttfs_p99_latency`` that the service tells if that is longer.
            language: of what is said, where a frame does not tell it; it only chooses how text is split into words.
            name: of the processor.
        """
        super().__init__(name=name)
        self._aligner, self._seconds, self._language = aligner, seconds, language
        self._final_within, self._within = final_within, final_within or _FINAL_WITHIN
        self._turns = UserTurns(seconds)
        self._speech: dict[str | None, _Speech] = {}  # by context
        self._finals: set[asyncio.Task[None]] = set()
        self._captions: set[asyncio.Task[None]] = set()
        self._finals_in_turn, self._captions_in_turn = asyncio.Lock(), asyncio.Lock()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Take audio and texts; let everything but finals pass at once."""
        await super().process_frame(frame, direction)
        if isinstance(frame, TranscriptionFrame) and direction is FrameDirection.DOWNSTREAM:
            self._start(self._finals, self._pass_on(frame, self._turns.claim(self._within)))
            return
        self._hear_user(frame)
        if isinstance(frame, InterruptionFrame):
            self._speech.clear()
            await self._give_up(self._captions)
        elif isinstance(frame, EndFrame) and self._finals | self._captions:
            await asyncio.wait(self._finals | self._captions)  # they go before the end
        await self.push_frame(frame, direction)
        self._hear_speech(frame)

    async def cleanup(self) -> None:
        """Give up what is being aligned; harmless when done twice."""
        await self._give_up(self._finals)
        await self._give_up(self._captions)
        await super().cleanup()  # type: ignore[no-untyped-call]

    def _start(self, tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
        task = self.create_task(work, "align")
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _give_up(self, tasks: set[asyncio.Task[None]]) -> None:
        for task in list(tasks):
            await self.cancel_task(task)

    # --- what the user says --------------------------------------------------------------------------------------

    def _hear_user(self, frame: Frame) -> None:
        if isinstance(frame, InputAudioRawFrame):
            self._turns.hear(frame)
        elif isinstance(frame, VADUserStartedSpeakingFrame):
            self._turns.begin(frame)
        elif isinstance(frame, VADUserStoppedSpeakingFrame):
            self._turns.end(frame)
        elif isinstance(frame, STTMetadataFrame) and self._final_within is None:
            self._within = max(_FINAL_WITHIN, 2 * frame.ttfs_p99_latency)

    async def _pass_on(self, frame: TranscriptionFrame, turn: Turn | None) -> None:
        async with self._finals_in_turn:
            if frame.text.strip() and not _has_words(frame.result):
                if turn is None:
                    _log.warning("Pipecat: a transcript goes on without word times: no turn is over that waits for one")
                else:
                    await self._add_words(frame, turn)
            await self.push_frame(frame)

    async def _add_words(self, frame: TranscriptionFrame, turn: Turn) -> None:
        transcript = await self._align(turn.clip, frame.text, frame.language)
        if transcript is not None:
            frame.result = transcript.to_dict() | turn.anchor.to_dict() | {"provider_result": frame.result}

    # --- what a TTS service says ---------------------------------------------------------------------------------

    def _hear_speech(self, frame: Frame) -> None:
        if isinstance(frame, TTSStartedFrame):
            self._speech[frame.context_id] = _Speech()
        elif isinstance(frame, TTSAudioRawFrame) and frame.context_id in self._speech:
            speech = self._speech[frame.context_id]
            speech.offset += speech.clip.add(frame, self._seconds)
        elif isinstance(frame, TTSTextFrame) and frame.pts is None and frame.context_id in self._speech:
            speech = self._speech[frame.context_id]
            speech.text_first |= not speech.clip.audio and not speech.offset
            speech.texts.append(frame.text)
            if speech.clip.audio and not speech.text_first:
                self._caption(speech, frame.context_id)
        elif isinstance(frame, TTSStoppedFrame) and frame.context_id in self._speech:
            self._caption(self._speech.pop(frame.context_id), frame.context_id)

    def _caption(self, speech: _Speech, context_id: str | None) -> None:
        """Tell the times of what was said since the last time."""
        text, clip, offset = qwen3asr.join_texts(speech.texts), speech.clip.take(), speech.offset
        speech.offset += clip.seconds
        speech.texts.clear()
        if text and clip.audio:
            self._start(self._captions, self._push_caption(text, clip, offset, context_id))

    async def _push_caption(self, text: str, clip: Clip, offset: float, context_id: str | None) -> None:
        async with self._captions_in_turn:
            transcript = await self._align(clip, text, None)
            if transcript is not None:
                result = transcript.to_dict() | {"offset": round(offset, 3)}
                await self.push_frame(Qwen3CaptionFrame(text, result, context_id))

    async def _align(self, clip: Clip, text: str, language: Language | None) -> Transcript | None:
        """``None`` where that cannot be done: the aligner does not know the language, or an error that is told."""
        language = language or self._language
        name = None if language is None else model_language(language)
        if language is not None and name not in ALIGNER_LANGUAGES:
            return None
        samples, rate = clip.samples, clip.rate
        try:
            words = await asyncio.to_thread(self._aligner.align, samples, text, language=name, sample_rate=rate)
        except Qwen3AsrError as error:
            await self.push_error(f"a text goes on without word times: {error}", exception=error)
            return None
        return Transcript.from_words(text, words, clip.seconds, name)


def _has_words(result: object) -> bool:
    """Whether the result of a frame is one of ours, with word times."""
    segments = result.get("segments") if isinstance(result, dict) else None
    return isinstance(segments, list) and any(isinstance(one, dict) and one.get("words") for one in segments)
