"""How long callbacks keep an event loop, told apart from what other threads and processes do meanwhile."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

LONGEST = 0.01
TURNS = 9
_TICK = 0.001


@dataclass
class Stall:
    """The longest callbacks, in seconds: computing, and waiting while another thread could have gone on."""

    computed: float = 0.0
    waited: float = 0.0


async def longest_stall(work: Callable[[], Awaitable[None]]) -> Stall:
    """Of all callbacks while the work is done."""
    longest, over = Stall(), False
    run = asyncio.events.Handle._run

    with pytest.MonkeyPatch.context() as patch, _no_collection(), _ticks() as ticks:

        def timed(handle: asyncio.events.Handle) -> None:
            before, computed = len(ticks), time.thread_time()
            run(handle)
            if over:  # the callback in which the work ended goes on with what is the test's own
                return
            longest.computed = max(longest.computed, time.thread_time() - computed)
            longest.waited = max(longest.waited, (len(ticks) - before) * _TICK)

        patch.setattr(asyncio.events.Handle, "_run", timed)
        await work()
        over = True
    return longest


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection of all that pytest holds."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _ticks() -> Iterator[list[None]]:
    """Grows each millisecond, unless other processes have the processor, or other threads the interpreter."""
    ticks, over, interval = list[None](), threading.Event(), sys.getswitchinterval()

    def tick() -> None:
        while not over.is_set():
            time.sleep(_TICK)
            ticks.append(None)

    thread = threading.Thread(target=tick)
    sys.setswitchinterval(_TICK / 2)  # threads that compute hand over sooner
    thread.start()
    try:
        yield ticks
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(interval)


def assert_never_blocked(stalls: Sequence[Stall]) -> None:
    """In no turn a callback computes for long, and in fewer than a third one waits for long while others go on.

    A machine that is busy elsewhere makes callbacks take longer, but not these two; only the start of a thread, which
    pools do now and then, is waited for until the processor has come to it.
    """
    assert max(stall.computed for stall in stalls) < LONGEST, stalls
    assert sum(stall.waited >= LONGEST for stall in stalls) < len(stalls) / 3, stalls
