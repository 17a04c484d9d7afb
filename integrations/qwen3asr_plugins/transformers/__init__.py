"""Hugging Face pipelines: speech recognition over an exported bundle or transformers' own model, and forced alignment.

    from qwen3asr_plugins.transformers import pipeline
    pipe = pipeline("automatic-speech-recognition", model="out/qwen3-asr-0.6b", aligner="out/forced-aligner")
    pipe("call.wav", return_timestamps="word")["chunks"]

The stock pipeline takes Qwen3-ASR for a sequence-to-sequence model and generates without its prompt. These classes are
for ``transformers.pipeline(..., pipeline_class=Qwen3ASRPipeline)`` too, with a bundle's path or a loaded model; after
:func:`register`, ``transformers.pipeline("qwen3-asr", model="out/qwen3-asr-0.6b")`` needs no class.

Audio is read and resampled by qwen3asr: neither ffmpeg nor torchaudio is needed.
"""

from __future__ import annotations

import os
from typing import Any, Literal, Unpack, overload

from qwen3asr.errors import ExtraMissing, RequestInvalid

try:
    import torch  # noqa: F401  # which transformers' Pipeline is made of
    from transformers import AutoModelForSpeechSeq2Seq, Qwen3ASRConfig
    from transformers.pipelines import PIPELINE_REGISTRY
except ModuleNotFoundError as error:
    package = (error.name or "").partition(".")[0]
    if package not in ("torch", "transformers"):
        raise
    raise ExtraMissing("a Hugging Face pipeline", package, "transformers") from error

from .alignment import Qwen3AlignmentPipeline
from .models import LoadOptions, Place, Qwen3AlignerModel, Qwen3ASRModel, Qwen3ASRSpeechModel
from .recognition import Parameters, Qwen3ASRPipeline

__all__ = [
    "LoadOptions",
    "Parameters",
    "Qwen3ASRModel",
    "Qwen3ASRPipeline",
    "Qwen3AlignerModel",
    "Qwen3AlignmentPipeline",
    "pipeline",
    "register",
]

# By which transformers' own pipeline() loads a path for this task; it knows no class for these models there.
AutoModelForSpeechSeq2Seq.register(Qwen3ASRConfig, Qwen3ASRSpeechModel, exist_ok=True)


@overload
def pipeline(
    task: Literal["automatic-speech-recognition", "qwen3-asr"], model: Any, *, aligner: Place | None = None,
    processor: Any = None, device: Any = None, model_kwargs: LoadOptions | None = None,
    **parameters: Unpack[Parameters],
) -> Qwen3ASRPipeline: ...  # fmt: skip
@overload
def pipeline(
    task: Literal["forced-alignment"], model: Any, *, aligner: Place | None = None,
    model_kwargs: LoadOptions | None = None,
) -> Qwen3AlignmentPipeline: ...  # fmt: skip
def pipeline(
    task: str, model: Any, *, aligner: Place | None = None, processor: Any = None, device: Any = None,
    model_kwargs: LoadOptions | None = None, **parameters: Unpack[Parameters],
) -> Qwen3ASRPipeline | Qwen3AlignmentPipeline:  # fmt: skip
    """Make a pipeline.

    Args:
        task: ``"automatic-speech-recognition"`` or ``"forced-alignment"``.
        model: folder of a bundle, or any model that the pipeline's class takes.
        aligner: folder of a forced aligner's bundle, for word times; to align, ``model`` is then a recogniser's
            bundle, which makes audio of any length alignable.
        processor: of transformers' own model.
        device: of transformers' own model.
        model_kwargs: how to load the bundle: ``{"slots": 8, "threads": 4}``.
        parameters: defaults of every call.

    Raises:
        RequestInvalid: an unknown task, or arguments that do not go together.
        Qwen3AsrError: as :func:`qwen3asr.load`.
    """
    if task not in ("automatic-speech-recognition", "qwen3-asr", "forced-alignment"):
        raise RequestInvalid(f"task {task!r} is not known; give 'automatic-speech-recognition' or 'forced-alignment'")
    options: LoadOptions = {**(model_kwargs or {})}
    if aligner is not None:
        options["aligner"] = aligner
    if isinstance(model, str | os.PathLike):
        kind = Qwen3AlignerModel if task == "forced-alignment" else Qwen3ASRModel
        model = kind.from_pretrained(model, **options)
    elif options:
        raise RequestInvalid(f"{', '.join(options)}: for a bundle's folder only; give them where the model is loaded")
    if task == "forced-alignment":
        return Qwen3AlignmentPipeline(model, task=task, device=device, **parameters)
    return Qwen3ASRPipeline(model, processor=processor, device=device, task=task, **parameters)


def register() -> None:
    """Make ``transformers.pipeline`` know the tasks ``"qwen3-asr"`` and ``"forced-alignment"``.

    They load bundles by path; ``"qwen3-asr"`` loads transformers' own checkpoints too. ``model_kwargs`` takes the
    options of :func:`qwen3asr.load`: ``model_kwargs={"aligner": "out/forced-aligner"}``. The stock tasks stay as they
    are.
    """
    for task, kind, model in (
        ("qwen3-asr", Qwen3ASRPipeline, Qwen3ASRModel),
        ("forced-alignment", Qwen3AlignmentPipeline, Qwen3AlignerModel),
    ):
        if task not in PIPELINE_REGISTRY.supported_tasks:
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=kind, pt_model=model, type="multimodal")
