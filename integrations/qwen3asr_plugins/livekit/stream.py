"""Listening while somebody speaks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from livekit import rtc
from livekit.agents import APIConnectOptions, stt, utils
from livekit.agents.stt import SpeechData, SpeechEvent, SpeechEventType

from qwen3asr import AsyncStream, Final, Partial, Recognizer, SpeechDetector, StreamSettings
from qwen3asr.errors import Qwen3AsrError, StreamBehind, StreamEnded

from .speech import Input, api_error, language_code, samples_of, seconds_of, timed_strings

_USAGE_SECONDS = 5.0  # of audio between two reports of usage
_LAG_SECONDS = 5.0  # of audio that a segment may have behind it before its final is told


@dataclass(frozen=True, slots=True)
class Options:
    """How to listen; replaced as a whole, so that a stream sees a change by identity."""

    language: str | None
    context: str
    timestamps: Literal["word"] | None
    settings: StreamSettings
    keyterms: tuple[str, ...] = ()  # the session's, which come and go without the user's doing

    @property
    def prompt(self) -> str:
        """What the model gets as context."""
        return "\n".join(part for part in (self.context, ", ".join(self.keyterms)) if part)


class RecognizeStream(stt.RecognizeStream):
    """What :meth:`STT.stream` gives. Times count from the first frame, and ``start_time_offset``.

    ``START_OF_SPEECH`` comes with the first words, ``END_OF_SPEECH`` behind their final. There is no preflight: words
    are certain before their final, but not that the turn is over, and LiveKit would ask its language model each time.

    When an attempt fails and LiveKit makes another one, that hears again what no final has told yet.
    """

    def __init__(
        self,
        *,
        stt: stt.STT[Any],
        recognizer: Recognizer,
        options: Options,
        detector: Callable[[], SpeechDetector] | None,
        conn_options: APIConnectOptions,
    ) -> None:
        self._recognizer, self._options, self._detector = recognizer, options, detector
        self._kept: deque[Input] = deque()  # given to the model, and not told in a final
        self._again: deque[Input] = deque()  # of an attempt that failed
        self._position = self._heard = 0.0  # seconds of audio before and up to the end of what is kept
        self._request = ""  # of the open segment; empty while nobody speaks
        self._usage = 0.0  # seconds of audio not reported yet
        self._added = 0.0  # to the offset, by LiveKit for attempts after the first; the audio's clock needs none of it
        self._offset_at_failure: float | None = None
        super().__init__(stt=stt, conn_options=conn_options)

    def change(self, changes: dict[str, Any]) -> None:
        """New options, from the next segment on."""
        self._options = replace(self._options, **changes)

    async def _run(self) -> None:
        if self._offset_at_failure is not None:
            self._added += self.start_time_offset - self._offset_at_failure
        try:
            while await self._listen():
                pass
        except Qwen3AsrError as error:
            self._offset_at_failure = self.start_time_offset
            self._again.extendleft(reversed(self._kept))
            self._kept.clear()
            self._heard = self._position
            raise api_error(error) from error
        self._report_usage()

    # --- audio to the model --------------------------------------------------------------------------------------

    async def _listen(self) -> bool:
        """A stream of the model, from one flush or change of options to the next; false at the end of the input."""
        first = await self._first_frame()
        if first is None:
            return False
        options = self._options
        stream = self._recognizer.stream_async(
            language=options.language,
            context=options.prompt,
            timestamps=options.timestamps,
            sample_rate=first.sample_rate,
            settings=options.settings,
            detector=None if self._detector is None else self._detector(),
        )
        async with stream:
            feeding = asyncio.create_task(self._feed(stream, first, options))
            telling = asyncio.create_task(self._tell(stream, self._position))
            try:
                await asyncio.gather(feeding, telling)
            finally:
                await utils.aio.cancel_and_wait(feeding, telling)
        self._forget(float("inf"))
        return feeding.result()

    async def _feed(self, stream: AsyncStream, first: rtc.AudioFrame, options: Options) -> bool:
        item: Input | None = first
        while isinstance(item, rtc.AudioFrame):
            await _push(stream, item)
            if self._options is not options and not self._request:
                break
            item = await self._next()
        await stream.finish()
        return item is not None

    async def _first_frame(self) -> rtc.AudioFrame | None:
        while True:
            item = await self._next()
            if item is None or isinstance(item, rtc.AudioFrame):
                return item
            self._kept.clear()  # a flush of nothing

    async def _next(self) -> Input | None:
        if self._again:
            item = self._again.popleft()
        else:
            try:
                item = await self._input_ch.recv()
            except utils.aio.ChanClosed:
                return None
            self._usage += seconds_of(item)
            if self._usage >= _USAGE_SECONDS:
                self._report_usage()
        self._keep(item)
        return item

    def _keep(self, item: Input) -> None:
        self._kept.append(item)
        self._heard += seconds_of(item)
        self._forget(self._heard - self._options.settings.longest_seconds - _LAG_SECONDS)  # nobody speaks for so long

    def _forget(self, until: float) -> None:
        """Let go of the frames that end by then, in seconds of audio."""
        while self._kept:
            seconds = seconds_of(self._kept[0])
            if self._position + seconds > until:
                return
            self._position += seconds
            self._kept.popleft()

    # --- events of the model to LiveKit --------------------------------------------------------------------------

    async def _tell(self, stream: AsyncStream, base: float) -> None:
        async for event in stream:
            if isinstance(event, Final):
                self._tell_final(event, base)
                self._forget(base + event.end)
            else:
                self._tell_partial(event, base)

    def _tell_partial(self, event: Partial, base: float) -> None:
        if not event.text and not self._request:
            return
        self._begin_speech()
        self._send(SpeechEventType.INTERIM_TRANSCRIPT, self._data(event, base))

    def _tell_final(self, event: Final, base: float) -> None:
        if event.text:
            self._begin_speech()
            self._send(SpeechEventType.FINAL_TRANSCRIPT, self._data(event, base))
        elif self._request:  # a noise: its interims are taken back
            self._send(SpeechEventType.INTERIM_TRANSCRIPT, self._data(event, base))
        if self._request:
            self._send(SpeechEventType.END_OF_SPEECH)
            self._request = ""
        self._report_usage()

    def _begin_speech(self) -> None:
        if not self._request:
            self._request = utils.shortuuid("stt_")
            self._send(SpeechEventType.START_OF_SPEECH)

    def _data(self, event: Partial | Final, base: float) -> SpeechData:
        offset = self.start_time_offset - self._added
        end = event.words[-1].end if isinstance(event, Final) and event.words else event.end
        return SpeechData(
            language_code(event.language),
            event.text,
            start_time=event.start + base + offset,
            end_time=end + base + offset,
            confidence=(event.confidence or 0.0) if isinstance(event, Final) else 0.0,
            words=timed_strings(event.words, base + offset, offset) or None,
            metadata={"finish_reason": event.finish_reason} if isinstance(event, Final) else None,
        )

    def _send(self, kind: SpeechEventType, *alternatives: SpeechData) -> None:
        self._event_ch.send_nowait(SpeechEvent(kind, self._request, list(alternatives)))

    def _report_usage(self) -> None:
        seconds, self._usage = self._usage, 0.0
        if seconds:
            usage = stt.RecognitionUsage(audio_duration=seconds)
            self._event_ch.send_nowait(
                SpeechEvent(SpeechEventType.RECOGNITION_USAGE, self._request, recognition_usage=usage)
            )


async def _push(stream: AsyncStream, frame: rtc.AudioFrame) -> None:
    samples = samples_of(frame)
    try:
        await stream.push(samples)
    except StreamBehind:  # a source that is faster than the model
        await stream.drain()
        await stream.push(samples)
    except StreamEnded:
        await stream.finish()  # raises the error that ended it
        raise
