"""What an engine has done, counted as it goes: for its users, its tests and an exporter.

Counting costs a lock and a few additions, no allocation: the engine's thread does it for every token.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock

_PER_DECADE = 20
BOUNDS = tuple(10 ** (step / _PER_DECADE) for step in range(-4 * _PER_DECADE, 4 * _PER_DECADE + 1))
"""Upper bounds of a distribution's buckets: twenty a decade, from a tenth of a millisecond to nearly three hours."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Values counted in buckets: a quantile is at most one bucket, 12 %, from the exact one.

    Attributes:
        count: values seen.
        total: their sum.
        least: the smallest; 0 without values.
        most: the largest; 0 without values.
        buckets: how many lie at or below each of ``BOUNDS`` but above the one before it; last, those above all.
    """

    count: int
    total: float
    least: float
    most: float
    buckets: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean; 0 without values."""
        return self.total / self.count if self.count else 0.0

    @property
    def p50(self) -> float:
        """Median."""
        return self.quantile(0.5)

    @property
    def p90(self) -> float:
        """The value that a tenth lie above."""
        return self.quantile(0.9)

    @property
    def p99(self) -> float:
        """The value that a hundredth lie above."""
        return self.quantile(0.99)

    def quantile(self, share: float) -> float:
        """The least value that has a ``share`` (0 to 1) of all at or below it; 0 without values."""
        wanted, seen = share * self.count, 0
        for index, inside in enumerate(self.buckets):
            if inside and seen + inside >= wanted:
                low = BOUNDS[index - 1] if index else self.least
                high = BOUNDS[index] if index < len(BOUNDS) else self.most
                low, high = max(low, self.least), min(high, self.most)
                return low + (high - low) * max(wanted - seen, 0.0) / inside
            seen += inside
        return 0.0

    def cumulative(self, bounds: int = 4) -> list[tuple[float, int]]:
        """How many values lie at or below each of ``bounds`` bounds a decade (a divisor of 20)."""
        step, rows, seen = _PER_DECADE // bounds, [], 0
        for index, (bound, inside) in enumerate(zip(BOUNDS, self.buckets, strict=False)):
            seen += inside
            if index % step == 0:
                rows.append((bound, seen))
        return rows


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """What was counted up to one moment; all of it together, none of it half-done.

    Attributes:
        uptime: seconds since the engine was made.
        submitted: requests taken.
        refused: requests turned away because the queue was full.
        finished: requests that ended, by their finish reason (``stop``, ``length``, ``loop``, ``cancelled``).
        no_speech: clips, or pieces of them, without speech: not decoded at all, or their text dropped.
        failed: requests that ended with an error, by its class.
        queue_depth: requests that wait for a slot now.
        active_rows: requests that are decoded now.
        kv_used: tokens in the KV cache now, of requests and streams.
        kv_capacity: tokens that it takes.
        steps: decoder steps; one writes a token to each of its rows.
        step_rows: rows of all steps together.
        windows: audio windows encoded.
        prompt_tokens: tokens prefilled, audio included.
        tokens: text tokens of the requests that ended.
        audio_seconds: audio of the requests that ended.
        waiting: seconds from submission to the first work.
        time_to_first_token: seconds from submission to the first token.
        inter_token: seconds from a request's token to its next one.
        latency: seconds from submission to the end.
        real_time_factor: latency over the duration of the audio; below 1 is faster than speech.
    """

    uptime: float
    submitted: int
    refused: int
    finished: Mapping[str, int]
    no_speech: int
    failed: Mapping[str, int]
    queue_depth: int
    active_rows: int
    kv_used: int
    kv_capacity: int
    steps: int
    step_rows: int
    windows: int
    prompt_tokens: int
    tokens: int
    audio_seconds: float
    waiting: Distribution
    time_to_first_token: Distribution
    inter_token: Distribution
    latency: Distribution
    real_time_factor: Distribution

    @property
    def throughput(self) -> float:
        """Seconds of audio transcribed a second since the engine was made."""
        return self.audio_seconds / self.uptime if self.uptime > 0 else 0.0

    @property
    def rows_per_step(self) -> float:
        """Mean size of a decoder batch; 0 before the first step."""
        return self.step_rows / self.steps if self.steps else 0.0


@dataclass(slots=True)
class _Histogram:
    """A distribution that still grows."""

    count: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def add(self, value: float) -> None:
        value = max(value, 0.0)  # a clock that was set back
        self.count += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)
        self.buckets[bisect_left(BOUNDS, value)] += 1

    def frozen(self) -> Distribution:
        least = self.least if self.count else 0.0
        return Distribution(self.count, self.total, least, self.most, tuple(self.buckets))


