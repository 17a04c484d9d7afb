"""A transcript in the forms that OpenAI's API gives it."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse, PlainTextResponse

from qwen3asr.server.forms import TranscriptionForm
from qwen3asr.transcript import Transcript
from qwen3asr.types import Segment, Word


def render(result: Transcript, form: TranscriptionForm) -> Response:
    """The answer to a transcription request in the format that it asks for."""
    match form.response_format:
        case "text":
            return PlainTextResponse(result.text + "\n")
        case "srt":
            return PlainTextResponse(result.to_srt(), media_type="application/x-subrip; charset=utf-8")
        case "vtt":
            return PlainTextResponse(result.to_vtt(), media_type="text/vtt; charset=utf-8")
        case "verbose_json":
            return JSONResponse(_verbose(result, form.timestamp_granularities))
        case _:
            return JSONResponse({"text": result.text, "usage": _usage(result)})


def words_json(words: Iterable[Word]) -> list[dict[str, Any]]:
    """OpenAI's word objects; times in seconds."""
    return [{"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)} for word in words]


def event(content: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _usage(result: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(result.duration, 3)}


def _verbose(result: Transcript, granularities: Collection[str]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": (result.language or "unknown").lower(),
        "duration": round(result.duration, 3),
        "text": result.text,
        "usage": _usage(result),
    }
    if "word" in granularities:
        body["words"] = words_json(result.words)
    if "segment" in granularities:
        body["segments"] = [_segment(index, segment, result) for index, segment in enumerate(result.segments)]
    return body


def _segment(index: int, segment: Segment, result: Transcript) -> dict[str, Any]:
    """All keys of OpenAI's object, since strict clients want them.

    Tokens are not given; a segment without speech is never written.
    """
    text = segment.text.encode()
    return {
        "id": index,
        "seek": round(segment.start * 100),  # Whisper's frames
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": _logprob(segment, result),
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 3),
        "no_speech_prob": 0.0,
    }


def _logprob(segment: Segment, result: Transcript) -> float:
    """Mean over the segment's words where they were aligned, else of the whole text; 0 if unknown."""
    known = [word.confidence for word in segment.words if word.confidence] or [result.confidence or 1.0]
    return round(sum(map(math.log, known)) / len(known), 4)
