"""What engines are built to take: how many requests, how long, how many windows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qwen3asr.decoder import PREFILL_CHUNK
from qwen3asr.errors import RequestInvalid
from qwen3asr.load import ALIGNER_CAPACITY, ASR_CAPACITY
from qwen3asr.spec import ModelSpec
from qwen3asr_export.dialects import POSITIONS


@dataclass(frozen=True, slots=True)
class Storage:
    """How an engine stores a weight of the decoder's layers.

    Attributes:
        bits: of it.
        block: weights that share a scale, along the input axis; 0: the whole column.
    """

    bits: int
    block: int = 0


QUANTISED = {"int8": Storage(8), "fp8": Storage(8), "int4": Storage(4, 32)}
"""The decoder's layers are stored so in an engine; everything else of it is bf16, products and activations too."""
PRECISIONS = ("bf16", "fp16", "fp32", *QUANTISED)


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes that an engine fixes when it is built.

    Attributes:
        capacity: tokens of a KV-cache row; a step reads all of it, so no more than the work needs. 0: the runtime's
            default.
        slots: requests decoded at a time, at most; an aligner has one.
        chunk: tokens of one prefill, at most.
        draft: tokens of a draft that are checked in one pass, at most.
        windows: 8 s windows encoded at a time, at most.
        workspace: bytes that one layer may use while it runs; ``None``: all that the GPU has.
        level: the builder's optimisation level, 0 to 5; ``None``: its own default.
    """

    capacity: int = 0
    slots: int = 8
    chunk: int = PREFILL_CHUNK
    draft: int = 128
    windows: int = 64
    workspace: int | None = None
    level: int | None = None

    def fitted(self, spec: ModelSpec) -> Settings:
        """These settings for one model, checked.

        Raises:
            RequestInvalid: a size makes no sense, or is more than the model's tables hold.
        """
        aligner, limit = spec.kind == "aligner", min(spec.max_positions, POSITIONS)
        capacity = self.capacity or min(ALIGNER_CAPACITY if aligner else ASR_CAPACITY, limit)
        for name, value, least, most in (
            ("capacity", capacity, 2, limit),
            ("slots", self.slots, 1, 1024),
            ("chunk", self.chunk, 2, limit),
            ("draft", self.draft, 1, limit),
            ("windows", self.windows, 1, 1024),
            ("workspace", 1 if self.workspace is None else self.workspace, 1, 1 << 50),
            ("level", 0 if self.level is None else self.level, 0, 5),
        ):
            if not least <= value <= most:
                raise RequestInvalid(f"{name}={value} is outside of {least} to {most}")
        chunk = min(self.chunk, capacity)
        draft = min(self.draft, chunk - 1)
        return replace(self, capacity=capacity, slots=1 if aligner else self.slots, chunk=chunk, draft=draft)


def check_precision(wanted: str | None, bundle: str) -> str:
    """The precision of engines from a bundle of some precision.

    Raises:
        RequestInvalid: unknown, or not to be had from that bundle.
    """
    name = wanted or bundle
    if name not in PRECISIONS:
        raise RequestInvalid(
            f"precision {name!r} is not known to TensorRT engines; choose from {', '.join(PRECISIONS)}"
        )
    source = "bf16" if name in QUANTISED else name
    if source != bundle:
        raise RequestInvalid(
            f"{name} engines are built from a bundle of {source}, and this one is {bundle}; "
            f"export the checkpoint again with --engine tensorrt --precision {name}"
        )
    return name
