"""One connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from wyoming.asr import Transcribe
from wyoming.audio import AudioChunk, AudioFormat, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler

from qwen3asr import Recognizer, SpeechDetector, StreamSettings
from qwen3asr.errors import AudioError, AudioFormatInvalid, Qwen3AsrError, RequestInvalid, UsageError

from .info import info_of, model_name
from .utterance import Utterance

_log = logging.getLogger("qwen3asr")

F = TypeVar("F", AudioStart, AudioChunk)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What all connections of a server have in common; :func:`run` describes them."""

    language: str | None = None
    context: str = ""
    stream: StreamSettings | None = None
    detector: Callable[[], SpeechDetector] | None = None
    max_seconds: float = 600.0
    idle_seconds: float = 30.0


class Qwen3ASREventHandler(AsyncEventHandler):
    """One connection: one utterance after another, each ``Transcribe``, ``AudioStart``, ``AudioChunk``s, ``AudioStop``.

    ``Transcribe`` and ``AudioStart`` may be left out.

    Args:
        reader: of the connection.
        writer: of the connection.
        model: shared.
        settings: see :func:`run`.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        model: Recognizer,
        settings: ServerSettings | None = None,
    ) -> None:
        super().__init__(reader, writer)
        self._model, self._settings = model, settings or ServerSettings()
        self._asked = Transcribe()
        self._refused = False  # the rest of the utterance is passed over
        self._utterance: Utterance | None = None
        self._answered: Utterance | None = None  # the one before, perhaps not quite
        self._answering: asyncio.Task[None] | None = None
        self._draining = False
        self._watchdog: asyncio.TimerHandle | None = None

    async def handle_event(self, event: Event) -> bool:
        """Take an event of the client; false ends the connection."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        try:
            await self._take(event)
        except (UsageError, AudioError) as error:
            self._refused = not AudioStop.is_type(event.type)
            await self._drop()
            await self._tell_error(error)
        except Qwen3AsrError as error:
            await self._tell_error(error)
            return False
        if self._utterance is not None:
            self._watchdog = asyncio.get_running_loop().call_later(self._settings.idle_seconds, self._expire)
        return not (self._draining and self._idle)

    async def disconnect(self) -> None:
        """The connection has ended: let go of what it was for."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._answering is not None:
            self._answering.cancel()
        await self._settle()
        await self._drop()

    def drain(self) -> None:
        """Take no more utterances, and end the connection behind the one that was begun."""
        self._draining = True
        if self._idle:
            self._hang_up()

    @property
    def _idle(self) -> bool:
        return self._utterance is None and (self._answering is None or self._answering.done())

    async def _take(self, event: Event) -> None:
        if Describe.is_type(event.type):
            await self.write_event(info_of(self._model).event())
        elif Ping.is_type(event.type):
            await self.write_event(Pong(text=Ping.from_event(event).text).event())
        elif Transcribe.is_type(event.type):
            self._ask(Transcribe.from_event(event))
        elif AudioStart.is_type(event.type):
            await self._begin(_read(AudioStart, event))
        elif AudioChunk.is_type(event.type):
            chunk = _read(AudioChunk, event)
            if self._utterance is None:
                await self._begin(chunk)
            if self._utterance is not None:
                await self._utterance.hear(chunk)
        elif AudioStop.is_type(event.type):
            self._end()

    def _ask(self, wanted: Transcribe) -> None:
        self._refused = True
        if wanted.name is not None and wanted.name != model_name(self._model):
            raise RequestInvalid(f"there is no model {wanted.name!r}; this server has {model_name(self._model)!r}")
        self._model.check(language=wanted.language, context=self._context(wanted))
        self._asked, self._refused = wanted, False

    async def _begin(self, audio: AudioFormat) -> None:
        await self._settle()
        await self._drop()  # one that was never stopped
        if self._refused or self._draining:
            return
        settings, wanted = self._settings, self._asked
        stream = self._model.stream_async(
            language=wanted.language or settings.language,
            context=self._context(wanted),
            sample_rate=audio.rate,
            settings=settings.stream,
            detector=None if settings.detector is None else settings.detector(),
        )
        self._utterance = Utterance(stream, audio.rate, self.write_event, settings.max_seconds)

    def _end(self) -> None:
        utterance, self._utterance, refused = self._utterance, None, self._refused
        self._asked, self._refused = Transcribe(), False
        if utterance is not None:
            self._answered = utterance
            self._answering = asyncio.create_task(self._answer(utterance), name="wyoming transcript")
        elif not (refused or self._draining):
            raise RequestInvalid("AudioStop came without audio; send AudioStart and AudioChunk before it")

    async def _answer(self, utterance: Utterance) -> None:
        """In a task of its own: meanwhile the connection is read, so that its end is seen."""
        failed = False
        try:
            await utterance.finish()
        except Qwen3AsrError as error:
            failed = True
            await self._tell_error(error)
        except ConnectionError:
            failed = True
        if failed or self._draining:
            self._hang_up()

    async def _settle(self) -> None:
        """Wait for the answer, and let go of what it is about."""
        if self._answering is not None:
            await asyncio.wait([self._answering])
        utterance, self._answered = self._answered, None
        if utterance is not None:
            await utterance.close()

    async def _drop(self) -> None:
        utterance, self._utterance = self._utterance, None
        if utterance is not None:
            await utterance.close()

    async def _tell_error(self, error: Qwen3AsrError) -> None:
        _log.warning("Wyoming: %s", error)
        with contextlib.suppress(ConnectionError):
            await self.write_event(Error(str(error), code=type(error).__name__).event())

    def _expire(self) -> None:
        _log.warning("Wyoming: a client sent nothing for %g s within an utterance", self._settings.idle_seconds)
        self._hang_up()

    def _hang_up(self) -> None:
        self.writer.close()
        self.reader.feed_eof()

    def _context(self, wanted: Transcribe) -> str:
        terms = ", ".join([*(wanted.transcript_names or []), *(wanted.transcript_terms or [])])
        return "\n".join(part for part in (self._settings.context, terms) if part)


def _read(kind: type[F], event: Event) -> F:
    try:
        audio = kind.from_event(event)
    except KeyError as error:
        raise AudioFormatInvalid(f"{event.type} lacks {error}; it needs rate, width and channels") from error
    if not all(isinstance(value, int) for value in (audio.rate, audio.width, audio.channels)):
        raise AudioFormatInvalid(f"{event.type} needs whole numbers as rate, width and channels")
    return audio
