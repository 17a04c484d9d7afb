"""TensorRT's own parser and builder take the standard dialect whole. No GPU is needed for either."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from tests.checkpoints import TINY

from qwen3asr.sessions.device import DeviceDecoder
from qwen3asr.sessions.providers import CPU, Provider
from qwen3asr_export import export

if not os.environ.get("QWEN3ASR_NEED_TENSORRT"):  # CI sets it: there a missing builder is a failure
    pytest.importorskip(
        "tensorrt", reason="TensorRT is not installed; python .ci/tensorrt_builder.py installs a builder"
    )

CAPACITY, MOST_ROWS, MOST_TOKENS = 512, 2, 256
_LEAST = {"ids": (1, 1), "take": (1, 1), "past": (1,), "frames": (1,), "mel": (1, 128, 100)}
_MOST = {"ids": (MOST_ROWS, MOST_TOKENS), "take": (MOST_ROWS, 64), "past": (MOST_ROWS,), "frames": (4,),
         "mel": (4, 128, 800)}  # fmt: skip


def _with_capacity(graph: Path) -> bytes:
    """TensorRT wants the length of a KV cache to be fixed."""
    model = onnx.load(graph, load_external_data=False)
    for value in [*model.graph.input, *model.graph.output]:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == "capacity":
                size.dim_value = CAPACITY
    fixed = graph.with_name(f"fixed-{graph.name}")
    onnx.save(model, fixed)
    return os.fsencode(fixed)


def _parsed(graph: Path) -> tuple[Any, Any]:
    import tensorrt as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parsed = parser.parse_from_file(os.fsdecode(_with_capacity(graph)))
    assert parsed, [parser.get_error(index).desc() for index in range(parser.num_errors)]
    return builder, network


def _layers(network: Any) -> Counter[str]:
    return Counter(network.get_layer(index).type.name for index in range(network.num_layers))


def _engine(builder: Any, network: Any) -> Any:
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        least = _LEAST.get(tensor.name, tuple(1 if size < 0 else size for size in shape))
        most = _MOST.get(tensor.name, tuple(MOST_TOKENS if size < 0 else size for size in shape))
        if tensor.name.startswith("past."):
            most = (MOST_ROWS, *shape[1:])
        profile.set_shape(tensor.name, least, least, most)
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config)


@pytest.mark.parametrize("kind", ["asr", "aligner"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_parser_takes_every_node_and_sees_a_cache_and_attention(tmp_path: Path, kind: str, precision: str) -> None:
    bundle = export(TINY / kind, tmp_path / "out", precision=precision, dialect="standard", check=False)
    _, encoder = _parsed(bundle.component("encoder"))
    assert _layers(encoder)["CONVOLUTION"] == 3
    builder, network = _parsed(bundle.component("decoder"))
    layers = _layers(network)
    assert layers["KV_CACHE_UPDATE"] == 2 * bundle.spec.layers
    assert layers["ROTARY_EMBEDDING"] == 2 * bundle.spec.layers
    assert layers["ATTENTION_INPUT"] == layers["ATTENTION_OUTPUT"] == bundle.spec.layers
    if precision != "fp32":  # in fp32 TensorRT has no fused attention kernel for this shape
        assert _engine(builder, network) is not None


def test_the_parser_takes_the_decoder_as_onnx_runtime_gives_it_to_its_providers(tmp_path: Path) -> None:
    """With the length of the caches fixed; with any length TensorRT refuses to write to them."""
    import tensorrt as trt

    bundle = export(TINY / "asr", tmp_path / "out", precision="fp32", dialect="standard", check=False)
    graph = bundle.component("decoder")
    taken = []
    for prefix in ("trt", None):
        given = graph.with_name(f"given-{prefix}.onnx")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Provider, "shaped", lambda provider, shapes: provider)  # the CPU reads none
            patch.setattr(onnxruntime, "SessionOptions", lambda given=given: _keeping(given))
            DeviceDecoder(graph, bundle.spec, replace(CPU, prefix=prefix), slots=2, capacity=CAPACITY)
        logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        network = trt.Builder(logger).create_network(0)
        parser = trt.OnnxParser(network, logger)
        taken.append(parser.parse_from_file(os.fspath(given)))
    assert taken == [True, False]
    assert "static sequence length" in parser.get_error(0).desc()


_Options = onnxruntime.SessionOptions


def _keeping(path: Path) -> onnxruntime.SessionOptions:
    """Options of a session that writes the graph down as its providers see it."""
    options = _Options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = os.fspath(path)
    return options


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_large_product_of_the_decoder_is_in_half_precision(tmp_path: Path, precision: str) -> None:
    import tensorrt as trt

    bundle = export(TINY / "asr", tmp_path / "out", precision=precision, dialect="standard", check=False)
    _, network = _parsed(bundle.component("decoder"))
    wanted = {"fp16": trt.float16, "bf16": trt.bfloat16}[precision]
    products = [
        network.get_layer(i) for i in range(network.num_layers) if network.get_layer(i).type.name == "MATRIX_MULTIPLY"
    ]
    assert len(products) == 7 * bundle.spec.layers + 1
    assert all(product.get_input(0).dtype == product.get_input(1).dtype == wanted for product in products)


@pytest.mark.parametrize("component", ["encoder", "decoder"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_standard_dialect_has_standard_operators_only(tmp_path: Path, component: str, precision: str) -> None:
    bundle = export(TINY / "asr", tmp_path / "out", precision=precision, dialect="standard", check=False)
    path = bundle.component(component)
    onnx.checker.check_model(os.fspath(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert {entry.domain for entry in model.opset_import} == {""}
