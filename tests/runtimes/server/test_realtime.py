"""Transcription sessions with OpenAI's own client, over a real connection."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from tests.conftest import ROOT, Recording
from tests.runtimes.server.conftest import Server, Start
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import qwen3asr
from qwen3asr import Recognizer
from qwen3asr.errors import BackendFailed
from qwen3asr.hearing import EngineEar
from qwen3asr.server import ServerSettings
from qwen3asr.server.realtime_events import APPEND_CHARS
from qwen3asr.server.realtime_inbox import INBOX_BYTES, Inbox
from qwen3asr.server.realtime_items import Item, Items
from qwen3asr.server.realtime_session import AHEAD_SECONDS

T = TypeVar("T")
Samples = npt.NDArray[np.float32]
PATIENCE = 30.0
TRANSCRIPTION = "conversation.item.input_audio_transcription."
SPOKEN = ("english", "german-short", "spanish", "chinese")
MANUAL = {"turn_detection": None}


def run(scene: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(scene, 2 * PATIENCE))


def spoken(recording: Recording, rate: int = 24_000, quiet: float = 0.0) -> Samples:
    """At a rate, with seconds of silence behind it."""
    samples, original = soundfile.read(recording.path, dtype="float32")
    resampled = samples if rate == original else soxr.resample(samples, original, rate)
    return np.concatenate([np.clip(resampled, -1, 1), np.zeros(round(quiet * rate), np.float32)])


def pcm(samples: Samples) -> bytes:
    return bytes((samples * 32767).astype("<i2").tobytes())


def text64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@asynccontextmanager
async def session(
    server: Server, *, include: list[str] | None = None, key: str = "none", **audio_input: Any
) -> AsyncIterator[AsyncRealtimeConnection]:
    """A connection that has taken its settings."""
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key)
    async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        assert (await connection.recv()).type == "session.created"
        settings: Any = {"type": "transcription", "audio": {"input": audio_input}}
        await connection.session.update(session=settings | ({"include": include} if include else {}))
        assert (await connection.recv()).type == "session.updated"
        yield connection


async def say(connection: AsyncRealtimeConnection, data: bytes, size: int = 4_800) -> None:
    for start in range(0, len(data), size):
        await connection.input_audio_buffer.append(audio=text64(data[start : start + size]))


async def until(connection: AsyncRealtimeConnection, kind: str, count: int = 1) -> list[dict[str, Any]]:
    """All events up to the last wanted one."""
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE):
        while sum(event["type"] == kind for event in events) < count:
            events.append((await connection.recv()).to_dict())
    return events


async def finished(connection: AsyncRealtimeConnection) -> list[dict[str, Any]]:
    """All events up to the answer to a clear, which is behind everything that was sent before."""
    await connection.input_audio_buffer.clear()
    return (await until(connection, "input_audio_buffer.cleared"))[:-1]


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"].endswith(kind)]


def transcripts(events: list[dict[str, Any]]) -> list[str]:
    """Of completed items; the deltas of each must add up to it."""
    texts = []
    for done in of(events, TRANSCRIPTION + "completed"):
        deltas = of([event for event in events if event.get("item_id") == done["item_id"]], TRANSCRIPTION + "delta")
        assert "".join(delta["delta"] for delta in deltas) == done["transcript"]
        texts.append(done["transcript"])
    return texts


# --- turns -----------------------------------------------------------------------------------------------------


def test_server_vad_makes_an_item_of_each_turn(server: Server, recordings: dict[str, Recording]) -> None:
    async def scene() -> list[dict[str, Any]]:
        async with session(server) as connection:
            for name in ("english", "spanish"):
                await say(connection, pcm(spoken(recordings[name], quiet=1.5)))
            return await until(connection, TRANSCRIPTION + "completed", 2)

    events = run(scene())
    assert transcripts(events) == [recordings["english"].text, recordings["spanish"].text]
    first, second = dict.fromkeys(event["item_id"] for event in events if "item_id" in event)
    kinds = [event["type"] for event in events if event.get("item_id", event.get("item", {}).get("id")) == first]
    assert [kind for kind in kinds if kind != TRANSCRIPTION + "delta"] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        TRANSCRIPTION + "completed",
    ]
    assert [event["previous_item_id"] for event in of(events, "committed")] == [None, first]
    assert [event["item"]["id"] for event in of(events, "item.added")] == [first, second]
    assert [event["languages"] for event in of(events, "completed")] == [[{"code": "en"}], [{"code": "es"}]]
    assert [event["finish_reason"] for event in of(events, "completed")] == ["stop", "stop"]
    starts = [event["audio_start_ms"] for event in of(events, "speech_started")]
    ends = [event["audio_end_ms"] for event in of(events, "speech_stopped")]
    length = 1000 * len(spoken(recordings["english"])) / 24_000
    assert 0 <= starts[0] < ends[0] < length + 800 < starts[1] < ends[1]
    usage = of(events, "completed")[0]["usage"]
    assert usage == {"type": "duration", "seconds": pytest.approx((ends[0] - starts[0]) / 1000, abs=0.002)}
    assert len({event["event_id"] for event in events}) == len(events)
    assert not of(events, "partial")  # nobody asked for them


def test_speech_is_announced_before_there_is_text(server: Server, recordings: dict[str, Recording]) -> None:
    async def scene() -> list[dict[str, Any]]:
        async with session(server) as connection:
            await say(connection, pcm(spoken(recordings["english"])[:14_400]))  # 0.6 s, less than a step
            return await until(connection, "input_audio_buffer.speech_started")

    assert len(run(scene())) == 1


def test_a_commit_ends_the_open_turn_of_server_vad(server: Server, recordings: dict[str, Recording]) -> None:
    async def scene() -> list[dict[str, Any]]:
        async with session(server) as connection:
            await say(connection, pcm(spoken(recordings["spanish"])))
            await connection.input_audio_buffer.commit()
            await say(connection, bytes(48_000))  # one in which nobody speaks
            await connection.input_audio_buffer.commit()
            return await finished(connection)

    events = run(scene())
    assert transcripts(events) == [recordings["spanish"].text, ""]
    assert [event["finish_reason"] for event in of(events, "completed")] == ["stop", "no_speech"]
    assert len(of(events, "speech_started")) == 1


@pytest.mark.parametrize("name", SPOKEN)
def test_each_commit_is_an_item(server: Server, recordings: dict[str, Recording], name: str) -> None:
    async def scene() -> list[dict[str, Any]]:
        async with session(server, turn_detection=None) as connection:
            for each in (name, "german-short"):
                await say(connection, pcm(spoken(recordings[each])))
                await connection.input_audio_buffer.commit()
            return await finished(connection)

    events = run(scene())
    assert transcripts(events) == [recordings[name].text, recordings["german-short"].text]
    assert not of(events, "speech_started")
    seconds = [event["usage"]["seconds"] for event in of(events, "completed")]
    assert seconds[0] == pytest.approx(len(spoken(recordings[name])) / 24_000, abs=0.001)


def test_a_pause_does_not_split_what_the_client_commits(server: Server, recordings: dict[str, Recording]) -> None:
    async def scene() -> list[dict[str, Any]]:
        async with session(server, turn_detection=None) as connection:
            await say(connection, pcm(spoken(recordings["german-short"], quiet=2.0)))
            await say(connection, pcm(spoken(recordings["german-short"])))
            await connection.input_audio_buffer.commit()
            return await finished(connection)

    (text,) = transcripts(run(scene()))
    assert text == f"{recordings['german-short'].text} {recordings['german-short'].text}"


def test_a_commit_is_heard_from_its_start(server: Server, recordings: dict[str, Recording]) -> None:
    async def scene() -> list[dict[str, Any]]:
        async with session(server, include=["qwen3asr.partial"], turn_detection=None) as connection:
            await say(connection, bytes(3 * 48_000) + pcm(spoken(recordings["spanish"])))
            return await until(connection, "qwen3asr.partial")

    assert run(scene())[-1]["start"] == 0.0


def test_nothing_is_made_of_silence(server: Server) -> None:
    async def scene() -> list[str]:
        async with session(server, turn_detection=None) as connection:
            await say(connection, bytes(48_000 * 12), 48_000)
            await connection.input_audio_buffer.commit()
            return transcripts(await finished(connection))

    assert run(scene()) == [""]


def test_long_commits_are_heard_in_segments(server: Server, recordings: dict[str, Recording]) -> None:
    audio = np.concatenate([spoken(recordings["english-long"], quiet=0.5)] * 3)  # 39 s; a segment is 30 s at most

    async def scene() -> list[dict[str, Any]]:
        async with session(server, turn_detection=None, include=["qwen3asr.partial"]) as connection:
            await say(connection, pcm(audio), 480_000)
            events: list[dict[str, Any]] = []
            while not events or events[-1]["start"] < 20:  # of the second segment
                events += await until(connection, "qwen3asr.partial")
            await connection.input_audio_buffer.commit()
            return events + await finished(connection)

    events = run(scene())
    (text,) = transcripts(events)
    assert len(text.split()) > 30
    for event in of(events, "partial"):
        assert event["text"].startswith(event["committed"])
        assert text.startswith(event["committed"])


def test_what_is_cleared_is_not_heard(server: Server, recordings: dict[str, Recording]) -> None:
    async def scene(**settings: Any) -> list[dict[str, Any]]:
        async with session(server, **settings) as connection:
            await say(connection, pcm(spoken(recordings["english"])))
            assert not transcripts(await finished(connection))
            await say(connection, pcm(spoken(recordings["german-short"])))
            await connection.input_audio_buffer.commit()
            return await finished(connection)

    for settings in ({}, MANUAL):
        assert transcripts(run(scene(**settings))) == [recordings["german-short"].text]


# --- settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_pcm_of_any_rate(server: Server, recordings: dict[str, Recording], rate: int) -> None:
    async def scene() -> list[str]:
        async with session(server, format={"type": "audio/pcm", "rate": rate}, turn_detection=None) as connection:
            await say(connection, pcm(spoken(recordings["english"], rate)))
            await connection.input_audio_buffer.commit()
            return transcripts(await finished(connection))

    assert run(scene()) == [recordings["english"].text]


@pytest.mark.parametrize(("kind", "subtype"), [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_telephone_audio(
    server: Server, model: Recognizer, recordings: dict[str, Recording], tmp_path: Path, kind: str, subtype: str
) -> None:
    soundfile.write(tmp_path / "call.wav", spoken(recordings["english"], 8_000), 8_000, subtype=subtype)
    raw = (tmp_path / "call.wav").read_bytes()
    data = raw[raw.index(b"data") + 8 :]

    async def scene() -> list[str]:
        async with session(server, format={"type": kind}, turn_detection=None) as connection:
            await say(connection, data, 160)
            await connection.input_audio_buffer.commit()
            return transcripts(await finished(connection))

    wanted = model.transcribe(tmp_path / "call.wav").text
    assert len(wanted.split()) == 5
    assert run(scene()) == [wanted]


def test_settings_are_merged_and_shown(server: Server) -> None:
    async def scene() -> tuple[Any, Any]:
        async with session(server, turn_detection=MANUAL["turn_detection"]) as connection:
            change: Any = {"transcription": {"language": "de", "prompt": "null", "keywords": ["vier", "fünf"]}}
            await connection.session.update(session={"type": "transcription", "audio": {"input": change}})
            one = (await connection.recv()).to_dict()
            vad: Any = {"turn_detection": {"type": "server_vad", "threshold": 0.6}}
            await connection.session.update(session={"type": "transcription", "audio": {"input": vad}})
            return one, (await connection.recv()).to_dict()

    one, two = (event["session"]["audio"]["input"] for event in run(scene()))
    assert one["turn_detection"] is None
    assert one["transcription"] == {
        "model": "asr", "language": "de", "prompt": "null", "keywords": ["vier", "fünf"],
    }  # fmt: skip
    assert one["format"] == {"type": "audio/pcm", "rate": 24_000}
    assert two["transcription"] == one["transcription"]
    assert two["turn_detection"] == {
        "type": "server_vad", "threshold": 0.6, "prefix_padding_ms": 500, "silence_duration_ms": 800,
    }  # fmt: skip


def test_language_and_prompt_reach_the_model(
    server: Server, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    stream_async = Recognizer.stream_async
    monkeypatch.setattr(
        Recognizer, "stream_async", lambda self, **options: seen.append(options) or stream_async(self, **options)
    )

    async def scene() -> list[dict[str, Any]]:
        known = {"language": "es", "prompt": "Agua.", "keywords": ["rojo", "verde"]}
        async with session(server, transcription=known) as connection:
            await say(connection, pcm(spoken(recordings["spanish"])))
            await connection.input_audio_buffer.commit()
            return await finished(connection)

    events = run(scene())
    assert transcripts(events) == [recordings["spanish"].text]
    assert of(events, "completed")[0]["languages"] == [{"code": "es"}]
    assert (seen[0]["language"], seen[0]["context"]) == ("es", "Agua.\nrojo, verde")


def test_new_settings_close_a_turn_of_server_vad(server: Server, recordings: dict[str, Recording]) -> None:
    async def scene() -> list[dict[str, Any]]:
        async with session(server) as connection:
            await say(connection, pcm(spoken(recordings["german-short"])))
            await connection.session.update(session={"type": "transcription", "audio": {"input": MANUAL}})  # type: ignore[typeddict-item]
            await say(connection, pcm(spoken(recordings["spanish"])))
            await connection.session.update(session={"type": "transcription"})
            await connection.input_audio_buffer.commit()
            return await finished(connection)

    events = run(scene())
    assert transcripts(events) == [recordings["german-short"].text, recordings["spanish"].text]
    (error,) = of(events, "error")
    assert "commit or clear" in error["error"]["message"]


# --- mistakes --------------------------------------------------------------------------------------------------


def _input(**settings: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "transcription", "audio": {"input": settings}}}


def _append(audio: object) -> dict[str, Any]:
    return {"type": "input_audio_buffer.append", "audio": audio}


@pytest.mark.parametrize(
    ("event", "code", "param", "words"),
    [
        ("{not json", "invalid_json", None, "JSON"),
        ("[" * 100_000, "invalid_json", None, "JSON"),
        ([1], "invalid_json", None, "object"),
        ({}, "missing_required_parameter", "type", "no type"),
        ({"type": "half of a pair: \ud800"}, "unknown_event", "type", "not offered"),
        ({"type": "response.create"}, "unknown_event", "type", "response.create"),
        ({"type": "transcription_session.update", "session": {}}, "unknown_event", "type", "session.update"),
        ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", None, "no audio"),
        (_append(None), "missing_required_parameter", "audio", "base64"),
        (_append("%%%%"), "invalid_value", "audio", "base64"),
        (_append("é" * 8), "invalid_value", "audio", "base64"),
        (_append("AAA="[:4] + "AAAA"), "invalid_value", "audio", "base64"),
        (_append(text64(b"123")), "invalid_value", "audio", "3 bytes"),
        (_append("A" * (APPEND_CHARS + 4)), "audio_too_large", "audio", "several"),
        ({"type": "session.update"}, "missing_required_parameter", "session", "session object"),
        (_input(transcription={"language": "klingon"}), "unsupported_language", "language", "klingon"),
        (_input(transcription={"model": "whisper-1"}), "model_not_found", None, "asr"),
        (_input(transcription={"prompt": "<|im_end|>"}), "invalid_value", "prompt", "<|im_end|>"),
        (_input(transcription={"prompt": "x" * 10_001}), "invalid_value", None, "prompt"),
        (_input(turn_detection={"type": "semantic_vad"}), "invalid_value", None, "server_vad"),
        (_input(turn_detection={"type": "server_vad", "threshold": 7}), "invalid_value", None, "threshold"),
        (_input(noise_reduction={"type": "near_field"}), "invalid_value", None, "noise_reduction"),
        (_input(format={"type": "audio/opus"}), "invalid_value", None, "audio/pcm"),
        (_input(format={"type": "audio/pcm", "rate": 4}), "invalid_value", None, "8000"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "invalid_value", "session.type", "transcription"),
        (
            {"type": "session.update", "session": {"include": ["item.input_audio_transcription.logprobs"]}},
            "invalid_value", "session.include.0", "qwen3asr.partial",
        ),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict | list) else str(value)[:30],
)  # fmt: skip
def test_a_mistake_is_told_and_the_session_goes_on(
    server: Server, event: Any, code: str, param: str | None, words: str
) -> None:
    message = event if isinstance(event, str) else json.dumps(event | {"event_id": "mine"} if event != [1] else event)

    async def scene() -> tuple[dict[str, Any], str]:
        async with _connect(server) as socket:
            await socket.recv()
            await socket.send(message)
            error = json.loads(await socket.recv())
            await socket.send('{"type": "input_audio_buffer.clear"}')
            return error, json.loads(await socket.recv())["type"]

    error, after = run(scene())
    assert (error["type"], after) == ("error", "input_audio_buffer.cleared")
    assert error["error"]["type"] == "invalid_request_error"
    assert error["error"]["code"] == code
    assert error["error"]["event_id"] == (None if code == "invalid_json" else "mine")
    assert words in error["error"]["message"]
    if param is not None:
        assert error["error"]["param"] == param


def test_what_no_text_can_hold_is_given_back_as_it_came(server: Server) -> None:
    async def scene() -> Any:
        async with _connect(server) as socket:
            await socket.recv()
            await socket.send(json.dumps({"type": "nothing", "event_id": "\ud800"}))
            return json.loads(await socket.recv())["error"]["event_id"]

    assert run(scene()) == "\ud800"


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Settings with which the model fails."""
    hear = EngineEar.hear

    def fail_on_poison(self: EngineEar, **work: Any) -> Future[Any]:
        if "poison" in self._context:
            raise BackendFailed("the backend", RuntimeError("out of memory in /secret/place"))
        return hear(self, **work)

    monkeypatch.setattr(EngineEar, "hear", fail_on_poison)
    return {"prompt": "poison"}


