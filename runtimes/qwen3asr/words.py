"""Words as the forced aligner is fed them, their place in the transcript, and the repair of their times.

Splitting and repair give what ``transformers.models.qwen3_asr.processing_qwen3_asr`` gives
(``split_words_for_alignment``, ``_fix_timestamps``): the aligner was trained on such words. New here are the
spans, which lead from a cleaned word back to the text as written, and a repair in O(n log n), not O(n²).
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.util import find_spec
from itertools import pairwise
from typing import TypeAlias

from qwen3asr.errors import ExtraMissing

# Han and its extensions A to E, compatibility ideographs and their supplement.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)

_Place: TypeAlias = tuple[int, int]
_Surface: TypeAlias = list[tuple[str, _Place]]  # kept characters, each with where it is written


@dataclass(frozen=True, slots=True)
class Unit:
    """What gets one start and one end time.

    Attributes:
        text: the word as the aligner is fed it: letters, numbers and ``'`` only.
        span: ``(first, last + 1)`` character offsets in the transcript, from the first to the last character kept:
            punctuation inside the word is in the span, punctuation around it is not. Empty where an earlier unit
            has taken the same characters (nagisa makes two units of ``½``).
    """

    text: str
    span: tuple[int, int]


# --- splitting -------------------------------------------------------------------------------------------------


def split_words(text: str, language: str | None = None) -> list[Unit]:
    """Cut a transcript into alignment units.

    Whitespace separates words and each ideograph stands alone; other characters are deleted, not split on
    (``3.14`` becomes ``314``), combining marks too. Japanese is cut by nagisa, which also normalises to NFKC.
    Korean is cut by soynlp without its dictionary, as transformers does, which leaves words whole; the original
    package loads the dictionary and cuts prefixes off.

    Args:
        text: the transcript.
        language: full name in any case (:func:`qwen3asr.languages.resolve` gives it); only Japanese and Korean
            differ from the rest.

    Returns:
        The units in order, with spans that neither overlap nor run backwards. Empty if nothing can be spoken.

    Raises:
        ExtraMissing: Japanese without nagisa, or Korean without soynlp.
    """
    match (language or "").strip().lower():
        case "japanese":
            return _locate(text, _japanese(text.strip()))
        case "korean":
            return _locate(text, _korean(text.strip()))
        case _:
            return list(_spaced(text))


def check_splitter(language: str | None) -> None:
    """Raise :class:`ExtraMissing` if text of that language could not be split here; cheap, nothing is loaded."""
    name = (language or "").lower()
    for wanted, module, extra in (("japanese", "nagisa", "ja"), ("korean", "soynlp", "ko")):
        if name == wanted and not _installed(module):
            raise ExtraMissing(f"aligning {wanted.capitalize()}", module, extra)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # sys.modules holds None for it
        return False


def _spaced(text: str) -> Iterator[Unit]:
    kept: list[int] = []
    for position, char in enumerate(text):
        alone = _is_ideograph(char)
        if kept and (alone or char.isspace()):
            yield _unit(text, kept)
            kept = []
        if alone:
            yield Unit(char, (position, position + 1))
        elif _is_kept(char):
            kept.append(position)
    if kept:
        yield _unit(text, kept)


def _unit(text: str, kept: list[int]) -> Unit:
    return Unit("".join(text[position] for position in kept), (kept[0], kept[-1] + 1))


def _japanese(text: str) -> list[str]:
    try:
        import nagisa  # noqa: PLC0415 - optional, and loads 40 MB
    except ImportError as error:
        raise ExtraMissing("aligning Japanese", "nagisa", "ja") from error
    return list(nagisa.wakati(text))


def _korean(text: str) -> list[str]:
    try:
        from soynlp.tokenizer import LTokenizer  # noqa: PLC0415 - optional, and imports scikit-learn
    except ImportError as error:
        raise ExtraMissing("aligning Korean", "soynlp", "ko") from error
    return list(LTokenizer().tokenize(text))


def _is_ideograph(char: str) -> bool:
    return any(first <= ord(char) <= last for first, last in _IDEOGRAPHS)


def _is_kept(char: str) -> bool:
    return char == "'" or unicodedata.category(char)[0] in "LN" or _is_ideograph(char)


# --- finding tokens in the text as written ---------------------------------------------------------------------


def _locate(text: str, tokens: list[str]) -> list[Unit]:
    """Clean the tokens and find where each is written; a tokeniser tells no offsets."""
    words = [word for token in tokens if (word := "".join(filter(_is_kept, token)))]
    places = _places(text, "".join(words))
    units: list[Unit] = []
    at, end = 0, 0
    for word in words:
        start = max(places[at][0], end)
        at += len(word)
        end = max(places[at - 1][1], start)
        units.append(Unit(word, (start, end)))
    return units


def _places(text: str, spoken: str) -> list[_Place]:
    """Where each character of ``spoken``, the tokens in a row, is written in ``text``."""
    surface = _as_written(text)
    if _chars(surface) != spoken:
        surface = _normalised(text)
    if _chars(surface) != spoken:
        return _nearest_places(surface, spoken)
    return [place for _, place in surface]


def _nearest_places(surface: _Surface, spoken: str) -> list[_Place]:
    """As :func:`_places`, for tokens that the tokeniser has changed beyond NFKC (nagisa writes ``İ`` as ``I``)."""
    places: list[_Place] = []
    matcher = SequenceMatcher(None, _chars(surface), spoken, autojunk=False)
    for _, first, last, begin, stop in matcher.get_opcodes():
        stretch = [place for _, place in surface[first:last]]
        if len(stretch) == stop - begin:
            places += stretch
            continue
        end = surface[last - 1][1][1] if last else 0
        start = stretch[0][0] if stretch else end
        places += [(start, end)] * (stop - begin)
    return places


def _chars(surface: _Surface) -> str:
    return "".join(char for char, _ in surface)


def _as_written(text: str) -> _Surface:
    return [(char, (position, position + 1)) for position, char in enumerate(text) if _is_kept(char)]


def _normalised(text: str) -> _Surface:
    """As :func:`_as_written`, in NFKC: two characters may make one (``か`` and U+3099), one several (``㌔``)."""
    starts = [i for i, char in enumerate(text) if not unicodedata.combining(unicodedata.normalize("NFKC", char)[0])]
    return [
        (char, (start, end))
        for start, end in pairwise([*starts, len(text)])
        for char in unicodedata.normalize("NFKC", text[start:end])
        if _is_kept(char)
    ]


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
