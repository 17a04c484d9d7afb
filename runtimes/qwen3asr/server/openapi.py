"""The OpenAPI document: what FastAPI cannot tell from routes that read their forms themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from qwen3asr.server.answers import ErrorAnswer
from qwen3asr.server.forms import LISTS

URL = "/openapi.json"
_COMMON = (400, 405)
"""Any request may be refused so: HTTP that is not well-formed, a method that a path does not have."""
_MEANINGS = {
    400: "The audio or a parameter is wrong.",
    401: "No key, or a wrong one.",
    404: "There is no such thing here.",
    405: "Not with this method.",
    413: "Too large, or too long.",
    415: "Not multipart/form-data.",
    429: "The queue is full; come again after `Retry-After` seconds.",
    500: "The server failed; its log has the reason under the request's id.",
    501: "The server lacks a package for this language.",
    503: "The server is about to stop, or its model starts anew.",
    504: "Not done in time.",
}
WORK = (401, 404, 413, 415, 429, 500, 501, 503, 504)
"""How a request for work may be refused, beside those of every request."""


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """A route's answers with these statuses, for its ``responses``."""
    known = sorted({*_COMMON, *statuses})
    return {status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in known}


def multipart(form: type[BaseModel], model_name: str) -> dict[str, Any]:
    """A route's body, for its ``openapi_extra``: the parameters of a form, and the file."""
    schema = form.model_json_schema()
    fields = {f"{name}[]" if name in LISTS else name: _given(field) for name, field in schema["properties"].items()}
    fields["model"]["enum"] = [model_name]
    fields["file"] = {"type": "string", "format": "binary", "description": "The audio, with a file name."}
    required = ["file", *schema.get("required", [])]
    body = {"type": "object", "properties": fields, "required": required}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": body}}}}


def describe(app: FastAPI, *, keys: bool) -> None:
    """Let ``app`` tell of itself at :data:`URL`.

    Args:
        app: with all its routes.
        keys: whether paths under ``/v1`` need a key.
    """
    app.openapi = _document(app, keys)  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _document(app: FastAPI, keys: bool) -> Callable[[], dict[str, Any]]:
    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for path, methods in app.openapi_schema["paths"].items():
                for operation in methods.values():
                    operation["responses"].pop("422", None)  # FastAPI's own refusal, which no route here gives
                    if keys and path.startswith("/v1/"):
                        operation["security"] = [{"key": []}]
            components = app.openapi_schema["components"]
            for unused in ("HTTPValidationError", "ValidationError"):
                components["schemas"].pop(unused, None)
            if keys:
                components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        return app.openapi_schema

    return document


def _given(field: dict[str, Any]) -> dict[str, Any]:
    """A parameter where it is given: forms have no null."""
    choices = [choice for choice in field.get("anyOf", []) if choice != {"type": "null"}]
    rest = {key: value for key, value in field.items() if key not in ("anyOf", "default", "title")}
    return rest | (choices[0] if choices else {})
