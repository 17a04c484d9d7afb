"""What no input may cost: more time, or more memory, than this."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
    """At most so much more resident memory, at any moment, than this process has now."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew: getrusage's is that of all its life
    before = _peak()
    yield
    grown = _peak() - before
    assert grown < megabytes, f"{grown:.0f} MB more"


def _peak() -> float:
    """Highest resident memory in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / 1e6
