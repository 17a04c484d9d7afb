"""Measured values with their spread: no figure of a benchmark is a single time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of one thing, in seconds unless the name of the field that holds it says otherwise.

    Attributes:
        count: how many there are.
        mean: their mean.
        least, p25, p50, p75, p95, most: the smallest, quantiles (interpolated between neighbours), the largest.
    """

    count: int
    mean: float
    least: float
    p25: float
    p50: float
    p75: float
    p95: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value."""
        array = np.fromiter(values, np.float64)
        quantiles = np.quantile(array, (0, 0.25, 0.5, 0.75, 0.95, 1)).tolist()
        return cls(len(array), float(array.mean()), *quantiles)

    def scaled(self, factor: float) -> Spread:
        """The same measurements in another unit; ``factor`` is above 0."""
        values = (self.mean, self.least, self.p25, self.p50, self.p75, self.p95, self.most)
        return Spread(self.count, *(value * factor for value in values))


def timed(call: Callable[[], object], rounds: int, warmup: int) -> Spread:
    """Seconds of ``rounds`` calls, after ``warmup`` calls that are not counted."""
    for _ in range(warmup):
        call()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return Spread.of(seconds)
