"""Long audio as pieces that the model takes, cut where nobody speaks.

The original cuts at the quietest 100 ms within 5 s around the limit, so its pieces may grow past it, and where audio
is digitally silent it cuts at the first silent sample. Here the limit holds, and a cut is looked for in the last 30 s
before it, or the last third if that is less:

1. Pauses are the stretches of 100 ms levels (mean of |x|) up to 6 dB above the least, but not more than a quarter of
   the way from the least to the mean; where the least is very low, up to 30 dB below the mean. With a speech detector
   they are the stretches that it holds for silent, if it finds any.
2. A pause of half a second ends a phrase: the last such pause is taken, so that pieces stay long; if there is none,
   the longest. Of a detector's pauses it is always the longest.
3. The cut is the quietest sample in the middle 100 ms of that pause; of equal ones, that nearest to the middle.

Where what is left does not fit one piece, but would leave less than that range for the last one, it is cut near its
middle. So no piece is shorter than 30 s, or a third of the limit if that is less, unless all of the audio is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qwen3asr.errors import RequestInvalid
from qwen3asr.features import SAMPLE_RATE, Samples
from qwen3asr.vad import FRAME, SpeechDetector

_Stretches: TypeAlias = npt.NDArray[np.int64]  # [k, 2]: first sample, last + 1

LEAST_SECONDS = 1.0
"""Least limit of a piece: it must hold a word."""
SEARCH_SECONDS = 30.0
"""How far before the limit a cut is looked for, at most."""

_LEVEL = SAMPLE_RATE // 10
_PHRASE_END = SAMPLE_RATE // 2
_SPEECH = 0.5  # probability
_WARM_UP = 3 * SAMPLE_RATE  # what a detector hears before its judgement counts


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A stretch of long audio.

    Attributes:
        offset: samples of the audio before it.
        samples: float32 ``[n]``, n >= 1, mono, 16 kHz; as they were read, see :func:`qwen3asr.audio.limit_peak`.
    """

    offset: int
    samples: Samples

    @property
    def start(self) -> float:
        """Seconds from the start of the audio."""
        return self.offset / SAMPLE_RATE

    @property
    def end(self) -> float:
        """Seconds from the start of the audio."""
        return (self.offset + len(self.samples)) / SAMPLE_RATE


def pieces(blocks: Iterable[Samples], *, longest: float, detector: SpeechDetector | None = None) -> Iterator[Piece]:
    """Cut audio into pieces, lazily, without gap or overlap.

    The pieces depend on the samples only, not on how they come in blocks. For a piece, at most a third of its length
    (30 s at most) and a block are read past its end. Memory is that of about four pieces, however long the audio.

    Args:
        blocks: float32 ``[n]`` each, mono, 16 kHz; such as :func:`qwen3asr.audio.open_audio` gives.
        longest: seconds that a piece may have, at least 1.
        detector: tells where somebody speaks; without it, the level does. It is reset for each cut.

    Returns:
        The pieces in order; one if all fits, none without samples.

    Raises:
        RequestInvalid: ``longest`` is not a number from 1 on.
    """
    if not LEAST_SECONDS <= longest < math.inf:
        raise RequestInvalid(f"pieces of at most {longest} s hold no word; give at least {LEAST_SECONDS} s")
    return _pieces(blocks, int(longest * SAMPLE_RATE), detector)


