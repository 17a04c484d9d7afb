"""The Qwen3 decoder as ONNX: one graph for prefill, step and verification, in a chosen dialect.

The forced aligner's decoder is the same graph under another head: time classes in place of the vocabulary.

A dialect says how the three things are spelt that engines disagree on: RMS norm, norm of a sum, and cached
attention. ``OrtDialect`` uses ONNX Runtime's contributed operators (half the time of the standard ones on
the CPU); a dialect for other engines goes beside it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import onnx

from qwen3asr.errors import ConfigInvalid
from qwen3asr.spec import ModelSpec
from qwen3asr_export.checkpoint import Tensors
from qwen3asr_export.graph import CONTRIB, FLOAT, INT32, INT64, Array, Graph, WeightFile

_TEXT = "model.language_model"
POSITIONS = 20_480
"""Rows of the rotary tables: 1200 s of audio (15,600 tokens) and as long a transcript as anyone speaks in it."""


class Dialect(Protocol):
    """How one family of engines wants norms and cached attention written."""

    name: str

    def check(self, spec: ModelSpec) -> None:
        """Raise :class:`ConfigInvalid` for a shape that the engines cannot run; nothing is built yet."""

    def begin(self, g: Graph, spec: ModelSpec, ids: str, past: str) -> None:
        """Add what all layers share."""

    def norm(self, g: Graph, x: str, weight: str, epsilon: float) -> str:
        """RMS norm over the last axis."""

    def add_norm(self, g: Graph, x: str, y: str, weight: str, epsilon: float) -> tuple[str, str]:
        """(RMS norm of ``x + y``, ``x + y``)."""

    def attend(self, g: Graph, spec: ModelSpec, layer: int, q: str, k: str, v: str) -> str:
        """Rotate q and k, append k and v to the layer's cache, attend causally: ``[B, S, heads * head_dim]``."""


class OrtDialect:
    """ONNX Runtime's contributed operators; past and present may be one buffer of fixed capacity."""

    name = "ort"

    def check(self, spec: ModelSpec) -> None:
        """See :class:`Dialect`."""
        if spec.head_dim % 16:
            raise ConfigInvalid("text_config.head_dim", "ONNX Runtime's GroupQueryAttention takes multiples of 16 only")

    def begin(self, g: Graph, spec: ModelSpec, ids: str, past: str) -> None:
        """Row lengths as GroupQueryAttention wants them, and the rotary tables."""
        total = g.op("Add", past, g.dim(ids, 1))
        self._last = g.op("Cast", g.op("Sub", total, g.const(1)), to=INT32, out="last_position")
        longest = g.op("ReduceMax", total, keepdims=0)
        self._total = g.op("Cast", longest, to=INT32, out="total_length")
        cos, sin = rotary_tables(spec.head_dim, spec.rope_theta, min(spec.max_positions, POSITIONS))
        self._cos, self._sin = g.weight("rotary_cos", cos), g.weight("rotary_sin", sin)

    def norm(self, g: Graph, x: str, weight: str, epsilon: float) -> str:
        """See :class:`Dialect`."""
        return g.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon, stash_type=1)

    def add_norm(self, g: Graph, x: str, y: str, weight: str, epsilon: float) -> tuple[str, str]:
        """See :class:`Dialect`."""
        outs = [f"{weight}.normed", "", "", f"{weight}.sum"]
        g.ops("SkipSimplifiedLayerNormalization", x, y, weight, outs=outs, domain=CONTRIB, epsilon=epsilon)
        return outs[0], outs[3]

    def attend(self, g: Graph, spec: ModelSpec, layer: int, q: str, k: str, v: str) -> str:
        """See :class:`Dialect`."""
        shape: list[int | str] = ["batch", spec.kv_heads, "capacity", spec.head_dim]
        past = [g.input(f"past.{layer}.{side}", FLOAT, shape) for side in ("key", "value")]
        outs = [f"layers.{layer}.attention", f"present.{layer}.key", f"present.{layer}.value"]
        g.ops(
            "GroupQueryAttention", q, k, v, *past, self._last, self._total, self._cos, self._sin, outs=outs,
            domain=CONTRIB, num_heads=spec.heads, kv_num_heads=spec.kv_heads, do_rotary=1,
            scale=spec.head_dim**-0.5,
        )  # fmt: skip
        for name in outs[1:]:
            g.output(name, FLOAT, shape)
        return outs[0]


