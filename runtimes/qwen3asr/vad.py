"""Where somebody speaks: the protocol of detectors, and one by energy that needs no model.

The energy detector follows the noise by minimum statistics (R. Martin, "Noise power spectral density estimation based
on optimal smoothing and minimum statistics", IEEE Trans. Speech and Audio Processing 9(5), 2001), octave by octave:
the least level of the last seconds is the noise, and what stands above it in most octaves is speech.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qwen3asr.errors import RequestInvalid
from qwen3asr.features import SAMPLE_RATE, Samples

FRAME = 512
"""Samples of one decision: 32 ms at 16 kHz."""
SILENCE_DB = -120.0
"""The level given to digital silence, in dBFS."""

_OCTAVES_HZ = (225, 450, 900, 1800, 3600, 7200)
_HEARD_IN = 3  # octaves: a hum fills one or two, a vowel or a fricative three
_LEAST_DB = -100.0  # per octave: the rounding of 16-bit samples
_RANGE_DB = 55.0  # of speech: what lies deeper below its loudest is an echo or a fade, however quiet the gaps are
_FADE_DB = 0.03  # a frame, 1 dB a second: how fast the loudest is forgotten
_PAUSE = 4  # frames, 128 ms: the shortest quiet in which the noise is measured
_MEMORY = 94  # frames, 3 s: longer than anyone speaks without such a quiet
_FLAT, _FLAT_DB = 16, 4.0  # half a second within 4 dB is no speech: the noise has changed
_MARGIN_DB, _SLOPE_DB = 7.0, 1.5  # above the noise: where speech is as probable as not, and how sharply
_BLOCK = 1_024  # frames transformed at a time, so that memory stays flat
_WINDOW = np.hanning(FRAME + 1)[:-1].astype(np.float32)


class SpeechDetector(Protocol):
    """Judges one stream of audio, frame by frame; one detector a stream."""

    def probabilities(self, samples: Samples) -> Samples:
        """How probably each frame is speech; goes on where the last call ended.

        Args:
            samples: float32 ``[k * FRAME]`` at 16 kHz.

        Returns:
            float32 ``[k]``, 0 to 1.

        Raises:
            RequestInvalid: the samples are no whole number of frames.
        """

    def reset(self) -> None:
        """Forget what was heard: the next call starts a new stream."""


class EnergyDetector:
    """See :class:`SpeechDetector`: speech is what stands above the noise, whatever the gain.

    The probability rises with the level above the noise, the mean of the three octaves that stand out most, and is a
    half at 7 dB. Steady noise and hum are no speech, from the first frame on; where the noise gets louder, that is
    noticed after 0.6 s, in noise narrower than an octave after 3 s. What varies like speech (music, clatter) is taken
    for it. A stream that starts in the middle of a word is heard from its first dip on.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """See :class:`SpeechDetector`."""
        self._recent: npt.NDArray[np.float32] | None = None
        self._floors = [_NoiseFloor() for _ in _OCTAVES_HZ[1:]]

    def probabilities(self, samples: Samples) -> Samples:
        """See :class:`SpeechDetector`."""
        frames = whole_frames(samples)
        above = np.zeros(len(frames), np.float32)
        for start in range(0, len(frames), _BLOCK):
            above[start : start + _BLOCK] = self._above_noise(frames[start : start + _BLOCK])
        probabilities: Samples = 1 / (1 + np.exp((_MARGIN_DB - above) / _SLOPE_DB))
        return probabilities

    def _above_noise(self, frames: Samples) -> Samples:
        """How far each of the frames ``[k, FRAME]`` stands above the noise, in dB, ``[k]``."""
        powers = _octave_powers(frames)
        before = np.repeat(powers[:1], _PAUSE - 1, axis=0) if self._recent is None else self._recent
        joined = np.concatenate([before, powers])
        self._recent = joined[1 - _PAUSE :]
        pauses = _decibels(np.lib.stride_tricks.sliding_window_view(joined, _PAUSE, axis=0).mean(axis=-1))
        floors = [
            [floor.push(level) for floor, level in zip(self._floors, row, strict=True)] for row in pauses.tolist()
        ]
        above = _decibels(powers) - np.array(floors, np.float32)
        most: Samples = np.sort(above, axis=1)[:, -_HEARD_IN:].mean(axis=1)
        return most


