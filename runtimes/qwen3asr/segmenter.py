"""Where a stream's segments begin and end: a state machine over the probabilities of speech. Plain ints, no arrays.

The longer a segment, the shorter the pause that ends it: a long one decodes slower and worse. It ends in the middle of
the pause, so that no sound is heard twice or lost; only a segment without any pause is split in the midst of speech.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from qwen3asr.errors import RequestInvalid
from qwen3asr.features import SAMPLE_RATE, Samples
from qwen3asr.vad import FRAME

_ONSET = 3  # frames in a row, 96 ms: a click is shorter, a syllable longer
_HYSTERESIS = 0.15  # speech that has begun goes on down to this much below the threshold, as in Silero's own iterator
_SENTENCE_PAUSE = 0.3
_ANY_PAUSE = 0.15
_QUIET = SAMPLE_RATE // 10  # stretch whose energy is compared: a gap between words, not a zero crossing


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How a stream listens. All times in seconds.

    Attributes:
        step_seconds: new audio that makes a step, that is a new hypothesis.
        threshold: probability from which a frame is speech.
        end_silence: a pause that ends any segment.
        pre_roll: audio before the detected beginning that belongs to the segment.
        soft_seconds: from this length on, 0.3 s of pause behind a full stop end the segment.
        late_seconds: from this length on, any pause of 0.15 s ends it.
        longest_seconds: at this length it is split where it is quietest.
        hold_back: words at the end of a hypothesis that are never committed before the segment ends.
        carry_words: last words of a segment that the next one is given as context; 0 for none.
        partial_words: with word times, partials have them too: one more alignment for each new committed text.
        announce: a segment's beginning is told at once, by a partial without text.

    Raises:
        RequestInvalid: values out of range, or that do not fit together.
    """

    step_seconds: float = 1.0
    threshold: float = 0.5
    end_silence: float = 0.8
    pre_roll: float = 0.5
    soft_seconds: float = 15.0
    late_seconds: float = 24.0
    longest_seconds: float = 30.0
    hold_back: int = 0
    carry_words: int = 8
    partial_words: bool = False
    announce: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (
            ("step_seconds", 0.1, 10.0),
            ("threshold", 0.01, 0.99),
            ("end_silence", _ANY_PAUSE, 10.0),
            ("pre_roll", 0.0, 5.0),
            ("longest_seconds", 2.0, 120.0),
            ("hold_back", 0, 100),
            ("carry_words", 0, 100),
        ):
            if not least <= getattr(self, name) <= most:  # also NaN
                raise RequestInvalid(f"{name}={getattr(self, name)!r} is out of range; give {least} to {most}")
        if not 0 < self.soft_seconds <= self.late_seconds <= self.longest_seconds:
            raise RequestInvalid(
                f"soft_seconds={self.soft_seconds}, late_seconds={self.late_seconds} and "
                f"longest_seconds={self.longest_seconds} must not fall; give them in this order"
            )
        if self.longest_seconds < 2 * (self.step_seconds + self.pre_roll):
            raise RequestInvalid(
                f"longest_seconds={self.longest_seconds} leaves no room for two steps of {self.step_seconds} s and "
                f"the pre-roll of {self.pre_roll} s; give shorter steps or longer segments"
            )


@dataclass(frozen=True, slots=True)
class Begin:
    """Speech was found: a segment begins at sample ``at`` of the stream."""

    at: int


@dataclass(frozen=True, slots=True)
class End:
    """The segment ends at sample ``at``, in a pause."""

    at: int


@dataclass(frozen=True, slots=True)
class Split:
    """The segment is too long: :meth:`Segmenter.split` it at the quietest place from sample ``earliest`` on."""

    earliest: int


Border: TypeAlias = Begin | End | Split


class Segmenter:
    """Follows one stream. All positions are samples at 16 kHz from its start.

    Attributes:
        now: samples judged so far.
        start: where the open segment begins; ``None`` while nobody speaks.
        sentence_ended: whether the newest hypothesis ends a sentence; its owner sets it.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self.settings = settings
        self.now = 0
        self.start: int | None = None
        self.sentence_ended = False
        self._border = 0  # where the last segment ended
        self._onset = 0  # loud frames in a row
        self._voice = 0  # where the newest speech ends
        self._heard = self._heard_before = 0  # how far the model heard at the last two steps

    def feed(self, probability: float) -> Border | None:
        """Judge one frame of 512 samples."""
        self.now += FRAME
        if self.start is None:
            return self._wait(probability)
        if probability >= max(self.settings.threshold - _HYSTERESIS, 0.01):
            self._voice = self.now
        length = self.now - self.start
        if self._pause >= self._enough(length):
            return self._end()
        if length >= _samples(self.settings.longest_seconds):
            # what two steps agreed on was said before the first of them: it is not to be torn from its sound
            return Split(max(self._heard_before, self.now - self._search))
        return None

    @property
    def memory(self) -> int:
        """While nobody speaks: how many samples back from ``now`` a segment may begin."""
        return _ONSET * FRAME + _samples(self.settings.pre_roll)

    @property
    def due(self) -> bool:
        """Is it time for a step? Only if speech came since the last one."""
        if self.start is None or self._voice <= self._heard:
            return False
        # before a pause can end the segment behind a full stop, the model must have heard the text's end
        asks = self.now - self.start >= _samples(self.settings.soft_seconds) and self._pause >= _samples(
            _SENTENCE_PAUSE
        )
        return asks or self.now - self._heard >= _samples(self.settings.step_seconds)

    def heard(self) -> None:
        """A step is made of all audio up to now."""
        self._heard_before, self._heard = self._heard, self.now
        self.sentence_ended = False

    def split(self, at: int) -> None:
        """End the segment at sample ``at``; the next one begins there, unless only silence is left."""
        self._open(at)
        if self._voice <= at:
            self.start, self._border, self._onset = None, at, 0

    def _wait(self, probability: float) -> Begin | None:
        self._onset = self._onset + 1 if probability >= self.settings.threshold else 0
        if self._onset < _ONSET:
            return None
        self._voice = self.now
        start = max(self.now - self.memory, self._border)
        self._open(start)
        return Begin(start)

    def _open(self, at: int) -> None:
        self.start = self._heard = self._heard_before = at
        self.sentence_ended = False

    def _end(self) -> End:
        self.start, self._onset = None, 0
        self._border = self._voice + self._pause // 2
        return End(self._border)

    @property
    def _search(self) -> int:
        settings = self.settings
        return _samples(max(settings.longest_seconds - settings.late_seconds, settings.step_seconds))

    @property
    def _pause(self) -> int:
        return self.now - self._voice

    def _enough(self, length: int) -> int:
        """The pause that ends a segment of this length, in samples."""
        if length >= _samples(self.settings.late_seconds):
            return _samples(_ANY_PAUSE)
        if length >= _samples(self.settings.soft_seconds) and self.sentence_ended and self._voice <= self._heard:
            return min(_samples(_SENTENCE_PAUSE), _samples(self.settings.end_silence))
        return _samples(self.settings.end_silence)


def quietest(samples: Samples) -> int:
    """The middle of the 0.1 s with the least energy; the first of several. Of less audio, its middle."""
    if len(samples) <= _QUIET:
        return len(samples) // 2
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    return int(np.argmin(energy[_QUIET:] - energy[:-_QUIET])) + _QUIET // 2


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)
