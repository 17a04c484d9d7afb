"""What keeps the model's known failures out of the text: loops, text on silence, hot words that nobody said.

Each guard is a frozen policy that :class:`Guards` carries; ``None`` turns it off. A guard decides, the caller acts.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from qwen3asr.features import Samples
from qwen3asr.vad import EnergyDetector, SpeechDetector, frame_levels, speech_seconds
from qwen3asr.words import split_words

# --- loops -----------------------------------------------------------------------------------------------------

_SYLLABLES_A_SECOND = 8.0  # faster than anyone speaks for long, digits included
_LETTERS_A_SECOND = 25.0


@dataclass(frozen=True, slots=True)
class LoopGuard:
    """Ends a text whose tail repeats itself, while it is being decoded.

    A unit of ``n`` tokens in a row becomes a loop at the earlier of two marks:

    - **more than the audio can hold**: its copies would need more time than the clip has (plus a second). A copy takes
      an eighth of a second at least, and what its digits, ideographs (an eighth of a second each) and letters (25 a
      second) take. This ends loops in short clips early, and is all that counts for numbers: 40 zeros read out stay.
    - **more than anyone repeats**: ``copies`` divided by the root of ``n``: 60 for one token, 43 for two, 22 for
      eight, 15 for sixteen. Laughter, "no no no", counting out and refrains stay below. (The reference collapses
      whatever stands 20 times, numbers too, and does so after it has decoded to the end of the budget.)

    Attributes:
        copies: of a one-token unit that make a loop.
        fewest: copies that no loop has less of.
        longest: tokens of a unit.
    """

    copies: int = 60
    fewest: int = 4
    longest: int = 40

    def watch(self, seconds: float, text: Callable[[int], str] = lambda _: "") -> LoopWatch:
        """Start watching one text.

        Args:
            seconds: duration of all the audio that it is of.
            text: what a token id writes (``lambda token: tokenizer.decode([token])``); asked only for units that
                repeat. Without it numbers are no exception.
        """
        return LoopWatch(self, seconds, text)

    def copies_allowed(self, unit: str, tokens: int, seconds: float) -> int:
        """Copies in a row of a unit, its text and its length in tokens, that ``seconds`` of audio may have."""
        held = math.floor((seconds + 1) / _least_seconds(unit))
        plausible = math.inf if _is_number(unit) else math.ceil(self.copies / math.sqrt(tokens)) - 1
        return int(max(self.fewest - 1, min(held, plausible)))


class LoopWatch:
    """Watches one text, token by token: a :class:`qwen3asr.generate.Watch`. Made by :meth:`LoopGuard.watch`."""

    __slots__ = ("_allowed", "_guard", "_matches", "_seconds", "_tail", "_text", "_written")

    def __init__(self, guard: LoopGuard, seconds: float, text: Callable[[int], str]) -> None:
        self._guard, self._seconds, self._text = guard, seconds, text
        self._tail: deque[int] = deque(maxlen=guard.longest)  # newest first
        self._matches: dict[int, int] = {}  # by period: tokens in a row that equal the one a period before
        self._allowed: dict[int, int] = {}  # by period: matches that are no loop yet
        self._written = 0

    def push(self, token: int) -> int | None:
        """Take the next token.

        Returns:
            ``None``, or if this token makes a loop the number of tokens to keep: all up to the first copy's end.
        """
        before = self._matches
        self._matches = {n: before.get(n, 0) + 1 for n, earlier in enumerate(self._tail, 1) if earlier == token}
        self._tail.appendleft(token)
        self._written += 1
        for period, matches in self._matches.items():
            if matches == (self._guard.fewest - 1) * period:  # a run of copies is judged once
                self._allowed[period] = self._judge(period)
            if matches > self._allowed.get(period, matches):
                return self._written - matches
        return None

    def _judge(self, period: int) -> int:
        unit = "".join(map(self._text, reversed([*self._tail][:period])))
        return self._guard.copies_allowed(unit, period, self._seconds) * period - 1


def _least_seconds(unit: str) -> float:
    """The shortest time in which the unit could be said."""
    letters = [char for char in unit if char.isalpha() or char.isnumeric()]
    alone = sum(char.isnumeric() or unicodedata.east_asian_width(char) in "WF" for char in letters)
    return max(1 / _SYLLABLES_A_SECOND, alone / _SYLLABLES_A_SECOND + (len(letters) - alone) / _LETTERS_A_SECOND)


def _is_number(unit: str) -> bool:
    """Only digits or other numerals, with spaces and punctuation around them."""
    said = [char for char in unit if not char.isspace() and unicodedata.category(char)[0] != "P"]
    return bool(said) and all(char.isnumeric() for char in said)


# --- silence ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpeechGate:
    """Keeps text off audio in which nobody speaks.

    Attributes:
        silence_db: a clip whose loudest frame lies below this, in dBFS, is silent. Three steps of 16-bit samples; the
            quietest speech of which the tiny models still wrote words had -78 dBFS in its loudest frame.
        least_speech: seconds; a detector that finds less finds none. Three frames, which the recordings reach in noise
            that leaves no word of them right.
        sure: confidence (0 to 1) from which a text stands whatever the detector says. What the tiny models invented on
            steady noise had up to 0.87, what they got right 0.95 and more.
        detector: makes the detector of a clip.
    """

    silence_db: float = -80.0
    least_speech: float = 0.09
    sure: float = 0.9
    detector: Callable[[], SpeechDetector] = EnergyDetector

    def silent(self, samples: Samples) -> bool:
        """Whether there is nothing to decode: digital silence, or nothing above ``silence_db``.

        Args:
            samples: float32 ``[n]`` at 16 kHz.
        """
        return not len(samples) or float(frame_levels(samples).max()) < self.silence_db

    def invented(self, samples: Samples, text: str, confidence: float | None) -> bool:
        """Whether a text was made up: the model is not sure of it, and in the audio nobody speaks.

        Args:
            samples: float32 ``[n]`` at 16 kHz, all the audio that the text is of.
            text: what the model wrote.
            confidence: its confidence; a text without one stands.
        """
        if not text.strip() or confidence is None or confidence >= self.sure:
            return False
        # backwards too: a clip that starts with its loudest sound gives the way forwards no quiet to compare it with
        return not any(self._speech(way) for way in (samples, samples[::-1]))

    def _speech(self, samples: Samples) -> bool:
        return speech_seconds(samples, self.detector()) >= self.least_speech


# --- hot words -------------------------------------------------------------------------------------------------

_BETWEEN_ENTRIES = re.compile(r"[,;|\n、，；。！？：]|[.!?:](?=\s|$)")


@dataclass(frozen=True, slots=True)
class EchoGuard:
    """Finds texts that may be the context itself, returned where nothing was said.

    A suspicious text is decoded once more without the context. If the model then hears something, the hot word was
    really said and the first text stands, else it was an echo.
    """

    def suspicious(self, text: str, context: str) -> bool:
        """Whether all of a text's words are the context's, one entry whole among them.

        Entries are what commas, semicolons, line ends and sentence ends separate; case and punctuation do not count.
        """
        words = _words(text)
        if not set(words) <= set(_words(context)):
            return False
        entries = [_words(entry) for entry in _BETWEEN_ENTRIES.split(context)]
        return any(_contains(words, entry) for entry in entries if entry)

    def echo(self, without_context: str) -> bool:
        """Whether the suspicious text is to be dropped, by what the model hears without the context."""
        return not _words(without_context)


def _words(text: str) -> list[str]:
    return [unit.text.casefold() for unit in split_words(text)]


def _contains(words: list[str], entry: list[str]) -> bool:
    return any(words[start : start + len(entry)] == entry for start in range(len(words) - len(entry) + 1))


# --- all -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Guards:
    """Which guards are on, and how they are set; ``None`` turns one off."""

    loop: LoopGuard | None = LoopGuard()
    speech: SpeechGate | None = SpeechGate()
    echo: EchoGuard | None = EchoGuard()

    @classmethod
    def off(cls) -> Guards:
        """No guard at all: the model's text as it is."""
        return cls(None, None, None)
