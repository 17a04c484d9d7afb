"""Audio to measure with, where no recording is given: as loud and as lively as speech, and the same every time."""

from __future__ import annotations

import numpy as np

from qwen3asr.features import SAMPLE_RATE, Samples

_SYLLABLES_A_SECOND = 4.0
_FORMANTS = ((500.0, 1.0), (1500.0, 0.5), (2500.0, 0.25))  # Hz, and how loud; a neutral vowel's


def speech_like(seconds: float) -> Samples:
    """A gliding voice in syllables, with breath between them, float32 ``[seconds * 16000]`` within +-0.5.

    What a model computes does not depend on what is said; features, guards and file formats do see a difference
    between this and noise or silence.
    """
    count = round(seconds * SAMPLE_RATE)
    time = np.arange(count) / SAMPLE_RATE
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.4 * time)  # Hz
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    voice = np.zeros(count)
    for harmonic in range(1, 31):
        gain = sum(loud / (1 + ((harmonic * 120 - centre) / 200) ** 2) for centre, loud in _FORMANTS)
        voice += gain * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(np.pi * _SYLLABLES_A_SECOND * time) ** 2 - 0.1, 0, None)
    breath = np.random.default_rng(0).normal(0, 0.01, count)
    samples = voice * syllables / max(float(np.abs(voice).max(initial=0.0)), 1e-9) * 0.4 + breath
    return np.clip(samples, -0.5, 0.5).astype(np.float32)


def fit(samples: Samples, seconds: float) -> Samples:
    """So many seconds of a recording, which is repeated where it is shorter: float32 ``[seconds * 16000]``."""
    return np.resize(samples, round(seconds * SAMPLE_RATE))