class Metrics:
    """Counts what an engine does. Any thread may call any method.

    Args:
        kv_capacity: tokens that the KV cache takes.
        clock: seconds, monotonic; for the uptime.
    """

    def __init__(self, kv_capacity: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock, self._clock, self._started = Lock(), clock, clock()
        self._kv_capacity = kv_capacity
        self._submitted = self._refused = self._steps = self._step_rows = 0
        self._windows = self._prompt_tokens = self._tokens = 0
        self._queue_depth = self._active_rows = self._kv_used = 0
        self._audio_seconds = 0.0
        self._no_speech = 0
        self._finished: dict[str, int] = {}
        self._failed: dict[str, int] = {}
        self._waiting, self._first, self._inter = _Histogram(), _Histogram(), _Histogram()
        self._latency, self._factor = _Histogram(), _Histogram()

    # --- counting --------------------------------------------------------------------------------------------

    def submitted(self) -> None:
        """A request was taken."""
        with self._lock:
            self._submitted += 1

    def refused(self) -> None:
        """A request was turned away because the queue was full."""
        with self._lock:
            self._refused += 1

    def admitted(self, waited: float) -> None:
        """Work on a request begins, ``waited`` seconds after its submission."""
        with self._lock:
            self._waiting.add(waited)

    def encoded(self, windows: int) -> None:
        """Audio windows went through the encoder."""
        with self._lock:
            self._windows += windows

    def prefilled(self, tokens: int) -> None:
        """Prompt tokens went through the decoder."""
        with self._lock:
            self._prompt_tokens += tokens

    def first_token(self, seconds: float) -> None:
        """A request has its first token, ``seconds`` after its submission."""
        with self._lock:
            self._first.add(seconds)

    def next_token(self, seconds: float) -> None:
        """A request has a further token, ``seconds`` after the one before."""
        with self._lock:
            self._inter.add(seconds)

    def stepped(self, rows: int) -> None:
        """A decoder step wrote a token to each of its rows."""
        with self._lock:
            self._steps += 1
            self._step_rows += rows

    def finished(
        self, reason: str, *, tokens: int = 0, audio_seconds: float = 0.0, seconds: float | None = None
    ) -> None:
        """A request ended with a text, or was cancelled.

        Args:
            reason: its finish reason.
            tokens: text tokens written.
            audio_seconds: duration of its audio.
            seconds: from its submission to now; ``None`` where that says nothing of the engine's speed.
        """
        with self._lock:
            self._finished[reason] = self._finished.get(reason, 0) + 1
            self._tokens += tokens
            self._audio_seconds += audio_seconds
            if seconds is not None:
                self._latency.add(seconds)
                if audio_seconds > 0:
                    self._factor.add(seconds / audio_seconds)

    def no_speech(self) -> None:
        """A clip, or a piece of one, turned out to hold no speech."""
        with self._lock:
            self._no_speech += 1

    def failed(self, kind: str) -> None:
        """A request ended with an error of the class ``kind``."""
        with self._lock:
            self._failed[kind] = self._failed.get(kind, 0) + 1

    def state(self, queue_depth: int, active_rows: int, kv_used: int) -> None:
        """How things stand now; see :class:`MetricsSnapshot`."""
        with self._lock:
            self._queue_depth, self._active_rows, self._kv_used = queue_depth, active_rows, kv_used

    # --- reading ---------------------------------------------------------------------------------------------

    def mean_service_seconds(self) -> float:
        """Mean time that a request takes from its first work to its end; 1 as long as none has ended."""
        with self._lock:
            if not self._latency.count:
                return 1.0
            waited = self._waiting.total / self._waiting.count if self._waiting.count else 0.0
            return max(self._latency.total / self._latency.count - waited, 0.0)

    def snapshot(self) -> MetricsSnapshot:
        """Everything counted so far."""
        with self._lock:
            return MetricsSnapshot(
                uptime=self._clock() - self._started,
                submitted=self._submitted,
                refused=self._refused,
                finished=dict(self._finished),
                failed=dict(self._failed),
                queue_depth=self._queue_depth,
                active_rows=self._active_rows,
                kv_used=self._kv_used,
                kv_capacity=self._kv_capacity,
                steps=self._steps,
                step_rows=self._step_rows,
                windows=self._windows,
                prompt_tokens=self._prompt_tokens,
                tokens=self._tokens,
                audio_seconds=self._audio_seconds,
                no_speech=self._no_speech,
                waiting=self._waiting.frozen(),
                time_to_first_token=self._first.frozen(),
                inter_token=self._inter.frozen(),
                latency=self._latency.frozen(),
                real_time_factor=self._factor.frozen(),
            )
