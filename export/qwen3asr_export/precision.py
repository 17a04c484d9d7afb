"""The precisions that are offered: what each graph computes in, and the error that verification allows it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwen3asr.spec import ModelSpec
from qwen3asr_export.checkpoint import expected_tensors
from qwen3asr_export.graph import BFLOAT16, BITS, FLOAT16, Array
from qwen3asr_export.numerics import Blocks, Float, Numerics

_HEADS = ("lm_head.weight", "score.weight")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What verification allows.

    The first five judge the export: its graphs against the same model with the weights that they store. The last two
    judge the precision: against the checkpoint's own weights; they are not applied to random stand-ins, whose
    answers hang on the last bits of their weights as those of no trained model do.

    Attributes:
        embeddings, logits: largest difference over the largest value.
        logprob: largest difference of the best token's log probability.
        answers: largest share of positions with another best token or time class; 0: token ids must be equal.
        batch: largest difference of a clip's embeddings between a batch and by itself, as ``embeddings``.
        damage_embeddings, damage_answers: as above, of what storing the weights costs.
    """

    embeddings: float
    logits: float
    logprob: float
    answers: float
    batch: float
    damage_embeddings: float = 0.0
    damage_answers: float = 0.0


@dataclass(frozen=True, slots=True)
class Precision:
    """A named choice for both graphs."""

    name: str
    encoder: Numerics
    decoder: Numerics
    bounds: Bounds

    @property
    def dialects(self) -> tuple[str, ...]:
        """Dialects that can spell it: weight-only integers are an operator of ONNX Runtime."""
        return ("ort",) if self.quantised else ("ort", "standard")

    @property
    def quantised(self) -> bool:
        """Weights are stored as integers."""
        return isinstance(self.decoder.matrices, Blocks)

    def stored_bytes(self, spec: ModelSpec) -> int:
        """Bytes of a model's weights in its bundle; rotary tables and alignment come on top."""
        return sum(self._bytes(name, shape) for name, shape in expected_tensors(spec).items())

    def stands_for(self, name: str, weight: Array) -> Array:
        """What the bundle's graphs make of one of the checkpoint's matrices, float32."""
        return self._numerics(name).matrices.stands_for(weight, table=_is_table(name))

    def _bytes(self, name: str, shape: tuple[int, ...]) -> int:
        numerics = self._numerics(name)
        if len(shape) != 2:  # norms, biases, convolutions
            return math.prod(shape) * BITS[numerics.activation] // 8
        return numerics.matrices.stored_bytes(*shape, table=_is_table(name))

    def _numerics(self, name: str) -> Numerics:
        return self.decoder if "language_model" in name or name in _HEADS else self.encoder


def _is_table(name: str) -> bool:
    return "embed_tokens" in name or name in _HEADS


PRECISIONS = {
    p.name: p
    for p in (
        Precision("fp32", Numerics(Float()), Numerics(Float()), Bounds(2e-4, 2e-4, 1e-3, 0.0, 2e-4)),
        Precision(
            "fp16", Numerics(Float(FLOAT16), FLOAT16), Numerics(Float(FLOAT16), cache=FLOAT16),
            Bounds(1e-2, 1e-2, 0.15, 0.02, 1e-2),
        ),
        Precision(
            "bf16", Numerics(Float(FLOAT16), FLOAT16), Numerics(Float(BFLOAT16), cache=BFLOAT16),
            Bounds(1e-2, 8e-2, 0.5, 0.08, 1e-2),
        ),
        Precision(
            "int8", Numerics(Blocks(8, 64, 8)), Numerics(Blocks(8, 64, 8)),
            Bounds(6e-2, 0.3, 1.5, 0.3, 6e-2, damage_embeddings=6e-2, damage_answers=0.1),
        ),
        Precision(
            "int4", Numerics(Blocks(8, 64, 8)), Numerics(Blocks(4, 32, 8)),
            Bounds(6e-2, 0.3, 1.5, 0.3, 6e-2, damage_embeddings=6e-2, damage_answers=0.35),
        ),
    )
}  # fmt: skip