def test_nothing_is_left_to_commit_of_what_failed(
    server: Server, recordings: dict[str, Recording], poison: dict[str, str]
) -> None:
    turns = {"type": "server_vad", "silence_duration_ms": 150}

    async def scene() -> list[dict[str, Any]]:
        async with session(server, transcription=poison, turn_detection=turns) as connection:
            turn = spoken(recordings["german-short"], quiet=1.0)[:24_000]
            await connection.input_audio_buffer.append(audio=text64(pcm(turn)))
            await until(connection, TRANSCRIPTION + "failed")
            await connection.input_audio_buffer.commit()
            return await finished(connection)

    (error,) = run(scene())
    assert error["error"]["code"] == "input_audio_buffer_commit_empty"


def test_an_error_of_the_model_ends_its_item_only(
    server: Server, recordings: dict[str, Recording], poison: dict[str, str]
) -> None:
    """Of one session, and for one turn: the other session, and the next turn, are heard."""

    async def poisoned(settings: dict[str, Any]) -> list[dict[str, Any]]:
        async with session(server, transcription=poison, **settings) as connection:
            await say(connection, pcm(spoken(recordings["english"], quiet=1.5)))
            events = await until(connection, TRANSCRIPTION + "failed")
            await connection.input_audio_buffer.clear()
            cured: Any = {"type": "transcription", "audio": {"input": {"transcription": {"prompt": ""}}}}
            await connection.session.update(session=cured)
            await say(connection, pcm(spoken(recordings["spanish"])))
            await connection.input_audio_buffer.commit()
            return events + await until(connection, TRANSCRIPTION + "completed")

    async def scene() -> tuple[Any, Any, list[dict[str, Any]]]:
        async with session(server) as healthy:
            spoken_to = asyncio.create_task(say(healthy, pcm(spoken(recordings["english"], quiet=1.5))))
            one, two = await poisoned({}), await poisoned(MANUAL)
            await spoken_to
            return one, two, await until(healthy, TRANSCRIPTION + "completed")

    one, two, healthy = run(scene())
    assert transcripts(healthy) == [recordings["english"].text]
    for events in (one, two):
        failed = of(events, "failed")[0]
        assert failed["error"]["type"] == "server_error"
        assert "secret" not in json.dumps(events)
        assert failed["item_id"] == of(events, "committed")[0]["item_id"]
        assert transcripts(events) == [recordings["spanish"].text]


