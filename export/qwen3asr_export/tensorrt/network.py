"""A graph in TensorRT's hands: parsed, and checked for what it was meant to be."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from qwen3asr.errors import EngineUnexpected, GraphRefused
from qwen3asr.spec import ModelSpec
from qwen3asr_export.tensorrt.graphs import fix_capacity
from qwen3asr_export.tensorrt.log import Record
from qwen3asr_export.tensorrt.settings import QUANTISED

_log = logging.getLogger("qwen3asr")

_ATTENTION = {"ATTENTION_INPUT": "_AttentionInput", "SOFTMAX": ""}
"""Layers that stand for an attention, and what the parser appends to the node's name."""
_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION")


def parse(module: Any, logger: Any, network: Any, graph: Path, capacity: int) -> None:
    """Fill a network from an ONNX file, whose weights are mapped, not copied.

    Raises:
        GraphRefused: with the first node that the parser does not take.
    """
    model = onnx.load(graph, load_external_data=False)
    fix_capacity(model, capacity)
    parser = module.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString(), str(graph)):
        error = parser.get_error(0) if parser.num_errors else None
        node = error.node_name() or f"number {error.node()}" if error else "unknown"
        operator = (error.node_operator() if error else "") or "no operator"
        raise GraphRefused(graph.name, node, operator, error.desc() if error else "no reason given")


def expected_layers(component: str, spec: ModelSpec, precision: str) -> dict[str, int]:
    """How many layers of the kinds that matter a parsed component has."""
    if component == "encoder":
        layers = spec.encoder.layers  # each: four projections, scores, values, two of the ffn
        return {"CONVOLUTION": 3, "MATRIX_MULTIPLY": 8 * layers + 3, "SOFTMAX": layers, "KV_CACHE_UPDATE": 0}
    kinds = {"KV_CACHE_UPDATE": 2, "ROTARY_EMBEDDING": 2, "ATTENTION_INPUT": 1, "ATTENTION_OUTPUT": 1}
    counts = {kind: count * spec.layers for kind, count in kinds.items()}
    counts |= {"MATRIX_MULTIPLY": 7 * spec.layers + 1, "SOFTMAX": 0}
    return counts | {"DEQUANTIZE": 7 * spec.layers if precision in QUANTISED else 0}


def check_network(module: Any, network: Any, component: str, spec: ModelSpec, precision: str) -> dict[str, int]:
    """Counts of the layers that matter, which are those that are meant to be.

    Raises:
        EngineUnexpected: layers are missing or split into others, or a product computes in another type; all of it is
            named.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    found, expected = Counter(layer.type.name for layer in layers), expected_layers(component, spec, precision)
    wrong = [f"{found[kind]} {kind}, not {count}" for kind, count in expected.items() if found[kind] != count]
    wanted = _product_type(module, component, precision)
    for layer in layers:
        if layer.type.name in _PRODUCTS and layer.get_input(0).dtype != wanted:
            wrong.append(f"{layer.name} computes in {layer.get_input(0).dtype}, not {wanted}")
    if wrong:
        raise EngineUnexpected(f"TensorRT's network of the {component} is not what was meant: {_some(wrong)}")
    return {kind: count for kind, count in expected.items() if count}


def _product_type(module: Any, component: str, precision: str) -> Any:
    if precision == "fp32":
        return module.float32
    return module.float16 if component == "encoder" or precision == "fp16" else module.bfloat16


def allow_unfused(module: Any, network: Any) -> None:
    """Let attention be several kernels where there is no fused one, as in fp32; by default that fails the build."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == module.LayerType.ATTENTION_INPUT:
            layer.__class__ = module.IAttentionInputLayer  # how the bindings cast: get_layer gives the base class
            layer.attention.decomposable = True


def attention_nodes(network: Any) -> list[str]:
    """ONNX nodes of a network's attention layers."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return [layer.name.removesuffix(_ATTENTION[layer.type.name]) for layer in layers if layer.type.name in _ATTENTION]


def find_unfused(nodes: list[str], profiles: int, record: Record) -> tuple[str, ...]:
    """The attention layers that are not one kernel in every profile, each with where it is not.

    As far as the builder's log tells, whose words are known of TensorRT-RTX 1.7 only. (The decoder's need no log: a
    build that finds no fused kernel for them fails by itself, but where :func:`allow_unfused` was called.)
    """
    if not record.described:
        return ("unknown: the builder did not list its kernels",)
    fused: Mapping[str, int] = record.fused
    missing = {node: profiles - fused.get(node, 0) for node in nodes}
    return tuple(f"{node} in {count} of {profiles} profiles" for node, count in missing.items() if count > 0)


def check_fusion(component: str, unfused: tuple[str, ...], precision: str, *, strict: bool) -> None:
    """Warn of attention layers that are several kernels; in fp32 there are no fused ones.

    Raises:
        EngineUnexpected: there are some, at another precision, and that is to be an error.
    """
    if not unfused or precision == "fp32":
        return
    found = f"attention of the {component} is not fused, as far as the builder's log tells: {_some(unfused)}"
    if strict:
        raise EngineUnexpected(found)
    _log.warning("%s; that costs speed only, and is recorded in engine.json", found)


def _some(problems: tuple[str, ...] | list[str]) -> str:
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more
