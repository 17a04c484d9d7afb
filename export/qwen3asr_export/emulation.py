"""Changes to a finished graph for checking it: logits made an output, half precision run on a CPU.

ONNX Runtime has few half-precision kernels for CPUs. Emulated, each operator takes its half-precision inputs widened
to float32 and its result is rounded back, as on a GPU but for the order of sums.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from qwen3asr_export.graph import BFLOAT16, FLOAT, FLOAT16, INT64

_HALF = (FLOAT16, BFLOAT16)
_MOVES = ("Gather", "Reshape", "Transpose", "Unsqueeze", "TensorScatter", "Cast")  # exact at any type
_RESULTS = {
    "Shape": INT64, "ArgMax": INT64, "Less": TensorProto.BOOL, "LessOrEqual": TensorProto.BOOL,
    "Equal": TensorProto.BOOL,
}  # fmt: skip


def checkable(graph: Path, *, logits: bool = False) -> bytes:
    """A graph's model as ONNX Runtime's CPU provider runs it, its weights left where they are.

    Args:
        graph: file of the graph.
        logits: make the decoder's inner ``logits`` an output.
    """
    model = onnx.load(graph, load_external_data=False)
    if logits:
        model.graph.output.append(helper.make_tensor_value_info("logits", FLOAT, ["batch", "taken", "classes"]))
    _emulate_half(model.graph)
    content: bytes = model.SerializeToString()
    return content


def _emulate_half(graph: onnx.GraphProto) -> None:
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for value in graph.input:  # caches: float32 outside, rounded within
        if types[value.name] in _HALF:
            value.type.tensor_type.elem_type = FLOAT
            types[f"{value.name}.half"] = types[value.name]
            nodes.append(helper.make_node("Cast", [value.name], [f"{value.name}.half"], to=types[value.name]))
    half_inputs = {node.input[0]: node.output[0] for node in nodes}
    for node in graph.node:
        node.input[:] = [half_inputs.get(name, name) for name in node.input]
        nodes += _widened(node, types)
    for value in graph.output:
        if value.type.tensor_type.elem_type in _HALF:
            value.type.tensor_type.elem_type = FLOAT
            _rename(nodes, value.name, f"{value.name}.half")
            nodes.append(helper.make_node("Cast", [f"{value.name}.half"], [value.name], to=FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)


def _widened(node: onnx.NodeProto, types: dict[str, int]) -> list[onnx.NodeProto]:
    """The node with casts around it, where it computes in half precision."""
    result = _result_type(node, types)
    types |= dict.fromkeys(node.output, result)
    halves = [name for name in node.input if types.get(name) in _HALF]
    if node.op_type in _MOVES or not halves:
        return [node]
    before = [helper.make_node("Cast", [name], [f"{name}.of.{node.name}"], to=FLOAT) for name in dict.fromkeys(halves)]
    wide = {name: f"{name}.of.{node.name}" for name in halves}
    node.input[:] = [wide.get(name, name) for name in node.input]
    after = []
    if result in _HALF:
        for index, name in enumerate(node.output):
            if name:
                node.output[index] = f"{name}.wide"
                after.append(helper.make_node("Cast", [f"{name}.wide"], [name], to=result))
    return [*before, node, *after]


def _result_type(node: onnx.NodeProto, types: dict[str, int]) -> int:
    """Element type of a node's results; ours are all of one type."""
    if node.op_type == "Cast":
        return int(next(attribute.i for attribute in node.attribute if attribute.name == "to"))
    carrier = node.input[1] if node.op_type == "Where" else node.input[0]
    return _RESULTS.get(node.op_type, types[carrier])


def _rename(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