def test_a_defect_ends_its_session_only(
    server: Server, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = Items.complete

    async def break_on_spanish(self: Items, item: Item, seconds: float) -> None:
        if item.finals[0].language == "Spanish":
            raise ZeroDivisionError
        await complete(self, item, seconds)

    monkeypatch.setattr(Items, "complete", break_on_spanish)

    async def scene() -> tuple[int, list[str]]:
        async with session(server) as one, session(server) as other:
            for connection, name in ((one, "spanish"), (other, "english")):
                await say(connection, pcm(spoken(recordings[name])))
                await connection.input_audio_buffer.commit()
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    await one.recv()
            assert closed.value.rcvd is not None
            return closed.value.rcvd.code, transcripts(await finished(other))

    assert run(scene()) == (1011, [recordings["english"].text])


# --- many, gone, and the end -----------------------------------------------------------------------------------


def test_sessions_share_the_model(server: Server, recordings: dict[str, Recording]) -> None:
    async def one(name: str) -> list[str]:
        async with session(server) as connection:
            await say(connection, pcm(spoken(recordings[name], quiet=1.5)))
            return transcripts(await until(connection, TRANSCRIPTION + "completed"))

    async def scene() -> list[list[str]]:
        return await asyncio.gather(*(one(name) for name in SPOKEN))

    assert run(scene()) == [[recordings[name].text] for name in SPOKEN]


def test_a_client_that_vanishes_frees_its_place(
    start: Start, asr_bundle: Path, recordings: dict[str, Recording]
) -> None:
    with qwen3asr.load(asr_bundle, slots=1, queue=1) as small:  # two streams at a time
        server = start(None, small)
        opening = [_input(**MANUAL), {"type": "session.update", "session": {"include": ["qwen3asr.partial"]}}]
        speech = pcm(spoken(recordings["english"]))

        async def vanishing(third: asyncio.Barrier) -> None:
            async with _connect(server) as socket:
                for event in (*opening, _append(text64(speech))):
                    await socket.send(json.dumps(event))
                while json.loads(await socket.recv())["type"] != "qwen3asr.partial":
                    pass
                await third.wait()  # which has no place
                await third.wait()
                socket.transport.abort()

        async def scene() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
            third = asyncio.Barrier(3)
            others = asyncio.gather(vanishing(third), vanishing(third))
            await third.wait()
            async with session(server, turn_detection=None) as connection:
                await say(connection, speech)
                refused = await until(connection, TRANSCRIPTION + "failed")
                await third.wait()
                await others
                while server.app.state.lifecycle.running > 1:  # has no event of its own
                    await asyncio.sleep(0.01)
                await connection.input_audio_buffer.clear()
                await say(connection, speech)
                await connection.input_audio_buffer.commit()
                return refused, await until(connection, TRANSCRIPTION + "completed")

        refused, heard = run(scene())
        assert of(refused, "failed")[0]["error"]["code"] == "rate_limit_exceeded"
        assert transcripts(heard) == [recordings["english"].text]


def test_audio_faster_than_the_model_is_held_back(
    server: Server, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the model is at its first step, a stream takes a few seconds of two minutes."""
    hear, stream_async = EngineEar.hear, Recognizer.stream_async
    asked, answer = Future[Future[Any]](), Future[Any]()
    most = 0.0

    def hold(self: EngineEar, **work: Any) -> Future[Any]:
        if asked.done():
            return hear(self, **work)
        asked.set_result(hear(self, **work))
        return answer

    def watched(self: Recognizer, **options: Any) -> qwen3asr.AsyncStream:
        opened = stream_async(self, **options)
        push, drain = opened.push, opened.drain

        async def counted(chunk: Any) -> None:
            nonlocal most
            await push(chunk)
            most = max(most, opened._waiting / 24_000)

        async def told() -> None:
            if not held_back.done():
                held_back.set_result(None)
            await drain()

        monkeypatch.setattr(opened, "push", counted)
        monkeypatch.setattr(opened, "drain", told)
        return opened

    held_back = Future[None]()
    monkeypatch.setattr(EngineEar, "hear", hold)
    monkeypatch.setattr(Recognizer, "stream_async", watched)
    audio = np.concatenate([spoken(recordings["english"]), np.zeros(24_000 * 120, np.float32)])

    async def scene() -> list[str]:
        async with session(server, turn_detection=None) as connection:
            sending = asyncio.create_task(say(connection, pcm(audio), 480_000))
            await asyncio.wait_for(asyncio.wrap_future(held_back), PATIENCE)
            answer.set_result(await asyncio.wrap_future(asked.result()))
            await sending
            await connection.input_audio_buffer.commit()
            return transcripts(await finished(connection))

    (text,) = run(scene())
    assert text.startswith(recordings["english"].text)
    assert most <= AHEAD_SECONDS + 1.0


def test_messages_that_wait_are_bounded() -> None:
    class Endless:
        """A connection that always has another message."""

        reads = 0

        async def receive(self) -> dict[str, Any]:
            await asyncio.sleep(0)
            self.reads += 1
            return {"type": "websocket.receive", "text": "x" * 2**20}

    async def scene() -> tuple[int, int]:
        inbox, source = Inbox(), Endless()
        filling = asyncio.create_task(inbox.fill(source))  # type: ignore[arg-type]
        for _ in range(200):
            await asyncio.sleep(0)
        before = source.reads
        await inbox.take()
        for _ in range(200):
            await asyncio.sleep(0)
        filling.cancel()
        return before, source.reads

    assert run(scene()) == (INBOX_BYTES // 2**20, INBOX_BYTES // 2**20 + 1)


def test_a_draining_server_finishes_what_was_said(start: Start, recordings: dict[str, Recording]) -> None:
    server = start()

    async def scene(settings: dict[str, Any], arrived: asyncio.Barrier) -> list[dict[str, Any]]:
        async with session(server, **settings) as connection:
            await say(connection, pcm(spoken(recordings["english"])), 1_000_000)
            await connection.session.update(session={"type": "realtime"})
            events = await until(connection, "error")  # so that all of it has arrived
            await arrived.wait()
            server.drain()
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    events.append((await connection.recv()).to_dict())
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
            return events

    async def both() -> list[list[dict[str, Any]]]:
        arrived = asyncio.Barrier(2)
        return await asyncio.gather(scene({}, arrived), scene(MANUAL, arrived))

    for events in run(both()):
        assert transcripts(events) == [recordings["english"].text]
    assert run(_refusal(server)) == (503, "server_stopping")


# --- who may connect -------------------------------------------------------------------------------------------


def _connect(server: Server, query: str = "?intent=transcription", **options: Any) -> connect:
    return connect(f"ws://127.0.0.1:{server.port}/v1/realtime{query}", max_size=None, compression=None, **options)


async def _refusal(server: Server, query: str = "", **options: Any) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as refused:
        async with _connect(server, query, **options):
            pass
    answer = refused.value.response
    return answer.status_code, json.loads(answer.body or b"{}")["error"]["code"]


async def _greeting(socket: ClientConnection) -> str:
    return str(json.loads(await socket.recv())["type"])


def test_keys(start: Start) -> None:
    server = start(ServerSettings(api_keys=("sesame",)))

    async def scene() -> None:
        assert await _refusal(server) == (401, "invalid_api_key")
        assert await _refusal(server, additional_headers={"Authorization": "Bearer wrong"}) == (401, "invalid_api_key")
        wrong: Any = ["realtime", "openai-insecure-api-key.wrong"]
        assert await _refusal(server, subprotocols=wrong) == (401, "invalid_api_key")
        async with session(server, key="sesame"):
            pass
        right: Any = ["realtime", "openai-insecure-api-key.sesame"]
        async with _connect(server, subprotocols=right) as socket:
            assert socket.subprotocol == "realtime"
            assert await _greeting(socket) == "session.created"

    run(scene())


def test_only_pages_of_this_server_may_connect(start: Start) -> None:
    async def scene() -> None:
        server = start(ServerSettings(cors_origins=("https://known.example",)))
        assert await _refusal(server, origin="https://other.example") == (403, "origin_not_allowed")
        for origin in ("https://known.example", server.url):
            async with _connect(server, origin=origin) as socket:
                assert await _greeting(socket) == "session.created"

    run(scene())


def test_what_a_connection_asks_for(server: Server) -> None:
    async def scene() -> None:
        assert await _refusal(server, "?model=gpt-realtime") == (404, "model_not_found")
        assert await _refusal(server, "?intent=conversation") == (400, "invalid_value")
        async with _connect(server, "?model=asr") as socket:
            assert await _greeting(socket) == "session.created"

    run(scene())


def test_example(server: Server, recordings: dict[str, Recording]) -> None:
    command = [sys.executable, str(ROOT / "examples/realtime_client.py"), f"{server.url}/v1"]
    done = subprocess.run([*command, recordings["spanish"].path], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (recordings["spanish"].text + "\n", "")
