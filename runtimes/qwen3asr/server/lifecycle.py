"""Whether the server takes work, and what it is at."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qwen3asr.errors import ServerDraining


class Lifecycle:
    """Counts the work that was begun, and refuses more once the server is to stop. For one event loop.

    Attributes:
        draining: set as soon as the server is to stop; sessions that could go on for ever wait for it, and end.
    """

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._running = 0
        self._tasks: set[asyncio.Task[Any]] = set()  # those that may be broken off
        self._broken: set[asyncio.Task[Any]] = set()

    @property
    def running(self) -> int:
        """Requests and sessions under way."""
        return self._running

    @contextmanager
    def work(self, *, breakable: bool = True) -> Iterator[None]:
        """Around all work: what was begun is waited for.

        Args:
            breakable: :meth:`break_off` may end it; else it ends by itself once the model is closed.

        Raises:
            ServerDraining: the server is about to stop, or it was broken off.
        """
        if self.draining.is_set():
            raise ServerDraining
        self._running += 1
        self._idle.clear()
        task = asyncio.current_task()
        if task is not None and breakable:
            self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError as error:
            if task in self._broken and not task.uncancel():
                raise ServerDraining from error
            raise
        finally:
            self._tasks -= {task}
            self._running -= 1
            if not self._running:
                self._idle.set()

    def break_off(self) -> None:
        """End what is still under way: its clients are told."""
        self._broken = set(self._tasks)
        for task in self._broken:
            task.cancel()

    async def drained(self, seconds: float) -> bool:
        """Take no more work, and wait until all is done; ``False`` if that took longer than ``seconds``."""
        self.draining.set()
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
