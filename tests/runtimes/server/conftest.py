"""A real server on loopback, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import pytest
import uvicorn
from fastapi import FastAPI

from qwen3asr import Recognizer
from qwen3asr.server import ServerSettings, create_app


@dataclass(frozen=True)
class Server:
    """One that runs."""

    port: int
    app: FastAPI
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def drain(self) -> None:
        """Let it begin to stop, as on SIGTERM."""
        self.loop.call_soon_threadsafe(self.app.state.lifecycle.draining.set)


Start: TypeAlias = Callable[..., Server]


@contextlib.contextmanager
def running(model: Recognizer, settings: ServerSettings | None = None) -> Iterator[Server]:
    """Serve ``model``; when this ends the server has stopped."""
    app = create_app(model, settings)
    started = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    class Telling(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            loops.append(asyncio.get_running_loop())
            started.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
        server = Telling(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        if not started.wait(20):
            raise TimeoutError("the server did not start")
        try:
            yield Server(listener.getsockname()[1], app, loops[0])
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="session")
def server(model: Recognizer) -> Iterator[Server]:
    """With the default settings and an aligner."""
    with running(model) as one:
        yield one


@pytest.fixture
def start(model: Recognizer) -> Iterator[Start]:
    """Starts servers with other settings, or another model; they stop with the test."""
    with contextlib.ExitStack() as stack:

        def start(settings: ServerSettings | None = None, other: Recognizer | None = None) -> Server:
            return stack.enter_context(running(other or model, settings))

        yield start
