"""The checkpoint as transformers runs it, in float32 on the CPU: what every export is held against."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from qwen3asr.errors import CheckpointInvalid
from qwen3asr.features import SAMPLE_RATE, Mel, Samples
from qwen3asr.sessions.base import Embeddings, Ids
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.files import Lookup
from qwen3asr_export.layout import renames

Logits = npt.NDArray[np.float32]

_REPEATED = "repeated.weight"  # no name of the model: left out, and reported by that name


class Reference:
    """Transformers' native model and feature extractor.

    Raises:
        CheckpointInvalid: transformers did not find every weight, or found others.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        names = {"asr": "Qwen3ASRForConditionalGeneration", "aligner": "Qwen3ASRForTokenClassification"}
        loader = getattr(transformers, names[checkpoint.spec.kind])
        with _quiet():  # what it would warn of is an error below
            self._model, info = loader.from_pretrained(
                checkpoint.folder, dtype=torch.float32, output_loading_info=True, **_options(checkpoint)
            )
        found = {key: set(names) - {_REPEATED} for key, names in info.items() if key != "error_msgs"}
        wrong = {key: sorted(names) for key, names in found.items() if names}
        if wrong:
            raise CheckpointInvalid(f"transformers does not load {checkpoint.folder} as it is: {wrong}")
        self._model.eval()
        self._spec = checkpoint.spec
        extractor: Any = transformers.Qwen3ASRFeatureExtractor
        self._extractor = extractor()

    @property
    def name(self) -> str:
        """What it is, with versions."""
        return f"transformers {transformers.__version__} on torch {torch.__version__}, float32"

    @torch.no_grad()
    def replace(self, tensors: Lookup) -> None:
        """Replace every tensor of the model by the one of its name."""
        for name, parameter in self._model.named_parameters():
            parameter.copy_(torch.from_numpy(tensors[name]))

    def mel(self, samples: Samples) -> Mel:
        """Log-mel ``[128, frames]`` of one clip."""
        out = self._extractor(
            samples, sampling_rate=SAMPLE_RATE, padding="longest", return_tensors="np", n_window=0
        )  # fmt: skip
        return np.asarray(out["input_features"][0], np.float32)

    def _audio(self, mel: Mel) -> dict[str, torch.Tensor]:
        frames = mel.shape[1]
        padded = np.zeros((1, mel.shape[0], self._spec.windows.pad_frames(frames)), np.float32)
        padded[0, :, :frames] = mel
        mask = torch.zeros(1, padded.shape[2], dtype=torch.long)
        mask[0, :frames] = 1
        return {"input_features": torch.from_numpy(padded), "input_features_mask": mask}

    @torch.inference_mode()
    def embeddings(self, mel: Mel) -> Embeddings:
        """Audio embeddings ``[tokens, hidden]``."""
        model: Any = self._model if self._spec.kind == "asr" else self._model.model
        out: torch.Tensor = model.get_audio_features(**self._audio(mel), return_dict=True).pooler_output
        array: Embeddings = out.numpy()
        return array

    @torch.inference_mode()
    def logits(self, ids: Ids, mel: Mel, keep: Ids) -> Logits:
        """Logits ``[len(keep), classes]`` at the kept positions of one forward pass over everything."""
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids)[None], **self._audio(mel)}
        if self._spec.kind == "asr":  # never a whole vocabulary for each position
            out: torch.Tensor = self._model(**inputs, logits_to_keep=torch.from_numpy(keep)).logits[0]
        else:
            out = self._model(**inputs).logits[0, torch.from_numpy(keep)]
        array: Logits = out.numpy()
        return array

    @torch.inference_mode()
    def greedy(self, ids: Ids, mel: Mel, budget: int) -> list[int]:
        """New token ids of ``generate``, end token included."""
        prompt = torch.from_numpy(ids)[None]
        out: torch.Tensor = self._model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), **self._audio(mel), do_sample=False,
            max_new_tokens=budget, eos_token_id=list(self._spec.eos), pad_token_id=self._spec.eos[0],
        )  # fmt: skip
        return [int(index) for index in out[0, len(ids) :]]


def _options(checkpoint: Checkpoint) -> dict[str, Any]:
    """How transformers is to load what it does not load by itself."""
    mapping, options = {}, {}
    if checkpoint.repeated is not None:  # else it holds head and embedding in float32 before it ties them
        mapping[f"^{re.escape(checkpoint.repeated)}$"] = _REPEATED
    if checkpoint.layout == "original":  # of which by itself it makes a random model
        mapping |= {f"^{re.escape(old)}": new for old, new in renames(checkpoint.spec.kind).items()}
        options["config"] = transformers.Qwen3ASRConfig.from_dict(checkpoint.config)
    return options | ({"key_mapping": mapping} if mapping else {})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from logging warnings."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
