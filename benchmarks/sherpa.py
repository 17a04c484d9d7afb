"""A checkpoint in the format of sherpa-onnx (2.0.1), so that it can be measured with the same weights.

The three graphs compute what those of its published models do, operator by operator (https://github.com/k2-fsa/sherpa-onnx,
scripts of its Qwen3-ASR models): convolutions by themselves, an encoder over blocks of 104 tokens, a decoder that gives
logits for every token and new keys and values, which the host copies into a cache ``[1, capacity, heads, head_dim]``.
As its published int8 models: weights in 8 bits a column, activations quantised as they come. One thing is added: the
logits of the end tokens can be pushed down, so that texts have the length that all contenders write.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from qwen3asr.spec import ModelSpec
from qwen3asr_export.checkpoint import Checkpoint, Tensors
from qwen3asr_export.dialects import OrtDialect, rotary_tables
from qwen3asr_export.encoder import sinusoids
from qwen3asr_export.graph import FLOAT, INT64, Array, Graph, WeightFile
from qwen3asr_export.numerics import Float, Numerics

FILES = ("conv_frontend", "encoder", "decoder")
_TOWER, _PROJECTOR, _TEXT = "model.audio_tower", "model.multi_modal_projector", "model.language_model"
_OPSET, _FAR, _NEVER = 20, -1e4, -1e9


@dataclass(frozen=True)
class Dynamic(Float):
    """Products of 8-bit weights with activations that are quantised as they come: onnxruntime's quantize_dynamic."""

    def linear(self, g: Graph, x: str, name: str, weight: Array) -> str:
        """See :class:`qwen3asr_export.numerics.Matrices`; one scale a column."""
        scales = np.maximum(np.abs(weight).max(axis=1), 1e-9) / 127
        stored = g.weight(f"{name}.weight", np.round(weight / scales[:, None]).astype(np.int8).T)
        values, scale, zero = g.ops("DynamicQuantizeLinear", x, outs=[f"{name}.{part}" for part in ("x", "s", "z")])
        product = g.op("Cast", g.op("MatMulInteger", values, stored, zero), to=FLOAT)
        return g.op("Mul", product, g.op("Mul", scale, g.weight(f"{name}.scales", scales.astype(np.float32))))


def convert(checkpoint: Path, folder: Path, *, int8: bool, capacity: int, forced: bool) -> Path:
    """Write the three graphs and the tokenizer.

    Args:
        checkpoint: in any layout that export reads.
        folder: to be made.
        int8: as the published int8 models; float32 otherwise.
        capacity: tokens of the cache.
        forced: no text ends before its budget.
    """
    source = Checkpoint(checkpoint)
    folder.mkdir(parents=True)
    numerics = Numerics(Dynamic() if int8 else Float())
    for name, build in zip(FILES, (_frontend, _encoder, _decoder), strict=True):
        with WeightFile(folder / f"{name}.onnx.data") as weights:
            plain = Numerics(Float()) if name == "conv_frontend" else numerics
            g = Graph(name, weights, plain, _OPSET)
            metadata = build(g, source.spec, source.tensors, capacity, forced)
        onnx.save(g.model(metadata), folder / f"{name}.onnx")
    _tokenizer(source, folder / "tokenizer")
    return folder


def _frontend(g: Graph, spec: ModelSpec, tensors: Tensors, *_: Any) -> dict[str, str]:
    """Mel ``[1, frames, 128]`` to ``[1, tokens, width]``, in chunks of 100 frames."""
    mel, chunk = g.input("input_features", FLOAT, ["batch", "frames", 128]), spec.windows.chunk_frames
    missing = g.op("Mod", g.op("Sub", g.const([chunk]), g.op("Mod", g.dim(mel, 1), g.const([chunk]))), g.const([chunk]))
    mel = g.op("Pad", mel, g.op("Concat", g.const([0, 0, 0, 0]), missing, g.const([0]), axis=0))
    x = g.op("Transpose", g.reshape(mel, -1, chunk, 128), perm=[0, 2, 1])
    x = g.op("Unsqueeze", x, g.const([1]))
    for index in (1, 2, 3):
        name = f"{_TOWER}.conv2d{index}"
        kernel, bias = (g.vector(f"{name}.{part}", tensors[f"{name}.{part}"]) for part in ("weight", "bias"))
        x = g.op("Gelu", g.op("Conv", x, kernel, bias, strides=[2, 2], pads=[1, 1, 1, 1]))
    x = g.op("Transpose", x, perm=[0, 3, 1, 2])
    x = g.reshape(x, 0, 0, spec.encoder.conv_channels * spec.encoder.conv_bands)
    x = g.linear(x, f"{_TOWER}.conv_out", tensors[f"{_TOWER}.conv_out.weight"])
    g.op("Reshape", x, g.const([1, -1, spec.encoder.width]), out="conv_output")
    g.output("conv_output", FLOAT, ["batch", "tokens", spec.encoder.width])
    return {}


