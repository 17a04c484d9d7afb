"""Segments and subtitle cues from aligned words, and cues as SRT or WebVTT.

Two steps. Grouping cuts the transcript after sentences, at pauses, and where a cue would grow too long; it never
touches the text: a segment is a slice of it, its punctuation included. Laying out then gives every cue a time that a
viewer can read: in order, without overlap, and never shorter than a minimum. An aligner may give several words one
time; cues without room of their own are joined, for which the length limits have to give way.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from qwen3asr.errors import RequestInvalid
from qwen3asr.types import Segment, Word

LINE_WIDTH = 42
"""Columns of a subtitle line; East Asian wide characters take two."""

_STOP = re.compile(r"[。！？｡…‥؟۔।]|[.!?．][^\s\w]*\s")  # "." only before a space: not in 3.14
_COMMA = re.compile(r"[、，；：،؛–—]|[,;:][^\s\w]*\s")
_ABBREVIATIONS = frozenset({"dr", "jr", "mr", "mrs", "ms", "prof", "sr", "st", "vs"})


@dataclass(frozen=True, slots=True)
class Cue:
    """Text shown from ``start`` to ``end`` (seconds)."""

    start: float
    end: float
    text: str


def make_cues(
    text: str,
    words: Sequence[Word],
    *,
    duration: float | None = None,
    max_chars: int = 2 * LINE_WIDTH,
    max_seconds: float = 6.0,
    max_gap: float = 0.8,
    min_seconds: float = 0.3,
) -> list[Cue]:
    """Subtitle cues of a transcript.

    Args:
        text: the transcript.
        words: its words in order, their spans offsets into ``text``; start times never decrease.
        duration: of the audio, in seconds; cues then do not reach past it to get their minimum length.
        max_chars: columns of a cue; East Asian wide characters take two.
        max_seconds: from a cue's first word to the end of its last.
        max_gap: a longer silence between two words starts a new cue.
        min_seconds: the least time a cue is shown.

    Returns:
        Cues in order, whole milliseconds, each longer than zero and ended when the next starts. Their texts, put
        together, are ``text`` but for white space.

    Raises:
        RequestInvalid: spans that do not fit ``text``, or text without words and without ``duration``.
    """
    if not words and duration is None and text.strip():
        raise RequestInvalid("text without word times makes no cues; give words, or duration for one cue over all")
    segments = segments_of(text, words, duration or 0.0, max_chars=max_chars, max_seconds=max_seconds, max_gap=max_gap)
    return cues_of_segments(segments, duration=duration, min_seconds=min_seconds)


def segments_of(
    text: str,
    words: Sequence[Word],
    duration: float,
    *,
    max_chars: int = 2 * LINE_WIDTH,
    max_seconds: float = 6.0,
    max_gap: float = 0.8,
) -> tuple[Segment, ...]:
    """Cut a transcript as :func:`make_cues` does; a segment's times are those of its first and last word.

    Without words, one segment from 0 to ``duration`` (seconds); without text, none.

    Raises:
        RequestInvalid: spans that do not fit ``text``, or limits that nothing fits.
    """
    if max_chars < 1 or not max_seconds > 0:
        raise RequestInvalid(f"{max_chars=} and {max_seconds=} leave no room for a word; give both above zero")
    if not words:
        return (Segment(text.strip(), 0.0, duration),) if text.strip() else ()
    layout = _Layout(text, words, _heads(text, words), max_chars, max_seconds)
    segments = []
    for first, stop in layout.pieces(max_gap):
        group = tuple(words[first:stop])
        segments.append(Segment(layout.slice(first, stop), group[0].start, max(w.end for w in group), group))
    return tuple(segments)


# --- grouping --------------------------------------------------------------------------------------------------


def _heads(text: str, words: Sequence[Word]) -> list[int]:
    """Where each word's part of ``text`` begins, opening punctuation included; then the length of ``text``."""
    heads, before = [0], 0
    for index, word in enumerate(words):
        begin, end = word.span
        if not before <= begin <= end <= len(text):
            raise RequestInvalid(
                f"word {index} ({word.text!r}) has the span {word.span}, which does not fit a text of {len(text)} "
                f"characters after {before}; give the words together with the very text they were aligned to"
            )
        if index:
            heads.append(_lead(text, before, begin))
        before = end
    return [*heads, len(text)]


def _lead(text: str, before: int, begin: int) -> int:
    """Where what belongs to the word at ``begin`` starts, not earlier than ``before``."""
    at = begin
    while at > before and not text[at - 1].isspace():
        at -= 1
    if at == before:  # no space between the words, as in Chinese: only what opens belongs to the second
        at = begin
        while at > before and _opens(text, at - 1):
            at -= 1
    rest = text[before:at].rstrip()
    return before + len(rest) - 1 if rest.endswith("«") else at  # French puts a space after it


