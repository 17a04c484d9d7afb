"""Items of a realtime session: what the client is told of each turn of the user."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from qwen3asr.errors import Qwen3AsrError
from qwen3asr.events import Final, Partial
from qwen3asr.languages import LANGUAGES
from qwen3asr.server.realtime_events import Message, describe, make_id
from qwen3asr.stitch import join_texts, transcript_of

Send: TypeAlias = Callable[[str, Message], Awaitable[None]]
"""Sends an event of a type with its fields."""

_TRANSCRIPTION = "conversation.item.input_audio_transcription"


@dataclass(slots=True, eq=False)
class Item:
    """One turn.

    Attributes:
        id: its name on the wire.
        sent: what its deltas add up to.
        finals: its closed segments; with server VAD one.
        announced: the client knows that it is committed.
    """

    id: str = field(default_factory=lambda: make_id("item"))
    sent: str = ""
    finals: list[Final] = field(default_factory=list)
    announced: bool = False

    def text(self, rest: str = "") -> str:
        """Of the closed segments, and ``rest`` behind them."""
        return join_texts([*(final.text for final in self.finals), rest])


class Items:
    """Tells a client of its items.

    Attributes:
        last: id of the item that was announced last.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.last: str | None = None

    async def start(self, item: Item, seconds: float) -> None:
        """Somebody has begun to speak, this long after the session's first sample."""
        fields = {"item_id": item.id, "audio_start_ms": round(1000 * seconds)}
        await self._send("input_audio_buffer.speech_started", fields)

    async def stop(self, item: Item, seconds: float) -> None:
        """The turn is over."""
        fields = {"item_id": item.id, "audio_end_ms": round(1000 * seconds)}
        await self._send("input_audio_buffer.speech_stopped", fields)

    async def delta(self, item: Item, text: str) -> None:
        """What is new in ``text``, all that is certain so far and begins with what was sent."""
        new, item.sent = text[len(item.sent) :], text
        if new:
            await self._send(f"{_TRANSCRIPTION}.delta", _part(item) | {"delta": new})

    async def partial(self, item: Item, event: Partial, offset: float) -> None:
        """Our own event: all of the text, of which ``committed`` is certain."""
        told = {
            "text": item.text(event.text),
            "committed": item.sent,
            "language": event.language,
            "start": round(offset + event.start, 3),
            "end": round(offset + event.end, 3),
        }
        await self._send("qwen3asr.partial", _part(item) | told)

    async def announce(self, item: Item) -> None:
        """The item is committed: no more audio comes for it."""
        if item.announced:
            return
        item.announced, before, self.last = True, self.last, item.id
        described = {
            "id": item.id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        await self._send("input_audio_buffer.committed", {"item_id": item.id, "previous_item_id": before})
        for kind in ("added", "done"):
            await self._send(f"conversation.item.{kind}", {"item": described, "previous_item_id": before})

    async def complete(self, item: Item, seconds: float) -> None:
        """All of it is transcribed; it lasted so many seconds."""
        await self.announce(item)
        await self.delta(item, item.text())
        names = dict.fromkeys(final.language for final in item.finals if final.language is not None)
        told = {
            "transcript": item.sent,
            "finish_reason": transcript_of(item.finals).finish_reason,
            "languages": [{"code": LANGUAGES[name]} for name in names],
            "usage": {"type": "duration", "seconds": round(seconds, 3)},
        }
        await self._send(f"{_TRANSCRIPTION}.completed", _part(item) | told)

    async def fail(self, item: Item, error: Qwen3AsrError) -> None:
        """It cannot be transcribed; its deltas stay valid."""
        await self.announce(item)
        await self._send(f"{_TRANSCRIPTION}.failed", _part(item) | {"error": describe(error)})


def _part(item: Item) -> Message:
    return {"item_id": item.id, "content_index": 0}
