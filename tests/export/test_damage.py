"""What storing weights as integers costs, measured anew on the trained models: a worse quantiser must not pass.

The stored results are of 600 utterances of voices never heard, which need espeak-ng. Here a few dozen are put together
from the words of the recordings, and the models have loud channels, as large ones do and where coarse blocks lose
their way; see benchmarks/tiny_precisions.py, which scores them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
from tests.checkpoints import TINY
from tests.conftest import ROOT, Recording

from qwen3asr.features import SAMPLE_RATE
from qwen3asr_export import blocks, channels, dynamic, numerics
from qwen3asr_export.graph import Array
from speech import SpokenWord, Utterance

COUNT = 48
LATER_MS = {"int8": 1.5, "int4": 6.0}
"""By how much boundaries may be further off than in fp32."""


@pytest.fixture(scope="module")
def precisions() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import tiny_precisions

    yield tiny_precisions
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def loud(precisions: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loud")
    for kind in ("asr", "aligner"):
        precisions.loud(TINY / kind, folder / kind)
    return folder


@pytest.fixture(scope="module")
def utterances(recordings: dict[str, Recording]) -> list[Utterance]:
    """One to six words of a language each, with pauses between them and faint noise."""
    rng, words = np.random.default_rng(0), dict[str, list[tuple[str, Array]]]()
    for recording in recordings.values():
        samples, _ = soundfile.read(recording.path, dtype="float32")
        for word in recording.words:
            start, end = (round(float(str(word[side])) * SAMPLE_RATE) for side in ("start", "end"))
            words.setdefault(str(recording.language), []).append((str(word["text"]), samples[start:end]))
    return [_spoken(language, words[language], rng) for language in np.resize(list(words), COUNT).tolist()]


def _spoken(language: str, words: list[tuple[str, Array]], rng: np.random.Generator) -> Utterance:
    parts, said, at = [], [], 0
    for _ in range(rng.integers(1, 7)):
        text, clip = words[rng.integers(len(words))]
        start = at + int(rng.uniform(0.05, 0.4) * SAMPLE_RATE)
        parts += [np.zeros(start - at, np.float32), clip * np.float32(rng.uniform(0.5, 1))]
        at = start + len(clip)
        said.append(SpokenWord(text, start / SAMPLE_RATE, at / SAMPLE_RATE))
    samples = np.concatenate([*parts, np.zeros(SAMPLE_RATE // 5, np.float32)])
    return Utterance((samples + rng.normal(0, 0.002, len(samples))).astype(np.float32), language, said)


@pytest.fixture(scope="module")
def passes(precisions: ModuleType, loud: Path, utterances: list[Utterance]) -> Callable[[str], bool]:
    """Whether a precision keeps, but for one, the exact utterances of fp32, and its word boundaries."""
    whole = precisions.score(loud, "fp32", utterances)
    assert whole["exact"] > 0.95  # else nothing is measured
    assert whole["boundary_mean_ms"] < 40

    def judge(precision: str) -> bool:
        stored = precisions.score(loud, precision, utterances)
        exact = stored["exact"] >= whole["exact"] - 1.01 / COUNT
        return bool(exact and stored["boundary_mean_ms"] <= whole["boundary_mean_ms"] + LATER_MS[precision])

    return judge


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_what_is_offered_keeps_what_fp32_writes(passes: Callable[[str], bool], precision: str) -> None:
    assert passes(precision)


def test_a_worse_quantiser_of_channels_would_not_pass(
    passes: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven levels in place of 127."""
    right = channels.quantise_channels

    def coarse(weight: Array) -> channels.Channels:
        stored = right(weight)
        return channels.Channels((np.rint(stored.values / 20) * 20).astype(np.int8), stored.scales)

    monkeypatch.setattr(dynamic, "quantise_channels", coarse)
    assert not passes("int8")


def test_a_worse_quantiser_of_blocks_would_not_pass(
    passes: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of four bits."""
    right = blocks.quantise

    def coarse(weight: Array, bits: int, block: int) -> blocks.Quantised:
        stored = right(weight, bits, block)
        values = np.clip((blocks._unpack(stored.values, bits).astype(np.int64) + 1) // 2 * 2, 0, 15).astype(np.uint8)
        return blocks.Quantised(values[..., ::2] | (values[..., 1::2] << 4), stored.scales, stored.zero_points, bits)

    monkeypatch.setattr(numerics, "quantise", coarse)
    assert not passes("int4")
