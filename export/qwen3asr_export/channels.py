"""Integer quantisation with one scale an output channel, for products of 8-bit activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwen3asr_export.graph import Array
from qwen3asr_export.rows import by_rows

HIGHEST = 63
"""Of a weight: processors with AVX2 alone add two products in 16 bits, and 2 x 255 x 127 is too much for those."""


@dataclass(frozen=True, slots=True)
class Channels:
    """A matrix ``[out, in]`` as ``values.T * scales[:, None]``.

    Attributes:
        values: int8 ``[in, out]``, from -63 to 63.
        scales: float32 ``[out]``.
    """

    values: Array
    scales: Array

    def dequantise(self) -> Array:
        """What the matrix now stands for: float32 ``[out, in]``."""
        wide: Array = self.values.T * self.scales[:, None]
        return wide


def quantise_channels(weight: Array) -> Channels:
    """Round a float32 matrix ``[out, in]`` to the nearest; a channel of zeros stays one."""
    values, scales = by_rows(_quantise_rows, weight)
    return Channels(values.T, scales)


def _quantise_rows(weight: Array) -> tuple[Array, Array]:
    scales = np.abs(weight).max(axis=1) / np.float32(HIGHEST)
    steps = np.where(scales > 0, scales, np.float32(1))
    return np.rint(weight / steps[:, None]).astype(np.int8), scales
