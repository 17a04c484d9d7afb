"""One transcription session: a client's events become streams, and what these hear becomes the server's events.

A stream is opened with the first audio and lives until a commit, a clear or new settings. With server VAD each segment
that it closes is an item; otherwise what comes up to a commit is one. Client events are worked on one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketState

from qwen3asr.errors import EventInvalid, Qwen3AsrError, StreamEnded
from qwen3asr.events import Event, Partial
from qwen3asr.recognizer import Recognizer
from qwen3asr.server.realtime_config import SessionConfig
from qwen3asr.server.realtime_events import (
    ClientEvent,
    Message,
    describe,
    make_event,
    make_id,
    read_audio,
    read_event,
)
from qwen3asr.server.realtime_inbox import Inbox
from qwen3asr.server.realtime_items import Item, Items
from qwen3asr.streaming import AsyncStream

T = TypeVar("T")

AHEAD_SECONDS = 10.0
"""Audio that the model may be behind; a client that sends faster than it can hear is read no further."""

_INLINE = 1 << 16  # characters that are decoded on the event loop, in well under a millisecond
_GOING_AWAY, _FAILED = 1001, 1011


class _Closed(Exception):
    """The server has closed the session."""


class Session:
    """See the module's text.

    Args:
        websocket: accepted.
        model: shared by all sessions.
        model_name: the ``model`` that clients may name.
    """

    def __init__(self, websocket: WebSocket, model: Recognizer, model_name: str) -> None:
        self._websocket, self._model, self._model_name = websocket, model, model_name
        self._id = make_id("sess")
        self._inbox = Inbox()
        self._config = SessionConfig().updated({"audio": {"input": {"transcription": {"model": model_name}}}})
        self._stream: AsyncStream | None = None
        self._follower: asyncio.Task[None] | None = None
        self._items = Items(self._send)
        self._item: Item | None = None  # the one that is being spoken
        self._seconds = 0.0  # of audio since the session began
        self._offset = 0.0  # of them, when the stream was opened

    async def run(self, draining: asyncio.Event) -> None:
        """Until the client leaves, or ``draining`` is set: then what was sent is transcribed, and the session closed.

        Raises:
            ExceptionGroup: of a defect here; the client is told that the server failed.
        """
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self._inbox.fill(self._websocket))
                self._tasks.create_task(self._close_inbox(draining))
                self._tasks.create_task(self._work())
        except* (WebSocketDisconnect, _Closed):
            pass
        except* Exception:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it may be closed already
                await self._websocket.close(_FAILED, "the server failed")
            raise
        finally:
            if self._stream is not None:
                await self._stream.aclose()

    # --- what the client says ----------------------------------------------------------------------------------

    async def _close_inbox(self, draining: asyncio.Event) -> None:
        await draining.wait()
        self._inbox.close()

    async def _work(self) -> None:
        await self._send("session.created", {"session": self._described()})
        while (message := await self._inbox.take()) is not None:
            event_id = None
            try:
                event = await _off_loop(len(message), partial(read_event, message))
                event_id = event.event_id
                await self._handle(event)
            except Qwen3AsrError as error:
                if isinstance(error, EventInvalid):
                    event_id = event_id or error.event_id
                await self._send("error", {"error": {**describe(error), "event_id": event_id}})
        await (self._finish() if self._item is None else self._commit())
        await self._websocket.close(_GOING_AWAY, "the server is about to stop")
        raise _Closed

    async def _handle(self, event: ClientEvent) -> None:
        match event.type:
            case "input_audio_buffer.append":
                await self._append(event)
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                await self._clear()
            case "session.update":
                await self._update(event)
            case "transcription_session.update":
                raise EventInvalid(
                    "transcription_session.update is of the beta protocol; send session.update with "
                    '{"type": "transcription", "audio": {"input": ...}}',
                    "unknown_event", "type",
                )  # fmt: skip
            case _:
                raise EventInvalid(
                    f"{event.type[:80]!r} is not offered in a transcription session, which takes session.update and "
                    "input_audio_buffer.append, .commit and .clear",
                    "unknown_event", "type",
                )  # fmt: skip

    async def _update(self, event: ClientEvent) -> None:
        config = self._config.updated(event.body.get("session"))
        wanted = config.audio.input.transcription
        if wanted.model not in (None, self._model_name):
            raise EventInvalid(
                f"the model {wanted.model!r} is not served here; leave it out or give {self._model_name!r}",
                "model_not_found", "session.audio.input.transcription.model",
            )  # fmt: skip
        self._model.check(language=wanted.language, context=wanted.context)
        if self._stream is not None and self._config.turns is None:
            raise EventInvalid("audio waits to be committed; commit or clear it first", "invalid_state", "session")
        await self._finish()
        self._config = config
        await self._send("session.updated", {"session": self._described()})

    async def _append(self, event: ClientEvent) -> None:
        kind, rate = self._config.audio.input.format.type, self._config.audio.input.format.rate
        size = len(str(event.body.get("audio")))
        samples = await _off_loop(size, partial(read_audio, event, kind))
        for start in range(0, len(samples), rate):
            await self._push(samples[start : start + rate], rate)

    async def _push(self, samples: npt.NDArray[np.int16], rate: int) -> None:
        stream = self._stream or self._open()
        try:
            await stream.push(samples)
        except StreamEnded:  # an error ended it just now, which its follower tells; what comes is a new turn
            if self._follower is not None:
                await asyncio.wait([self._follower])
            stream = self._open()
            await stream.push(samples)
        self._seconds += len(samples) / rate
        if self._seconds - self._offset - stream.work.seconds > AHEAD_SECONDS:
            await stream.drain()

    async def _commit(self) -> None:
        if self._stream is None:
            raise EventInvalid("no audio came since the last commit", "input_audio_buffer_commit_empty")
        before = self._items.last
        if self._config.turns is None and self._item is not None:
            await self._items.announce(self._item)
        await self._finish()
        seconds = self._seconds - self._offset
        if self._item is not None:
            item, self._item = self._item, None
            await self._items.complete(item, seconds)
        elif self._items.last == before:  # server VAD, and nobody spoke; who commits waits for an item all the same
            await self._items.complete(Item(), seconds)

    async def _clear(self) -> None:
        if self._stream is not None and self._follower is not None:
            self._follower.cancel()
            await asyncio.wait([self._follower])
            await self._stream.aclose()
        self._stream = self._follower = self._item = None
        await self._send("input_audio_buffer.cleared", {})

    # --- what the model hears ----------------------------------------------------------------------------------

    def _open(self) -> AsyncStream:
        known, turns = self._config.audio.input.transcription, self._config.turns
        self._stream = self._model.stream_async(
            language=known.language,
            context=known.context,
            sample_rate=self._config.audio.input.format.rate,
            settings=self._config.stream_settings(),
        )
        self._offset = self._seconds
        self._item = Item() if turns is None else None
        self._follower = self._tasks.create_task(self._follow(self._stream))
        return self._stream

    async def _finish(self) -> None:
        """Close the stream, if there is one, when all that it heard is told."""
        if self._stream is None or self._follower is None:
            return
        with contextlib.suppress(Qwen3AsrError):  # the follower tells it
            await self._stream.finish()
        await self._follower
        self._stream = self._follower = None

    async def _follow(self, stream: AsyncStream) -> None:
        try:
            async for event in stream:
                await self._tell(event)
        except Qwen3AsrError as error:
            item, self._item, self._stream = self._item or Item(), None, None
            await self._items.fail(item, error)

    async def _tell(self, event: Event) -> None:
        if self._item is None:
            self._item = Item()
            await self._items.start(self._item, self._offset + event.start)
        item = self._item
        if isinstance(event, Partial):
            await self._items.delta(item, item.text(event.committed))
            if self._config.partials:
                await self._items.partial(item, event, self._offset)
            return
        item.finals.append(event)
        if self._config.turns is None:
            await self._items.delta(item, item.text())
        else:
            self._item = None
            await self._items.stop(item, self._offset + event.end)
            await self._items.complete(item, event.end - event.start)

    # --- words on the wire -------------------------------------------------------------------------------------

    async def _send(self, kind: str, fields: Message) -> None:
        if self._websocket.application_state is not WebSocketState.CONNECTED:  # another task has found out
            raise WebSocketDisconnect(1006)
        await self._websocket.send_text(make_event(kind, fields))

    def _described(self) -> Message:
        return {
            "id": self._id, "object": "realtime.transcription_session", **self._config.model_dump(mode="json"),
        }  # fmt: skip


async def _off_loop(size: int, work: Callable[[], T]) -> T:
    """In a thread where it would hold up the event loop."""
    return work() if size <= _INLINE else await asyncio.to_thread(work)
