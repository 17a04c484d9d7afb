"""Audio that comes in pieces: 16 kHz mono, and its log-mel, as if it had come whole.

The features of a clip depend on all of it: on its loudest value, from which the floor of all frames is counted, and
on its end, where the last frame sees reflected samples. So a frame is transformed once, as soon as it holds real
samples only, and kept before the floor is applied. A frame at the end is transformed again each time. And features
given out earlier may change: if ``low`` is the least value of a window before the floor, its features differ between
two floors exactly when the higher one is above ``low``. The floor mostly rises, but it falls too: a reflection may be
louder than the sound that comes after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from qwen3asr.decode import MAX_RATE
from qwen3asr.errors import AudioFormatInvalid, AudioNotFinite
from qwen3asr.features import (
    FLOOR,
    HOP,
    MEL_BINS,
    MIN_SAMPLES,
    N_FFT,
    SAMPLE_RATE,
    Mel,
    Samples,
    WindowSpec,
    log_power,
    scale,
)

_HALF = N_FFT // 2
_ROUNDING = 2e-6  # decades: a frame at the end has other last bits each time that it is transformed
_LEAST_RATE = 1_000
_MOST_CHANNELS = 8
_FULL_SCALE = {"f2": 1.0, "f4": 1.0, "f8": 1.0, "i2": 2.0**15, "i4": 2.0**31}


# --- samples ---------------------------------------------------------------------------------------------------


class IncrementalAudio:
    """Chunks of one recording as 16 kHz mono float32; any cutting into chunks gives the same samples.

    As :func:`qwen3asr.audio.read_audio`, but for the peak: what exceeds full scale is clipped, since a later peak
    cannot scale what was heard before.

    Args:
        sample_rate: of all chunks, in Hz.

    Raises:
        AudioFormatInvalid: a rate that cannot be audio.
    """

    def __init__(self, sample_rate: int) -> None:
        if not _LEAST_RATE <= sample_rate <= MAX_RATE or int(sample_rate) != sample_rate:
            raise AudioFormatInvalid(
                f"a stream cannot have the sample rate {sample_rate!r}; give it in Hz, a whole number from "
                f"{_LEAST_RATE} to {MAX_RATE}, such as 16000"
            )
        self._rate, self._checked = int(sample_rate), 0
        self._resampler = None if sample_rate == SAMPLE_RATE else soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1)

    def check(self, chunk: npt.NDArray[Any]) -> Samples:
        """Refuse what is no audio; mono samples at the stream's own rate, never the caller's memory.

        Args:
            chunk: ``[n]`` or ``[n, channels]`` with up to 8 channels, which are averaged; float16/32/64 within +-1,
                int16 or int32. No sample at all is no error.

        Raises:
            AudioFormatInvalid: a type or shape that cannot be audio.
            AudioNotFinite: NaN or infinite samples; nothing of the chunk is taken.
        """
        kind = f"{chunk.dtype.kind}{chunk.dtype.itemsize}" if isinstance(chunk, np.ndarray) else type(chunk).__name__
        if kind not in _FULL_SCALE:
            raise AudioFormatInvalid(
                f"a chunk is of type {getattr(chunk, 'dtype', kind)}; give a numpy array of int16 or float32, "
                "for example numpy.frombuffer(data, numpy.int16)"
            )
        if chunk.ndim not in (1, 2) or (chunk.ndim == 2 and not 1 <= chunk.shape[1] <= _MOST_CHANNELS):
            raise AudioFormatInvalid(
                f"a chunk has the shape {chunk.shape}; give [samples], or [samples, channels] with at most "
                f"{_MOST_CHANNELS} channels"
            )
        if not chunk.size:
            return np.zeros(0, np.float32)
        with np.errstate(over="ignore"):  # what float32 cannot hold turns infinite, and is reported as such
            samples = chunk.astype(np.float32).reshape(len(chunk), -1)
            finite = np.isfinite(samples).all(axis=1)
            if not finite.all():
                first = (self._checked + int(finite.argmin())) / self._rate
                raise AudioNotFinite("the chunk", int(finite.size - finite.sum()), first)
            self._checked += len(samples)
            mono: Samples = np.clip((samples / np.float32(_FULL_SCALE[kind])).mean(axis=1), -1.0, 1.0)
            return mono

    def convert(self, mono: Samples, *, last: bool = False) -> Samples:
        """Checked samples, resampled; 20 to 40 ms stay inside until ``last``."""
        if self._resampler is None:
            return mono
        resampled: Samples = np.clip(self._resampler.resample_chunk(mono, last=last), -1.0, 1.0)
        if last:
            self._resampler = None
        return resampled


# --- features --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class MelState:
    """The log-mel of all samples so far, in the encoder's windows.

    Attributes:
        windows: float32 ``[128, frames]`` each, never written to again; all but the last of full length.
        complete: how many, from the first, hold all their samples: only the floor can change them later.
        kept: how many, from the first, were complete in the state before and are as they were then.
    """

    windows: tuple[Mel, ...]
    complete: int
    kept: int


class IncrementalMel:
    """Log-mel of a growing clip; equals :func:`qwen3asr.features.log_mel` of all samples so far, to rounding.

    A state costs the frames that are new and the windows that changed. All samples are held, and 51 kB a second:
    the clip is to be cut before it grows long.

    Attributes:
        frames: how many were transformed so far, those at the end again each time.
    """

    def __init__(self, spec: WindowSpec) -> None:
        self._spec = spec
        self._samples = _Rows(())
        self._power = _Rows((MEL_BINS,))
        self._complete: list[_Window] = []
        self.frames = 0

    @property
    def samples(self) -> Samples:
        """All samples so far, as a view; :meth:`push` after :meth:`truncate` may write to it."""
        return self._samples.rows

    def push(self, samples: Samples) -> None:
        """Append float32 ``[n]`` at 16 kHz; computes nothing."""
        self._samples.append(samples)

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` samples only; windows that lose samples are no longer complete."""
        self._samples.count = min(count, self._samples.count)
        self._power.count = min(self._power.count, _settled(self._samples.count))
        del self._complete[self._power.count // self._spec.window_frames :]

    def state(self) -> MelState:
        """Features of all samples so far."""
        end = self._transform()
        size, power = self._spec.window_frames, self._power.rows
        for start in range(len(self._complete) * size, len(power) - size + 1, size):
            self._complete.append(_Window(power[start : start + size]))
        rest = np.concatenate([power[len(self._complete) * size :], end])
        peaks = [window.high for window in self._complete]
        loudest = max([*peaks, rest.max()] if rest.size else peaks)
        kept = self._kept(loudest)
        windows = [window.features(power[at * size :][:size], loudest) for at, window in enumerate(self._complete)]
        windows += [scale(rest[at : at + size], loudest) for at in range(0, len(rest), size)]
        return MelState(tuple(windows), len(self._complete), kept)

    def _kept(self, loudest: np.float32) -> int:
        changed = (index for index, window in enumerate(self._complete) if window.differs(loudest))
        return next(changed, len(self._complete))

    def _transform(self) -> npt.NDArray[np.float32]:
        """Transform the frames that are new; those that more samples will change are returned, not kept."""
        samples, first, count = self.samples, self._power.count, self._samples.count
        if count < MIN_SAMPLES:
            samples, count = np.pad(samples, (0, MIN_SAMPLES - count)), MIN_SAMPLES
        frames = count // HOP
        if frames == first:
            return np.empty((0, MEL_BINS), np.float32)
        start, stop = first * HOP - _HALF, (frames - 1) * HOP + _HALF
        piece = np.pad(samples[max(start, 0) : stop], (max(-start, 0), max(stop - count, 0)), mode="reflect")
        power = log_power(piece, frames - first)
        self.frames += frames - first
        settled = _settled(self._samples.count) - first
        self._power.append(power[:settled])
        return power[settled:]


def _settled(count: int) -> int:
    """Frames of ``count`` samples that further samples leave alone.

    Frame f reaches to sample 160 f + 200: a window of 800 is complete 40 samples after its end.
    """
    return (count - _HALF) // HOP + 1 if count >= MIN_SAMPLES else 0


class _Window:
    """The range of a complete window before the floor, and its features when they were last asked for."""

    def __init__(self, power: npt.NDArray[np.float32]) -> None:
        self.low: np.float32 = power.min()
        self.high: np.float32 = power.max()
        self._mel: Mel | None = None
        self._loudest = self.high

    def differs(self, loudest: np.float32) -> bool:
        """Would the features be others than those last given?"""
        moved = abs(loudest - self._loudest) > _ROUNDING
        return self._mel is None or bool(moved and self.low < max(loudest, self._loudest) - FLOOR)

    def features(self, power: npt.NDArray[np.float32], loudest: np.float32) -> Mel:
        """Those of the window, whose :func:`log_power` is ``power``."""
        if self._mel is None or self.differs(loudest):
            self._mel, self._loudest = scale(power, loudest), loudest
        return self._mel


class _Rows:
    """An array that grows at its end, at a cost that does not depend on its length."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._memory = np.empty((SAMPLE_RATE if not shape else 128, *shape), np.float32)
        self.count = 0

    @property
    def rows(self) -> npt.NDArray[np.float32]:
        return self._memory[: self.count]

    def append(self, rows: npt.NDArray[np.float32]) -> None:
        need = self.count + len(rows)
        if need > len(self._memory):
            memory = np.empty((max(need, 2 * len(self._memory)), *self._memory.shape[1:]), np.float32)
            memory[: self.count] = self.rows
            self._memory = memory
        self._memory[self.count : need] = rows
        self.count = need
