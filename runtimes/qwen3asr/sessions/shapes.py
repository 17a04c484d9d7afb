"""Whether a decoder's graph has the shapes that config.json states."""

from __future__ import annotations

import onnxruntime

from qwen3asr.errors import BundleInvalid
from qwen3asr.spec import ModelSpec


def check_shapes(session: onnxruntime.InferenceSession, spec: ModelSpec) -> None:
    """Compare the inputs of a decoder's graph with what the caches and audio rows fed to it will be.

    Raises:
        BundleInvalid: they differ; names each key of config.json that does.
    """
    shapes = {value.name: value.shape for value in session.get_inputs()}
    caches = {name: shape for name, shape in shapes.items() if name.startswith("past.")}
    layers = len(caches) // 2
    names = {f"past.{layer}.{side}" for layer in range(layers) for side in ("key", "value")}
    if caches.keys() != names or any(len(shape) != 4 for shape in caches.values()) or not shapes.get("audio"):
        raise BundleInvalid("the decoder's graph has other inputs than this version feeds; run `qwen3asr export` again")
    graph = {
        "num_hidden_layers": (spec.layers, {layers}),
        "num_key_value_heads": (spec.kv_heads, {shape[1] for shape in caches.values()}),
        "head_dim": (spec.head_dim, {shape[3] for shape in caches.values()}),
        "hidden_size": (spec.hidden, {shapes["audio"][-1]}),
    }
    differing = [
        f"text_config.{key} is {stated} there and {', '.join(map(str, found))} in the graph"
        for key, (stated, found) in graph.items()
        if found != {stated}
    ]
    if differing:
        raise BundleInvalid(
            f"config.json and the decoder's graph differ: {'; '.join(differing)}; run `qwen3asr export` again"
        )
