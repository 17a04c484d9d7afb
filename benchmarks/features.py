"""Log-mel of two minutes of audio: ours against transformers' extractor, alternating in one run.

python benchmarks/features.py > benchmarks/results/features.json
"""

from __future__ import annotations

import json
import statistics

import numpy as np
from machine import in_turn, machine
from transformers import Qwen3ASRFeatureExtractor

from qwen3asr.features import SAMPLE_RATE, log_mel

SECONDS, ROUNDS = 120, 15


def main() -> None:
    """Print the figures as JSON."""
    samples = np.random.default_rng(0).normal(0, 0.1, SECONDS * SAMPLE_RATE).astype(np.float32)
    extractor = Qwen3ASRFeatureExtractor()

    def theirs() -> object:
        return extractor(samples, sampling_rate=SAMPLE_RATE, padding="longest", return_tensors="np")

    ours, others = in_turn([lambda: log_mel(samples), theirs], ROUNDS)
    ratios = [b / a for a, b in zip(ours, others, strict=True)]
    report = {
        "machine": machine(),
        "audio_seconds": SECONDS,
        "rounds": ROUNDS,
        "log_mel_ms": {
            "median": round(statistics.median(ours) * 1000, 1),
            "max": round(max(ours) * 1000, 1),
        },
        "transformers_ms": {"median": round(statistics.median(others) * 1000, 1)},
        "transformers_over_ours": {"median": round(statistics.median(ratios), 2), "min": round(min(ratios), 2)},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
