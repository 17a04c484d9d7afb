"""What the server answers, as models: answers are made of them, and its OpenAPI document describes them."""

from __future__ import annotations

from typing import Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from qwen3asr.types import FinishReason


class Usage(BaseModel):
    """What a transcription is counted by."""

    type: Literal["duration"] = "duration"
    seconds: float


class TextAnswer(BaseModel):
    """``response_format=json``.

    Attributes:
        finish_reason: ours, not OpenAI's: ``length`` where the text is cut, ``loop`` where it ran in a circle.
    """

    text: str
    usage: Usage
    finish_reason: FinishReason


class WordTime(BaseModel):
    """OpenAI's word object; times in seconds."""

    word: str
    start: float
    end: float


class SegmentTime(BaseModel):
    """OpenAI's segment object, with all of its keys, since strict clients want them.

    Tokens are not given; a segment without speech is never written.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int] = []
    temperature: float = 0.0
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float = 0.0


class VerboseAnswer(BaseModel):
    """``response_format=verbose_json``; words and segments are there where they were asked for."""

    task: Literal["transcribe"] = "transcribe"
    language: str
    duration: float
    text: str
    usage: Usage
    finish_reason: FinishReason
    words: list[WordTime] | None = None
    segments: list[SegmentTime] | None = None


class Alignment(BaseModel):
    """Word times of a text that was given."""

    text: str
    words: list[WordTime]


class Model(BaseModel):
    """OpenAI's model object."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["qwen3asr"] = "qwen3asr"


class ModelList(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Status(BaseModel):
    """How the process does."""

    status: Literal["alive", "ready"]


class ErrorObject(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every refusal, with the id under which the log has it."""

    error: ErrorObject
    request_id: str


def json_of(answer: BaseModel) -> JSONResponse:
    """An answer, without what it does not have."""
    return JSONResponse(answer.model_dump(exclude_none=True))
