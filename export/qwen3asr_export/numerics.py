"""What a graph computes in and how it stores its matrices.

Every :class:`Matrices` takes activations of the graph's own type and gives them back in it, so the functions that
build encoder and decoder read the same at every precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from onnx import helper

from qwen3asr_export.blocks import quantise
from qwen3asr_export.files import Lookup
from qwen3asr_export.graph import BITS, CONTRIB, FLOAT, Array
from qwen3asr_export.mixing import Mixed

if TYPE_CHECKING:
    from qwen3asr_export.graph import Graph

_ACCURACY = 4  # MatMulNBits: activations in blocks of 8 bits, sums in 32


class Table(Protocol):
    """The embedding matrix ``[classes, hidden]``, or an output head; one stored copy serves both."""

    def rows(self, g: Graph, ids: str) -> str:
        """Rows by id: ``[..., hidden]``."""

    def project(self, g: Graph, x: str) -> str:
        """``x @ table.T`` for ``x`` ``[n, hidden]``."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of stride 2 within a border of zeros: kernel ``[out, in, 3, 3]`` and bias ``[out]``, float32."""

    name: str
    kernel: Array
    bias: Array


class Matrices(Protocol):
    """How matrices are stored and multiplied."""

    def linear(self, g: Graph, x: str, name: str, weight: Array) -> str:
        """``x @ weight.T`` with a float32 weight as PyTorch keeps it, ``[out, in]``."""

    def convolutions(self, g: Graph, x: str, size: tuple[int, int], layers: Sequence[Convolution]) -> str:
        """Convolutions, each with a GELU behind it: ``[n, 1, *size]`` in, ``[n, channels, rows, columns]`` out."""
        for layer in layers:
            kernel, bias = g.vector(f"{layer.name}.weight", layer.kernel), g.vector(f"{layer.name}.bias", layer.bias)
            x = g.op("Gelu", g.op("Conv", x, kernel, bias, strides=[2, 2], pads=[1, 1, 1, 1], out=layer.name))
        return x

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of the checkpoint is stored as such a matrix, ``[shape[0], rest]``."""
        return len(shape) == 2

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Bytes that a matrix ``[rows, columns]`` takes on disk."""

    def stands_for(self, weight: Array) -> Array:
        """The float32 matrix that is multiplied by in the end: what storing ``weight`` leaves of it."""


class Tables(Matrices, Protocol):
    """Matrices that can be looked up in, too."""

    def table(self, g: Graph, name: str, weight: Array) -> Table:
        """Store a matrix that is looked up in, projected on, or both."""


@dataclass(frozen=True, slots=True)
class Numerics:
    """What one graph computes in.

    Attributes:
        tables: storage and products of the embedding and the head.
        activation: ONNX element type between operators.
        cache: ONNX element type of the KV cache and of the attention over it.
        mixed: the residual stream is in the basis of :mod:`qwen3asr_export.mixing`.
        layers: storage and products of all other matrices, where those differ.
    """

    tables: Tables
    activation: int = FLOAT
    cache: int = FLOAT
    mixed: bool = False
    layers: Matrices | None = None

    def prepare(self, tensors: Lookup) -> Lookup:
        """The checkpoint's tensors as the graph takes them."""
        return Mixed(tensors) if self.mixed else tensors

    @property
    def matrices(self) -> Matrices:
        """Storage and products of the layers' matrices."""
        return self.layers or self.tables


@dataclass(frozen=True, slots=True)
class Float(Tables):
    """Floating-point matrices of one element type; activations are cast to it and back."""

    dtype: int = FLOAT

    def linear(self, g: Graph, x: str, name: str, weight: Array) -> str:
        """See :class:`Tables`; stored transposed."""
        stored = g.weight(f"{name}.weight", _cast(weight.T, self.dtype))
        return g.cast(g.op("MatMul", g.cast(x, self.dtype), stored, out=f"{name}.matmul"), g.activation, self.dtype)

    def table(self, g: Graph, name: str, weight: Array) -> Table:
        """See :class:`Tables`; stored as it is."""
        return _FloatTable(g.weight(name, _cast(weight, self.dtype)), self.dtype)

    def stored_bytes(self, rows: int, columns: int) -> int:
        """See :class:`Tables`."""
        return rows * columns * BITS[self.dtype] // 8

    def stands_for(self, weight: Array) -> Array:
        """See :class:`Tables`."""
        return _cast(weight, self.dtype).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _FloatTable(Table):
    stored: str
    dtype: int

    def rows(self, g: Graph, ids: str) -> str:
        return g.cast(g.op("Gather", self.stored, ids, axis=0), g.activation, self.dtype)

    def project(self, g: Graph, x: str) -> str:
        return g.cast(g.op("Gemm", g.cast(x, self.dtype), self.stored, transB=1), g.activation, self.dtype)


@dataclass(frozen=True, slots=True)
class Blocks(Matrices):
    """Weight-only integers in blocks along the input axis, each with a scale and a zero point (MatMulNBits).

    Attributes:
        bits: 4 or 8.
        block: weights that share a scale.
    """

    bits: int
    block: int

    def linear(self, g: Graph, x: str, name: str, weight: Array) -> str:
        """See :class:`Matrices`."""
        stored = quantise(weight, self.bits, self.block)
        parts = {"": stored.values, ".scales": stored.scales, ".zero_points": stored.zero_points}
        classes, width = weight.shape
        return g.op(
            "MatMulNBits", x, *(g.weight(f"{name}.weight{end}", part) for end, part in parts.items()), domain=CONTRIB,
            K=width, N=classes, bits=self.bits, block_size=self.block, accuracy_level=_ACCURACY,
            out=f"{name}.weight.product",
        )  # fmt: skip

    def stored_bytes(self, rows: int, columns: int) -> int:
        """See :class:`Matrices`: values, float32 scales, zero points."""
        count = -(-columns // self.block)
        return rows * (count * self.block * self.bits // 8 + 4 * count + -(-count * self.bits // 8))

    def stands_for(self, weight: Array) -> Array:
        """See :class:`Matrices`."""
        return quantise(weight, self.bits, self.block).dequantise(weight.shape[1])


def _cast(array: Array, dtype: int) -> Array:
    return array if dtype == FLOAT else array.astype(helper.tensor_dtype_to_np_dtype(dtype))
