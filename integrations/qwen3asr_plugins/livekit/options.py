"""How to listen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qwen3asr import StreamSettings


@dataclass(frozen=True, slots=True)
class Options:
    """How to listen; replaced as a whole, so that a stream sees a change by identity."""

    language: str | None
    context: str
    timestamps: Literal["word"] | None
    settings: StreamSettings
    keyterms: tuple[str, ...] = ()  # the session's, which come and go without the user's doing

    @property
    def prompt(self) -> str:
        """What the model gets as context."""
        return "\n".join(part for part in (self.context, ", ".join(self.keyterms)) if part)
