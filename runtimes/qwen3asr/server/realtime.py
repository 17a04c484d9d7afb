"""Transcription sessions over WebSocket: OpenAI's realtime protocol, ``type: "transcription"``.

A client of OpenAI's connects to ``/v1/realtime?intent=transcription``, appends base64 audio, and gets transcripts as
items. Deltas are text that will not change any more. What the protocol has beyond that (responses, noise reduction,
log probabilities) is refused by name, and a client's mistake never ends its session.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import FastAPI, Query, WebSocket

from qwen3asr.errors import KeyRefused, ModelUnknown, OriginRefused, ParameterInvalid, Qwen3AsrError
from qwen3asr.recognizer import Recognizer
from qwen3asr.server.auth import permits
from qwen3asr.server.lifecycle import Lifecycle
from qwen3asr.server.problems import error_response
from qwen3asr.server.realtime_session import Session
from qwen3asr.server.settings import ServerSettings

_PROTOCOL = "realtime"
_KEY_PREFIX = "openai-insecure-api-key."  # browsers cannot set headers; OpenAI's name for the way around it


def add_realtime(app: FastAPI, model: Recognizer, name: str, settings: ServerSettings) -> None:
    """Add ``/v1/realtime``.

    Sessions count as the lifecycle's work. When it drains they transcribe what was sent, and close with 1001.

    Args:
        app: with ``app.state.lifecycle``.
        model: shared by all sessions.
        name: of the model.
        settings: who may connect.
    """
    lifecycle: Lifecycle = app.state.lifecycle

    @app.websocket("/v1/realtime")
    async def realtime(
        websocket: WebSocket, intent: str = "transcription", wanted: Annotated[str | None, Query(alias="model")] = None
    ) -> None:
        offered: list[str] = websocket.scope["subprotocols"]
        try:
            _check_origin(websocket, settings)
            if not permits(settings.api_keys, _authorization(websocket, offered)):
                raise KeyRefused
            if intent != "transcription":
                raise ParameterInvalid("intent", f"{intent!r} is not offered; give transcription")
            if wanted not in (None, name):
                raise ModelUnknown(str(wanted), name)
            with lifecycle.work(breakable=False):
                await websocket.accept(subprotocol=_PROTOCOL if _PROTOCOL in offered else None)
                await Session(websocket, model, name).run(lifecycle.draining)
        except Qwen3AsrError as error:  # the session itself tells its client
            await websocket.send_denial_response(error_response(error, websocket.state.request_id))


def _authorization(websocket: WebSocket, offered: list[str]) -> str | None:
    """The header, or what a browser put into a subprotocol."""
    for protocol in offered:
        if protocol.startswith(_KEY_PREFIX):
            return f"Bearer {protocol.removeprefix(_KEY_PREFIX)}"
    return websocket.headers.get("authorization")


def _check_origin(websocket: WebSocket, settings: ServerSettings) -> None:
    """Browsers let any page open a WebSocket to any server: only its own pages, and those let in, may."""
    origin = websocket.headers.get("origin")
    if origin is None or {"*", origin} & set(settings.cors_origins):
        return
    if urlsplit(origin).netloc != websocket.headers.get("host"):
        raise OriginRefused(origin)
