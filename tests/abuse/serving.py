"""Servers to be abused: one that can be told to stop as by a signal, and what each kind of request sends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import uvicorn

from qwen3asr import Recognizer
from qwen3asr.server import ServerSettings, create_app
from qwen3asr.server.lifecycle import Lifecycle
from qwen3asr.server.running import _Server

MODEL = "asr"
PATH = "/v1/audio/transcriptions"


@dataclass(frozen=True)
class Stoppable:
    """A server that stops as ``qwen3asr serve`` does."""

    url: str
    lifecycle: Lifecycle
    thread: threading.Thread
    stop: Callable[[], None]


@contextlib.contextmanager
def stoppable(model: Recognizer, settings: ServerSettings | None = None) -> Iterator[Stoppable]:
    """Serve ``model`` in a thread, with the server class of ``qwen3asr serve``; ``stop`` is its SIGTERM."""
    settings, ready = settings or ServerSettings(), threading.Event()
    held: list[Any] = []

    async def serve(listener: socket.socket) -> None:
        app = create_app(model, settings)
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
        server = _Server(config, model, settings, app.state.lifecycle)
        loop = asyncio.get_running_loop()
        held.extend((app.state.lifecycle, lambda: loop.call_soon_threadsafe(server._stop)))
        ready.set()
        await server.serve([listener])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(serve(listener)), daemon=True)
        thread.start()
        if not ready.wait(20):
            raise TimeoutError("the server did not start")
        one = Stoppable(f"http://127.0.0.1:{listener.getsockname()[1]}", held[0], thread, held[1])
        wait_for(lambda: answers(one.url))
        try:
            yield one
        finally:
            if thread.is_alive():
                one.stop()
            thread.join(30)
            assert not thread.is_alive(), "the server did not stop"


def answers(url: str) -> bool:
    """Whether a server is there."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/health").status_code == 200
    return False


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Until something has come about."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("it did not come about")
        time.sleep(0.01)


def transcribe(url: str, audio: bytes, **parameters: Any) -> httpx.Response:
    """One request of its own connection."""
    with httpx.Client(base_url=url, timeout=60) as http:
        return http.post(PATH, files={"file": ("a", audio)}, data={"model": MODEL} | parameters)


def problem(answer: httpx.Response) -> dict[str, Any]:
    """OpenAI's error object; every refusal has it, and the request's id twice."""
    body: dict[str, Any] = answer.json()
    assert set(body) == {"error", "request_id"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["request_id"] == answer.headers["X-Request-ID"]
    assert body["error"]["message"]
    found: dict[str, Any] = body["error"]
    return found


class Background(threading.Thread):
    """A request beside others; ``result`` waits for what it gave, and raises what it raised."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work, self._done, self._error = work, None, None
        self.start()

    def run(self) -> None:
        try:
            self._done = self._work()
        except BaseException as error:  # noqa: BLE001 (raised again where it is waited for)
            self._error = error

    def result(self, seconds: float = 60.0) -> Any:
        self.join(seconds)
        if self.is_alive():
            raise TimeoutError("a caller hangs")
        if self._error is not None:
            raise self._error
        return self._done
