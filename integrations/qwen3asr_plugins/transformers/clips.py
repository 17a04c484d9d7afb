"""What both pipelines share: how clips come in, one by one or by the thousand, and how models are saved."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from transformers import Pipeline

from qwen3asr import AudioInput, Segment, Word
from qwen3asr.errors import RequestInvalid

from .models import ExportedModel, Place

_Pipeline: Any = Pipeline
"""Untyped: transformers declares that models are torch modules and outputs tensors, and here they are neither."""


class ClipPipeline(_Pipeline):  # type: ignore[misc]
    """One clip, a list, or anything that yields clips: a generator, a ``KeyDataset``, a column of ``datasets``."""

    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False

    def __init__(self, model: Any, processor: Any = None, device: Any = None, **parameters: Any) -> None:
        if isinstance(model, ExportedModel) and device is None:
            device = model.device  # else Pipeline takes the first GPU there is
        super().__init__(model, processor=processor, device=device, **parameters)

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        """A result for a clip, a list for a list, an iterator that works as it is asked for anything else.

        Args:
            inputs: the clips.
            parameters: as when the pipeline was made, for this call only.

        Raises:
            Qwen3AsrError: a subclass for each cause; of many clips, that of the first that fails.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        many = not isinstance(inputs, list) and not _is_one(inputs)
        return super().__call__(_generator(inputs) if many else inputs, **parameters)

    def get_iterator(
        self, inputs: Iterable[Any], num_workers: int, batch_size: int, preprocess_params: Any, forward_params: Any,
        postprocess_params: Any,
    ) -> Iterator[Any]:  # fmt: skip
        """Results in the order of the inputs, which are read as they are needed; ``num_workers`` has no effect."""
        if batch_size < 1:
            raise RequestInvalid(f"batch_size={batch_size} holds no clip; give at least 1")
        prepared = (self.preprocess(item, **preprocess_params) for item in inputs)
        outputs = self._each(prepared, batch_size, forward_params)
        return (self.postprocess(output, **postprocess_params) for output in outputs)

    def _forward(self, prepared: Any, **options: Any) -> Any:
        return next(self._each(iter([prepared]), 1, options))

    @abstractmethod
    def _each(self, prepared: Iterator[Any], batch_size: int, options: Mapping[str, Any]) -> Iterator[Any]:
        """What the model makes of each input."""

    def save_pretrained(self, save_directory: Place, **kwargs: Any) -> None:
        """Save the model: a bundle whole (transformers would rewrite files whose hashes the bundle lists)."""
        if isinstance(self.model, ExportedModel):
            self.model.save_pretrained(save_directory)
        else:
            super().save_pretrained(save_directory, **kwargs)


def audio_input(given: Any) -> AudioInput:
    """As qwen3asr reads it.

    ``raw`` is transformers' name of ``array``, ``bytes`` and ``path`` come from undecoded columns of datasets, and a
    decoder of torchcodec from decoded ones.
    """
    if hasattr(given, "get_all_samples"):
        decoded = given.get_all_samples()
        return _array(decoded.data), int(decoded.sample_rate)
    if not isinstance(given, Mapping):
        return cast(AudioInput, _array(given))
    if "stride" in given:
        raise RequestInvalid('"stride" is for pieces that overlap; give the whole audio, it is cut at pauses')
    array = given.get("raw", given.get("array"))
    if array is None:
        return cast(AudioInput, given.get("bytes") or given.get("path") or given)
    return {**given, "array": np.asarray(_array(array))}


def timed(part: Segment | Word) -> dict[str, Any]:
    """As transformers gives times, in seconds."""
    return {"text": part.text, "timestamp": (part.start, part.end)}


def _is_one(inputs: Any) -> bool:
    """Whether this is one clip; else it yields clips."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, torch.Tensor, Mapping, tuple)
    return isinstance(inputs, kinds) or hasattr(inputs, "read") or hasattr(inputs, "get_all_samples")


def _generator(inputs: Any) -> Iterator[Any]:
    """The one kind of iterable that every Pipeline takes; torch's datasets need not end an iteration by themselves."""
    if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
        return (inputs[index] for index in range(len(inputs)))
    return (item for item in inputs)


def _array(given: Any) -> Any:
    return given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else given
