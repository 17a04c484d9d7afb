"""Log-mel features and audio token counts, in numpy.

The recipe is Whisper's, as Qwen3-ASR uses it: 25 ms periodic Hann windows every 10 ms, centred with
reflected edges, power spectrum, 128 Slaney mel bands up to 8 kHz, log10 with a floor eight decades
below the *clip's* maximum, scaled by (x + 4) / 4. Features are made per clip and zero-filled afterwards:
padding waveforms to a common length, as the PyTorch extractors do, changes the last frames of the
shorter clips and sometimes their token count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Samples: TypeAlias = npt.NDArray[np.float32]
Mel: TypeAlias = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000
N_FFT = 400
HOP = 160
MEL_BINS = 128
MIN_SAMPLES = 8_000
"""Shorter clips are zero-padded to this, and the padding counts as audio (half a second)."""
FLOOR = 8.0
"""Decades below the clip's loudest value at which all features end."""

_BLOCK = 2_048  # frames transformed at a time: the working set stays in the cache and memory stays flat


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """How the encoder cuts mel frames into chunks (convolution) and windows (attention).

    Attributes:
        chunk_frames: mel frames of one convolution chunk (``2 * n_window`` in config.json).
        window_frames: mel frames of one attention window (``n_window_infer``), a multiple of the former.
    """

    chunk_frames: int = 100
    window_frames: int = 800

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a full chunk (13 for 100 frames)."""
        return conv_length(self.chunk_frames)

    @property
    def window_tokens(self) -> int:
        """Tokens of a full attention window (104 for 800 frames, 8 s)."""
        return self.window_frames // self.chunk_frames * self.chunk_tokens

    def tokens(self, frames: int) -> int:
        """Audio tokens (embedding rows) of a clip of ``frames`` mel frames."""
        whole, rest = divmod(frames, self.chunk_frames)
        return whole * self.chunk_tokens + conv_length(rest)

    def pad_frames(self, frames: int) -> int:
        """``frames`` rounded up to whole chunks."""
        return -(-frames // self.chunk_frames) * self.chunk_frames


def conv_length(frames: int) -> int:
    """Length after the encoder's three stride-2 convolutions; floor division keeps 0 at 0."""
    for _ in range(3):
        frames = (frames - 1) // 2 + 1
    return frames


def frame_count(samples: int) -> int:
    """Mel frames of a clip of ``samples`` samples at 16 kHz, after padding to half a second."""
    return max(samples, MIN_SAMPLES) // HOP


def log_mel(samples: Samples) -> Mel:
    """Log-mel spectrogram of one clip.

    Args:
        samples: float32 ``[n]``, mono, 16 kHz, within +-1.

    Returns:
        float32 ``[128, frames]`` with ``frames = max(n, 8000) // 160``.
    """
    if samples.shape[0] < MIN_SAMPLES:
        samples = np.pad(samples, (0, MIN_SAMPLES - samples.shape[0]))
    frames = samples.shape[0] // HOP
    padded = np.pad(samples.astype(np.float32, copy=False), N_FFT // 2, mode="reflect")
    power = log_power(padded, frames)
    return scale(power, power.max(), out=power)


def log_power(padded: Samples, frames: int) -> npt.NDArray[np.float32]:
    """Decades of power in each mel band, before the clip's floor; frames do not depend on one another.

    Args:
        padded: float32 ``[n]``; frame f is made of the 400 samples from ``160 * f`` on.
        frames: how many, with ``n >= 160 * (frames - 1) + 400``.

    Returns:
        float32 ``[frames, 128]``, at least -10.
    """
    windows = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    hann, filters = _hann(), mel_filters()
    mel = np.empty((frames, MEL_BINS), np.float32)
    for start in range(0, frames, _BLOCK):
        stop = min(start + _BLOCK, frames)
        spectrum = np.fft.rfft(windows[start:stop] * hann)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        np.matmul(power, filters, out=mel[start:stop])
    return np.log10(np.maximum(mel, 1e-10, out=mel), out=mel)


def scale(power: npt.NDArray[np.float32], loudest: np.float32, *, out: npt.NDArray[np.float32] | None = None) -> Mel:
    """Features of frames whose clip's greatest :func:`log_power` is ``loudest``.

    Args:
        power: float32 ``[frames, 128]``.
        loudest: the maximum over the whole clip, of which these may be a part.
        out: where to compute; a new array if ``None``.

    Returns:
        float32 ``[128, frames]``.
    """
    mel = np.maximum(power, loudest - FLOOR, out=out)
    mel += 4.0
    mel *= 0.25
    return np.ascontiguousarray(mel.T)


def split_windows(mel: Mel, spec: WindowSpec) -> list[Mel]:
    """Cut ``[128, frames]`` into attention windows (views); the last one may be shorter."""
    return [mel[:, at : at + spec.window_frames] for at in range(0, mel.shape[1], spec.window_frames)]


@lru_cache(maxsize=1)
def _hann() -> npt.NDArray[np.float32]:
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT), np.float32)


@lru_cache(maxsize=1)
def mel_filters() -> npt.NDArray[np.float32]:
    """Slaney mel filter bank, float32 ``[201, 128]``, triangles of unit area over 0..8000 Hz.

    Source: Slaney, Auditory Toolbox (1998): linear to 1 kHz in steps of 200/3 Hz, then logarithmic.
    """
    linear_step, log_start, log_step = 200.0 / 3.0, 1000.0, np.log(6.4) / 27.0
    knee = log_start / linear_step
    top = knee + np.log(SAMPLE_RATE / 2 / log_start) / log_step
    points = np.linspace(0.0, top, MEL_BINS + 2)
    hertz = np.where(points < knee, points * linear_step, log_start * np.exp(log_step * (points - knee)))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    rising = (bins[:, None] - hertz[:-2]) / (hertz[1:-1] - hertz[:-2])
    falling = (hertz[2:] - bins[:, None]) / (hertz[2:] - hertz[1:-1])
    area = 2.0 / (hertz[2:] - hertz[:-2])
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)) * area, np.float32)
