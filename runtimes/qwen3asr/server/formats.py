"""A transcript in the forms that OpenAI's API gives it."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fastapi import Response
from fastapi.responses import PlainTextResponse

from qwen3asr.server.answers import SegmentTime, TextAnswer, Usage, VerboseAnswer, WordTime, json_of
from qwen3asr.server.forms import TranscriptionForm
from qwen3asr.transcript import Transcript
from qwen3asr.types import Segment, Word

SRT, VTT = "application/x-subrip", "text/vtt"


def render(result: Transcript, form: TranscriptionForm) -> Response:
    """The answer to a transcription request in the format that it asks for."""
    match form.response_format:
        case "text":
            return PlainTextResponse(result.text + "\n")
        case "srt":
            return PlainTextResponse(result.to_srt(), media_type=f"{SRT}; charset=utf-8")
        case "vtt":
            return PlainTextResponse(result.to_vtt(), media_type=f"{VTT}; charset=utf-8")
        case "verbose_json":
            return json_of(_verbose(result, form.timestamp_granularities))
        case _:
            return json_of(TextAnswer(text=result.text, usage=_usage(result), finish_reason=result.finish_reason))


def word_times(words: Iterable[Word]) -> list[WordTime]:
    """OpenAI's word objects; times in seconds."""
    return [WordTime(word=word.text, start=round(word.start, 3), end=round(word.end, 3)) for word in words]


def event(content: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _usage(result: Transcript) -> Usage:
    return Usage(seconds=round(result.duration, 3))


def _verbose(result: Transcript, granularities: Collection[str]) -> VerboseAnswer:
    segments = [_segment(index, segment, result) for index, segment in enumerate(result.segments)]
    return VerboseAnswer(
        language=(result.language or "unknown").lower(),
        duration=round(result.duration, 3),
        text=result.text,
        usage=_usage(result),
        finish_reason=result.finish_reason,
        words=word_times(result.words) if "word" in granularities else None,
        segments=segments if "segment" in granularities else None,
    )


def _segment(index: int, segment: Segment, result: Transcript) -> SegmentTime:
    text = segment.text.encode()
    return SegmentTime(
        id=index,
        seek=round(segment.start * 100),  # Whisper's frames
        start=round(segment.start, 3),
        end=round(segment.end, 3),
        text=segment.text,
        avg_logprob=_logprob(segment, result),
        compression_ratio=round(len(text) / len(zlib.compress(text)), 3),
    )


def _logprob(segment: Segment, result: Transcript) -> float:
    """Mean over the segment's words where they were aligned, else of the whole text; 0 if unknown."""
    known = [word.confidence for word in segment.words if word.confidence] or [result.confidence or 1.0]
    return round(sum(map(math.log, known)) / len(known), 4)
