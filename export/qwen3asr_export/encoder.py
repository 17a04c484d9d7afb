"""The audio encoder as ONNX: mel windows in, one embedding row a token out.

An attention window (8 s) never sees another one, so the graph's batch axis is windows, of any clips. The
operators are standard ones only: attention over 104 tokens costs nothing beside the matrix products.
"""

from __future__ import annotations

import numpy as np
import onnx

from qwen3asr.features import MEL_BINS
from qwen3asr.spec import ModelSpec
from qwen3asr_export.files import Lookup
from qwen3asr_export.graph import FLOAT, FLOAT16, INT64, Array, Graph, WeightFile
from qwen3asr_export.mixing import mixing
from qwen3asr_export.numerics import Convolution, Numerics

MASKED = -6e4  # finite in fp16 too, and so far below any score that the softmax gives it nothing
_CLAMP = 64_504.0  # of layer outputs in fp16, as the reference does: the largest number less 1000
OPSET = 23
_TOWER, _PROJECTOR = "model.audio_tower", "model.multi_modal_projector"


def build_encoder(spec: ModelSpec, tensors: Lookup, weights: WeightFile, numerics: Numerics) -> onnx.ModelProto:
    """The encoder graph; its inputs and outputs are the same at every precision.

    Inputs: ``mel`` float32 ``[windows, 128, frames]`` (``frames`` a multiple of the chunk, 100) and
    ``frames`` int64 ``[windows]``, the valid ones. Output: ``embeddings`` float32
    ``[windows, tokens, hidden]`` with ``tokens = frames / 100 * 13``; the first ``WindowSpec.tokens(valid)``
    rows of a window are the clip's, the rest is padding to be dropped.
    """
    tensors = numerics.prepare(tensors)
    g = Graph("encoder", weights, numerics, OPSET)
    chunk, per_chunk = spec.windows.chunk_frames, spec.windows.chunk_tokens
    mel = g.input("mel", FLOAT, ["windows", MEL_BINS, "padded_frames"])
    frames = g.input("frames", INT64, ["windows"])
    windows = g.dim(mel, 0)
    valid = g.op("Unsqueeze", frames, g.const([1]))
    filled = g.cast(_zero_fill(g, mel, valid), g.activation, FLOAT)
    x = _convolve(g, spec, tensors, filled)  # [chunks, 13, width]
    x = g.reshape(x, windows, -1, spec.encoder.width)
    mask = _key_mask(g, x, valid, chunk, per_chunk)
    for index in range(spec.encoder.layers):
        x = _layer(g, spec, tensors, f"{_TOWER}.layers.{index}", x, mask)
    x = _norm(g, tensors, f"{_TOWER}.ln_post", x)
    x = _linear(g, tensors, f"{_PROJECTOR}.linear_1", x)
    x = _linear(g, tensors, f"{_PROJECTOR}.linear_2", g.op("Gelu", x))
    g.op("Cast", x, to=FLOAT, out="embeddings")
    g.output("embeddings", FLOAT, ["windows", "tokens", spec.hidden])
    return g.model({"component": "encoder"})


def _zero_fill(g: Graph, mel: str, valid: str) -> str:
    """Frames past the valid ones become 0.0, whatever the caller left there."""
    steps = g.op("Range", g.const(0), g.op("Squeeze", g.dim(mel, 2)), g.const(1))
    keep = g.op("Unsqueeze", g.op("Less", steps, valid), g.const([1]))
    return g.op("Where", keep, mel, g.const(0.0, np.float32))


