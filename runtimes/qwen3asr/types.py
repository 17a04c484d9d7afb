"""What a transcription is made of. All frozen; times in seconds from the start of the audio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

FinishReason: TypeAlias = Literal["stop", "length", "no_speech"]
"""How decoding ended: the model's own end (``stop``), the token budget (``length``: the text is cut), or no speech
heard (``no_speech``)."""


@dataclass(frozen=True, slots=True)
class Word:
    """One aligned word.

    Attributes:
        text: the word as the transcript writes it, without the punctuation around it.
        start: start in seconds.
        end: end in seconds, never before ``start``.
        span: ``(first, last + 1)`` character offsets of ``text`` in the transcript.
        confidence: the recogniser's probability of the word, 0 to 1; ``None`` for text given by the caller.
    """

    text: str
    start: float
    end: float
    span: tuple[int, int]
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech: text with its punctuation, its time, and its words if they were aligned."""

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
