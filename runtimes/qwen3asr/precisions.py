"""The precisions of bundles: where each runs, and how wide its KV cache is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Precision:
    """What a runtime must know of a precision.

    Attributes:
        summary: what is stored and computed, in a few words.
        devices: kinds of device that run it, the best first.
        cache_bytes: of one value in the KV cache.
        integer: nearly all products are of 8-bit integers; 4-bit weights are widened to them.
        cuda_dialects: dialects of the decoder in which ONNX Runtime's CUDA provider runs it, the best first;
            GroupQueryAttention of the ``ort`` dialect has no 32-bit kernel there.
    """

    summary: str
    devices: tuple[str, ...]
    cache_bytes: int
    cuda_dialects: tuple[str, ...] = ()
    integer: bool = False


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision("32-bit floating point throughout", ("cpu", "cuda"), 4, ("standard",)),
    "fp16": Precision(
        "16-bit products and KV cache; residual stream, norms and rotation in 32 bits",
        ("cuda",),
        2,
        ("ort", "standard"),
    ),
    "bf16": Precision(
        "bfloat16 products and KV cache in the decoder, 16-bit encoder", ("cuda",), 2, ("ort", "standard")
    ),
    "int8": Precision("8-bit products of weights and activations, the rest in 32 bits", ("cpu",), 4, integer=True),
    "int4": Precision(
        "4-bit decoder weights in blocks, encoder as in int8, 8-bit embedding and head", ("cpu",), 4, integer=True
    ),
}

AUTO: Mapping[str, str] = {"cpu": "int8", "cuda": "bf16"}
"""What ``auto`` stands for on each kind of device: the fastest that costs no measurable accuracy."""


def for_device(device: str) -> list[str]:
    """Names of the precisions that a kind of device runs."""
    return [name for name, precision in PRECISIONS.items() if device in precision.devices]