def build_decoder(spec: ModelSpec, tensors: Tensors, weights: WeightFile, dialect: Dialect) -> onnx.ModelProto:
    """The decoder graph.

    Inputs:
        ``ids`` int64 ``[B, S]``: new tokens of each row.
        ``audio`` float32 ``[N, hidden]``: replaces the embeddings of the ``<|audio_pad|>`` ids in order, row
        by row; at least one row, which is ignored where no id asks for it.
        ``past`` int64 ``[B]``: tokens that each row has cached.
        ``take`` int64 ``[B, T]``: indices within the new tokens whose answer is wanted.
        ``past.{i}.key/value`` float32 ``[B, kv_heads, capacity, head_dim]``.

    Outputs: ``token`` int64 ``[B, T]`` (argmax), ``logprob`` float32 ``[B, T]`` (its natural log
    probability), ``present.{i}.key/value``, to be bound to the same memory as the past. The inner tensor
    ``logits`` ``[B, T, classes]`` can be made an output for verification.
    """
    g = Graph("decoder", weights)
    ids, audio = g.input("ids", INT64, ["batch", "tokens"]), g.input("audio", FLOAT, ["audio_rows", spec.hidden])
    past, take = g.input("past", INT64, ["batch"]), g.input("take", INT64, ["batch", "taken"])
    table = g.weight(f"{_TEXT}.embed_tokens.weight", tensors[f"{_TEXT}.embed_tokens.weight"])
    x = _embed(g, spec, table, ids, audio)
    dialect.begin(g, spec, ids, past)

    def scale(name: str) -> str:
        return g.weight(f"{name}.weight", tensors[f"{name}.weight"])

    normed = dialect.norm(g, x, scale(f"{_TEXT}.layers.0.input_layernorm"), spec.norm_eps)
    for index in range(spec.layers):
        name = f"{_TEXT}.layers.{index}"
        y = _attention(g, spec, tensors, dialect, index, normed)
        normed, x = dialect.add_norm(g, x, y, scale(f"{name}.post_attention_layernorm"), spec.norm_eps)
        y = _mlp(g, tensors, f"{name}.mlp", normed)
        if index + 1 < spec.layers:
            normed, x = dialect.add_norm(g, x, y, scale(f"{_TEXT}.layers.{index + 1}.input_layernorm"), spec.norm_eps)
    x = _taken(g, g.op("Add", x, y), take)  # from here on only the positions that were asked for
    x = dialect.norm(g, x, scale(f"{_TEXT}.norm"), spec.norm_eps)
    _head(g, spec, tensors, x, table)
    return g.model({"component": "decoder", "kind": spec.kind, "dialect": dialect.name})


def rotary_tables(head_dim: int, theta: float, positions: int) -> tuple[Array, Array]:
    """Cosines and sines, float32 ``[positions, head_dim / 2]``, with the reference's float32 rounding."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse = (np.float32(1.0) / np.power(np.float32(theta), exponents)).astype(np.float32)
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse
    return np.cos(angles), np.sin(angles)


def _embed(g: Graph, spec: ModelSpec, table: str, ids: str, audio: str) -> str:
    """Token embeddings, those of audio pads replaced by the audio rows in order."""
    pads = g.op("Equal", ids, g.const(spec.audio_pad))
    flat = g.reshape(g.op("Cast", pads, to=INT64), -1)
    row = g.op("Max", g.op("Sub", g.op("CumSum", flat, g.const(0)), g.const(1)), g.const(0))
    rows = g.op("Gather", audio, g.op("Reshape", row, g.op("Shape", ids)), axis=0)
    return g.op("Where", g.op("Unsqueeze", pads, g.const([2])), rows, g.op("Gather", table, ids, axis=0))


def _attention(g: Graph, spec: ModelSpec, tensors: Tensors, dialect: Dialect, index: int, x: str) -> str:
    name = f"{_TEXT}.layers.{index}.self_attn"

    def project(part: str) -> str:
        return g.linear(x, f"{name}.{part}_proj", tensors[f"{name}.{part}_proj.weight"])

    def normalise(y: str, part: str, heads: int) -> str:  # each head by itself
        scale = g.weight(f"{name}.{part}_norm.weight", tensors[f"{name}.{part}_norm.weight"])
        y = dialect.norm(g, g.reshape(y, 0, 0, heads, spec.head_dim), scale, spec.norm_eps)
        return g.reshape(y, 0, 0, heads * spec.head_dim)

    q, k = normalise(project("q"), "q", spec.heads), normalise(project("k"), "k", spec.kv_heads)
    y = dialect.attend(g, spec, index, q, k, project("v"))
    return g.linear(y, f"{name}.o_proj", tensors[f"{name}.o_proj.weight"])


def _mlp(g: Graph, tensors: Tensors, name: str, x: str) -> str:
    """SwiGLU."""
    gate = g.linear(x, f"{name}.gate_proj", tensors[f"{name}.gate_proj.weight"])
    up = g.linear(x, f"{name}.up_proj", tensors[f"{name}.up_proj.weight"])
    gated = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    return g.linear(gated, f"{name}.down_proj", tensors[f"{name}.down_proj.weight"])


def _taken(g: Graph, x: str, take: str) -> str:
    return g.op("GatherND", x, g.op("Unsqueeze", take, g.const([2])), batch_dims=1)


def _head(g: Graph, spec: ModelSpec, tensors: Tensors, x: str, table: str) -> None:
    """Logits of the taken positions, their argmax and its log probability."""
    if not spec.tied:
        name = "score.weight" if spec.kind == "aligner" else "lm_head.weight"
        table = g.weight(name, tensors[name])
    flat = g.op("Gemm", g.reshape(x, -1, spec.hidden), table, transB=1)  # the embedding matrix as it is stored
    taken = g.op("Shape", x, start=0, end=2)
    shape = g.op("Concat", taken, g.const([spec.classes]), axis=0)
    logits = g.op("Reshape", flat, shape, allowzero=1, out="logits")  # nothing taken: no rows
    g.op("ArgMax", logits, axis=-1, keepdims=0, out="token")
    highest = g.op("ReduceMax", logits, g.const([-1]), keepdims=1)
    total = g.op("ReduceSum", g.op("Exp", g.op("Sub", logits, highest)), g.const([-1]), keepdims=0)
    g.op("Neg", g.op("Log", total), out="logprob")
    g.output("token", INT64, ["batch", "taken"])
    g.output("logprob", FLOAT, ["batch", "taken"])
