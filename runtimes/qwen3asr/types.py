"""What a transcription is made of. All frozen; times in seconds from the start of the audio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

FinishReason: TypeAlias = Literal["stop", "length", "loop", "no_speech", "cancelled"]
"""How decoding ended: the model's own end (``stop``), the token budget (``length``: the text is cut), the loop breaker
(``loop``: the model repeated itself, and the text is cut there), no speech heard (``no_speech``), or by the caller
before its end (``cancelled``)."""


@dataclass(frozen=True, slots=True)
class Word:
    """One aligned word.

    Attributes:
        text: the word as the transcript writes it, without the punctuation around it.
        start: start in seconds.
        end: end in seconds, never before ``start``.
        span: ``(first, last + 1)`` character offsets of ``text`` in the transcript.
        confidence: the recogniser's probability of the word, 0 to 1; ``None`` for text given by the caller.
        repaired: its times are not what the model said: they ran against the others', or gave it no length.
    """

    text: str
    start: float
    end: float
    span: tuple[int, int]
    confidence: float | None = None
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech: text with its punctuation, its time, its words if they were aligned, and its language."""

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
    language: str | None = None