def _encoder(g: Graph, spec: ModelSpec, tensors: Tensors, *_: Any) -> dict[str, str]:
    """``[1, tokens, width]`` and which of them count to ``[1, tokens, hidden]``; blocks do not see each other."""
    width, heads, block = spec.encoder.width, spec.encoder.heads, spec.windows.window_tokens
    x = g.input("input_features", FLOAT, ["batch", "tokens", width])
    mask = g.op("Cast", g.input("feature_attention_mask", TensorProto.BOOL, ["batch", "tokens"]), to=FLOAT)
    count = g.dim(x, 1)
    steps = g.op("Range", g.const(0), g.op("Squeeze", count), g.const(1))
    positions = g.weight("positions", sinusoids(spec.windows.chunk_tokens, width))
    places = g.op("Gather", positions, g.op("Mod", steps, g.const(spec.windows.chunk_tokens)), axis=0)
    weigh = g.op("Unsqueeze", mask, g.const([2]))
    x = g.op("Mul", g.op("Add", x, places), weigh)
    missing = g.op("Mod", g.op("Sub", g.const([block]), g.op("Mod", count, g.const([block]))), g.const([block]))
    x = g.op("Pad", x, g.op("Concat", g.const([0, 0, 0, 0]), missing, g.const([0]), axis=0))
    x = g.reshape(x, -1, block, width)
    kept = g.reshape(g.op("Pad", mask, g.op("Concat", g.const([0, 0, 0]), missing, axis=0)), -1, block)
    far = g.op("Mul", g.op("Sub", g.real(1.0), kept), g.real(_FAR))
    far, keep = g.op("Unsqueeze", far, g.const([1, 2])), g.op("Unsqueeze", kept, g.const([2]))

    def linear(y: str, name: str) -> str:
        return g.linear(y, name, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(y: str, name: str) -> str:
        scale, bias = (g.vector(f"{name}.{part}", tensors[f"{name}.{part}"]) for part in ("weight", "bias"))
        return g.op("LayerNormalization", y, scale, bias, axis=-1, epsilon=1e-5)

    for index in range(spec.encoder.layers):
        name = f"{_TOWER}.layers.{index}"
        y = norm(x, f"{name}.self_attn_layer_norm")
        q, k, v = (
            g.op(
                "Transpose",
                g.reshape(linear(y, f"{name}.self_attn.{part}_proj"), 0, 0, heads, width // heads),
                perm=perm,
            )
            for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
        )
        scores = g.op("Add", g.op("Mul", g.op("MatMul", q, k), g.real((width // heads) ** -0.5)), far)
        y = g.op("Transpose", g.op("MatMul", g.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
        y = linear(g.reshape(y, 0, 0, width), f"{name}.self_attn.out_proj")
        x = g.op("Add", x, g.op("Mul", y, keep))
        y = g.op("Gelu", linear(norm(x, f"{name}.final_layer_norm"), f"{name}.fc1"))
        x = g.op("Mul", g.op("Add", x, linear(y, f"{name}.fc2")), keep)
    x = g.op("Slice", g.op("Reshape", x, g.const([1, -1, width])), g.const([0]), count, g.const([1]))
    x = g.op("Gelu", linear(norm(x, f"{_TOWER}.ln_post"), f"{_PROJECTOR}.linear_1"))
    g.op("Mul", linear(x, f"{_PROJECTOR}.linear_2"), weigh, out="audio_features")
    g.output("audio_features", FLOAT, ["batch", "tokens", spec.hidden])
    return {"hidden_size": str(spec.hidden)}


def _decoder(g: Graph, spec: ModelSpec, tensors: Tensors, capacity: int, forced: bool) -> dict[str, str]:
    """Tokens ``[1, S]`` to logits ``[1, S, vocab]`` and new keys and values ``[1, S, kv_heads, head_dim]``."""
    ids = g.input("input_ids", INT64, ["batch", "seq"])
    audio = g.input("audio_features", FLOAT, ["batch", "audio_tokens", spec.hidden])
    mask = g.input("attention_mask", INT64, ["batch", "seq"])
    position = g.input("cache_position", INT64, ["seq"])
    embedding = tensors[f"{_TEXT}.embed_tokens.weight"]
    pads = g.op("Equal", ids, g.const(spec.audio_pad))
    row = g.op("Sub", g.op("CumSum", g.op("Cast", pads, to=INT64), g.const(1)), g.const(1))
    row = g.op("Max", g.op("Min", row, g.op("Sub", g.dim(audio, 1), g.const(1))), g.const(0))
    rows = g.op("Gather", g.op("Squeeze", audio, g.const([0])), row, axis=0)
    x = g.op(
        "Where", g.op("Unsqueeze", pads, g.const([2])), rows, g.op("Gather", g.weight("embedding", embedding), ids)
    )
    first = g.op("Slice", g.op("Cast", mask, to=FLOAT), g.const([0]), g.const([1]), g.const([1]))
    x = g.op("Add", x, g.op("Unsqueeze", g.op("Mul", first, g.real(0.0)), g.const([2])))  # it must be an input
    tables = rotary_tables(spec.head_dim, spec.rope_theta, capacity)
    cos, sin = (
        g.op("Gather", g.weight(name, np.concatenate([table, table], axis=1)), position)
        for name, table in zip(("cos", "sin"), tables, strict=True)
    )
    past = g.op("Slice", position, g.const([0]), g.const([1]))
    empty = g.op("Where", g.op("Greater", past, g.const([0])), g.real(0.0), g.real(_FAR))
    seen = g.op("LessOrEqual", g.op("Unsqueeze", position, g.const([0])), g.op("Unsqueeze", position, g.const([1])))
    causal = g.op("Where", seen, g.real(0.0), g.real(_FAR))
    attention = _Attention(g, spec, tensors, capacity, (cos, sin), g.op("Max", past, g.const([1])), empty, causal)
    dialect = OrtDialect()

    def norm(y: str, name: str) -> str:
        return dialect.norm(g, y, g.vector(f"{name}.weight", tensors[f"{name}.weight"]), spec.norm_eps)

    for index in range(spec.layers):
        name = f"{_TEXT}.layers.{index}"
        x = g.op("Add", x, attention.layer(index, norm(x, f"{name}.input_layernorm"), norm))
        y = norm(x, f"{name}.post_attention_layernorm")
        gate, up = (
            g.linear(y, f"{name}.mlp.{part}_proj", tensors[f"{name}.mlp.{part}_proj.weight"]) for part in ("gate", "up")
        )
        y = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
        x = g.op("Add", x, g.linear(y, f"{name}.mlp.down_proj", tensors[f"{name}.mlp.down_proj.weight"]))
    head = embedding if spec.tied else tensors["lm_head.weight"]
    logits = g.linear(norm(x, f"{_TEXT}.norm"), "lm_head", head)
    ends = np.zeros(spec.vocab, np.float32)
    ends[list(spec.eos)] = _NEVER if forced else 0.0
    g.op("Add", logits, g.weight("ends", ends), out="logits")
    g.output("logits", FLOAT, ["batch", "seq", spec.vocab])
    attention.outputs()
    shape = {"vocab_size": spec.vocab, "hidden_size": spec.hidden, "num_layers": spec.layers, "max_total_len": capacity}
    return {"model_type": "qwen3_asr_kv_delta"} | {key: str(value) for key, value in shape.items()}


@dataclass
class _Attention:
    """Attention over the cache's first tokens and the new ones, with keys and values repeated for their heads."""

    g: Graph
    spec: ModelSpec
    tensors: Tensors
    capacity: int
    rotation: tuple[str, str]
    past: str
    empty: str
    causal: str

    def layer(self, index: int, x: str, norm: Any) -> str:
        g, spec, name = self.g, self.spec, f"{_TEXT}.layers.{index}.self_attn"

        def heads(part: str, count: int) -> str:
            y = g.linear(x, f"{name}.{part}_proj", self.tensors[f"{name}.{part}_proj.weight"])
            return g.op("Transpose", g.reshape(y, 0, 0, count, spec.head_dim), perm=[0, 2, 1, 3])

        q = self._rotate(norm(heads("q", spec.heads), f"{name}.q_norm"))
        k, v = self._rotate(norm(heads("k", spec.kv_heads), f"{name}.k_norm")), heads("v", spec.kv_heads)
        old_k, old_v = (self._cached(f"cache_{side}_{index}") for side in ("key", "value"))
        for side, new in (("key", k), ("value", v)):
            g.op("Transpose", new, perm=[0, 2, 1, 3], out=f"{side}_delta_{index}")
        before = g.op("Add", self._scores(q, old_k), self.empty)
        now = g.op("Add", self._scores(q, k), self.causal)
        weights = g.op("Softmax", g.op("Concat", before, now, axis=-1), axis=-1)
        y = g.op("MatMul", weights, g.op("Concat", self._repeat(old_v), self._repeat(v), axis=2))
        y = g.reshape(g.op("Transpose", y, perm=[0, 2, 1, 3]), 0, 0, spec.heads * spec.head_dim)
        return g.linear(y, f"{name}.o_proj", self.tensors[f"{name}.o_proj.weight"])

    def outputs(self) -> None:
        for index in range(self.spec.layers):
            for side in ("key", "value"):
                shape: list[int | str] = ["batch", "seq", self.spec.kv_heads, self.spec.head_dim]
                self.g.output(f"{side}_delta_{index}", FLOAT, shape)

    def _cached(self, name: str) -> str:
        g, shape = self.g, ["batch", self.capacity, self.spec.kv_heads, self.spec.head_dim]
        kept = g.op("Slice", g.input(name, FLOAT, shape), g.const([0]), self.past, g.const([1]))
        return g.op("Transpose", kept, perm=[0, 2, 1, 3])

    def _scores(self, q: str, k: str) -> str:
        product = self.g.op("MatMul", q, self.g.op("Transpose", self._repeat(k), perm=[0, 1, 3, 2]))
        return self.g.op("Mul", product, self.g.real(self.spec.head_dim**-0.5))

    def _repeat(self, x: str) -> str:
        g, spec = self.g, self.spec
        times = g.const([1, 1, spec.heads // spec.kv_heads, 1, 1])
        wide = g.op("Tile", g.op("Unsqueeze", x, g.const([2])), times)
        return g.op("Reshape", wide, g.const([1, spec.heads, -1, spec.head_dim]))

    def _rotate(self, x: str) -> str:
        g, (cos, sin) = self.g, self.rotation
        halves = [f"{x}.first", f"{x}.second"]
        one, other = g.ops("Split", x, outs=halves, axis=-1, num_outputs=2)
        turned = g.op("Concat", g.op("Neg", other), one, axis=-1)
        return g.op("Add", g.op("Mul", x, cos), g.op("Mul", turned, sin))


def _tokenizer(source: Checkpoint, folder: Path) -> None:
    """vocab.json, merges.txt and tokenizer_config.json from tokenizer.json."""
    folder.mkdir()
    content = json.loads(source.carried()["tokenizer.json"])
    merges: Iterable[str | list[str]] = content["model"]["merges"]
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"], ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), "utf-8")
    added = {
        str(token["id"]): {"content": token["content"], "special": token["special"]}
        for token in content["added_tokens"]
    }
    config = {"added_tokens_decoder": added, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
