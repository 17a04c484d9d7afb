"""The repair of word times: those that run against the others, and words to which the model gives no length.

The first gives what ``transformers.models.qwen3_asr.processing_qwen3_asr._fix_timestamps`` gives, in O(n log n), not
O(n²); the second is new here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

SHORTEST_WORD = 0.08
"""Seconds that a word without length gets, where there is room: one step of the aligner's times."""


# --- repair of times -------------------------------------------------------------------------------------------


def longest_nondecreasing(values: Sequence[float]) -> list[int]:
    """Indices of the longest non-decreasing subsequence, in O(n log n).

    Of several, the one that the reference's O(n²) table picks: it ends at the first index where the greatest
    length is reached, and each predecessor is the earliest that keeps the length.

    Args:
        values: numbers, none NaN.

    Returns:
        Increasing indices into ``values``; empty for no values.
    """
    # levels[k] has the indices at which the longest run has length k + 1. Within a level values strictly fall,
    # for a later value that did not would extend the earlier one's run; so their negatives can be bisected.
    levels: list[list[int]] = []
    negated: list[list[float]] = []
    lowest: list[float] = []
    parents: list[int] = []
    for index, value in enumerate(values):
        level = bisect_right(lowest, value)
        if level == len(levels):
            levels.append([])
            negated.append([])
            lowest.append(value)
        parents.append(levels[level - 1][bisect_left(negated[level - 1], -value)] if level else -1)
        levels[level].append(index)
        negated[level].append(-value)
        lowest[level] = value
    chain: list[int] = []
    index = levels[-1][0] if levels else -1
    while index >= 0:
        chain.append(index)
        index = parents[index]
    return chain[::-1]


def repair_times(raw_ms: Sequence[float]) -> list[int]:
    """Make the aligner's times run forward.

    Times outside :func:`longest_nondecreasing` are replaced: one or two in a row by the nearer good neighbour
    (the left one if both are as near), three or more by a straight line between the neighbours, and those
    before the first or after the last good time by that time.

    Args:
        raw_ms: times in milliseconds, start and end of each unit in turn.

    Returns:
        As many times, in whole milliseconds (truncated), never falling. Empty for none, where the reference raises.
    """
    times = [float(time) for time in raw_ms]
    for left, right in pairwise([-1, *longest_nondecreasing(times), len(times)]):
        _fill(times, left, right)
    return [int(time) for time in times]


def _fill(times: list[float], left: int, right: int) -> None:
    """Replace the times strictly between two good indices; -1 and ``len(times)`` stand for no neighbour."""
    bad = range(left + 1, right)
    if not bad:
        return
    if left < 0 or right == len(times):
        times[left + 1 : right] = [times[right if left < 0 else left]] * len(bad)
    elif len(bad) <= 2:
        times[left + 1 : right] = [times[left if i - left <= right - i else right] for i in bad]
    else:
        first, step = times[left], (times[right] - times[left]) / (len(bad) + 1)
        times[left + 1 : right] = [first + step * (i - left) for i in bad]


# --- lengths for words without one -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Moment:
    """A time and the entries ``first`` to ``stop - 1`` of the list of times that have it; none at either end."""

    time: float
    first: int
    stop: int

    @property
    def empty(self) -> int:
        """Words that start and end here."""
        return self.stop // 2 - (self.first + 1) // 2

    @property
    def goes_on(self) -> bool:
        """Whether a word starts here and ends later."""
        return self.stop % 2 == 1

    def place(self, times: list[float], length: float, before: int = 0) -> None:
        """Let the empty words follow one another, the first ``before`` of them ahead of this time."""
        for entry in range(self.first, self.stop):
            done = (entry + 1) // 2 - (self.first + 1) // 2
            times[entry] = self.time + length * (done - before)


def spread_times(times: Sequence[float], duration: float) -> list[float]:
    """Give words without length a short one, in the free room around them.

    Words at one time share, in order, what lies between it and the next time that differs, each getting
    :data:`SHORTEST_WORD` at most; a word that starts there and has a length takes part, and keeps what the others
    leave it. At the end of the audio, where nothing follows, they share what lies before instead.

    Args:
        times: seconds, start and end of each word in turn, never falling, from 0 to ``duration``.
        duration: of the audio in seconds, above 0.

    Returns:
        As many times, never falling, from 0 to ``duration``; every word longer than 0. Times of words that have a
        length, and share neither end with one that has none, are as they were.
    """
    spread = list(times)
    moments = _moments(times, duration)
    for left, right in pairwise(moments):
        before = right.empty if right is moments[-1] else 0  # nothing follows: they can only go back
        claims = left.empty + left.goes_on + before
        length = min(SHORTEST_WORD, (right.time - left.time) / max(claims, 1))
        left.place(spread, length)
        if before:
            right.place(spread, length, before)
    return [min(time, duration) for time in accumulate(spread, max)]  # sums round


def _moments(times: Sequence[float], duration: float) -> list[_Moment]:
    """The times that differ, 0 and the end among them."""
    moments: list[_Moment] = []
    for time, group in groupby(range(len(times)), key=times.__getitem__):
        entries = list(group)
        moments.append(_Moment(time, entries[0], entries[-1] + 1))
    if not moments or moments[0].time > 0:
        moments.insert(0, _Moment(0.0, 0, 0))
    if moments[-1].time < duration:
        moments.append(_Moment(duration, len(times), len(times)))
    return moments


def moved_words(said: Sequence[float], times: Sequence[float]) -> list[bool]:
    """Of each word, whether its start or end differs from what the model said; start and end of each in turn."""
    moved = [before != after for before, after in zip(said, times, strict=True)]
    return [start or end for start, end in zip(moved[::2], moved[1::2], strict=True)]
