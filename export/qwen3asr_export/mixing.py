"""The same model with its residual stream in another basis, where no channel is louder than the others.

A few channels of a trained transformer's residual stream are tens of times louder than the rest, and integers with one
scale for all of them lose the rest. An orthogonal change of basis spreads each channel over all (QuaRot, Ashkboos et
al. 2024, section 4, "stage 1"). It is folded into the matrices that read and write the stream, needs no data, and in
exact arithmetic changes nothing: an RMS norm commutes with any orthogonal matrix once its gain is folded into
the matrices behind it, a layer norm with one that keeps means.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from qwen3asr_export.files import Lookup
from qwen3asr_export.graph import Array

REACH = 5.0
"""Largest entry of a row behind a norm, in the mixed basis: each is a sum over all channels, and as good as normally
distributed whatever they are. One in two million is larger, and is cut off."""

_WRITERS = (".conv_out", ".out_proj", ".fc2", ".o_proj", ".down_proj")
_TABLES = (".embed_tokens", "lm_head", "score")


@cache
def mixing(width: int) -> Array:
    """The basis of a stream: orthogonal, symmetric float32 ``[width, width]``, whose rows sum to one.

    Cosine transform, signs drawn once and for all, and the transform back: of any width, every entry small. The
    constant basis function keeps its sign, so the mean of a row stays what it was.
    """
    steps = np.arange(width)
    cosines = np.cos(np.pi / width * (steps + 0.5) * steps[:, None]) * np.sqrt(2 / width)
    cosines[0] = np.sqrt(1 / width)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], width)
    signs[0] = 1.0
    basis = cosines.T * signs @ cosines
    symmetric: Array = ((basis + basis.T) / 2).astype(np.float32)  # to the last bit
    return symmetric


class Mixed:
    """A checkpoint's tensors in the mixed basis, each made when asked for.

    Gains and biases of the norms go into the matrices behind them, which leaves ones and zeros. Only the final norm
    keeps its gain: a tied head is the embedding, too, so the decoder's graph applies it in the checkpoint's basis.

    Args:
        tensors: the checkpoint's, by ``-hf`` name.
    """

    def __init__(self, tensors: Lookup) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Array:
        tensor, (module, _, part) = self._tensors[name], name.rpartition(".")
        if _is_norm(module):
            return np.ones_like(tensor) if part == "weight" else np.zeros_like(tensor)
        norm = _norm_before(module)
        if norm and part == "bias":
            shifted: Array = tensor + self._tensors[f"{module}.weight"] @ self._tensors[f"{norm}.bias"]
            return shifted
        return change_basis(name, tensor * self._tensors[f"{norm}.weight"] if norm else tensor)


def change_basis(name: str, tensor: Array) -> Array:
    """A tensor from either basis to the other, norms left as they are: the basis is its own inverse."""
    module, _, part = name.rpartition(".")
    if module.endswith(_WRITERS):
        return mixing(len(tensor)) @ tensor
    reads = module.endswith(_TABLES) or (part == "weight" and _norm_before(module))
    return tensor @ mixing(tensor.shape[1]) if reads else tensor


def _is_norm(module: str) -> bool:
    """Norms of the residual stream whose gain can go elsewhere: all but the decoder's last and those of each head."""
    return module.endswith(("layernorm", "layer_norm", "ln_post"))


def _norm_before(module: str) -> str | None:
    """The norm whose output a matrix reads."""
    owner, _, part = module.rpartition(".")
    if part == "linear_1":
        return "model.audio_tower.ln_post"
    if part == "fc1":
        return f"{owner}.final_layer_norm"
    if part in ("gate_proj", "up_proj"):
        return f"{owner.removesuffix('.mlp')}.post_attention_layernorm"
    if part in ("q_proj", "k_proj", "v_proj"):
        encoder = "audio_tower" in owner
        return f"{owner}_layer_norm" if encoder else f"{owner.removesuffix('.self_attn')}.input_layernorm"
    return None
