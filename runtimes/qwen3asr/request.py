"""What a transcription is asked for, what it reports on its way, and how it is called off."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import TypeAlias

from qwen3asr.generate import Generation
from qwen3asr.types import Segment


@dataclass(frozen=True, slots=True)
class Request:
    """How a clip is to be transcribed; its arguments were found good.

    Attributes:
        language: canonical name to force, ``None``: detected.
        context: background text and hot words.
        align: find word times.
        max_new_tokens: budget of a pass, ``None``: more than its audio can hold.
        piece_seconds: the longest pass; ``None``: ``transcription.PIECE_SECONDS``, or what the KV cache takes.
        split: longer audio is cut at silences; else it is refused.
        timeout: seconds after which it is given up.
        max_seconds: of audio; longer audio is refused by whoever opens it.
    """

    language: str | None = None
    context: str = ""
    align: bool = False
    max_new_tokens: int | None = None
    piece_seconds: float | None = None
    split: bool = True
    timeout: float | None = None
    max_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transcription is.

    Attributes:
        done: seconds of audio transcribed.
        total: of all its seconds; ``None`` where the source does not tell.
        segments: what came since the report before.
    """

    done: float
    total: float | None
    segments: tuple[Segment, ...]


Report: TypeAlias = Callable[[Progress], None]


class Cancellation:
    """Ends a transcription from another thread: its thread then gets a ``CancelledError``."""

    def __init__(self) -> None:
        self._lock, self._futures, self._cancelled = Lock(), set[Future[Generation]](), False

    def cancel(self) -> None:
        """Cancel what is on its way and all that may follow; harmless once it is done."""
        with self._lock:
            self._cancelled, futures = True, list(self._futures)
        for future in futures:
            future.cancel()

    def watch(self, future: Future[Generation]) -> None:
        """Cancel this one too, now or then."""
        with self._lock:
            self._futures.add(future)
            cancelled = self._cancelled
        future.add_done_callback(self._futures.discard)
        if cancelled:
            future.cancel()
