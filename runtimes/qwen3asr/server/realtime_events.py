"""The messages of a realtime session: reading a client's, and making the server's."""

from __future__ import annotations

import base64
import binascii
import io
import json
import secrets
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile

from qwen3asr.errors import EventInvalid, Qwen3AsrError
from qwen3asr.server.problems import problem_of

Message: TypeAlias = dict[str, Any]

APPEND_CHARS = 15 * 2**20
"""The longest base64 text of one append, OpenAI's own limit: four minutes at 24 kHz."""

_SUBTYPES = {"audio/pcmu": "ULAW", "audio/pcma": "ALAW"}


@dataclass(frozen=True, slots=True)
class ClientEvent:
    """What a client sent: its type, its own id if it gave one, and all of its fields."""

    type: str
    event_id: str | None
    body: Message


def read_event(data: str | bytes) -> ClientEvent:
    """Read a message.

    Raises:
        EventInvalid: it is no JSON object with a type.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EventInvalid(f"the message is not JSON: {error}", "invalid_json") from error
    if not isinstance(body, dict):
        raise EventInvalid("the message is no JSON object; send an event such as {'type': ...}", "invalid_json")
    event_id = body.get("event_id") if isinstance(body.get("event_id"), str) else None
    kind = body.get("type")
    if not isinstance(kind, str):
        raise EventInvalid("the event has no type", "missing_required_parameter", "type", event_id)
    return ClientEvent(kind, event_id, body)


def read_audio(event: ClientEvent, kind: str) -> npt.NDArray[np.int16]:
    """The samples of an append.

    Args:
        event: with base64 in ``audio``.
        kind: ``audio/pcm``, ``audio/pcmu`` or ``audio/pcma``.

    Returns:
        int16 ``[n]`` at the rate of the session; may be empty.

    Raises:
        EventInvalid: too much at once, no base64, or half a sample.
    """
    text = event.body.get("audio")
    if not isinstance(text, str):
        raise EventInvalid("audio is missing; give base64", "missing_required_parameter", "audio")
    if len(text) > APPEND_CHARS:
        raise EventInvalid(
            f"audio has {len(text)} characters, and an append takes {APPEND_CHARS}; send it in several",
            "audio_too_large", "audio",
        )  # fmt: skip
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EventInvalid(f"audio is not base64: {error}", "invalid_value", "audio") from error
    if kind == "audio/pcm":
        if len(data) % 2:
            raise EventInvalid(
                f"audio has {len(data)} bytes; audio/pcm has two a sample", "invalid_value", "audio"
            )  # fmt: skip
        return np.frombuffer(data, "<i2").astype(np.int16, copy=False)
    return _expand(data, _SUBTYPES[kind])


def make_event(kind: str, fields: Message) -> str:
    """An event of the server as JSON, with an id of its own."""
    return json.dumps({"type": kind, "event_id": make_id("event"), **fields})


def make_id(kind: str) -> str:
    """A new id, such as ``item_3f0c...``."""
    return f"{kind}_{secrets.token_hex(12)}"


def describe(error: Qwen3AsrError) -> Message:
    """An error as OpenAI's protocol tells it; what went wrong inside the server is not told."""
    problem = problem_of(error)
    return {
        "type": problem.type,
        "code": getattr(error, "code", problem.code),
        "message": problem.message or str(error),
        "param": getattr(error, "parameter", problem.parameter),
    }


def _expand(data: bytes, subtype: str) -> npt.NDArray[np.int16]:
    if not data:
        return np.zeros(0, np.int16)
    samples, _ = soundfile.read(
        io.BytesIO(data), format="RAW", subtype=subtype, samplerate=8_000, channels=1, dtype="int16"
    )
    return np.asarray(samples, np.int16)
