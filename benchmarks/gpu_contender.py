"""What the GPU benchmark compares: whatever opens a model's graphs on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from gpu_machine import Widths

from qwen3asr import Recognizer
from qwen3asr.bundle import Bundle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.prompt import Prompt
from qwen3asr.sessions.base import Ids

Notes: TypeAlias = Mapping[str, Any]
"""What a row says beside its figures."""
Logits: TypeAlias = Callable[[Prompt, Ids], npt.NDArray[np.float32]]
"""Float32 ``[T, classes]`` at so many positions of a prompt, int64 ``[T]``, ascending."""


@dataclass(frozen=True, slots=True)
class Graphs:
    """A model that was opened."""

    encoder: Encoder
    decoder: Decoder
    notes: Notes = field(default_factory=dict)

    def close(self) -> None:
        """Make room for the next one."""
        self.encoder.close()
        self.decoder.close()


class Contender(Protocol):
    """Runs models in one way.

    ``model`` is a name as :func:`gpu_models.checkpoint` knows it; ``work`` is where bundles and engines are kept.
    Whatever is refused is raised, and becomes the row.
    """

    @property
    def name(self) -> str:
        """For tables and ``--only``."""

    @property
    def widths(self) -> Widths:
        """Of what a step reads."""

    def bundle(self, model: str, work: Path) -> Bundle:
        """What it runs, exported where it is not there."""

    def open(self, model: str, work: Path, *, slots: int, capacity: int) -> Graphs:
        """Open a model; ``capacity - 1`` tokens of a slot are for requests."""

    def logits(self, model: str, work: Path, capacity: int) -> Logits | None:
        """What looks into the decoder; ``None`` if nothing can."""

    def load(self, model: str, work: Path, slots: int) -> tuple[Recognizer, Notes]:
        """By the public face."""
