"""Integer quantisation in blocks along the input axis, as ONNX Runtime's MatMulNBits reads it.

A block of ``w`` becomes ``(q - zero_point) * scale`` with unsigned ``q``. Rounding to nearest over the block's whole
range is ONNX Runtime's own quantiser; it never looks at data, so that no calibration set decides which language
suffers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnxruntime.capi import _pybind_state as _ort

from qwen3asr_export.graph import Array
from qwen3asr_export.rows import by_rows


@dataclass(frozen=True, slots=True)
class Quantised:
    """A matrix ``[out, in]`` in blocks; ``count = ceil(in / block)``.

    Attributes:
        values: uint8 ``[out, count, block * bits / 8]``, low nibble first.
        scales: float32 ``[out, count]``.
        zero_points: uint8 ``[out, ceil(count * bits / 8)]``, packed as the values are.
        bits: 4 or 8.
    """

    values: Array
    scales: Array
    zero_points: Array
    bits: int

    def dequantise(self, width: int) -> Array:
        """What the matrix now stands for: float32 ``[out, width]``."""
        values, zeros = (_unpack(part, self.bits) for part in (self.values, self.zero_points))
        zeros = zeros[:, : self.scales.shape[1]]
        wide = (values.astype(np.float32) - zeros[..., None].astype(np.float32)) * self.scales[..., None]
        return wide.reshape(len(wide), -1)[:, :width]


def quantise(weight: Array, bits: int, block: int) -> Quantised:
    """Quantise a float32 matrix ``[out, in]`` as PyTorch keeps it.

    Args:
        weight: the matrix; ``in`` is padded to a multiple of the block with zeros.
        bits: 4 or 8.
        block: weights that share a scale, a power of two from 16.
    """
    values, scales, zeros = by_rows(lambda rows: _quantise_rows(rows, bits, block), weight)
    return Quantised(values, scales, zeros, bits)


def _quantise_rows(weight: Array, bits: int, block: int) -> tuple[Array, Array, Array]:
    rows, width = weight.shape
    count, per_byte = -(-width // block), 8 // bits
    values = np.zeros((rows, count, block // per_byte), np.uint8)
    scales = np.zeros((rows, count), np.float32)
    zeros = np.zeros((rows, -(-count // per_byte)), np.uint8)
    padded = np.zeros((count * block, rows), np.float32)
    padded[:width] = weight.T
    run = {4: _ort.quantize_matmul_4bits, 8: _ort.quantize_matmul_8bits}[bits]
    run(values, padded, scales, zeros, block, rows, width, False)
    return values, scales, zeros


def _unpack(packed: Array, bits: int) -> Array:
    if bits == 8:
        return packed
    pairs = np.stack([packed & 15, packed >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)
