"""What went wrong, as HTTP and OpenAI's error object tell it."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from qwen3asr import errors
from qwen3asr.server.answers import ErrorAnswer, ErrorObject


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as clients see it.

    Attributes:
        status: of the HTTP response.
        type: OpenAI's class of errors.
        code: OpenAI's or our name of the cause.
        parameter: the one at fault, ``None``: no particular one.
        message: in words; ``None``: the error's own.
    """

    status: int
    type: str
    code: str | None
    parameter: str | None = None
    message: str | None = None


_ASKED, _SERVER = "invalid_request_error", "server_error"
_HIDDEN = Problem(
    500, _SERVER, "internal_error", None, "the server failed on this request; its log has the reason under the id"
)
_PROBLEMS: dict[type[Exception], Problem] = {  # the first that an error is an instance of
    errors.KeyRefused: Problem(401, _ASKED, "invalid_api_key"),
    errors.OriginRefused: Problem(403, _ASKED, "origin_not_allowed"),
    errors.ModelUnknown: Problem(404, _ASKED, "model_not_found", "model"),
    errors.UploadTooLarge: Problem(413, _ASKED, "upload_too_large", "file"),
    errors.AudioPastLimit: Problem(413, _ASKED, "audio_too_long", "file"),
    errors.AudioTooLong: Problem(413, _ASKED, "audio_too_long", "file"),
    errors.AudioError: Problem(400, _ASKED, "invalid_audio", "file"),
    errors.ParameterInvalid: Problem(400, _ASKED, "invalid_value"),
    errors.LanguageUnknown: Problem(400, _ASKED, "unsupported_language", "language"),
    errors.ContextInvalid: Problem(400, _ASKED, "invalid_value", "prompt"),
    errors.AlignerMissing: Problem(
        400, _ASKED, "aligner_missing", None, "word times need a forced aligner, which this server runs without"
    ),
    errors.UsageError: Problem(400, _ASKED, "invalid_value"),
    errors.EngineBusy: Problem(
        429, "rate_limit_error", "rate_limit_exceeded", None, "the server has as many requests as it takes; come again"
    ),
    errors.StreamBehind: Problem(429, "rate_limit_error", "rate_limit_exceeded"),
    errors.ExtraMissing: Problem(501, _SERVER, "not_installed"),
    errors.ServerDraining: Problem(503, _SERVER, "server_stopping"),
    errors.EngineClosed: Problem(503, _SERVER, "server_stopping", None, "the server has stopped its model"),
    errors.EngineFailed: Problem(503, _SERVER, "model_failed", None, "the model failed and starts anew; send it again"),
    errors.DeadlineExceeded: Problem(504, _SERVER, "timeout"),
}
_RETRY_SECONDS = 1
_UNREAD = frozenset({401, 413, 415, 503, 504})
"""Statuses of requests whose body may not have been read to its end."""
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 16_000_000


def problem_of(error: Exception) -> Problem:
    """How clients are to see an error; what is not theirs to know comes as status 500 and says nothing."""
    for kind, problem in _PROBLEMS.items():
        if isinstance(error, kind):
            return problem
    return _HIDDEN


def error_body(error: Exception, request_id: str) -> dict[str, Any]:
    """OpenAI's error object for an error, and the id of the request beside it."""
    problem = problem_of(error)
    parameter = getattr(error, "parameter", problem.parameter)
    return _body(problem.message or str(error), problem.type, parameter, problem.code, request_id)


def error_response(error: Exception, request_id: str) -> JSONResponse:
    """The answer to a request that an error ended, with ``Retry-After`` in seconds where it may be sent again."""
    status, headers = problem_of(error).status, {}
    if status in (429, 503):
        hint = getattr(error, "retry_after", 0.0)
        headers["Retry-After"] = str(max(_RETRY_SECONDS, math.ceil(hint)))
    return _response(status, error_body(error, request_id), headers)


def refusal(status: int, message: str, request_id: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer to a request that HTTP itself has something against."""
    code = {404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}.get(status)
    return _response(status, _body(message, _ASKED, None, code, request_id), headers or {})


def _body(message: str, kind: str, parameter: str | None, code: str | None, request_id: str) -> dict[str, Any]:
    error = ErrorObject(message=message, type=kind, param=parameter, code=code)
    return ErrorAnswer(error=error, request_id=request_id).model_dump()


def _response(status: int, body: dict[str, Any], headers: dict[str, str]) -> JSONResponse:
    if status in _UNREAD:
        return _Parting(body, status, headers | {"Connection": "close"})
    return JSONResponse(body, status, headers)


class _Parting(JSONResponse):
    """Answers at once, and ends the connection a little later.

    Where a connection ends with data unread, systems reset it, and a client that is still sending loses the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                await _discard(receive, _LINGER_BYTES)
        await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive, most: int) -> None:
    while most > 0:
        message = await receive()
        if not message.get("more_body"):  # the end, or the client left
            return
        most -= len(message.get("body", b""))
