"""TensorRT's own engines as contenders: built for the sizes of each row, on the GPU that is measured, and kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpu_contender import Graphs, Logits, Notes
from gpu_machine import Widths
from gpu_models import bundle_of

import qwen3asr
from qwen3asr.bundle import Bundle
from qwen3asr.engines import Engines, engine_folders
from qwen3asr.errors import EnginesForeign
from qwen3asr.precisions import PRECISIONS
from qwen3asr.tensorrt_backend import Chosen, TensorRtBackend, choose_engines
from qwen3asr_export.tensorrt import Settings, build_engines
from qwen3asr_export.tensorrt.settings import QUANTISED


@dataclass(frozen=True, slots=True)
class NativeContender:
    """See :class:`gpu_contender.Contender`.

    Attributes:
        precision: of the engines.
    """

    precision: str

    @property
    def name(self) -> str:
        """See :class:`gpu_contender.Contender`."""
        return f"tensorrt-native {self.precision}"

    @property
    def widths(self) -> Widths:
        """See :class:`gpu_contender.Contender`."""
        width, stored = PRECISIONS[self._source].cache_bytes, QUANTISED.get(self.precision)
        if stored is None:
            return Widths(width, width)
        return Widths(stored.bits / 8 + (2 / stored.block if stored.block else 0), width)  # a scale a column is nothing

    def bundle(self, model: str, work: Path) -> Bundle:
        """See :class:`gpu_contender.Contender`."""
        return bundle_of(model, self._source, "standard", work)

    def open(self, model: str, work: Path, *, slots: int, capacity: int) -> Graphs:
        """See :class:`gpu_contender.Contender`."""
        bundle = self.bundle(model, work)
        chosen = self._engines(bundle, Settings(slots=slots, capacity=capacity))
        backend = TensorRtBackend(bundle, chosen, 0, cuda_graphs=True)
        return Graphs(*backend.open(slots, capacity), notes=_notes(chosen.engines))

    def logits(self, model: str, work: Path, capacity: int) -> Logits | None:
        """See :class:`gpu_contender.Contender`: engines answer with tokens only."""
        return None

    def load(self, model: str, work: Path, slots: int) -> tuple[qwen3asr.Recognizer, Notes]:
        """See :class:`gpu_contender.Contender`."""
        bundle = self.bundle(model, work)
        chosen = self._engines(bundle, Settings(slots=slots))
        loaded = qwen3asr.load(bundle.folder, device="cuda", engine="tensorrt", engines=chosen.folder, slots=slots)
        return loaded, _notes(chosen.engines)

    @property
    def _source(self) -> str:
        """The bundle's precision."""
        return "bf16" if self.precision in QUANTISED else self.precision

    def _engines(self, bundle: Bundle, settings: Settings) -> Chosen:
        """Those of these sizes, built where they are not there."""
        fitted = settings.fitted(bundle.spec)
        wanted = self.precision, fitted.slots, fitted.capacity
        for folder in engine_folders(bundle.folder):
            try:
                kept = choose_engines(bundle, 0, named=folder)
            except EnginesForeign:  # of another GPU or TensorRT
                continue
            if (kept.engines.precision, kept.engines.slots, kept.engines.capacity) == wanted:
                return kept
        built, _ = build_engines(bundle.folder, settings=fitted, precision=self.precision, replace=True)
        # the builder names folders by GPU, version and precision: one a setting has a name of its own
        named = built.rename(built.with_name(f"{built.name}-{fitted.slots}x{fitted.capacity}"))
        return choose_engines(bundle, 0, named=named)


def _notes(engines: Engines) -> Notes:
    """How long building took, also where it was done for a row before."""
    return {"build_s": {component: file.seconds for component, file in engines.components.items()}}
