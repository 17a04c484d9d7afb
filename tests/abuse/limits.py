"""What no input may cost: more time, or more memory, than this."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS = 20
MEGABYTES = 300


@contextmanager
def patience(seconds: int = SECONDS) -> Iterator[None]:
    """A TimeoutError after so long, whatever Python is at; for the main thread."""

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def memory(megabytes: int = MEGABYTES) -> Iterator[None]:
    """At most so much more resident memory than this process ever had."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < megabytes, f"{grown:.0f} MB more"
