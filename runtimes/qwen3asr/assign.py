"""Which part of a known long text is spoken in which piece of its audio.

A recogniser has written down each piece; its text and the caller's are aligned word by word. Runs of words that occur
once in both are anchors, in the manner of patience diff; between the anchors around the end of a piece, the cheapest
edits decide. The caller's text is then cut between the words that were found on either side.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qwen3asr.errors import RequestInvalid
from qwen3asr.times import longest_nondecreasing
from qwen3asr.words import Unit, split_words

_Words: TypeAlias = npt.NDArray[np.int32]  # a number for each different word
_Pair: TypeAlias = tuple[int, int]  # indices of one word in both texts

_RUNS = (3, 6, 12)  # words of an anchor: the short ones are frequent, the long ones unique also in a count of digits
_OPENING = "“‘「『《〈（【¿¡"
_MOST_CELLS = 1 << 22  # of a table of edits, 16 MB; a stretch without anchors that needs more is shared in proportion


def assign_text(text: str, decoded: Sequence[str], language: str | None) -> list[tuple[int, int]]:
    """Share a text out among the pieces of its audio.

    Args:
        text: what is said in all of it, in the caller's spelling.
        decoded: what the recogniser wrote for each piece; at least one, any may be empty.
        language: canonical name, or ``None``; chooses how texts are split into words.

    Returns:
        A span ``(first, last + 1)`` of characters for each piece. Spans follow one another, cover the text, and are
        cut between words. Words that were not recognised on the border of two pieces go to either in proportion to
        what was heard on its side. A piece with nothing decoded gets an empty span; only where that holds for all,
        they share the words equally.

    Raises:
        RequestInvalid: no pieces.
        ExtraMissing: Japanese or Korean without the extra that splits it.
    """
    if not decoded:
        raise RequestInvalid("a text cannot be shared out among no pieces; give what was decoded in each")
    units = split_words(text, language)
    heard = [split_words(piece, language) for piece in decoded]
    numbers: dict[str, int] = {}
    wanted = _numbered(units, numbers)
    got = _numbered([unit for piece in heard for unit in piece], numbers)
    ends = list(accumulate(len(piece) for piece in heard))
    cuts = _cuts(wanted, got, ends[:-1]) if len(got) else _shares(len(wanted), len(decoded))
    places = [0, *(_place(text, units, cut) for cut in cuts), len(text)]
    return list(pairwise(places))


def _numbered(units: Sequence[Unit], numbers: dict[str, int]) -> _Words:
    """Equal numbers for words that differ only in case, width or apostrophes."""
    keys = (unicodedata.normalize("NFKC", unit.text).casefold().replace("'", "") for unit in units)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int32)


def _shares(words: int, pieces: int) -> list[int]:
    return [words * piece // pieces for piece in range(1, pieces)]


def _place(text: str, units: Sequence[Unit], cut: int) -> int:
    """Where to cut before a word: what stands right before it and opens something stays with it."""
    if cut in (0, len(units)):
        return len(text) if cut else 0
    before, begin = units[cut - 1].span[1], units[cut].span[0]
    gap = text[before:begin]
    if not gap or gap[-1].isspace():
        return begin
    lead = gap.split()[-1]
    if len(lead) < len(gap):  # what stands between a space and the word
        return begin - len(lead)
    return begin - len(gap) + len(gap.rstrip(_OPENING))


# --- alignment -------------------------------------------------------------------------------------------------


def _cuts(wanted: _Words, got: _Words, ends: Sequence[int]) -> list[int]:
    """For each piece but the last, how many of the wanted words belong to it and the ones before."""
    anchors = _anchors(wanted.tolist(), got.tolist())
    places = [place for _, place in anchors]
    cuts = []
    for end in ends:
        if end in (0, len(got)):
            cuts.append(len(wanted) if end else 0)
            continue
        at = bisect_left(places, end)
        begin = anchors[at - 1] if at else (0, 0)
        stop = anchors[at] if at < len(anchors) else (len(wanted), len(got))
        cuts.append(_cut(wanted, got, begin, stop, end))
    return cuts


def _cut(wanted: _Words, got: _Words, begin: _Pair, stop: _Pair, end: int) -> int:
    """The cut of ``wanted`` that goes with ``end`` of ``got``, somewhere between two anchors."""
    (first, low), (last, high) = begin, stop
    pairs = [(i + first, j + low) for i, j in _matches(wanted[first : last + 1], got[low : high + 1])]
    before = [(i + 1, j + 1) for i, j in pairs if j < end]
    behind = [pair for pair in pairs if pair[1] >= end]
    first, low = before[-1] if before else begin
    last, high = behind[0] if behind else stop
    share = (end - low) / (high - low) if high > low else 0.5
    return first + round((last - first) * share)


def _anchors(wanted: list[int], got: list[int]) -> list[_Pair]:
    """First words of runs that stand once in either text, in order in both."""
    pairs: set[_Pair] = set()
    for size in _RUNS:
        places = _unique_runs(got, size)
        pairs.update((at, places[run]) for run, at in _unique_runs(wanted, size).items() if run in places)
    ordered = sorted(pairs)
    return [ordered[index] for index in longest_nondecreasing([place for _, place in ordered])]


def _unique_runs(words: list[int], size: int) -> dict[tuple[int, ...], int]:
    """Where each run of ``size`` words begins that occurs only once."""
    places: dict[tuple[int, ...], int] = {}
    for at, run in enumerate(zip(*(words[shift:] for shift in range(size)), strict=False)):
        places[run] = -1 if run in places else at
    return {run: at for run, at in places.items() if at >= 0}


def _matches(wanted: _Words, got: _Words) -> list[_Pair]:
    """Equal words on the cheapest way of editing one text into the other (Levenshtein); none if it is too long."""
    if len(wanted) * len(got) > _MOST_CELLS:
        return []
    steps = np.arange(len(got) + 1, dtype=np.int32)
    costs = [steps]
    for word in wanted:
        row = costs[-1] + 1
        row[1:] = np.minimum(row[1:], costs[-1][:-1] + (got != word))
        costs.append(np.minimum.accumulate(row - steps) + steps)  # a word more of got costs one, from any cell before
    pairs = []
    i, j = len(wanted), len(got)
    while i and j:
        cost, swapped = costs[i][j], costs[i - 1][j - 1]
        if wanted[i - 1] == got[j - 1]:
            pairs.append((i - 1, j - 1))
        if wanted[i - 1] == got[j - 1] or cost == swapped + 1:
            i, j = i - 1, j - 1
        elif cost == costs[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]
