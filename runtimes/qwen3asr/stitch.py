"""The transcripts of consecutive pieces become one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from qwen3asr.events import Final
from qwen3asr.subtitles import segments_of
from qwen3asr.transcript import Transcript
from qwen3asr.types import FinishReason, Segment, Word

_WORST_FIRST: tuple[FinishReason, ...] = ("cancelled", "length", "loop", "stop", "no_speech")
_CLOSING = frozenset(".,:;!?%…)]}”،؛؟۔।॥")
"""What follows a word without a space in all that is written with spaces (French aside, where the model decides)."""

# Scripts that put no space between words, with the signs that belong to them; Hangul does, and is not among them.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x19E0, 0x19FF),  # Khmer symbols
    (0x2E80, 0x2FFF),  # radicals
    (0x3000, 0x312F),  # CJK punctuation, Hiragana, Katakana, Bopomofo
    (0x3190, 0x4DBF),  # Kanbun to ideographs of extension A
    (0x4E00, 0x9FFF),  # ideographs
    (0xA9E0, 0xA9FF),  # Myanmar, extended
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),  # compatibility ideographs
    (0xFE30, 0xFE4F),  # vertical forms
    (0xFF00, 0xFF9F),  # fullwidth forms, halfwidth Katakana
    (0xFFE0, 0xFFE6),  # fullwidth signs
    (0x1AFF0, 0x1B16F),  # more Kana
    (0x20000, 0x3FFFF),  # ideographs of all other extensions
)


@dataclass(frozen=True, slots=True)
class Part:
    """What was said in one piece of the audio.

    Attributes:
        text: its transcript.
        language: of the text, ``None`` if the model named none.
        start: of the piece in seconds from the start of the audio.
        end: of the piece.
        words: with times from the piece's start, and spans in ``text``; empty if they were not aligned.
        finish_reason: how the decoding of the piece ended.
        confidence: geometric mean probability of the text's tokens; ``None`` if unknown.
        tokens: how many those are.
    """

    text: str
    language: str | None
    start: float
    end: float
    words: tuple[Word, ...]
    finish_reason: FinishReason
    confidence: float | None
    tokens: int


def stitch(parts: Sequence[Part], duration: float) -> Transcript:
    """Put the parts of one clip together.

    No segment spans two parts. Words keep their text; their times and spans become those in the whole.

    Args:
        parts: in the order of the audio; none gives an empty transcript without speech.
        duration: of the audio in seconds.

    Returns:
        The transcript. Its language is that of the most seconds of segments, or, without text, the first that a part
        names; its finish reason the worst of the parts': ``cancelled``, then ``length``, ``loop``, ``stop``, and
        ``no_speech`` only if nothing was said in any; its confidence the geometric mean over all tokens.

    Raises:
        RequestInvalid: a part's words do not fit its text.
    """
    text = ""
    segments: list[Segment] = []
    for part in parts:
        said = part.text.strip()
        if said:
            text += _space(text, said)
            segments += _segments(part, said, len(text))
            text += said
    reasons = {part.finish_reason for part in parts} or {"no_speech"}
    finish = next(reason for reason in _WORST_FIRST if reason in reasons)
    return Transcript(text, _language(parts, segments), duration, finish, tuple(segments), _confidence(parts))


def transcript_of(finals: Sequence[Final]) -> Transcript:
    """The closed segments of a stream as one transcript; times stay those of the stream.

    Confidences count by the length of their text.

    Raises:
        RequestInvalid: a segment's words do not fit its text.
    """
    parts = [
        Part(
            final.text, final.language, final.start, final.end,
            tuple(replace(word, start=word.start - final.start, end=word.end - final.start) for word in final.words),
            final.finish_reason, final.confidence, len(final.text),
        )
        for final in finals
    ]  # fmt: skip
    return stitch(parts, parts[-1].end if parts else 0.0)


def join_texts(texts: Iterable[str]) -> str:
    """Texts one behind the other, with a space between two where their scripts put one."""
    joined = ""
    for text in texts:
        said = text.strip()
        joined += _space(joined, said) + said if said else ""
    return joined


def _space(before: str, after: str) -> str:
    """What goes between two texts, neither of which begins or ends with a space."""
    if not before or _unspaced(before[-1]) or _unspaced(after[0]) or after[0] in _CLOSING:
        return ""
    return " "


def _unspaced(char: str) -> bool:
    return any(first <= ord(char) <= last for first, last in _UNSPACED)


def _segments(part: Part, said: str, at: int) -> Iterator[Segment]:
    """The part's segments, their times and spans moved to where they belong; ``said`` begins at ``at``."""
    lead = len(part.text) - len(part.text.lstrip())
    words = [replace(word, span=(word.span[0] - lead, word.span[1] - lead)) for word in part.words]
    for segment in segments_of(said, words, part.end - part.start):
        inside = tuple(_moved(word, part.start, part.end, at) for word in segment.words)
        start, end = (min(time + part.start, part.end) for time in (segment.start, segment.end))
        yield Segment(segment.text, start, end, inside, part.language)


def _moved(word: Word, seconds: float, end: float, characters: int) -> Word:
    """The word so much later, in time and in text, but not past ``end``: not even by the rounding of a sum."""
    span = (word.span[0] + characters, word.span[1] + characters)
    return replace(word, start=min(word.start + seconds, end), end=min(word.end + seconds, end), span=span)


def _language(parts: Iterable[Part], segments: Iterable[Segment]) -> str | None:
    seconds = {part.language: 0.0 for part in parts if part.language is not None}
    for segment in segments:
        if segment.language is not None:
            seconds[segment.language] += segment.end - segment.start
    return max(seconds, key=seconds.__getitem__, default=None)


def _confidence(parts: Iterable[Part]) -> float | None:
    known = [(part.confidence, part.tokens) for part in parts if part.confidence is not None and part.tokens]
    if not known:
        return None
    if min(confidence for confidence, _ in known) <= 0:
        return 0.0
    total = sum(tokens for _, tokens in known)
    return math.exp(sum(math.log(confidence) * tokens for confidence, tokens in known) / total)
