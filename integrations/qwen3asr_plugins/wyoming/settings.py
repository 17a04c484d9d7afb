"""What all connections of a server have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qwen3asr import SpeechDetector, StreamSettings


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What all connections of a server have in common; :func:`run` describes them."""

    language: str | None = None
    context: str = ""
    stream: StreamSettings | None = None
    detector: Callable[[], SpeechDetector] | None = None
    max_seconds: float = 600.0
    idle_seconds: float = 30.0