class _NoiseFloor:
    """The noise of one octave in dB, from its levels frame by frame."""

    def __init__(self) -> None:
        self._least: deque[tuple[int, float]] = deque()  # rising: each the least of what follows it
        self._frame = 0
        self._loudest = self._low = self._high = _LEAST_DB
        self._held = 0  # frames since the level left low..high

    def push(self, level: float) -> float:
        """Take the next frame's level, give the noise under it."""
        self._loudest = max(self._loudest - _FADE_DB, level)
        self._low, self._high, self._held = min(self._low, level), max(self._high, level), self._held + 1
        if self._high - self._low > _FLAT_DB:
            self._low = self._high = level
            self._held = 1
        if self._held >= _FLAT:
            self._least.clear()
            level = self._low
        while self._least and self._least[-1][1] >= level:
            self._least.pop()
        self._least.append((self._frame, level))
        self._frame += 1
        if self._least[0][0] < self._frame - _MEMORY:
            self._least.popleft()
        return max(self._least[0][1], self._loudest - _RANGE_DB)


def speech_seconds(samples: Samples, detector: SpeechDetector, threshold: float = 0.5) -> float:
    """Seconds of speech in a clip.

    Args:
        samples: float32 ``[n]`` at 16 kHz; a rest shorter than a frame is not looked at.
        detector: reset first, so not that of a stream that goes on.
        threshold: least probability of a frame that counts.
    """
    detector.reset()
    found = detector.probabilities(samples[: len(samples) // FRAME * FRAME])
    return int(np.count_nonzero(found >= threshold)) * FRAME / SAMPLE_RATE


def frame_levels(samples: Samples) -> Samples:
    """Level of each frame: root mean square about its mean (an offset is no sound), in dBFS.

    A full-scale square wave has 0, a sine -3.

    Args:
        samples: float32 ``[n]``.

    Returns:
        float32 ``[ceil(n / FRAME)]``, none below ``SILENCE_DB``; a last frame that is not full is measured over what
        there is of it.
    """
    starts = np.arange(0, len(samples), FRAME)
    if not starts.size:
        return np.zeros(0, np.float32)
    counts = np.minimum(FRAME, len(samples) - starts)
    mean = np.add.reduceat(samples, starts, dtype=np.float64) / counts
    power = np.add.reduceat(np.square(samples, dtype=np.float64), starts) / counts
    return _decibels(power - mean**2, SILENCE_DB)


def whole_frames(samples: Samples) -> Samples:
    """The samples as frames, ``[k, FRAME]``; a view.

    Raises:
        RequestInvalid: they are no whole number of frames.
    """
    if samples.ndim != 1 or len(samples) % FRAME:
        raise RequestInvalid(
            f"a speech detector takes whole frames of {FRAME} samples, not an array of shape {samples.shape}; "
            "keep the rest for the next call"
        )
    return samples.reshape(-1, FRAME)


def _octave_powers(frames: Samples) -> npt.NDArray[np.float32]:
    """Mean power of each frame in each octave, float32 ``[k, octaves]``."""
    spectrum = np.square(np.abs(np.fft.rfft(frames * _WINDOW, axis=1)), dtype=np.float32)
    edges = np.ceil(np.array(_OCTAVES_HZ) * FRAME / SAMPLE_RATE).astype(int)
    powers: npt.NDArray[np.float32] = np.add.reduceat(spectrum, edges, axis=1)[:, :-1]
    return powers * np.float32(2 / (FRAME * float(np.square(_WINDOW).sum())))


def _decibels(power: npt.NDArray[Any], least: float = _LEAST_DB) -> npt.NDArray[np.float32]:
    decibels: npt.NDArray[np.float32] = (10 * np.log10(np.maximum(power, 10 ** (least / 10)))).astype(np.float32)
    return decibels
