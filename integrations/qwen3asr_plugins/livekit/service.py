"""LiveKit's face of the model."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from livekit import rtc
from livekit.agents import APIConnectOptions, stt, utils
from livekit.agents.stt import SpeechData, SpeechEvent, SpeechEventType
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN, NotGivenOr
from livekit.agents.utils import AudioBuffer, is_given

import qwen3asr
from qwen3asr import Recognizer, SpeechDetector, StreamSettings
from qwen3asr.errors import AlignerMissing, Qwen3AsrError, RequestInvalid

from .speech import api_error, language_code, model_language, samples_of, timed_strings
from .stream import Options, RecognizeStream


class STT(stt.STT[Literal["metrics_collected", "error"]]):
    """Qwen3-ASR for an ``AgentSession``, ``StreamAdapter``, ``FallbackAdapter`` or by itself.

    A stream ends a segment at a pause of ``settings.end_silence`` or at a flush, whichever comes first. With a VAD in
    its session, LiveKit flushes where that hears the end of speech (``capabilities.manual_flush``).

    ``recognize`` gives an attempt ``conn_options.timeout`` seconds, LiveKit's 10 if nothing else is said: more for long
    recordings. ``metadata`` of a final says how decoding ended: ``{"finish_reason": "length"}`` of a text that was cut.

    The session's key terms go to the model behind ``context``; its conversation does not.
    """

    def __init__(
        self,
        *,
        model: Recognizer | str | os.PathLike[str],
        aligner: str | os.PathLike[str] | None = None,
        language: str | None = None,
        context: str = "",
        timestamps: Literal["word"] | None = None,
        settings: StreamSettings | None = None,
        detector: Callable[[], SpeechDetector] | None = None,
    ) -> None:
        """Make one.

        Args:
            model: a loaded model, which others share and their owner closes; or the folder of a bundle, which is
                loaded here (it takes seconds) and closed by :meth:`aclose`.
            aligner: with a folder: that of the aligner, for word times.
            language: to force, as LiveKit's ``LanguageCode``, a name or a code; ``None`` detects it.
            context: names and terms that the user may say.
            timestamps: ``"word"`` for word times with final transcripts, which need a model loaded with an aligner.
            settings: how streams listen; by default a step, and perhaps an interim, each second.
            detector: makes what tells speech from silence, one for each stream; by default by energy.

        Raises:
            Qwen3AsrError: a subclass for each cause, such as ``LanguageUnknown`` and ``AlignerMissing``.
        """
        if isinstance(model, Recognizer) and aligner is not None:
            raise RequestInvalid("aligner= goes with the path of a bundle; load the model itself with aligner=")
        if timestamps and not isinstance(model, Recognizer) and aligner is None:
            raise AlignerMissing  # before seconds are spent on loading
        super().__init__(
            capabilities=stt.STTCapabilities(
                streaming=True,
                interim_results=True,
                aligned_transcript="word" if timestamps else False,
                offline_recognize=True,
                keyterms=True,
                manual_flush=True,
            )
        )
        self._recognizer = model if isinstance(model, Recognizer) else qwen3asr.load(model, aligner=aligner)
        self._owned = None if isinstance(model, Recognizer) else self._recognizer
        self._detector = detector
        self._options = Options(model_language(language), context, timestamps, settings or StreamSettings())
        self._streams: weakref.WeakSet[RecognizeStream] = weakref.WeakSet()
        self._check(self._options)

    @property
    def model(self) -> str:
        """Name of the bundle's folder."""
        return self._recognizer.bundle.folder.name

    @property
    def provider(self) -> str:
        """This library."""
        return "qwen3asr"

    def update_options(
        self,
        *,
        language: NotGivenOr[str | None] = NOT_GIVEN,
        context: NotGivenOr[str] = NOT_GIVEN,
        settings: NotGivenOr[StreamSettings] = NOT_GIVEN,
    ) -> None:
        """Change how to listen; open streams do so from their next segment on. Arguments as of the constructor.

        Raises:
            Qwen3AsrError: the model cannot do that; nothing is changed.
        """
        changes: dict[str, Any] = {}
        if is_given(language):
            changes["language"] = model_language(language)
        if is_given(context):
            changes["context"] = context
        if is_given(settings):
            changes["settings"] = settings
        self._change(changes)

    def stream(
        self,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> RecognizeStream:
        """Listen while somebody speaks.

        Args:
            language: for this stream, in place of the constructor's.
            conn_options: how often an error that may pass, such as a busy model, is tried again. What had been said
                in the open segment is not lost. Its ``timeout`` is for connections, of which there are none.

        Raises:
            Qwen3AsrError: the language is unknown, or the model closed.
        """
        options = replace(self._options, language=model_language(language)) if is_given(language) else self._options
        self._check(options)
        stream = RecognizeStream(
            stt=self, recognizer=self._recognizer, options=options, detector=self._detector, conn_options=conn_options
        )
        self._streams.add(stream)
        return stream

    async def aclose(self) -> None:
        """Close all streams, and the model if it was loaded here. Harmless when done twice."""
        await asyncio.gather(*(stream.aclose() for stream in list(self._streams)))
        owned, self._owned = self._owned, None
        if owned is not None:
            await asyncio.to_thread(owned.close)

    async def _recognize_impl(
        self, buffer: AudioBuffer, *, language: NotGivenOr[str] = NOT_GIVEN, conn_options: APIConnectOptions
    ) -> SpeechEvent:
        frame, options = rtc.combine_audio_frames(buffer), self._options
        try:
            transcript = await self._recognizer.transcribe_async(
                samples_of(frame),
                sample_rate=frame.sample_rate,
                language=model_language(language) if is_given(language) else options.language,
                context=options.prompt,
                timestamps=options.timestamps,
                timeout=conn_options.timeout,
            )
        except Qwen3AsrError as error:
            raise api_error(error) from error
        words, segments = transcript.words, transcript.segments
        data = SpeechData(
            language_code(transcript.language),
            transcript.text,
            start_time=segments[0].start if segments else 0.0,
            end_time=words[-1].end if words else transcript.duration,
            confidence=transcript.confidence or 0.0,
            words=timed_strings(words, 0.0, 0.0) or None,
            metadata={"finish_reason": transcript.finish_reason},
        )
        return SpeechEvent(SpeechEventType.FINAL_TRANSCRIPT, utils.shortuuid("stt_"), [data])

    def _update_session_keyterms(self, keyterms: list[str]) -> None:
        """LiveKit's hook: the terms of the session, which replace those it gave before."""
        self._change({"keyterms": tuple(keyterms)})

    def _change(self, changes: dict[str, Any]) -> None:
        options = replace(self._options, **changes)
        self._check(options)
        self._options = options
        for stream in self._streams:
            stream.change(changes)

    def _check(self, options: Options) -> None:
        """Raises a Qwen3AsrError where no audio could make the options good."""
        self._recognizer.check(
            language=options.language,
            context=options.prompt,
            timestamps=options.timestamps,
            piece_seconds=options.settings.longest_seconds,
        )
