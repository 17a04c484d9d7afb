"""What ONNX Runtime's CPU kernels give, one operator at a time: where the time of a bundle's graphs can go.

python benchmarks/kernels.py benchmarks/results/kernels.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from machine import machine, milliseconds
from onnx import TensorProto, helper, numpy_helper

from qwen3asr.benchmark.roofline import Reading

ROWS, WIDTH, OUT = 143, 1024, 3072  # a prompt through a layer of the 0.6B
LAYERS = 100  # different weights, so that they come from memory and not from a cache
HEADS, KV_HEADS, HEAD_DIM, CAPACITY = 16, 8, 128, 8192
_RNG = np.random.default_rng(0)


def _session(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, np.ndarray]) -> Any:
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "kernel", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _weights(kind: str, bits: int, block: int, name: str) -> dict[str, np.ndarray]:
    if kind == "MatMul":
        return {name: _RNG.normal(0, 1, (WIDTH, OUT)).astype(np.float32)}
    if kind == "MatMulInteger":
        return {name: _RNG.integers(-127, 127, (WIDTH, OUT)).astype(np.int8)}
    count = WIDTH // block
    values = _RNG.integers(0, 255, (OUT, count, block * bits // 8)).astype(np.uint8)
    scales = _RNG.normal(0, 0.01, (OUT, count)).astype(np.float32)
    zero_points = _RNG.integers(0, 255, (OUT, -(-count * bits // 8))).astype(np.uint8)  # as bundles have them
    return {name: values, f"{name}.scales": scales, f"{name}.zero_points": zero_points}


def product(kind: str, rows: int, layers: int, bits: int = 0, block: int = 0) -> dict[str, float]:
    """GFLOP/s of products with ``layers`` weights in turn, and the GB/s at which these are read."""
    integer = kind == "MatMulInteger"
    weights, nodes, outputs = {}, [], []
    for index in range(layers):
        weights |= (stored := _weights(kind, bits, block, f"w{index}"))
        domain = "com.microsoft" if kind == "MatMulNBits" else ""
        given = {"K": WIDTH, "N": OUT, "bits": bits, "block_size": block, "accuracy_level": 4} if domain else {}
        zero = ["zero"] if integer else []
        nodes.append(helper.make_node(kind, ["x", *stored, *zero], [f"y{index}"], domain=domain, **given))
        result = TensorProto.INT32 if integer else TensorProto.FLOAT
        outputs.append(helper.make_tensor_value_info(f"y{index}", result, [None, OUT]))
    size = sum(array.nbytes for array in weights.values())
    if integer:
        weights["zero"] = np.array(128, np.uint8)
    dtype = TensorProto.UINT8 if integer else TensorProto.FLOAT
    session = _session(nodes, [helper.make_tensor_value_info("x", dtype, [None, WIDTH])], outputs, weights)
    x = _RNG.integers(0, 255, (rows, WIDTH)).astype(np.uint8 if integer else np.float32)
    seconds = milliseconds(lambda: session.run(None, {"x": x}), 9) / 1000
    flop = 2 * rows * WIDTH * OUT * layers
    return {"gflop_per_s": round(flop / seconds / 1e9), "gb_per_s": round(size / seconds / 1e9, 1)}


def attention(past: int, new: int, bits: int, layers: int = 8) -> float:
    """Milliseconds of one GroupQueryAttention over a cache of 32 or 8 bits, of several in turn."""
    cache = TensorProto.FLOAT if bits == 32 else TensorProto.INT8
    weights = {name: np.zeros((20_480, HEAD_DIM // 2), np.float32) for name in ("cos", "sin")}
    given: dict[str, Any] = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": 1}
    if bits == 8:
        weights["scale"] = np.full(1, 0.02, np.float32)
        given |= {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}
    extra = ["", "", "", "scale", "scale"] if bits == 8 else []
    shapes = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, None, h * HEAD_DIM]) for n, h in shapes.items()]
    inputs += [helper.make_tensor_value_info("last", TensorProto.INT32, [1])]
    inputs += [helper.make_tensor_value_info("total", TensorProto.INT32, [])]
    nodes, outputs, caches = [], [], {}
    for index in range(layers):
        names = [f"{side}{index}" for side in ("key", "value")]
        shape = [1, KV_HEADS, CAPACITY, HEAD_DIM]
        inputs += [helper.make_tensor_value_info(name, cache, shape) for name in names]
        results = [f"y{index}", *(f"{name}.out" for name in names)]
        given_inputs = ["q", "k", "v", *names, "last", "total", "cos", "sin", *extra]
        nodes.append(helper.make_node("GroupQueryAttention", given_inputs, results, domain="com.microsoft", **given))
        outputs.append(helper.make_tensor_value_info(results[0], TensorProto.FLOAT, None))
        outputs += [helper.make_tensor_value_info(f"{name}.out", cache, shape) for name in names]
        caches |= {name: np.ones(shape, np.float32 if bits == 32 else np.int8) for name in names}
    session = _session(nodes, inputs, outputs, weights)
    io = session.io_binding()
    for name, array in caches.items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        io.bind_ortvalue_input(name, value)
        io.bind_ortvalue_output(f"{name}.out", value)
    for name, heads in shapes.items():
        io.bind_cpu_input(name, _RNG.normal(0, 1, (1, new, heads * HEAD_DIM)).astype(np.float32))
    io.bind_cpu_input("last", np.array([past + new - 1], np.int32))
    io.bind_cpu_input("total", np.array(past + new, np.int32))
    for index in range(layers):
        io.bind_output(f"y{index}")
    return round(milliseconds(lambda: session.run_with_iobinding(io), 9) / layers, 3)


def main() -> None:
    """Measure and write."""
    kinds = {"fp32": ("MatMul", 0, 0), "8 bit x 8 bit": ("MatMulInteger", 0, 0)}
    kinds |= {
        f"{bits} bit, blocks of {block}": ("MatMulNBits", bits, block) for bits in (4, 8) for block in (32, 64, 128)
    }
    report: dict[str, Any] = {"command": "python benchmarks/kernels.py OUT.json", "machine": machine()}
    with Reading() as reading:
        report |= {"onnxruntime": onnxruntime.__version__, "read_gb_per_s": round(reading.rate() / 1e9, 1)}
    report["prompt"] = {name: product(k, ROWS, 8, bits, block) for name, (k, bits, block) in kinds.items()}
    report["step"] = {name: product(k, 1, LAYERS, bits, block) for name, (k, bits, block) in kinds.items()}
    places = {"1 at 150": (150, 1), "1 at 1900": (1900, 1), f"{ROWS} at 0": (0, ROWS), "512 at 1500": (1500, 512)}
    report["attention_ms"] = {
        f"{bits}-bit cache": {name: attention(*place, bits) for name, place in places.items()} for bits in (32, 8)
    }
    Path(sys.argv[1]).write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
