"""What a client has sent and the server has not worked on yet."""

from __future__ import annotations

import asyncio

from fastapi import WebSocket, WebSocketDisconnect

INBOX_BYTES = 16 * 2**20
"""More than this, and the connection is not read until there is room: TCP then slows the client down."""
_OVERHEAD = 256  # bytes that the shortest message takes here, at the least; there may be very many


class Inbox:
    """Messages in their order. While there is room they are read at once, and so is the client's leaving."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self._bytes = 0
        self._room = asyncio.Event()
        self._room.set()

    async def fill(self, websocket: WebSocket) -> None:
        """Read until the client leaves.

        Raises:
            WebSocketDisconnect: it has left.
        """
        while True:
            await self._room.wait()
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1006), message.get("reason"))
            text = message.get("text")
            self._put(message["bytes"] if text is None else text)

    def close(self) -> None:
        """Nothing that comes behind this counts."""
        self._messages.put_nowait(None)

    async def take(self) -> str | bytes | None:
        """The next message; ``None`` behind the last one before :meth:`close`."""
        message = await self._messages.get()
        if message is not None:
            self._count(-_weight(message))
        return message

    def _put(self, message: str | bytes) -> None:
        self._messages.put_nowait(message)
        self._count(_weight(message))

    def _count(self, change: int) -> None:
        self._bytes += change
        if self._bytes < INBOX_BYTES:
            self._room.set()
        else:
            self._room.clear()


def _weight(message: str | bytes) -> int:
    return len(message) + _OVERHEAD
