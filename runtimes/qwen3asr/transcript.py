"""The result of a transcription, and the forms it can be written in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwen3asr.subtitles import Cue, cues_of_segments, render_srt, render_vtt, segments_of
from qwen3asr.types import FinishReason, Segment, Word


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in one clip.

    Attributes:
        text: all of it, with punctuation.
        language: name of the language, such as ``"German"``, of several that which is spoken longest (each segment
            has its own); ``None`` if the model named none.
        duration: of the audio in seconds.
        finish_reason: how decoding ended; with ``"length"`` the text is cut.
        segments: the text in parts, in order; their words only where they were aligned.
        confidence: geometric mean probability of the text's tokens, 0 to 1; ``None`` if unknown.
    """

    text: str
    language: str | None
    duration: float
    finish_reason: FinishReason
    segments: tuple[Segment, ...] = ()
    confidence: float | None = None

    @classmethod
    def from_words(cls, text: str, words: Sequence[Word], duration: float, language: str | None = None) -> Transcript:
        """A known text with the times that an aligner found: the way to its subtitles.

        Args:
            text: the text that was aligned.
            words: what :meth:`qwen3asr.Aligner.align` gave for it.
            duration: of the audio in seconds.
            language: as the transcript is to report it.
        """
        return cls(text, language, duration, "stop", segments_of(text, words, duration))

    def __str__(self) -> str:
        """The text."""
        return self.text

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments; empty if none were aligned."""
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def repaired_words(self) -> int:
        """How many words' times are not as the model said, because that could not be right."""
        return sum(word.repaired for word in self.words)

    def to_srt(self) -> str:
        """SubRip subtitles; empty without text."""
        return render_srt(self._cues())

    def to_vtt(self) -> str:
        """WebVTT subtitles; only the header without text."""
        return render_vtt(self._cues())

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists for JSON: times in seconds, rounded to milliseconds; confidences to four digits."""
        return {
            "text": self.text,
            "language": self.language,
            "duration": round(self.duration, 3),
            "finish_reason": self.finish_reason,
            "confidence": _rounded(self.confidence),
            "repaired_words": self.repaired_words,
            "segments": [_segment(segment) for segment in self.segments],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """:meth:`to_dict` as JSON, other scripts as they are; ``indent=None`` gives one line."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent, allow_nan=False)

    def _cues(self) -> list[Cue]:
        segments = self.segments or (Segment(self.text, 0.0, self.duration),)
        return cues_of_segments(segments, duration=self.duration)


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "text": segment.text,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "language": segment.language,
        "words": [_word(word) for word in segment.words],
    }


def _word(word: Word) -> dict[str, Any]:
    return {
        "text": word.text,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "confidence": _rounded(word.confidence),
        "repaired": word.repaired,
    }


def _rounded(confidence: float | None) -> float | None:
    return None if confidence is None else round(confidence, 4)
