"""A product of matrices as an ONNX graph, written by hand: the runtime reads graphs, and has no package to make one.

Message and field numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3); the wire
format is protobuf's (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_IR_VERSION, _OPSET = 8, 13
_ELEMENTS = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6}  # TensorProto.DataType


def product(kind: str, weights: npt.NDArray[np.generic], given: npt.DTypeLike, result: npt.DTypeLike) -> bytes:
    """``y = kind(x, weights)`` as a model for :func:`qwen3asr.sessions.opening.open_session`.

    Args:
        kind: ``MatMul`` or ``MatMulInteger``.
        weights: ``[k, n]``.
        given: element type of ``x`` ``[m, k]``.
        result: of ``y`` ``[m, n]``.
    """
    dims = b"".join(_number(1, size) for size in weights.shape)
    stored = dims + _number(2, _ELEMENTS[weights.dtype.name]) + _bytes(8, b"w") + _bytes(9, weights.tobytes())
    node = _bytes(1, b"x") + _bytes(1, b"w") + _bytes(2, b"y") + _bytes(4, kind.encode())
    graph = _bytes(1, node) + _bytes(2, b"product") + _bytes(5, stored)
    graph += _bytes(11, _value(b"x", given)) + _bytes(12, _value(b"y", result))
    return _number(1, _IR_VERSION) + _bytes(8, _number(2, _OPSET)) + _bytes(7, graph)


def _value(name: bytes, dtype: npt.DTypeLike) -> bytes:
    unknown = _bytes(1, b"")  # a dimension of any size
    tensor = _number(1, _ELEMENTS[np.dtype(dtype).name]) + _bytes(2, unknown * 2)
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low]) if not rest else bytes([low | 0x80]) + _varint(rest)
