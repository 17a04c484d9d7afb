"""What a stream tells while it listens. All frozen; times in seconds from the stream's start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from qwen3asr.types import FinishReason, Word


@dataclass(frozen=True, slots=True)
class Partial:
    """What the open segment holds so far; the next partial or the final replaces it.

    Attributes:
        text: all of the segment; begins with ``committed``.
        committed: the part that will not change any more.
        language: name of the language, or ``None`` if the model named none.
        start: where the segment begins.
        end: as far as the model has heard.
        words: times of committed words, if asked for; may lag behind ``committed``. Spans count in ``text``.
    """

    text: str
    committed: str
    language: str | None
    start: float
    end: float
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class Final:
    """A closed segment: it will not change, and the next event belongs to the next one.

    Attributes:
        text: begins with all that was committed; empty where a noise was taken for speech.
        language: name of the language, or ``None`` if the model named none.
        start: where the segment begins.
        end: where it ends; the next one begins there or later.
        finish_reason: how its last decoding ended; ``"no_speech"`` without text, ``"cancelled"`` if the stream was
            aborted, and then the text is what was committed.
        words: word times, if asked for. Spans count in ``text``.
        confidence: geometric mean probability of the text's tokens, 0 to 1; ``None`` without text.
    """

    text: str
    language: str | None
    start: float
    end: float
    finish_reason: FinishReason
    words: tuple[Word, ...] = ()
    confidence: float | None = None


Event: TypeAlias = Partial | Final
