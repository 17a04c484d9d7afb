"""ONNX graphs as TensorRT takes them: KV caches of a fixed length, and weights in fewer bits where that is asked.

They are of weights only, symmetric, rounded to nearest, in front of each product (DequantizeLinear), so that they are
what the engine stores. Int8 and fp8 (e4m3) have a scale a column, int4 one for 32 weights: built at the 0.6B shape, a
decoder takes 806 MB in int8 and 778 in int4 where bf16 takes 1244; int8 in blocks is folded back into floats by the
builder (1416 MB).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qwen3asr.errors import RequestInvalid
from qwen3asr_export.graph import Array, WeightFile
from qwen3asr_export.tensorrt.settings import QUANTISED

_TYPES = {"int8": (TensorProto.INT8, 127), "fp8": (TensorProto.FLOAT8E4M3FN, 448), "int4": (TensorProto.INT4, 7)}
"""ONNX's type, and the largest value that is used of it."""


def fix_capacity(model: onnx.ModelProto, capacity: int) -> None:
    """Give the caches of a decoder their length: TensorRT writes only to caches of a fixed one."""
    for value in [*model.graph.input, *model.graph.output]:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == "capacity":
                size.dim_value = capacity


def write_quantised(graph: Path, target: Path, precision: str) -> Path:
    """Copy a decoder of the standard dialect with its layers' matrices in fewer bits, one tensor at a time.

    Args:
        graph: the decoder, with its weights beside it; embedding and head stay as they are.
        target: the copy; its weights go beside it.
        precision: a key of :data:`qwen3asr_export.tensorrt.settings.QUANTISED`.

    Raises:
        RequestInvalid: a matrix is not made of whole blocks.
    """
    block = QUANTISED[precision].block
    layout: dict[str, Any] = {"axis": 0, "block_size": block} if block else {"axis": 1}
    model = onnx.load(graph, load_external_data=False)
    products = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    stored, nodes = [], []
    with WeightFile(target.with_name(f"{target.name}.data")) as weights:
        for tensor in model.graph.initializer:
            if tensor.data_location != TensorProto.EXTERNAL:
                stored.append(tensor)
            elif tensor.name not in products:
                stored.append(weights.add(tensor.name, numpy_helper.to_array(tensor, str(graph.parent))))
            else:
                array = numpy_helper.to_array(tensor, str(graph.parent))
                values, scales = quantise_symmetric(tensor.name, array.astype(np.float32), precision)
                name = f"{tensor.name}.{precision}"
                stored.append(numpy_helper.from_array(scales.astype(array.dtype), f"{tensor.name}.scales"))
                stored.append(_stored(weights, name, values))
                inputs = [name, f"{tensor.name}.scales"]
                nodes.append(helper.make_node("DequantizeLinear", inputs, [tensor.name], name=f"{name}.wide", **layout))
    nodes += model.graph.node
    for field, content in (("initializer", stored), ("node", nodes)):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(content)
    onnx.save(model, target)
    return target


def quantise_symmetric(name: str, weight: Array, precision: str) -> tuple[Array, Array]:
    """A float32 matrix ``[in, out]`` in fewer bits.

    Returns:
        Values ``[in, out]`` in ONNX's type, and float32 scales: ``[out]``, or ``[in / block, out]`` of blocks.

    Raises:
        RequestInvalid: ``in`` is no multiple of the block.
    """
    rows, columns = weight.shape
    block = QUANTISED[precision].block or rows
    if rows % block:
        raise RequestInvalid(
            f"{precision} engines need matrices of whole blocks of {block}, and {name} has {rows} rows"
        )
    kind, most = _TYPES[precision]
    blocks, dtype = weight.reshape(-1, block, columns), helper.tensor_dtype_to_np_dtype(kind)
    scales = np.maximum(np.abs(blocks).max(1), np.finfo(np.float32).tiny) / most
    values = (blocks / scales[:, None]).clip(-most, most).reshape(rows, columns)
    nearest = values if precision == "fp8" else np.rint(values)  # a cast to fp8 rounds by itself
    return nearest.astype(dtype), scales if QUANTISED[precision].block else scales[0]


def _stored(weights: WeightFile, name: str, values: Array) -> TensorProto:
    """A matrix in the weight file; int4 packed by twos, the first in the low bits."""
    if values.dtype != helper.tensor_dtype_to_np_dtype(TensorProto.INT4):
        return weights.add(name, values)
    flat = values.reshape(-1).astype(np.int8).view(np.uint8) & 15
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    tensor = weights.add(name, flat[0::2] | (flat[1::2] << 4))
    tensor.data_type, tensor.dims[:] = TensorProto.INT4, values.shape
    return tensor
