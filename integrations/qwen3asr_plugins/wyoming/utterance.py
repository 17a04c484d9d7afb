"""One utterance: audio in, the text that is certain out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import numpy.typing as npt
from wyoming.asr import Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioChunkConverter
from wyoming.event import Event

import qwen3asr
from qwen3asr import AsyncStream, Final
from qwen3asr.errors import AudioFormatInvalid, RequestInvalid, StreamBehind, StreamEnded

from .info import language_code


class Utterance:
    """The stream of the model for one utterance, and what of its text was sent."""

    def __init__(
        self, stream: AsyncStream, rate: int, send: Callable[[Event], Awaitable[None]], max_seconds: float
    ) -> None:
        self._stream, self._send = stream, send
        self._max_seconds, self._seconds = max_seconds, 0.0
        # Of channels it sums the first two and clips, and it resamples without a filter: the model does both better.
        self._converter = AudioChunkConverter(rate=rate, width=2)
        self._finals: list[Final] = []
        self._sent: str | None = None
        self._telling = asyncio.create_task(self._tell(), name="wyoming chunks")

    async def hear(self, chunk: AudioChunk) -> None:
        """Give audio to the model; waits while that has a minute of it to catch up with."""
        samples = self._samples(chunk)
        self._seconds += len(samples) / chunk.rate
        if self._seconds > self._max_seconds:
            raise RequestInvalid(f"the utterance is longer than {self._max_seconds:g} s; send AudioStop earlier")
        try:
            try:
                await self._stream.push(samples)
            except StreamBehind:
                await self._stream.drain()
                await self._stream.push(samples)
        except StreamEnded:
            await self._stream.finish()  # raises the error that ended it
            raise

    async def finish(self) -> None:
        """Send what is left of the transcript."""
        await self._stream.finish()
        await self._telling
        transcript = qwen3asr.transcript_of(self._finals)
        language = language_code(transcript.language)
        await self._send_text(transcript.text, language)
        await self._send(Transcript(transcript.text, language=language).event())
        await self._send(TranscriptStop().event())

    async def close(self) -> None:
        """Give up what is not finished."""
        async with self._stream:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)

    async def _tell(self) -> None:
        async for event in self._stream:
            closed = [final.text for final in self._finals]
            if isinstance(event, Final):
                self._finals.append(event)
                text = qwen3asr.join_texts([*closed, event.text])
            else:
                text = qwen3asr.join_texts([*closed, event.committed])
            if text:
                await self._send_text(text, language_code(event.language))

    async def _send_text(self, text: str, language: str | None) -> None:
        """What of it was not sent; it begins with what was."""
        if self._sent is None:
            self._sent = ""
            await self._send(TranscriptStart(language=language).event())
        news, self._sent = text[len(self._sent) :], text
        if news:
            await self._send(TranscriptChunk(news).event())

    def _samples(self, chunk: AudioChunk) -> npt.NDArray[np.int16]:
        frame = chunk.width * chunk.channels
        if chunk.width not in (1, 2, 3, 4) or chunk.channels < 1 or chunk.rate < 1 or len(chunk.audio) % frame:
            raise AudioFormatInvalid(
                f"{len(chunk.audio)} bytes of audio with width={chunk.width}, channels={chunk.channels} and "
                f"rate={chunk.rate} make no PCM; send whole frames of 1 to 4 bytes a channel"
            )
        return np.frombuffer(self._converter.convert(chunk).audio, np.int16).reshape(-1, chunk.channels)
