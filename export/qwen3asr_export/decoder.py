"""The Qwen3 decoder as ONNX: one graph for prefill, step and verification, in a chosen dialect.

The forced aligner's decoder is the same graph under another head: time classes in place of the vocabulary.
"""

from __future__ import annotations

import onnx

from qwen3asr.spec import ModelSpec
from qwen3asr_export.dialects import Dialect
from qwen3asr_export.files import Lookup
from qwen3asr_export.graph import FLOAT, FLOAT16, INT64, Graph, WeightFile
from qwen3asr_export.mixing import mixing
from qwen3asr_export.numerics import Numerics, Table

_TEXT = "model.language_model"
_HEADROOM = 16.0  # a power of two: scaling by it rounds nothing


def build_decoder(
    spec: ModelSpec, tensors: Lookup, weights: WeightFile, dialect: Dialect, numerics: Numerics
) -> onnx.ModelProto:
    """The decoder graph. Residual stream, norms and rotation are float32 at every precision.

    Inputs:
        ``ids`` int64 ``[B, S]``: new tokens of each row.
        ``audio`` float32 ``[N, hidden]``: replaces the embeddings of the ``<|audio_pad|>`` ids in order, row
        by row; at least one row, which is ignored where no id asks for it.
        ``past`` int64 ``[B]``: tokens that each row has cached.
        ``take`` int64 ``[B, T]``: indices within the new tokens whose answer is wanted.
        ``past.{i}.key/value`` ``[B, kv_heads, capacity, head_dim]`` of the cache's type.
        ``total_length`` int32, ``ort`` dialect only: tokens of the longest row, the new ones included, or more.

    Outputs: ``token`` int64 ``[B, T]`` (argmax), ``logprob`` float32 ``[B, T]`` (its natural log
    probability), ``present.{i}.key/value``, to be bound to the same memory as the past. The inner tensor
    ``logits`` ``[B, T, classes]`` can be made an output for verification.
    """
    tensors = numerics.prepare(tensors)
    g = Graph("decoder", weights, numerics, dialect.opset)
    ids, audio = g.input("ids", INT64, ["batch", "tokens"]), g.input("audio", FLOAT, ["audio_rows", spec.hidden])
    past, take = g.input("past", INT64, ["batch"]), g.input("take", INT64, ["batch", "taken"])
    name = f"{_TEXT}.embed_tokens.weight"
    table = numerics.tables.table(g, name, tensors[name])
    basis = g.weight("basis", mixing(spec.hidden)) if numerics.mixed else ""

    def turn(x: str) -> str:  # into the basis of the matrices, or out of it
        return g.op("MatMul", x, basis) if basis else x

    x = _embed(g, spec, table, ids, turn(audio))
    dialect.begin(g, spec, ids, past)

    def scale(name: str) -> str:
        return g.vector(f"{name}.weight", tensors[f"{name}.weight"])

    normed = g.normed(dialect.norm(g, x, scale(f"{_TEXT}.layers.0.input_layernorm"), spec.norm_eps))
    for index in range(spec.layers):
        name = f"{_TEXT}.layers.{index}"
        y = _attention(g, spec, tensors, dialect, index, normed)
        if index + 1 == spec.layers:  # from here on only the positions that were asked for
            x, y = _taken(g, x, take), _taken(g, y, take)
        y = g.linear(y, f"{name}.self_attn.o_proj", tensors[f"{name}.self_attn.o_proj.weight"])
        normed, x = dialect.add_norm(g, x, y, scale(f"{name}.post_attention_layernorm"), spec.norm_eps)
        y = _mlp(g, tensors, f"{name}.mlp", g.normed(normed))
        if index + 1 < spec.layers:
            normed, x = dialect.add_norm(g, x, y, scale(f"{_TEXT}.layers.{index + 1}.input_layernorm"), spec.norm_eps)
            g.normed(normed)
    x = turn(dialect.norm(g, turn(g.op("Add", x, y)), scale(f"{_TEXT}.norm"), spec.norm_eps))
    _head(g, spec, tensors, x, table)
    return g.model({"component": "decoder", "kind": spec.kind, "dialect": dialect.name})


