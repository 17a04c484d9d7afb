"""Realtime sessions of any events in any order: each is answered, and a mistake never ends the session."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.abuse.conftest import examples
from tests.abuse.limits import memory, patience
from tests.abuse.serving import wait_for
from tests.runtimes.server.conftest import Server
from websockets.sync.client import ClientConnection, connect

from qwen3asr.server.realtime_inbox import INBOX_BYTES, Inbox

AUDIO = base64.b64encode((1_000 * np.sin(np.arange(2_400) / 9)).astype("<i2").tobytes()).decode()
ODD = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(st.characters(), max_size=8)
    | st.sampled_from(["audio/pcm", "audio/pcmu", "server_vad", "null", "\ud800", "==", "A", "AAA", AUDIO, "x" * 300])
)  # fmt: skip
VALUE = st.recursive(ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


def update(**audio_input: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "transcription", "audio": {"input": audio_input}}}


VALID = st.sampled_from([
    {"type": "input_audio_buffer.append", "audio": AUDIO}, {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"}, update(turn_detection=None), update(turn_detection={"type": "server_vad"}),
    update(format={"type": "audio/pcmu"}), update(format={"type": "audio/pcm", "rate": 8_000}),
    update(transcription={"language": "de", "prompt": "eins"}),
])  # fmt: skip


@st.composite
def mistaken(draw: st.DrawFn) -> dict[str, Any]:
    """An event with a field of another kind, missing, or too many."""
    event = json.loads(json.dumps(draw(VALID)))
    inside = event
    while draw(st.booleans()):
        deeper = [value for value in inside.values() if isinstance(value, dict)]
        if not deeper:
            break
        inside = draw(st.sampled_from(deeper))
    inside[draw(st.sampled_from([*inside, "event_id", "rate", "x"]))] = draw(VALUE)
    return event


MESSAGE = st.one_of(
    VALID.map(json.dumps), VALID.map(json.dumps), mistaken().map(json.dumps), st.text(max_size=20),
    st.binary(max_size=20), VALUE.map(json.dumps),
    st.sampled_from(["", "{", "[" * 10_000, '{"a":' * 5_000, "1" * 5_000, "NaN", "\ufeff{}"]),
)  # fmt: skip


def answered(session: ClientConnection, last: str) -> list[dict[str, Any]]:
    """All events up to the error about the one event that is named ``last``."""
    events: list[dict[str, Any]] = []
    while not (events and events[-1]["type"] == "error" and events[-1]["error"]["event_id"] == last):
        events.append(json.loads(session.recv(timeout=20)))
    return events


@examples(50)
@given(messages=st.lists(MESSAGE, min_size=1, max_size=15))
def test_any_messages_are_answered_and_the_session_goes_on(server: Server, messages: list[str | bytes]) -> None:
    with patience(60), memory(), connect(server.url.replace("http", "ws") + "/v1/realtime") as session:
        for message in messages:
            session.send(message.encode("utf-8", "surrogatepass") if isinstance(message, str) else message)
        session.send(json.dumps({"type": "no such thing", "event_id": "the last"}))
        events = answered(session, "the last")
        errors = [event["error"] for event in events if event["type"] == "error"]
        assert all(error["type"] == "invalid_request_error" and len(error["message"]) < 2_000 for error in errors)
    wait_for(lambda: server.app.state.lifecycle.running == 0)


# --- what was found --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "x"])
def test_messages_without_content_are_bounded_too(text: str) -> None:
    """They counted as nothing: a client that sent millions of them filled the memory."""

    class Endless:
        reads = 0

        async def receive(self) -> dict[str, Any]:
            self.reads += 1
            if self.reads % 1_000 == 0:
                await asyncio.sleep(0)
            return {"type": "websocket.receive", "text": text}

    async def scene() -> int:
        inbox, source = Inbox(), Endless()
        filling = asyncio.create_task(inbox.fill(source))  # type: ignore[arg-type]
        for _ in range(500):
            await asyncio.sleep(0)
        filling.cancel()
        return source.reads

    assert asyncio.run(scene()) <= INBOX_BYTES / 200


def test_an_error_does_not_send_back_all_that_came(server: Server) -> None:
    """The name of an unknown setting came back whole, though it had a million characters."""
    with connect(server.url.replace("http", "ws") + "/v1/realtime") as session:
        odd = {"audio": {"input": {"format": {"type": "x" * 10**6}}}}
        for settings in ({"x" * 10**6: 1}, odd):
            session.send(json.dumps({"type": "session.update", "event_id": "long", "session": settings}))
            assert len(json.dumps(answered(session, "long")[-1])) < 1_500
