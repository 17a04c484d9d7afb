"""Integer products whose activations are quantised as they come (dynamic quantisation).

Weights have one scale an output channel, activations one scale a row, or a chunk of audio in a convolution: found when
they are multiplied, so that no data is needed beforehand and no row hears of its neighbours. Rows behind a norm in the
mixed basis are all alike (:data:`qwen3asr_export.mixing.REACH`) and need none of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen3asr_export.channels import quantise_channels
from qwen3asr_export.graph import CONTRIB, FLOAT, Array, Graph
from qwen3asr_export.mixing import REACH
from qwen3asr_export.numerics import Convolution, Table, Tables

_STEPS, _ZERO = 127, 128  # of a row in 8 bits: from its zero to its largest magnitude, and where its zero lies
_ABOVE, _BELOW = 191, 64  # of a chunk: steps on either side of its zero; what comes out of a GELU is mostly positive


@dataclass(frozen=True, slots=True)
class Dynamic(Tables):
    """Products of 8-bit activations with weights of :mod:`qwen3asr_export.channels` (MatMulIntegerToFloat)."""

    def linear(self, g: Graph, x: str, name: str, weight: Array) -> str:
        """See :class:`qwen3asr_export.numerics.Tables`."""
        return _multiply_rows(g, x, f"{name}.weight", *_store(g, f"{name}.weight", weight))

    def convolutions(self, g: Graph, x: str, size: tuple[int, int], layers: Sequence[Convolution]) -> str:
        """See :class:`qwen3asr_export.numerics.Tables`; channels come last within, and the first one stays float32."""
        x = g.reshape(x, 0, *size, 1)
        for layer in layers:
            bias = g.vector(f"{layer.name}.bias", layer.bias)
            if layer is layers[0]:
                patches = g.reshape(_patches(g, x, size, g.const(0.0, np.float32)), -1, 9)
                weight = g.vector(f"{layer.name}.weight", _matrix(layer).T)
                y = g.op("Gemm", patches, weight, bias, out=layer.name)
                x = g.reshape(g.op("Gelu", y), -1, *_halved(size), len(layer.bias))
            else:
                values, step = _chunks_in_8_bits(g, x)
                patches = _patches(g, values, size, g.const(_BELOW, np.uint8))
                stored = _store(g, f"{layer.name}.weight", _matrix(layer))
                y = g.op("Mul", _multiply(g, patches, _BELOW, 1.0, *stored), step)
                x = g.op("Gelu", g.op("Add", y, bias, out=layer.name))
            size = _halved(size)
        return g.op("Transpose", x, perm=[0, 3, 1, 2])

    def table(self, g: Graph, name: str, weight: Array) -> Table:
        """See :class:`qwen3asr_export.numerics.Tables`."""
        return _ChannelTable(name, *_store(g, name, weight))

    def holds(self, shape: tuple[int, ...]) -> bool:
        """See :class:`qwen3asr_export.numerics.Tables`: kernels, too, but the first."""
        return len(shape) == 2 or (len(shape) == 4 and shape[1] > 1)

    def stored_bytes(self, rows: int, columns: int) -> int:
        """See :class:`qwen3asr_export.numerics.Tables`: values, float32 scales."""
        return rows * columns + 4 * rows

    def stands_for(self, weight: Array) -> Array:
        """See :class:`qwen3asr_export.numerics.Tables`."""
        return quantise_channels(weight).dequantise()


@dataclass(frozen=True, slots=True)
class _ChannelTable(Table):
    """The table lies as the product wants it, a class a column: looking up reads a byte of every row."""

    name: str
    values: str
    scales: str

    def project(self, g: Graph, x: str) -> str:
        return _multiply_rows(g, x, self.name, self.values, self.scales)

    def rows(self, g: Graph, ids: str) -> str:
        flat = g.reshape(ids, -1)
        columns = g.op("Cast", g.op("Gather", self.values, flat, axis=1), to=FLOAT)
        columns = g.op("Mul", columns, g.op("Gather", self.scales, flat, axis=0))
        shape = g.op("Concat", g.op("Shape", ids), g.const([-1]), axis=0)
        return g.op("Reshape", g.op("Transpose", columns, perm=[1, 0]), shape)


def _store(g: Graph, name: str, weight: Array) -> tuple[str, str]:
    """Put a matrix into the data file; names of its values and its scales."""
    stored = quantise_channels(weight)
    return g.weight(name, stored.values), g.weight(f"{name}.scales", stored.scales)


def _multiply_rows(g: Graph, x: str, name: str, values: str, scales: str) -> str:
    """``x @ weight.T`` with a step for each row of ``x``, or one for all where they are spread."""
    if x in g.spread:
        (rows,) = g.once("spread rows in 8 bits", x, lambda x: (_in_8_bits(g, x, REACH / _STEPS),))
        return _multiply(g, rows, _ZERO, REACH / _STEPS, values, scales, out=f"{name}.product")
    rows, highest = g.once("rows in 8 bits", x, lambda x: _rows_in_8_bits(g, x))
    return g.op("Mul", _multiply(g, rows, _ZERO, 1 / _STEPS, values, scales), highest, out=f"{name}.product")


def _multiply(g: Graph, x: str, zero: int, step: float, values: str, scales: str, out: str | None = None) -> str:
    """``(x - zero) * step @ weight.T`` of uint8 ``x``."""
    steps, zeros = g.const(step, np.float32), g.const(zero, np.uint8)
    return g.op("MatMulIntegerToFloat", x, values, steps, scales, zeros, domain=CONTRIB, out=out)


def _in_8_bits(g: Graph, x: str, step: float) -> str:
    return g.op("QuantizeLinear", x, g.const(step, np.float32), g.const(_ZERO, np.uint8))


def _rows_in_8_bits(g: Graph, x: str) -> tuple[str, str]:
    """Rows as uint8, and the largest magnitude of each, ``[..., 1]``.

    A row of zeros is divided by zero and rounds to anything, but its product is multiplied by zero in the end. One
    that is NaN throughout, as norms leave it, has NaN as its largest magnitude, and so has its product.
    """
    highest = g.op("ReduceMax", g.op("Abs", x), g.const([-1]), keepdims=1)
    return _in_8_bits(g, g.op("Div", x, highest), 1 / _STEPS), highest


def _chunks_in_8_bits(g: Graph, x: str) -> tuple[str, str]:
    """Chunks ``[n, rows, columns, channels]`` as uint8, and the step of each, ``[n, 1, 1, 1]``; zeros as in rows."""
    axes = g.const([1, 2, 3])
    above = g.op("Mul", g.op("ReduceMax", x, axes, keepdims=1), g.const(1 / _ABOVE, np.float32))
    below = g.op("Mul", g.op("ReduceMin", x, axes, keepdims=1), g.const(-1 / _BELOW, np.float32))
    step = g.op("Max", above, below)
    steps = g.reshape(step, -1)
    zeros = g.op("Expand", g.const(_BELOW, np.uint8), g.op("Shape", steps))
    return g.op("QuantizeLinear", x, steps, zeros, axis=0), step


def _patches(g: Graph, x: str, size: tuple[int, int], border: str) -> str:
    """What a 3 x 3 kernel of stride 2 sees at each of its places: ``[n, rows / 2, columns / 2, 9 * channels]``."""
    (rows, columns), (high, wide) = size, _halved(size)
    x = g.op("Pad", x, g.const([0, 1, 1, 0, 0, rows % 2, columns % 2, 0]), border)
    starts = [(row, column) for row in range(3) for column in range(3)]
    axes, strides = g.const([1, 2]), g.const([2, 2])
    seen = [
        g.op("Slice", x, g.const(start), g.const([start[0] + 2 * high - 1, start[1] + 2 * wide - 1]), axes, strides)
        for start in starts
    ]
    return g.op("Concat", *seen, axis=3)


def _matrix(layer: Convolution) -> Array:
    """A kernel as a matrix ``[out, 9 * in]``, in the order of :func:`_patches`."""
    return layer.kernel.transpose(0, 2, 3, 1).reshape(len(layer.kernel), -1)


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // 2), -(-size[1] // 2)
