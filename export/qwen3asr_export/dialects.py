"""How families of engines want the decoder's norms and cached attention written.

``OrtDialect`` uses ONNX Runtime's contributed operators (half the time of the standard ones on the CPU);
``StandardDialect`` has ONNX operators only, for TensorRT and any other engine. A dialect for another engine goes
beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from qwen3asr.errors import ConfigInvalid
from qwen3asr.spec import ModelSpec
from qwen3asr_export.graph import CONTRIB, FLOAT, INT32, Array, Graph

POSITIONS = 20_480
"""Rows of the rotary tables: 1200 s of audio (15,600 tokens) and as long a transcript as anyone speaks in it."""


class Dialect(Protocol):
    """How one family of engines wants norms and cached attention written."""

    name: str
    opset: int

    def check(self, spec: ModelSpec) -> None:
        """Raise :class:`ConfigInvalid` for a shape that the engines cannot run; nothing is built yet."""

    def begin(self, g: Graph, spec: ModelSpec, ids: str, past: str) -> None:
        """Add what all layers share."""

    def norm(self, g: Graph, x: str, weight: str, epsilon: float) -> str:
        """RMS norm over the last axis."""

    def add_norm(self, g: Graph, x: str, y: str, weight: str, epsilon: float) -> tuple[str, str]:
        """(RMS norm of ``x + y``, ``x + y``)."""

    def attend(self, g: Graph, spec: ModelSpec, layer: int, q: str, k: str, v: str) -> str:
        """Rotate q and k, append k and v to the layer's cache, attend causally: ``[B, S, heads * head_dim]``.

        The rotation is computed in the activations' type, cache and attention are of the cache's type.
        """


class OrtDialect:
    """ONNX Runtime's contributed operators; past and present may be one buffer of fixed capacity."""

    name = "ort"
    opset = 23

    def check(self, spec: ModelSpec) -> None:
        """See :class:`Dialect`."""
        if spec.head_dim % 16:
            raise ConfigInvalid("text_config.head_dim", "ONNX Runtime's GroupQueryAttention takes multiples of 16 only")

    def begin(self, g: Graph, spec: ModelSpec, ids: str, past: str) -> None:
        """Row lengths as GroupQueryAttention wants them, and the rotary tables.

        The operator reads the longest row's length on the host: computed from ``past``, it would be fetched from a
        GPU in every step, and no CUDA graph could be captured. So it is an input.
        """
        self._positions = _positions(g, ids, past)
        last = g.op("Gather", self._positions, g.const(-1), axis=1)
        self._last = g.op("Cast", last, to=INT32, out="last_position")
        self._total = g.input("total_length", INT32, [])
        self._tables = _store_tables(g, spec)

    def norm(self, g: Graph, x: str, weight: str, epsilon: float) -> str:
        """See :class:`Dialect`."""
        return g.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon, stash_type=1)

    def add_norm(self, g: Graph, x: str, y: str, weight: str, epsilon: float) -> tuple[str, str]:
        """See :class:`Dialect`."""
        outs = [f"{weight}.normed", "", "", f"{weight}.sum"]
        g.ops("SkipSimplifiedLayerNormalization", x, y, weight, outs=outs, domain=CONTRIB, epsilon=epsilon)
        return outs[0], outs[3]

    def attend(self, g: Graph, spec: ModelSpec, layer: int, q: str, k: str, v: str) -> str:
        """See :class:`Dialect`; the operator's own rotation would be of the cache's type."""
        cache, outside = g.numerics.cache, g.numerics.cache != g.activation
        if outside:
            q, k = (self._rotate(g, x, heads) for x, heads in ((q, spec.heads), (k, spec.kv_heads)))
        shape: list[int | str] = ["batch", spec.kv_heads, "capacity", spec.head_dim]
        past = [g.input(f"past.{layer}.{side}", cache, shape) for side in ("key", "value")]
        outs = [f"layers.{layer}.attention", f"present.{layer}.key", f"present.{layer}.value"]
        g.ops(
            "GroupQueryAttention", *(g.cast(x, cache) for x in (q, k, v)), *past, self._last, self._total,
            *(() if outside else self._tables), outs=outs, domain=CONTRIB, num_heads=spec.heads,
            kv_num_heads=spec.kv_heads, do_rotary=int(not outside), scale=spec.head_dim**-0.5,
        )  # fmt: skip
        for name in outs[1:]:
            g.output(name, cache, shape)
        return g.cast(outs[0], g.activation, cache)

    def _rotate(self, g: Graph, x: str, heads: int) -> str:
        return g.op("RotaryEmbedding", x, self._positions, *self._tables, domain=CONTRIB, num_heads=heads)


