"""The precisions that are offered: what each graph computes in, and the error that verification allows it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwen3asr.spec import ModelSpec
from qwen3asr_export.checkpoint import expected_tensors
from qwen3asr_export.dynamic import Dynamic
from qwen3asr_export.files import Lookup
from qwen3asr_export.graph import BFLOAT16, BITS, FLOAT16, Array
from qwen3asr_export.mixing import change_basis
from qwen3asr_export.numerics import Blocks, Float, Matrices, Numerics

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
        return not isinstance(self.decoder.matrices, Float)

    def stored_bytes(self, spec: ModelSpec) -> int:
        """Bytes of a model's weights in its bundle; rotary tables and alignment come on top."""
        basis = 4 * spec.hidden**2 if self.decoder.mixed else 0
        return basis + sum(self._bytes(name, shape) for name, shape in expected_tensors(spec).items())

    def stands_for(self, tensors: Lookup) -> Lookup:
        """The float32 model that the bundle's graphs stand for, made of the checkpoint's tensors one by one."""
        return _StandsFor(tensors, self)

    def _bytes(self, name: str, shape: tuple[int, ...]) -> int:
        matrices = self.matrices(name)
        if not matrices.holds(shape):  # norms, biases, kernels
            return math.prod(shape) * BITS[self.numerics(name).activation] // 8
        return matrices.stored_bytes(shape[0], math.prod(shape[1:]))

    def numerics(self, name: str) -> Numerics:
        """Of the graph that one of the checkpoint's tensors goes into."""
        return self.decoder if "language_model" in name or name in _HEADS else self.encoder

    def matrices(self, name: str) -> Matrices:
        """Storage of one of the checkpoint's tensors, if it is a matrix."""
        numerics, is_table = self.numerics(name), "embed_tokens" in name or name in _HEADS
        return numerics.tables if is_table else numerics.matrices


class _StandsFor:
    """See :meth:`Precision.stands_for`; in the checkpoint's basis, the gains of norms where the graphs have them."""

    def __init__(self, tensors: Lookup, precision: Precision) -> None:
        self._tensors, self._precision = tensors, precision

    def __getitem__(self, name: str) -> Array:
        numerics, matrices = self._precision.numerics(name), self._precision.matrices(name)
        tensor = numerics.prepare(self._tensors)[name]
        if matrices.holds(tensor.shape):
            tensor = matrices.stands_for(tensor.reshape(len(tensor), -1)).reshape(tensor.shape)
        return change_basis(name, tensor) if numerics.mixed else tensor


_INT8 = Numerics(Dynamic(), mixed=True)

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
            "int8", _INT8, _INT8,
            Bounds(0.12, 0.3, 2.0, 0.45, 6e-2, damage_embeddings=0.1, damage_answers=0.1),
        ),
        Precision(
            "int4", _INT8, Numerics(Dynamic(), mixed=True, layers=Blocks(4, 32)),
            Bounds(0.12, 0.3, 2.0, 0.45, 6e-2, damage_embeddings=0.1, damage_answers=0.35),
        ),
    )
}  # fmt: skip
