"""Listening for connections, and ending them in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from qwen3asr import Recognizer, SpeechDetector, StreamSettings
from qwen3asr.errors import RequestInvalid

from .handler import Qwen3ASREventHandler, ServerSettings

DEFAULT_URI = "tcp://127.0.0.1:10300"
"""The port that Home Assistant's speech-to-text services have, on this machine only."""

_EVENT_BYTES = 1 << 24  # of one event: more audio than that comes in several, whatever its format
_log = logging.getLogger("qwen3asr")


async def run(
    model: Recognizer,
    uri: str = DEFAULT_URI,
    *,
    language: str | None = None,
    context: str = "",
    settings: StreamSettings | None = None,
    detector: Callable[[], SpeechDetector] | None = None,
    max_seconds: float = 600.0,
    idle_seconds: float = 30.0,
) -> WyomingServer:
    """Start a server; it runs until :meth:`WyomingServer.stop`.

    Args:
        model: shared, and closed by its owner, after the server.
        uri: ``tcp://HOST:PORT``, where port 0 takes a free one, or ``unix:///path/of/the/socket``.
        language: name or code, for clients that name none; ``None`` detects it.
        context: names and terms that may be said, beside those that a client sends.
        settings: how streams listen.
        detector: makes what tells speech from silence, one for each utterance; by default by energy.
        max_seconds: of audio of an utterance; more is answered with an ``Error``. While a minute of it waits for the
            model, nothing more is read.
        idle_seconds: an utterance without an event for so long is dropped and its connection closed, as of a client
            whose network is gone.

    Raises:
        Qwen3AsrError: a subclass for each cause, such as ``LanguageUnknown``.
        OSError: the address cannot be listened on.
    """
    if not max_seconds > 0 or not idle_seconds > 0:
        raise RequestInvalid(f"max_seconds={max_seconds} and idle_seconds={idle_seconds} must be above 0")
    model.check(language=language, context=context, piece_seconds=(settings or StreamSettings()).longest_seconds)
    server = WyomingServer(model, ServerSettings(language, context, settings, detector, max_seconds, idle_seconds))
    await server._listen(uri)
    return server


class WyomingServer:
    """Made by :func:`run`.

    Attributes:
        uri: where it listens, with the port that was taken.
        port: that port; ``None`` of a Unix socket.
    """

    def __init__(self, model: Recognizer, settings: ServerSettings) -> None:
        self.uri = ""
        self.port: int | None = None
        self._model, self._settings = model, settings
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._connections: dict[asyncio.Task[None], Qwen3ASREventHandler] = {}

    async def stop(self, seconds: float = 30.0) -> None:
        """Take no more connections and utterances, and wait until those that were begun have their transcripts.

        Args:
            seconds: that they have; then they are dropped.
        """
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        for handler in self._connections.values():
            handler.drain()
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await server.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _listen(self, uri: str) -> None:
        loop, address = asyncio.get_running_loop(), _address(uri)
        if isinstance(address, str):
            self._server = await loop.create_unix_server(self._protocol, address)
            self.uri, self._path = uri, Path(address)
        else:
            host, port = address
            self._server = await loop.create_server(self._protocol, host, port)
            self.port = self._server.sockets[0].getsockname()[1]
            self.uri = f"tcp://{f'[{host}]' if ':' in host else host}:{self.port}"

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(_BoundedReader(), self._connected)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = Qwen3ASREventHandler(reader, writer, self._model, self._settings)
        task = asyncio.create_task(_serve(handler), name="wyoming connection")
        self._connections[task] = handler
        task.add_done_callback(lambda done: self._connections.pop(done, None))


class _BoundedReader(asyncio.StreamReader):
    """Takes no event of more than 16 MB, which one client could otherwise fill the memory with."""

    async def readexactly(self, n: int) -> bytes:
        if n > _EVENT_BYTES:
            raise ValueError(f"a Wyoming event of {n} bytes")  # to its reader, the end of the connection
        return await super().readexactly(n)


async def _serve(handler: Qwen3ASREventHandler) -> None:
    try:
        await handler.run()
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        _log.debug("Wyoming: a client vanished: %s", error)
    except Exception:  # noqa: BLE001 (what one client sends is to end its own connection only)
        _log.exception("Wyoming: a connection is closed")


def _address(uri: str) -> tuple[str, int] | str:
    """Host and port, or the path of a socket."""
    with contextlib.suppress(ValueError):  # a port that is no number
        parts = urlsplit(uri)
        if parts.scheme == "tcp" and parts.hostname and parts.port is not None:
            return parts.hostname, parts.port
        if parts.scheme == "unix" and parts.path and not parts.netloc:
            return parts.path
    raise RequestInvalid(f"{uri!r} cannot be listened on; give tcp://HOST:PORT or unix:///path/of/the/socket")