class StandardDialect:
    """ONNX operators of opset 24 only: caches are written by TensorScatter, the mask is explicit."""

    name = "standard"
    opset = 24

    def check(self, spec: ModelSpec) -> None:
        """See :class:`Dialect`; any shape will do."""

    def begin(self, g: Graph, spec: ModelSpec, ids: str, past: str) -> None:
        """Positions, rotary tables, and the mask: a query sees the keys up to its own position."""
        self._past, self._tables = past, _store_tables(g, spec)
        self._positions = _positions(g, ids, past)
        self._mask = ""

    def norm(self, g: Graph, x: str, weight: str, epsilon: float) -> str:
        """See :class:`Dialect`."""
        return g.op("RMSNormalization", x, weight, axis=-1, epsilon=epsilon, stash_type=FLOAT)

    def add_norm(self, g: Graph, x: str, y: str, weight: str, epsilon: float) -> tuple[str, str]:
        """See :class:`Dialect`."""
        total = g.op("Add", x, y)
        return self.norm(g, total, weight, epsilon), total

    def attend(self, g: Graph, spec: ModelSpec, layer: int, q: str, k: str, v: str) -> str:
        """See :class:`Dialect`."""
        cache = g.numerics.cache
        q, k = (
            g.op("RotaryEmbedding", _heads(g, x, heads, spec), *self._tables, self._positions)
            for x, heads in ((q, spec.heads), (k, spec.kv_heads))
        )
        present = [
            self._store(g, spec, layer, side, g.cast(x, cache))
            for side, x in (("key", k), ("value", _heads(g, v, spec.kv_heads, spec)))
        ]
        if not self._mask:
            self._mask = self._visible(g, present[0])
        y = g.op("Attention", g.cast(q, cache), *present, self._mask, scale=spec.head_dim**-0.5)
        y = g.op("Transpose", y, perm=[0, 2, 1, 3], out=f"layers.{layer}.attention")
        return g.cast(g.reshape(y, 0, 0, spec.heads * spec.head_dim), g.activation, cache)

    def _store(self, g: Graph, spec: ModelSpec, layer: int, side: str, new: str) -> str:
        shape: list[int | str] = ["batch", spec.kv_heads, "capacity", spec.head_dim]
        past = g.input(f"past.{layer}.{side}", g.numerics.cache, shape)
        present = g.op("TensorScatter", past, new, self._past, axis=-2, mode="linear", out=f"present.{layer}.{side}")
        g.output(present, g.numerics.cache, shape)
        return present

    def _visible(self, g: Graph, keys: str) -> str:
        """Boolean ``[B, 1, S, capacity]``."""
        index = g.op("Range", g.const(0), g.op("Squeeze", g.dim(keys, 2)), g.const(1))
        return g.op("LessOrEqual", index, g.op("Unsqueeze", self._positions, g.const([1, 3])), out="visible")


DIALECTS: Mapping[str, type[OrtDialect | StandardDialect]] = {d.name: d for d in (OrtDialect, StandardDialect)}


def rotary_tables(head_dim: int, theta: float, positions: int) -> tuple[Array, Array]:
    """Cosines and sines, float32 ``[positions, head_dim / 2]``, with the reference's float32 rounding."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse = (np.float32(1.0) / np.power(np.float32(theta), exponents)).astype(np.float32)
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse
    return np.cos(angles), np.sin(angles)


def _store_tables(g: Graph, spec: ModelSpec) -> tuple[str, str]:
    cos, sin = rotary_tables(spec.head_dim, spec.rope_theta, min(spec.max_positions, POSITIONS))
    return g.vector("rotary_cos", cos), g.vector("rotary_sin", sin)


def _positions(g: Graph, ids: str, past: str) -> str:
    """Int64 ``[B, S]``: the row's past, counted on."""
    steps = g.op("Range", g.const(0), g.op("Squeeze", g.dim(ids, 1)), g.const(1))
    return g.op("Add", g.op("Unsqueeze", past, g.const([1])), steps, out="positions")


def _heads(g: Graph, x: str, heads: int, spec: ModelSpec) -> str:
    """``[B, S, heads * head_dim]`` to ``[B, heads, S, head_dim]``."""
    return g.op("Transpose", g.reshape(x, 0, 0, heads, spec.head_dim), perm=[0, 2, 1, 3])