def _opens(text: str, at: int) -> bool:
    if text[at] == '"':
        return text.count('"', 0, at) % 2 == 0
    return unicodedata.category(text[at]) in ("Ps", "Pi") or text[at] in "¿¡"


@dataclass(frozen=True, slots=True)
class _Layout:
    """A transcript with the places where it may be cut: before word i at ``heads[i]``."""

    text: str
    words: Sequence[Word]
    heads: list[int]
    max_chars: int
    max_seconds: float

    def slice(self, first: int, stop: int) -> str:
        return self.text[self.heads[first] : self.heads[stop]].strip()

    def pieces(self, max_gap: float) -> Iterator[tuple[int, int]]:
        """``(first, stop)`` of each group of words."""
        first, ended = 0, self.words[0].end
        for i in range(1, len(self.words)):
            pause = self.words[i].start - ended > max_gap
            if self._may_cut(i) and (pause or self._ends_sentence(i - 1)):
                yield from self._split(first, i)
                first = i
            ended = max(ended, self.words[i].end)
        yield from self._split(first, len(self.words))

    def _may_cut(self, i: int) -> bool:
        """Two words may share their characters (the two of a fraction sign): the second's span is empty then."""
        begin, end = self.words[i].span
        return begin < end

    def _tail(self, i: int) -> str:
        """What stands between word i and the part of the next word."""
        return self.text[self.words[i].span[1] : self.heads[i + 1]]

    def _ends_sentence(self, i: int) -> bool:
        tail = self._tail(i)
        if _STOP.search(tail) is None:
            return False
        word = self.text[slice(*self.words[i].span)]
        dotted = word.lower() in _ABBREVIATIONS or "." in word or (len(word) == 1 and word.isupper() and word != "I")
        return not (dotted and tail.strip() == ".")  # Mr. Smith, the U.S.A. is, J. Doe

    def _split(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut a sentence that is too long into parts of about equal width."""
        parts = self._parts(first, stop)
        middle = self._cut(first, stop, parts) if parts > 1 else first
        if middle == first:
            yield first, stop
            return
        yield from self._split(first, middle)
        yield from self._split(middle, stop)

    def _parts(self, first: int, stop: int) -> int:
        """How many cues these words need by width, by time, and by lines."""
        text = self.slice(first, stop)
        seconds = max(word.end for word in self.words[first:stop]) - self.words[first].start
        lines = -(-self.max_chars // LINE_WIDTH)
        by_lines = 2 if len(_greedy(_tokens(text), LINE_WIDTH)) > lines else 1
        return max(-(-width(text) // self.max_chars), int(-(-seconds // self.max_seconds)), by_lines)

    def _cut(self, first: int, stop: int, parts: int) -> int:
        """The best place to cut: near half of the parts, at a comma, not inside 3.14; ``first`` if there is none."""
        widths = [width(self.text[self.heads[i] : self.heads[i + 1]]) for i in range(first, stop)]
        total = sum(widths)
        target, near = total * (parts // 2) / parts, total / (2 * parts)
        best, best_cost = first, float("inf")
        for i, at in enumerate(accumulate(widths[:-1]), start=first + 1):
            comma = near if _COMMA.search(self._tail(i - 1)) else 0.0
            cost = abs(at - target) - comma + total * _glued(self.text, self.heads[i])
            if cost < best_cost and self._may_cut(i):
                best, best_cost = i, cost
        return best


# --- laying out ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Slot:
    """A cue in the making; whole milliseconds."""

    start: int
    end: int
    text: str

    def join(self, end: int, text: str) -> None:
        space = " " if not (_is_wide(self.text[-1]) or _is_wide(text[0])) else ""
        self.end, self.text = max(self.end, end), f"{self.text}{space}{text}"


def cues_of_segments(
    segments: Iterable[Segment], *, duration: float | None = None, min_seconds: float = 0.3
) -> list[Cue]:
    """One cue a segment, in order, without overlap, each at least ``min_seconds`` long.

    A cue too short lasts into the silence behind it, else the next one starts a little later, else (no room: words
    at one time) the two become one. At the end of the audio (``duration`` seconds) the last cue starts earlier;
    only audio shorter than ``min_seconds`` makes a shorter cue.
    """
    least = max(1, round(min_seconds * 1000))
    slots: list[_Slot] = []
    latest = 0
    for segment in segments:
        text = segment.text.strip()
        if not text:
            continue
        start = max(0, round(segment.start * 1000))
        end = max(start, round(segment.end * 1000))
        latest = max(latest, end)
        _place(slots, _Slot(start, end, text), least)
    if slots:
        slots[-1].end = max(slots[-1].end, slots[-1].start + least)
        if duration is not None:
            _pull_back(slots, max(latest, round(duration * 1000)), least)
    return [Cue(slot.start / 1000, slot.end / 1000, slot.text) for slot in slots]


def _place(slots: list[_Slot], new: _Slot, least: int) -> None:
    """Append ``new``, so that the cue before it keeps its minimum."""
    if not slots:
        slots.append(new)
        return
    last = slots[-1]
    earliest = last.start + least
    if new.start < earliest and new.end - earliest < least:
        last.join(new.end, new.text)
        return
    new.start = max(new.start, earliest)
    last.end = min(max(last.end, earliest), new.start)
    slots.append(new)


def _pull_back(slots: list[_Slot], limit: int, least: int) -> None:
    """Let no cue last past ``limit``, the end of the audio, only to reach its minimum."""
    last = slots[-1]
    if last.end <= limit:
        return
    last.start, last.end = max(0, limit - least), max(1, limit)
    if len(slots) > 1 and last.start < slots[-2].end:
        before = slots[-2]
        if last.start - before.start >= least:
            before.end = last.start
        else:
            slots.pop()
            before.join(last.end, last.text)


# --- writing ---------------------------------------------------------------------------------------------------


def render_srt(cues: Iterable[Cue]) -> str:
    """SubRip text, numbered from 1; empty without cues. Lines of at most 42 columns where they can be broken."""
    blocks = []
    for number, cue in enumerate((cue for cue in cues if cue.text.strip()), start=1):
        times = f"{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}"
        blocks.append(f"{number}\n{times}\n{wrap(cue.text)}\n")
    return "\n".join(blocks)


def render_vtt(cues: Iterable[Cue]) -> str:
    """WebVTT text, with ``&``, ``<`` and ``>`` (so ``-->``, too) escaped."""
    blocks = ["WEBVTT\n"]
    for cue in cues:
        if cue.text.strip():
            times = f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}"
            text = wrap(cue.text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            blocks.append(f"{times}\n{text}\n")
    return "\n".join(blocks)


def _clock(seconds: float, point: str) -> str:
    rest, milliseconds = divmod(max(0, round(seconds * 1000)), 1000)
    minutes, second = divmod(rest, 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour:02}:{minute:02}:{second:02}{point}{milliseconds:03}"


def wrap(text: str, columns: int = LINE_WIDTH) -> str:
    """Break into as few lines as ``columns`` allows, of about equal width; white space becomes single spaces."""
    tokens = _tokens(text)
    lines = _greedy(tokens, columns)
    if len(lines) > 1:
        least = -(-width(" ".join(lines)) // len(lines))
        for narrower in range(min(least, columns), columns):
            balanced = _greedy(tokens, narrower)
            if len(balanced) == len(lines) and max(map(width, balanced)) <= max(map(width, lines)):
                return "\n".join(balanced)
    return "\n".join(lines)


def _greedy(tokens: Iterable[tuple[str, str]], columns: int) -> list[str]:
    lines: list[str] = []
    room = 0
    for space, token in tokens:
        needs = width(token)
        if lines and needs + len(space) <= room:
            lines[-1] += space + token
            room -= needs + len(space)
        else:  # a token wider than a line gets one of its own
            lines.append(token)
            room = columns - needs
    return lines


def _tokens(text: str) -> list[tuple[str, str]]:
    """What a line may not be broken inside of, each with the space before it ("" between wide characters)."""
    tokens: list[tuple[str, str]] = []
    for word in text.split():
        cuts = [0, *(at for at in range(1, len(word)) if _breakable(word, at)), len(word)]
        tokens += ((" " if begin == 0 else "", word[begin:end]) for begin, end in pairwise(cuts))
    return tokens


# --- characters ------------------------------------------------------------------------------------------------


def width(text: str) -> int:
    """Columns that ``text`` takes: two for East Asian wide characters, none for combining marks."""
    if text.isascii():
        return len(text)
    marks = sum(unicodedata.category(char) in ("Mn", "Me", "Cf") for char in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(char) in "WF" for char in text)


def _glued(text: str, at: int) -> bool:
    """No cue should start at ``at``: there is neither a space nor a character that stands alone."""
    return 0 < at < len(text) and not text[at - 1].isspace() and not _breakable(text, at)


def _breakable(text: str, at: int) -> bool:
    """Whether a line may break before ``at`` without a space: around Chinese and Japanese characters."""
    left, right = text[at - 1], text[at]
    if not (_is_wide(left) or _is_wide(right)) or unicodedata.category(left) in ("Ps", "Pi", "Cf"):
        return False
    # closing punctuation, marks and the long vowel sign do not start a line
    return unicodedata.category(right) not in ("Po", "Pe", "Pf", "Pd", "Pc", "Mn", "Me", "Cf", "Lm", "Sk")


def _is_wide(char: str) -> bool:
    """Written without spaces; Hangul is as wide, but has them."""
    return unicodedata.east_asian_width(char) in "WF" and not unicodedata.name(char, "").startswith("HANGUL")