def split_point(samples: Samples) -> int:
    """Where to cut one piece in two: a pause near its middle, by the rule of this module.

    Of the pauses between a quarter and three quarters, it is the one nearest to the middle that lasts half a second,
    or else the longest.

    Args:
        samples: float32 ``[n]``, n >= 2.

    Returns:
        Samples of the first part; both have some.

    Raises:
        RequestInvalid: fewer than two samples.
    """
    count = len(samples)
    if count < 2:
        raise RequestInvalid(f"{count} samples cannot be cut in two")
    return _cut(samples, max(count // 4, 1), max(count * 3 // 4, 2), count // 2)


def _pieces(blocks: Iterable[Samples], limit: int, detector: SpeechDetector | None) -> Iterator[Piece]:
    reach = min(round(SEARCH_SECONDS * SAMPLE_RATE), limit // 3)
    waiting: list[Samples] = []
    offset = count = 0
    for block in _short(blocks, reach):
        waiting.append(block)
        count += len(block)
        if count >= limit + reach:  # whatever follows, the last piece can be long enough
            held = np.concatenate(waiting)
            cut = _cut(held, limit - reach, limit, limit, detector)
            yield Piece(offset, held[:cut])
            waiting, offset, count = [held[cut:].copy()], offset + cut, count - cut
    if not count:
        return
    rest = np.concatenate(waiting)
    if count > limit:
        cut = _cut(rest, (count - reach) // 2, (count + reach) // 2, count // 2, detector)
        yield Piece(offset, rest[:cut])
        rest, offset = rest[cut:], offset + cut
    yield Piece(offset, rest)


def _short(blocks: Iterable[Samples], longest: int) -> Iterator[Samples]:
    """The blocks in parts of at most ``longest`` samples: joining them must not copy hours."""
    for block in blocks:
        yield from (block[at : at + longest] for at in range(0, len(block), longest))


# --- where to cut ----------------------------------------------------------------------------------------------


def _cut(samples: Samples, first: int, stop: int, target: int, detector: SpeechDetector | None = None) -> int:
    """The best cut from ``first`` on and before ``stop``; of equally good pauses, in the one nearest to ``target``."""
    around = samples[first:stop]
    silent = None if detector is None else _silent(samples[:stop], first, detector)
    if silent is not None and len(silent):
        pauses, enough = silent, len(around)
    else:
        pauses, enough = _quiet(around), _PHRASE_END
    lengths = pauses[:, 1] - pauses[:, 0]
    best = pauses[lengths >= min(enough, lengths.max())]
    start, end = best[np.abs(best.mean(axis=1) - (target - first)).argmin()]
    return first + _quietest(around, int(start), int(end))


def _quiet(around: Samples) -> _Stretches:
    """Pauses by level; at least one."""
    width = min(_LEVEL, len(around))
    sums = np.cumsum(np.abs(around), dtype=np.float64)
    levels = (sums[width - 1 :] - np.concatenate([[0.0], sums[:-width]])) / width
    least, mean = levels.min(), levels.mean()
    most = min(max(least * 2, mean / 32), least + (mean - least) / 4)
    return _stretches(levels <= max(most, least), 1, width)


def _silent(heard: Samples, first: int, detector: SpeechDetector) -> _Stretches:
    """Pauses that the detector finds from ``first`` on, counted from there; perhaps none."""
    begin = max(first - _WARM_UP, 0)
    frames = (len(heard) - begin) // FRAME
    detector.reset()
    speech = detector.probabilities(heard[begin : begin + frames * FRAME])
    stretches = np.maximum(_stretches(speech < _SPEECH, FRAME, FRAME) + begin - first, 0)
    return stretches[stretches[:, 1] > 0]


def _stretches(flags: npt.NDArray[np.bool_], hop: int, width: int) -> _Stretches:
    """The runs of windows that are set, as samples; windows of ``width``, one each ``hop``."""
    runs = np.flatnonzero(np.diff(flags, prepend=False, append=False)).reshape(-1, 2)
    return np.stack([runs[:, 0] * hop, (runs[:, 1] - 1) * hop + width], axis=1)


def _quietest(around: Samples, start: int, stop: int) -> int:
    """The quietest sample in the middle of a pause."""
    middle, half = (start + stop) // 2, min(_LEVEL, stop - start) // 2
    loudness = np.abs(around[middle - half : middle + max(half, 1)])
    equal = np.flatnonzero(loudness == loudness.min()) + middle - half
    return int(equal[np.abs(equal - middle).argmin()])
