"""Serves until a signal; then finishes what was begun."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TypeAlias

import uvicorn

from qwen3asr.recognizer import Recognizer
from qwen3asr.server.app import create_app
from qwen3asr.server.lifecycle import Lifecycle
from qwen3asr.server.settings import ServerSettings

StopBeside: TypeAlias = Callable[[float], Awaitable[None]]

_CLOSE_SECONDS = 5  # for clients that take long to read their answer
_ENDING_SECONDS = 0.5  # for what was inside the model, which ends by its closing
_BREAK_SECONDS = 3  # where time ran out; enough for the answers that say so

_log = logging.getLogger("qwen3asr.server")


async def serve(
    model: Recognizer, settings: ServerSettings | None = None, *, host: str = "127.0.0.1", port: int = 8000,
    stop_beside: StopBeside | None = None,
) -> None:  # fmt: skip
    """Serve until SIGTERM or SIGINT, and return when all that was begun is done.

    After the signal, work is refused and ``/ready`` says so, while ``/health`` still answers. What is not done after
    ``settings.drain_seconds`` is ended by closing the model, else that stays the caller's to close. A second signal
    ends the process as if nobody had caught it. Signals are only caught in the main thread.

    Args:
        model: shared by all requests.
        settings: how to behave.
        host: name or address to listen on.
        port: 0 takes a free one, which the log tells.
        stop_beside: stops another server of the same model, which drains at the same time; called with the seconds
            that it has.

    Raises:
        OSError: the address cannot be listened on.
    """
    settings = settings or ServerSettings()
    app = create_app(model, settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
        ws_ping_timeout=60,  # of a client that sends far ahead, whose answers to pings queue behind its audio
    )
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    with socket.create_server((host, port), family=family) as listener:
        await _Server(config, model, settings, app.state.lifecycle, stop_beside).serve([listener])


class _Server(uvicorn.Server):
    """Uvicorn's, which would break off the requests that it has and end by the signal that it got."""

    def __init__(
        self, config: uvicorn.Config, model: Recognizer, settings: ServerSettings, lifecycle: Lifecycle,
        stop_beside: StopBeside | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config)
        self._model, self._settings, self._lifecycle = model, settings, lifecycle
        self._stop_beside = stop_beside
        self._loop = asyncio.get_running_loop()
        self._stopping: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._signalled = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where it listens when it does, and when a signal finds it ready to stop."""
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            _log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called on a signal, between any two instructions of the main thread."""
        if self._signalled:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._signalled = True
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        self._stopping = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        _log.info("stopping: %d requests are under way", self._lifecycle.running)
        seconds = self._settings.drain_seconds
        beside = None if self._stop_beside is None else asyncio.ensure_future(self._stop_beside(seconds))
        drained = await self._lifecycle.drained(seconds)
        if beside is not None:  # which uses the model, too
            await beside
        if not drained:
            _log.warning("%d requests are broken off, not done in time", self._lifecycle.running)
            self._closing = self._loop.create_task(asyncio.to_thread(self._model.close))
            await asyncio.wait([self._closing], timeout=_ENDING_SECONDS)  # it waits for passes of the aligner
            if not await self._lifecycle.drained(_ENDING_SECONDS):
                self._lifecycle.break_off()
            self.config.timeout_graceful_shutdown = _BREAK_SECONDS
        self.should_exit = True
