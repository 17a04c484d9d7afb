"""Exported bundles as the models that transformers' pipelines want."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeAlias, TypedDict

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, Qwen3ASRForConditionalGeneration

import qwen3asr
from qwen3asr import Aligner, Guards, Policy, Recognizer
from qwen3asr.errors import DeviceUnavailable, RequestInvalid

Place: TypeAlias = str | os.PathLike[str]

_FRAMEWORK = frozenset(
    "adapter_kwargs code_revision config dtype _from_pipeline revision token trust_remote_code local_files_only".split()
)
"""What transformers.pipeline passes to every ``from_pretrained``; a bundle is a folder with its own precision."""


class LoadOptions(TypedDict, total=False):
    """What :func:`qwen3asr.load` takes besides the bundle."""

    aligner: Place | None
    device: str
    engine: str | None
    provider: str | None
    provider_cache: Place | None
    engines: Place | None
    build_engines: bool
    cuda_graphs: bool
    threads: int
    slots: int | None
    capacity: int | None
    queue: int
    guards: Guards | None
    policy: Policy | None
    share_weights: bool
    check_hashes: bool


class ExportedModel:
    """What ``Pipeline`` asks of a model, told by a bundle.

    Attributes:
        folder: the bundle, ``None`` where it is not known.
        config: transformers' configuration of the checkpoint that was exported.
        device: where tensors would go; the graphs run where :func:`qwen3asr.load` put them.
        dtype: of samples.
    """

    main_input_name = "input_features"
    input_modalities = ("audio",)
    output_modalities = ("text",)

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.config: PreTrainedConfig = PreTrainedConfig() if folder is None else AutoConfig.from_pretrained(folder)
        self.generation_config = GenerationConfig.from_model_config(self.config)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def can_generate(self) -> bool:
        """No: texts come from the recogniser, not from ``generate``."""
        return False

    def to(self, device: Any) -> Self:
        """Stay where the model is.

        Raises:
            DeviceUnavailable: for any other device.
        """
        if torch.device(device).type != self.device.type:
            raise DeviceUnavailable(
                f"an exported model runs where it was loaded, and cannot move to {device}; leave device= out, and load "
                "it there: model_kwargs={'device': 'cuda'}"
            )
        return self

    def save_pretrained(self, save_directory: Place) -> None:
        """Copy the bundle, whole and byte for byte; its files may be there already.

        Raises:
            RequestInvalid: the model was given loaded, and does not know its bundle.
        """
        if self.folder is None:
            raise RequestInvalid("an aligner that was given loaded does not know its bundle; copy that folder instead")
        if Path(save_directory).resolve() != self.folder.resolve():
            shutil.copytree(self.folder, save_directory, dirs_exist_ok=True)


class Qwen3ASRModel(ExportedModel):
    """A recogniser as pipelines want their models.

    Args:
        recognizer: from :func:`qwen3asr.load`.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        super().__init__(recognizer.bundle.folder)
        self.recognizer = recognizer

    @classmethod
    def from_pretrained(cls, model_id: Place, **options: Any) -> Self:
        """Load a bundle.

        Args:
            model_id: folder that ``qwen3asr export`` wrote.
            options: :class:`LoadOptions`. What transformers passes to every model (``revision``, ``dtype`` ...) has
                no meaning for a bundle.

        Raises:
            Qwen3AsrError: as :func:`qwen3asr.load`.
        """
        return cls(qwen3asr.load(model_id, **_load_options(options)))


class Qwen3ASRSpeechModel:
    """What ``AutoModelForSpeechSeq2Seq`` loads: a bundle, or a checkpoint of transformers' own model."""

    @classmethod
    def from_pretrained(cls, model_id: Place, *args: Any, **options: Any) -> Any:
        """A :class:`Qwen3ASRModel` of a folder that ``qwen3asr export`` wrote, else transformers' own model."""
        if (Path(model_id) / "bundle.json").is_file():
            return Qwen3ASRModel.from_pretrained(model_id, **options)
        return Qwen3ASRForConditionalGeneration.from_pretrained(model_id, *args, **options)


class Qwen3AlignerModel(ExportedModel):
    """A forced aligner as pipelines want their models.

    Args:
        aligner: from :func:`qwen3asr.load_aligner`, or a recogniser loaded with one, which aligns audio of any length.
        folder: its bundle, if it is to be saved.
    """

    def __init__(self, aligner: Aligner | Recognizer, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.aligner = aligner

    @classmethod
    def from_pretrained(cls, model_id: Place, **options: Any) -> Self:
        """Load an aligner's bundle, or with ``aligner=`` a recogniser's and the aligner's.

        Args:
            model_id: folder that ``qwen3asr export`` wrote.
            options: those of :func:`qwen3asr.load_aligner`, with ``aligner`` those of :func:`qwen3asr.load`.

        Raises:
            Qwen3AsrError: as these.
        """
        chosen = _load_options(options)
        if "aligner" in chosen:
            return cls(qwen3asr.load(model_id, **chosen))
        return cls(qwen3asr.load_aligner(model_id, **chosen), Path(model_id))


def _load_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _FRAMEWORK}
