"""The application: routes, and what stands around all of them."""

from __future__ import annotations

import logging

from fastapi import FastAPI, HTTPException, Request, Response
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

import qwen3asr
from qwen3asr.errors import Qwen3AsrError
from qwen3asr.recognizer import Recognizer
from qwen3asr.server.alignments import alignment_routes
from qwen3asr.server.auth import KeyCheck
from qwen3asr.server.catalogue import model_routes, operator_routes
from qwen3asr.server.lifecycle import Lifecycle
from qwen3asr.server.openapi import URL, describe
from qwen3asr.server.page import add_page
from qwen3asr.server.problems import error_response, problem_of, refusal
from qwen3asr.server.realtime import add_realtime
from qwen3asr.server.request_ids import GONE, HEADER, RequestIds
from qwen3asr.server.settings import ServerSettings
from qwen3asr.server.transcriptions import transcription_routes

_log = logging.getLogger("qwen3asr.server")


def create_app(model: Recognizer, settings: ServerSettings | None = None) -> FastAPI:
    """An ASGI application over a loaded model.

    ``app.state.lifecycle`` is its :class:`~qwen3asr.server.lifecycle.Lifecycle`. The model is shared by all requests,
    and stays the caller's to close.

    Args:
        model: with or without an aligner.
        settings: how to behave.
    """
    settings = settings or ServerSettings()
    name = settings.model_name or model.bundle.folder.resolve().name
    app = FastAPI(title="qwen3asr", version=qwen3asr.__version__, openapi_url=URL, docs_url=None, redoc_url=None)
    lifecycle = app.state.lifecycle = Lifecycle()
    app.include_router(transcription_routes(model, name, settings, lifecycle))
    app.include_router(alignment_routes(model, name, settings, lifecycle))
    app.include_router(model_routes(name))
    app.include_router(operator_routes(model, name, lifecycle))
    add_realtime(app, model, name, settings)
    if settings.page:
        add_page(app)
    describe(app, keys=bool(settings.api_keys))
    app.add_exception_handler(Qwen3AsrError, _failed)
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_middleware(KeyCheck, keys=settings.api_keys)
    if settings.cors_origins:  # before the keys, since a browser's question whether it may ask brings none
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"],
            allow_headers=["Authorization", HEADER], expose_headers=[HEADER, "Retry-After"],
        )  # fmt: skip
    app.add_middleware(RequestIds)
    return app


async def _failed(request: Request, error: Exception) -> Response:
    name = request.state.request_id
    if problem_of(error).status == 500:
        _log.error("request %s failed", name, exc_info=error)
    return error_response(error, name)


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException | StarletteHTTPException):
        raise error
    name, message = request.state.request_id, error.detail
    if error.status_code == 404 and message == "Not Found":
        message = f"there is no {request.method} {request.url.path} here"
    return refusal(error.status_code, message, name, dict(error.headers or {}))


async def _left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=GONE)  # to nobody
