"""Who is inside a recogniser when it is closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from qwen3asr.errors import EngineClosed


class Callers:
    """Those who wait, in threads of their own, for what they asked; and whether anybody may still ask."""

    def __init__(self) -> None:
        self._change, self._count, self.closed = threading.Condition(), 0, False

    @contextmanager
    def one(self) -> Iterator[None]:
        """While one of them waits.

        Raises:
            EngineClosed: nobody may ask any more.
        """
        with self._change:
            if self.closed:
                raise EngineClosed
            self._count += 1
        try:
            yield
        finally:
            with self._change:
                self._count -= 1
                self._change.notify_all()

    def close(self) -> None:
        """Nobody may ask any more."""
        with self._change:
            self.closed = True

    def wait(self) -> None:
        """Until nobody waits any more."""
        with self._change:
            self._change.wait_for(lambda: not self._count)
