"""One part of the model after the other: features, encoder, prompt, decode steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from qwen3asr.benchmark.roofline import ModelWork, Work
from qwen3asr.benchmark.settings import Settings
from qwen3asr.benchmark.speech import fit
from qwen3asr.benchmark.spread import Spread, timed
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.features import Samples, log_mel
from qwen3asr.prompt import PromptBuilder

ENCODER_SECONDS = (1, 8, 30)
"""Clips that the encoder is measured on: less than an attention window, one, and nearly four."""
STEPS = 10
"""Steps of a round, which are much shorter than everything else."""
_CHUNK = 512  # tokens fed at a time to fill the cache


@dataclass(frozen=True, slots=True)
class Part:
    """One part by itself.

    Attributes:
        name: what was done.
        seconds: that it took.
        work: what it must read and compute; ``None`` where that is not counted.
    """

    name: str
    seconds: Spread
    work: Work | None


@dataclass(frozen=True, slots=True)
class Bench:
    """What the parts are measured on: an idle model, and a clip."""

    encoder: Encoder
    decoder: Decoder
    prompts: PromptBuilder
    work: ModelWork
    samples: Samples
    settings: Settings


def measure_parts(bench: Bench) -> Iterator[Part]:
    """Every part in turn; slot 0 of the cache is overwritten."""
    yield Part(
        f"features of {bench.settings.seconds:g} s", _timed(bench, lambda: log_mel(bench.samples)), None
    )  # fmt: skip
    for seconds in ENCODER_SECONDS:
        mel = log_mel(fit(bench.samples, seconds))
        spread = _timed(bench, lambda mel=mel: bench.encoder.encode([mel]))  # type: ignore[misc]
        yield Part(f"encoder, {seconds} s", spread, bench.work.encode(mel.shape[1]))
    yield _prefill(bench)
    filled = 0
    for past in sorted(bench.settings.past):
        _fill(bench, filled, past)
        filled = past
        spread = timed(
            lambda past=past: bench.decoder.step(0, 0, past),  # type: ignore[misc]
            bench.settings.rounds * STEPS,
            bench.settings.warmup,
        )
        yield Part(f"decode step after {past} tokens", spread, bench.work.feed(1, past))


def _timed(bench: Bench, call: Callable[[], object]) -> Spread:
    return timed(call, bench.settings.rounds, bench.settings.warmup)


def _prefill(bench: Bench) -> Part:
    (rows,) = bench.encoder.encode([log_mel(bench.samples)])
    prompt = bench.prompts.transcription(rows)
    count = len(prompt.ids)
    last = np.array([count - 1], np.int64)
    spread = _timed(bench, lambda: bench.decoder.prefill(prompt, last, 0))
    return Part(f"prefill of {count} tokens", spread, bench.work.feed(count))


def _fill(bench: Bench, start: int, stop: int) -> None:
    """Tokens into slot 0: pages of the cache that nobody wrote would be read too fast."""
    nothing = np.zeros((0, bench.decoder.hidden), np.float32)
    for past in range(start, stop, _CHUNK):
        ids = np.zeros(min(_CHUNK, stop - past), np.int64)
        bench.decoder.feed(ids, nothing, np.zeros(0, np.int64), 0, past)
