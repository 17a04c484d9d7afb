"""The GPU: its name and versions, what it does at best, and how long work must take at that."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
from machine import machine

from qwen3asr.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device reached in a measurement of only that.

    Attributes:
        bytes_per_second: read and written by a copy within its memory.
        flops: of a large product of matrices, a second.
    """

    bytes_per_second: float
    flops: float


@dataclass(frozen=True, slots=True)
class Widths:
    """Bytes of a value that a step reads: a weight of the layers; the head's weights and the KV cache."""

    layers: float
    others: float


def described(device: str) -> dict[str, Any]:
    """Machine, GPU and versions, for a results file."""
    found: dict[str, Any] = {"machine": machine(), "python": platform.python_version()}
    found["versions"] = {lib.__name__: lib.__version__ for lib in (onnxruntime, torch, transformers, np)}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {"name": properties.name, "bytes": properties.total_memory, "multiprocessors":
                        properties.multi_processor_count, "cuda": torch.version.cuda}  # fmt: skip
    return found


def measure_limits(device: str, *, quick: bool = False) -> Limits:
    """A copy of a gigabyte and a product of 8192 x 8192 in bfloat16, the best of several.

    Of random numbers: a GPU draws less power for zeros, and clocks higher.
    """
    size, side = (1 << 20, 128) if quick else (1 << 30, 8192)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left = torch.randn(side, side, dtype=torch.float32 if quick else torch.bfloat16, device=device)
    copied = _fastest(lambda: target.copy_(source), device)
    multiplied = _fastest(lambda: left @ left, device)
    return Limits(2 * size / copied, 2 * side**3 / multiplied)


def _fastest(call: Callable[[], object], device: str) -> float:
    best = float("inf")
    for _ in range(10):
        _synchronise(device)
        start = time.perf_counter()
        call()
        _synchronise(device)
        best = min(best, time.perf_counter() - start)
    return best


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# --- how long it must take at least --------------------------------------------------------------------------------


def layer_weights(spec: ModelSpec) -> int:
    """Weights of the decoder's layers."""
    width = (2 * spec.heads + 2 * spec.kv_heads) * spec.head_dim  # q and o, k and v
    return spec.layers * spec.hidden * (width + 3 * spec.ffn)


def encoder_weights(spec: ModelSpec) -> int:
    """Weights of the encoder's layers; its convolutions are left out."""
    width, ffn = spec.encoder.width, spec.encoder.ffn
    return spec.encoder.layers * width * (4 * width + 2 * ffn) + width * (width + spec.hidden)


def prefill_flops(spec: ModelSpec, prompt: int, audio: int) -> float:
    """Of one clip up to its first token: encoder, layers, causal attention, the head once."""
    attention = 2 * spec.layers * spec.heads * spec.head_dim * prompt * prompt  # half of 4 n n d
    products = 2 * (layer_weights(spec) * prompt + encoder_weights(spec) * audio)
    return float(products + attention + 2 * spec.hidden * spec.classes)


def step_bytes(spec: ModelSpec, widths: Widths, rows: int, past: float) -> float:
    """What one step must read: the layers' and the head's weights, and each row's cache."""
    cache = 2 * spec.layers * spec.kv_heads * spec.head_dim * past
    return widths.layers * layer_weights(spec) + widths.others * (spec.hidden * spec.classes + rows * cache)


def floors(
    spec: ModelSpec, widths: Widths, limits: Limits, *, rows: int, prompt: int, audio: int, tokens: int
) -> dict[str, float]:
    """Seconds that ``rows`` clips at a time take at least: to their first token, one step, and all of it."""
    first = rows * prefill_flops(spec, prompt, audio) / limits.flops
    step = step_bytes(spec, widths, rows, prompt + tokens / 2) / limits.bytes_per_second
    return {"prefill_s": first, "step_s": step, "all_s": first + (tokens - 1) * step}


def spread(values: list[float]) -> dict[str, float]:
    """Mean, median and 95th percentile."""
    ordered = sorted(values)
    last = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"mean": statistics.fmean(ordered), "p50": statistics.median(ordered), "p95": last}
