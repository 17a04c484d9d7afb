"""An id for every request: in its answer, in the log, and where it failed."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen3asr.server.problems import error_response

HEADER = "X-Request-ID"
_VALID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
_OPENING = ("http.response.start", "websocket.accept", "websocket.http.response.start")
GONE = 499
"""Nginx's status for a client that left before its answer."""

_log = logging.getLogger("qwen3asr.server")


class RequestIds:
    """ASGI middleware around everything else.

    Takes the client's ``X-Request-ID`` if it is up to 128 plain characters, or makes one; it is
    ``request.state.request_id`` within. Logs one line a request: method, path without its query, status, seconds, id;
    never what was sent or said. An error that nothing else caught is logged with its traceback, and the client gets
    status 500 and the id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if _VALID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = name
        status, begun = 0, time.monotonic()

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] in _OPENING:
                status = message.get("status", 101)
                message.setdefault("headers", [])
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            _log.exception("request %s failed", name)
            if status or scope["type"] == "websocket":
                raise  # too late for an answer: the server breaks the connection
            await error_response(error, name)(scope, receive, send_named)
        finally:
            method, seconds = scope.get("method", "WEBSOCKET"), time.monotonic() - begun
            _log.info("%s %s %d %.3f s %s", method, scope["path"], status or GONE, seconds, name)