def _convolve(g: Graph, spec: ModelSpec, tensors: Lookup, mel: str) -> str:
    """Chunks of 100 frames through three stride-2 convolutions, channel-major flatten, positions from 0."""
    chunk = spec.windows.chunk_frames
    x = g.reshape(mel, 0, MEL_BINS, -1, chunk)
    x = g.reshape(g.op("Transpose", x, perm=[0, 2, 1, 3]), -1, 1, MEL_BINS, chunk)
    names = [f"{_TOWER}.conv2d{index}" for index in (1, 2, 3)]
    layers = [Convolution(name, tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in names]
    x = g.numerics.matrices.convolutions(g, x, (MEL_BINS, chunk), layers)
    x = g.op("Transpose", x, perm=[0, 3, 1, 2])
    x = g.reshape(x, 0, 0, spec.encoder.conv_channels * spec.encoder.conv_bands)
    x = _linear(g, tensors, f"{_TOWER}.conv_out", x, bias=False)
    positions = sinusoids(spec.windows.chunk_tokens, spec.encoder.width)
    if g.numerics.mixed:
        positions = positions @ mixing(spec.encoder.width)
    return g.op("Add", x, g.vector("positions", positions))


def sinusoids(length: int, channels: int) -> Array:
    """Whisper's sinusoidal positions, float32 ``[length, channels]``: sines, then cosines."""
    half = channels // 2
    scales = np.exp(-(np.log(10_000.0) / (half - 1)) * np.arange(half, dtype=np.float32)).astype(np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * scales
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _key_mask(g: Graph, x: str, valid: str, chunk: int, per_chunk: int) -> str:
    """Additive mask ``[windows, 1, 1, tokens]``: 0 for the clip's tokens, a large negative for padding.

    Valid tokens: ``13 * (frames // 100) + ceil(rest / 8)``; all non-negative, so that ONNX's truncating
    division is the floor division that the reference means.
    """
    whole = g.op("Mul", g.op("Div", valid, g.const(chunk)), g.const(per_chunk))
    rest = g.op("Div", g.op("Add", g.op("Mod", valid, g.const(chunk)), g.const(7)), g.const(8))
    steps = g.op("Range", g.const(0), g.op("Squeeze", g.dim(x, 1)), g.const(1))
    keep = g.op("Less", steps, g.op("Add", whole, rest))
    mask = g.op("Where", keep, g.real(0.0), g.real(MASKED))
    return g.op("Unsqueeze", mask, g.const([1, 2]))


def _layer(g: Graph, spec: ModelSpec, tensors: Lookup, name: str, x: str, mask: str) -> str:
    """Pre-norm transformer layer, bidirectional within the window."""
    y = _norm(g, tensors, f"{name}.self_attn_layer_norm", x)
    x = g.op("Add", x, _attention(g, spec, tensors, f"{name}.self_attn", y, mask))
    y = _norm(g, tensors, f"{name}.final_layer_norm", x)
    y = g.op("Gelu", _linear(g, tensors, f"{name}.fc1", y))
    x = g.op("Add", x, _linear(g, tensors, f"{name}.fc2", y))
    return g.op("Clip", x, g.real(-_CLAMP), g.real(_CLAMP)) if g.activation == FLOAT16 else x


def _attention(g: Graph, spec: ModelSpec, tensors: Lookup, name: str, x: str, mask: str) -> str:
    heads, width = spec.encoder.heads, spec.encoder.width

    def split(part: str, perm: list[int]) -> str:
        y = g.reshape(_linear(g, tensors, f"{name}.{part}", x), 0, 0, heads, width // heads)
        return g.op("Transpose", y, perm=perm)

    q, k, v = split("q_proj", [0, 2, 1, 3]), split("k_proj", [0, 2, 3, 1]), split("v_proj", [0, 2, 1, 3])
    q = g.op("Mul", q, g.real((width // heads) ** -0.5))
    weights = g.op("Softmax", g.op("Add", g.op("MatMul", q, k), mask), axis=-1)
    y = g.op("Transpose", g.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    return _linear(g, tensors, f"{name}.out_proj", g.reshape(y, 0, 0, width))


def _linear(g: Graph, tensors: Lookup, name: str, x: str, bias: bool = True) -> str:
    return g.linear(x, name, tensors[f"{name}.weight"], tensors[f"{name}.bias"] if bias else None)


def _norm(g: Graph, tensors: Lookup, name: str, x: str) -> str:
    scale, bias = (g.vector(f"{name}.{part}", tensors[f"{name}.{part}"]) for part in ("weight", "bias"))
    return g.normed(g.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5, out=f"{name}.out"))
