"""What the GPU benchmark runs: checkpoints, their bundles, transformers beside them; and the rows as they come."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.features import Mel
from qwen3asr.sessions.base import Embeddings, Ids
from qwen3asr.spec import ModelSpec
from qwen3asr_export import export
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.standin import make_standin

TINY = Path(__file__).resolve().parent.parent / "examples" / "tiny"


def checkpoint(name: str, work: Path) -> Path:
    """``tiny-asr``, ``tiny-aligner``, or a random checkpoint of a released shape, made where it is not there."""
    if name.startswith("tiny-"):
        return TINY / name.removeprefix("tiny-")
    folder = work / name
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        make_standin(name, folder)
    return folder


def bundle_of(name: str, precision: str, dialect: str, work: Path) -> Bundle:
    """A model's bundle, exported where it is not there."""
    folder = work / f"{name}-{precision}-{dialect}"
    if not folder.exists():
        return export(checkpoint(name, work), folder, precision=precision, dialect=dialect, check=False)
    return open_bundle(folder)


def release() -> None:
    """Give back what nobody holds: objects that hold each other, and what torch keeps of a GPU for its next tensor."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Peer:
    """Transformers' own model on the same device.

    Args:
        folder: a checkpoint as transformers lays it out.
        dtype: what it computes in.
        device: torch's name of it.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: str) -> None:
        self.spec: ModelSpec = Checkpoint(folder).spec
        names = {"asr": "Qwen3ASRForConditionalGeneration", "aligner": "Qwen3ASRForTokenClassification"}
        loader: Any = getattr(transformers, names[self.spec.kind])
        model = loader.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        self._model, self._dtype, self._device = model.to(device).eval(), dtype, device

    def _inputs(self, ids: Ids, mels: list[Mel]) -> dict[str, torch.Tensor]:
        """One prompt for clips of one length."""
        frames = mels[0].shape[1]
        padded = np.zeros((len(mels), mels[0].shape[0], self.spec.windows.pad_frames(frames)), np.float32)
        mask = torch.zeros(len(mels), padded.shape[2], dtype=torch.long)
        padded[:, :, :frames], mask[:, :frames] = np.stack(mels), 1
        tokens = torch.from_numpy(np.tile(ids, (len(mels), 1)))
        inputs = {"input_ids": tokens, "input_features": torch.from_numpy(padded), "input_features_mask": mask}
        return {
            name: value.to(self._device, self._dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }

    @torch.inference_mode()
    def logits(self, ids: Ids, mel: Mel, keep: Ids) -> np.ndarray:
        """Float32 ``[len(keep), classes]``."""
        inputs, kept = self._inputs(ids, [mel]), torch.from_numpy(keep).to(self._device)
        if self.spec.kind == "asr":
            out = self._model(**inputs, logits_to_keep=kept).logits[0]
        else:
            out = self._model(**inputs).logits[0, kept]
        return np.asarray(out.float().cpu().numpy())

    @torch.inference_mode()
    def forced(self, ids: Ids, mels: list[Mel], budget: int, *, to_end: bool = False) -> list[list[int]]:
        """Greedy ids of each clip: exactly ``budget`` of them, or up to the end token."""
        inputs = self._inputs(ids, mels)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        least = {} if to_end else {"min_new_tokens": budget}
        out = self._model.generate(
            **inputs, do_sample=False, max_new_tokens=budget, pad_token_id=0, eos_token_id=list(self.spec.eos), **least
        )
        return [[int(index) for index in row] for row in out[:, len(ids) :].cpu()]

    def rows(self, mel: Mel) -> Embeddings:
        """As many embedding rows as a clip has, for building its prompt; only their number matters."""
        return np.zeros((self.spec.windows.tokens(mel.shape[1]), self.spec.hidden), np.float32)


class Progress:
    """Rows of a report as they come: each is kept as soon as it is there, and after a while no more are begun.

    Args:
        save: called after each row.
        seconds: after which rows are written down as not measured.
    """

    def __init__(self, save: Callable[[], None], seconds: float) -> None:
        self._save, self._end = save, time.perf_counter() + seconds

    def row(self, rows: dict[str, Any], name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure one row. What fails is a result: its words are kept, and the next has its turn."""
        row: dict[str, Any] = {}
        if time.perf_counter() > self._end:
            row["error"] = "not measured: out of time"
        else:
            try:
                row |= measure()
            except Exception as error:  # noqa: BLE001 (see above)
                row["error"] = f"{type(error).__name__}: {error}"[:2000]
        rows[name] = row
        release()
        print(name, row, flush=True)
        self._save()