def _embed(g: Graph, spec: ModelSpec, table: Table, ids: str, audio: str) -> str:
    """Token embeddings, those of audio pads replaced by the audio rows in order."""
    pads = g.op("Equal", ids, g.const(spec.audio_pad))
    flat = g.reshape(g.op("Cast", pads, to=INT64), -1)
    row = g.op("Max", g.op("Sub", g.op("CumSum", flat, g.const(0)), g.const(1)), g.const(0))
    rows = g.op("Gather", audio, g.op("Reshape", row, g.op("Shape", ids)), axis=0)
    return g.op("Where", g.op("Unsqueeze", pads, g.const([2])), rows, table.rows(g, ids))


def _attention(g: Graph, spec: ModelSpec, tensors: Lookup, dialect: Dialect, index: int, x: str) -> str:
    name = f"{_TEXT}.layers.{index}.self_attn"

    def project(part: str) -> str:
        return g.linear(x, f"{name}.{part}_proj", tensors[f"{name}.{part}_proj.weight"])

    def normalise(y: str, part: str, heads: int) -> str:  # each head by itself
        scale = g.vector(f"{name}.{part}_norm.weight", tensors[f"{name}.{part}_norm.weight"])
        y = dialect.norm(g, g.reshape(y, 0, 0, heads, spec.head_dim), scale, spec.norm_eps)
        return g.reshape(y, 0, 0, heads * spec.head_dim)

    q, k = normalise(project("q"), "q", spec.heads), normalise(project("k"), "k", spec.kv_heads)
    return dialect.attend(g, spec, index, q, k, project("v"))


def _mlp(g: Graph, tensors: Lookup, name: str, x: str) -> str:
    """SwiGLU; in fp16 its last product runs at a sixteenth: it is where a Qwen3 decoder overflows first."""
    gate = g.linear(x, f"{name}.gate_proj", tensors[f"{name}.gate_proj.weight"])
    up = g.linear(x, f"{name}.up_proj", tensors[f"{name}.up_proj.weight"])
    gated = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    weight = tensors[f"{name}.down_proj.weight"]
    if g.numerics.cache != FLOAT16:
        return g.linear(gated, f"{name}.down_proj", weight)
    small = g.linear(g.op("Mul", gated, g.real(1 / _HEADROOM)), f"{name}.down_proj", weight)
    return g.op("Mul", small, g.real(_HEADROOM))


def _taken(g: Graph, x: str, take: str) -> str:
    return g.op("GatherND", x, g.op("Unsqueeze", take, g.const([2])), batch_dims=1)


def _head(g: Graph, spec: ModelSpec, tensors: Lookup, x: str, table: Table) -> None:
    """Logits of the taken positions, their argmax and its log probability."""
    if not spec.tied:
        name = "score.weight" if spec.kind == "aligner" else "lm_head.weight"
        table = g.numerics.tables.table(g, name, tensors[name])
    flat = table.project(g, g.reshape(x, -1, spec.hidden))
    taken = g.op("Shape", x, start=0, end=2)
    shape = g.op("Concat", taken, g.const([spec.classes]), axis=0)
    logits = g.op("Reshape", flat, shape, allowzero=1, out="logits")  # nothing taken: no rows
    g.op("ArgMax", logits, axis=-1, keepdims=0, out="token")
    highest = g.op("ReduceMax", logits, g.const([-1]), keepdims=1)
    total = g.op("ReduceSum", g.op("Exp", g.op("Sub", logits, highest)), g.const([-1]), keepdims=0)
    g.op("Neg", g.op("Log", total), out="logprob")
    g.output("token", INT64, ["batch", "taken"])
    g.output("logprob", FLOAT, ["batch", "taken"])
