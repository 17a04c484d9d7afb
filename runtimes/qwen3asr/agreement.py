"""What of a growing hypothesis is certain: LocalAgreement-2.

Source: Macháček, Dabre, Bojar, "Turning Whisper into Real-Time Transcription System" (2023): what two successive
hypotheses agree on is committed and never changes. There, what is committed becomes a forced prefix. Here each
hypothesis is decoded from scratch and may contradict what is committed; its new part is then found by an edit
alignment of its words with the committed ones.

Units are words between blanks; in scripts without blanks between words, characters with their marks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

_ALONE = re.compile(  # Han and kana; Thai, Lao, Myanmar, Khmer
    "[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
)
_QUOTES = "\"'”’»)）」』】 "
_STOPS = (".", "!", "?", "…", "。", "！", "？", "｡", "؟", "۔", "।")


@dataclass(frozen=True, slots=True)
class _Unit:
    """``key`` is compared, ``text[start:end]`` is written; punctuation around it belongs to no unit."""

    key: str
    start: int
    end: int


class Agreement:
    """The committed part of one segment's text.

    Args:
        hold_back: units at the end of a hypothesis that are not committed, even where the one before agrees.

    Attributes:
        committed: what is certain; each value begins with the one before.
        surplus: after :meth:`finish`, the end of what was committed that the last hypothesis no longer holds.
    """

    def __init__(self, hold_back: int = 0) -> None:
        self.committed = ""
        self.surplus = ""
        self._hold_back = hold_back
        self._certain: list[_Unit] = []
        self._before: list[str] = []  # of the units that the last hypothesis had behind them

    def update(self, hypothesis: str) -> tuple[str, str]:
        """Take the next hypothesis, and commit where it agrees with the one before.

        Units agree whatever their case and punctuation, and are committed as the newer hypothesis writes them. What
        follows a unit, such as a full stop, is committed with the next one: the end of a text that goes on often
        looks like the end of a sentence.

        Returns:
            What is committed now, and the whole text, which begins with it.
        """
        text, tail = self._merge(hypothesis)
        pairs = zip(tail[: max(len(tail) - self._hold_back, 0)], self._before, strict=False)
        agreed = sum(1 for _ in takewhile(lambda pair: pair[0].key == pair[1], pairs))
        self._commit(text, tail[:agreed])
        self._before = [unit.key for unit in tail[agreed:]]
        return self.committed, text

    def preview(self, hypothesis: str) -> str:
        """The text that :meth:`update` would give; nothing is committed or remembered."""
        return self._merge(hypothesis)[0]

    def finish(self, hypothesis: str) -> str:
        """Take the last hypothesis, commit all of it and give the segment's text."""
        text, tail = self._merge(hypothesis)
        if not tail:
            lost = self._certain[_reach(_units(hypothesis), self._certain) :]
            self.surplus = self.committed[lost[0].start :] if lost else ""
        self._commit(text, tail)
        self.committed = text
        return text

    def _merge(self, hypothesis: str) -> tuple[str, list[_Unit]]:
        """The committed text and what the hypothesis adds to it; the units added, placed in that text."""
        units = _units(hypothesis)
        if not self._certain:
            return hypothesis, units
        reach = _reach(self._certain, units)
        if not reach:  # it has no words
            return self.committed, []
        cut = units[reach - 1].end
        shift = len(self.committed) - cut
        tail = [_Unit(unit.key, unit.start + shift, unit.end + shift) for unit in units[reach:]]
        return self.committed + hypothesis[cut:], tail

    def _commit(self, text: str, units: Sequence[_Unit]) -> None:
        if units:
            self.committed = text[: units[-1].end]
            self._certain += units


def strip_overlap(surplus: str, text: str) -> str:
    """Remove from the beginning of a segment's text what the segment before has committed already.

    Args:
        surplus: the end of the text before that its audio turned out not to hold (:attr:`Agreement.surplus`).
        text: the text after.

    Returns:
        ``text`` without the longest run of units at its beginning that stands anywhere in ``surplus``.
    """
    before = [unit.key for unit in _units(surplus)]
    units = _units(text)
    for count in range(min(len(before), len(units)), 0, -1):
        run = [unit.key for unit in units[:count]]
        if any(before[at : at + count] == run for at in range(len(before) - count + 1)):
            return _opening(text, units, count)
    return text


def last_units(text: str, count: int) -> str:
    """The last ``count`` words, or characters in scripts without blanks, with their punctuation."""
    units = _units(text)
    return _opening(text, units, max(len(units) - count, 0)) if count and units else ""


def ends_sentence(text: str) -> bool:
    """Does the text end with a full stop or its like, closing quotes aside?"""
    return text.rstrip(_QUOTES).endswith(_STOPS)


def _opening(text: str, units: Sequence[_Unit], first: int) -> str:
    """The text from a unit on, with a quote that opens before it."""
    if first == len(units):
        return ""
    gap = text[units[first - 1].end : units[first].start] if first else f" {text[: units[0].start]}"
    opens = re.search(r"\s(\S*)\Z", gap)
    return (opens[1] if opens else "") + text[units[first].start :]


def _units(text: str) -> list[_Unit]:
    spans: list[tuple[int, int]] = []
    grows = False  # the last unit is a word that goes on until the next blank
    for at, char in enumerate(text):
        kind = unicodedata.category(char)[0]
        if char.isspace():
            grows = False
        elif kind not in "LNM":
            continue
        elif (grows and not _ALONE.match(char)) or (kind == "M" and spans and spans[-1][1] == at):
            spans[-1] = (spans[-1][0], at + 1)
        else:
            grows = not _ALONE.match(char)
            spans.append((at, at + 1))
    return [_Unit(_key(text[start:end]), start, end) for start, end in spans]


def _key(surface: str) -> str:
    return "".join(char for char in surface if unicodedata.category(char)[0] in "LNM").casefold()


def _reach(units: Sequence[_Unit], longer: Sequence[_Unit]) -> int:
    """How many units of ``longer`` are what ``units`` says: the beginning with the least edit distance to them.

    Of several, the longest: a unit that differs stands for the other one rather than behind it.
    """
    keys, others = [unit.key for unit in units], [unit.key for unit in longer]
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(keys, others, strict=False)))
    rest = np.array(others[same:], str)
    steps = np.arange(len(rest) + 1)
    row = steps  # distances to the beginnings of the rest
    for key in keys[same:]:
        best = np.minimum(row[1:] + 1, row[:-1] + (rest != key))
        row = np.minimum.accumulate(np.append(row[0] + 1, best) - steps) + steps
    return same + len(rest) - int(row[::-1].argmin())
