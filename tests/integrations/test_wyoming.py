"""The Wyoming server, asked by the protocol's own client over TCP and a Unix socket, on the tiny trained model."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr
from tests.conftest import ROOT, Recording
from tests.integrations.quickstart import run_quickstart
from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncClient, AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event, Eventable
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncUnixServer

import qwen3asr
from qwen3asr import LANGUAGES, EnergyDetector, Recognizer, StreamSettings
from qwen3asr.errors import ContextInvalid, EngineClosed, LanguageUnknown, RequestInvalid
from qwen3asr_plugins.wyoming import Qwen3ASREventHandler, WyomingServer, info_of, run

T = TypeVar("T")
SPOKEN = ("english", "german-short", "spanish", "chinese")
PATIENCE = 30.0
ANY_PORT = "tcp://127.0.0.1:0"


def _samples(recording: Recording, rate: int = 16_000) -> npt.NDArray[np.float32]:
    samples, original = soundfile.read(recording.path, dtype="float32")
    return samples if rate == original else soxr.resample(samples, original, rate).astype(np.float32)


def _bytes(samples: npt.NDArray[np.float32], width: int = 2) -> bytes:
    """PCM as a WAV file has it: 8 bits unsigned, 16, 24 and 32 signed, little endian."""
    whole = np.clip(np.round(samples * 2.0 ** (8 * width - 1)), -(2.0 ** (8 * width - 1)), 2.0 ** (8 * width - 1) - 1)
    if width == 1:
        return (whole + 128).astype(np.uint8).tobytes()
    return whole.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :width].tobytes()


def _speech(
    recording: Recording, rate: int = 16_000, width: int = 2, channels: int = 1, chunk: int = 1_024
) -> list[Event]:
    """As a client sends it, with half a second of silence around."""
    quiet = np.zeros(rate // 2, np.float32)
    mono = np.concatenate([quiet, _samples(recording, rate), quiet])
    samples = np.repeat(mono[:, None], channels, axis=1)
    pcm = [_bytes(samples[at : at + chunk].reshape(-1), width) for at in range(0, len(samples), chunk)]
    events: list[Eventable] = [AudioStart(rate, width, channels)]
    events += [AudioChunk(rate, width, channels, part) for part in pcm]
    return [event.event() for event in [*events, AudioStop()]]


async def _send(client: AsyncClient, *events: Event | Eventable) -> None:
    for event in events:
        await client.write_event(event if isinstance(event, Event) else event.event())


async def _next(client: AsyncClient) -> Event | None:
    return await asyncio.wait_for(client.read_event(), PATIENCE)


async def _until(client: AsyncClient, kind: type[Eventable]) -> list[Event]:
    """All events up to the first of a kind, or the end of the connection."""
    events: list[Event] = []
    while (event := await _next(client)) is not None:
        events.append(event)
        if kind.is_type(event.type):
            break
    return events


async def _heard(client: AsyncClient, *events: Event | Eventable) -> Transcript:
    """What the server says to an utterance; its chunks have to be the whole text."""
    await _send(client, *events)
    return _checked(await _until(client, TranscriptStop))


def _checked(events: Sequence[Event]) -> Transcript:
    kinds = [event.type for event in events]
    chunks = [TranscriptChunk.from_event(event).text for event in events if TranscriptChunk.is_type(event.type)]
    assert kinds == ["transcript-start", *["transcript-chunk"] * len(chunks), "transcript", "transcript-stop"]
    transcript = Transcript.from_event(events[-2])
    assert "".join(chunks) == transcript.text
    assert all(chunks)
    return transcript


@asynccontextmanager
async def _server(model: Recognizer, uri: str = ANY_PORT, **options: Any) -> AsyncIterator[WyomingServer]:
    async with await run(model, uri, **options) as server:
        yield server


def _on_server(model: Recognizer, scene: Callable[[AsyncClient], Awaitable[T]], **options: Any) -> T:
    async def whole() -> T:
        async with _server(model, **options) as server, AsyncClient.from_uri(server.uri) as client:
            return await scene(client)

    return asyncio.run(whole())


# --- what is said ------------------------------------------------------------------------------------------------


def test_describe_is_answered_with_what_the_server_is(model: Recognizer) -> None:
    async def scene(client: AsyncClient) -> Info:
        await _send(client, Describe())
        (event,) = await _until(client, Info)
        return Info.from_event(event)

    info = _on_server(model, scene)
    assert info == info_of(model)
    (program,) = info.asr
    assert (program.name, program.version, program.installed) == ("qwen3asr", qwen3asr.__version__, True)
    assert program.supports_transcript_streaming
    assert program.attribution.url.startswith("https://")
    (asr,) = program.models
    assert asr.name == model.bundle.folder.name
    assert sorted(asr.languages) == sorted(LANGUAGES.values())
    assert not any([info.tts, info.handle, info.intent, info.wake, info.mic, info.snd])


def test_a_connection_stays_for_one_utterance_after_another(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    async def scene(client: AsyncClient) -> list[Transcript]:
        said = []
        for name in SPOKEN:
            said.append(await _heard(client, Transcribe(), *_speech(recordings[name])))
            await _send(client, Ping(text=name))
            (pong,) = await _until(client, Pong)
            assert Pong.from_event(pong).text == name
        return said

    said = _on_server(model, scene)
    assert [one.text for one in said] == [recordings[name].text for name in SPOKEN]
    assert [one.language for one in said] == [LANGUAGES[str(recordings[name].language)] for name in SPOKEN]


@pytest.mark.parametrize(("rate", "width", "channels"), [(48_000, 2, 2), (44_100, 3, 1), (16_000, 4, 6)])
def test_audio_of_any_format_is_heard(
    model: Recognizer, recordings: dict[str, Recording], rate: int, width: int, channels: int
) -> None:
    wanted = recordings["english"]
    said = _on_server(model, lambda client: _heard(client, *_speech(wanted, rate, width, channels)))
    assert said.text == wanted.text


def test_eight_bits_are_unsigned(model: Recognizer, recordings: dict[str, Recording]) -> None:
    loud = _samples(recordings["english"])
    loud = loud / np.abs(loud).max() * 0.9

    async def scene(client: AsyncClient) -> Transcript:
        chunks = [_bytes(loud[at : at + 1_600], 1) for at in range(0, len(loud), 1_600)]
        return await _heard(client, *[AudioChunk(16_000, 1, 1, chunk) for chunk in chunks], AudioStop())

    assert set(_on_server(model, scene).text.split()) & set(recordings["english"].text.split())  # 8 bits are noisy


def test_loud_stereo_is_not_clipped(model: Recognizer, recordings: dict[str, Recording]) -> None:
    """Both channels near full scale: their sum does not fit 16 bits."""
    loud = _samples(recordings["english"])
    loud = loud / np.abs(loud).max() * 0.98
    both = np.repeat(loud[:, None], 2, axis=1)

    async def scene(client: AsyncClient) -> Transcript:
        chunks = [_bytes(both[at : at + 1_600].reshape(-1)) for at in range(0, len(both), 1_600)]
        return await _heard(client, *[AudioChunk(16_000, 2, 2, chunk) for chunk in chunks], AudioStop())

    assert _on_server(model, scene).text == recordings["english"].text


def test_chunks_that_leave_the_announced_format_are_converted(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    _, *chunks = _speech(recordings["english"], rate=32_000)
    said = _on_server(model, lambda client: _heard(client, AudioStart(16_000, 2, 1), *chunks))
    assert said.text == recordings["english"].text


def test_committed_text_is_sent_while_the_client_still_speaks(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    """Two utterances of one connection, with a pause between them that ends a segment."""
    one, two = recordings["english"], recordings["chinese"]

    async def scene(client: AsyncClient) -> Transcript:
        start, *audio, stop = _speech(one)
        quiet = AudioChunk(16_000, 2, 1, bytes(32_000))
        await _send(client, Transcribe(), start, *audio, quiet)
        early: list[Event] = []
        while "".join(TranscriptChunk.from_event(event).text for event in early[1:]) != one.text:
            early += await _until(client, TranscriptChunk)
        assert TranscriptStart.from_event(early[0]).language == "en"
        _, *more, stop = _speech(two)
        await _send(client, *more, stop)
        return _checked(early + await _until(client, TranscriptStop))

    settings = StreamSettings(step_seconds=0.5, carry_words=0)
    said = _on_server(model, scene, settings=settings)
    assert said.text == qwen3asr.join_texts([one.text, two.text])


def test_a_recording_faster_than_the_model_is_heard_to_its_end(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    """More than the minute of audio that a stream lets wait."""
    start, *audio, stop = _speech(recordings["english"], chunk=24_000)
    turn = [*audio, AudioChunk(16_000, 2, 1, bytes(9 * 32_000)).event()]
    settings = StreamSettings(carry_words=0)
    said = _on_server(model, lambda client: _heard(client, start, *turn * 12, stop), settings=settings)
    assert said.text == qwen3asr.join_texts([recordings["english"].text] * 12)


def test_a_transcript_that_is_cut_is_logged(
    model: Recognizer,
    recordings: dict[str, Recording],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("qwen3asr.transcription.Transcriber.budget", lambda *_: 4)
    said = _on_server(model, lambda client: _heard(client, *_speech(recordings["english"])))
    assert recordings["english"].text.startswith(said.text)
    assert [record.levelname for record in caplog.records if " is cut" in record.getMessage()] == ["WARNING"]


def test_silence_is_an_empty_transcript(model: Recognizer) -> None:
    quiet = AudioChunk(16_000, 2, 1, bytes(64_000))
    said = _on_server(model, lambda client: _heard(client, AudioStart(16_000, 2, 1), quiet, AudioStop()))
    assert (said.text, said.language) == ("", None)


def test_a_language_can_be_forced_for_one_utterance(model: Recognizer, recordings: dict[str, Recording]) -> None:
    speech = _speech(recordings["english"])

    async def scene(client: AsyncClient) -> list[str | None]:
        forced = await _heard(client, Transcribe(language="de-AT"), *speech)
        servers = await _heard(client, Transcribe(), *speech)
        return [forced.language, servers.language]

    assert _on_server(model, scene, language="es") == ["de", "es"]


def test_names_and_terms_are_the_model_s_context(
    model: Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[object] = []
    stream_async = Recognizer.stream_async

    def spied(self: Recognizer, **options: Any) -> qwen3asr.AsyncStream:
        contexts.append(options["context"])
        return stream_async(self, **options)

    monkeypatch.setattr(Recognizer, "stream_async", spied)
    asked = Transcribe(name=model.bundle.folder.name, transcript_names=["Anna"], transcript_terms=["green", "stop"])
    speech = _speech(recordings["english"])

    async def scene(client: AsyncClient) -> str:
        text = (await _heard(client, asked, *speech)).text
        await _heard(client, *speech)  # which asks for nothing
        return text

    assert _on_server(model, scene, context="At home.") == recordings["english"].text
    assert contexts == ["At home.\nAnna, green, stop", "At home."]


def test_a_detector_of_its_own_for_each_utterance(model: Recognizer, recordings: dict[str, Recording]) -> None:
    made: list[EnergyDetector] = []

    def detector() -> EnergyDetector:
        made.append(EnergyDetector())
        return made[-1]

    async def scene(client: AsyncClient) -> None:
        for _ in range(2):
            assert (await _heard(client, *_speech(recordings["english"]))).text == recordings["english"].text

    _on_server(model, scene, detector=detector)
    assert len(made) == 2


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        (Transcribe(language="xx"), "LanguageUnknown", "'xx'"),
        (Transcribe(name="whisper"), "RequestInvalid", "'whisper'"),
        (Transcribe(transcript_names=["<|im_end|>"]), "ContextInvalid", "im_end"),
    ],
)
def test_what_the_model_cannot_is_an_error_and_the_connection_stays(
    model: Recognizer, recordings: dict[str, Recording], asked: Transcribe, code: str, words: str
) -> None:
    speech = _speech(recordings["german-short"])

    async def scene(client: AsyncClient) -> tuple[Error, str, str]:
        await _send(client, asked)
        (refused,) = await _until(client, Error)
        first = await _heard(client, Transcribe(language="de"), *speech)  # at once, in place of the audio
        await _send(client, asked, *speech)  # by one who does not look
        await _until(client, Error)
        second = await _heard(client, *speech)
        return Error.from_event(refused), first.text, second.text

    error, *texts = _on_server(model, scene)
    assert error.code == code
    assert words in error.text
    assert texts == [recordings["german-short"].text] * 2


@pytest.mark.parametrize(
    "event",
    [
        AudioStart(rate=5, width=2, channels=1).event(),
        AudioChunk(rate=16_000, width=2, channels=1, audio=b"odd").event(),
        AudioChunk(rate=16_000, width=5, channels=1, audio=bytes(10)).event(),
        AudioChunk(rate=16_000, width=2, channels=0, audio=bytes(10)).event(),
        Event("audio-chunk", {"rate": 16_000}, bytes(4)),
        Event("audio-start", {"rate": "fast", "width": 2, "channels": 1}),
    ],
)
def test_audio_that_cannot_be_is_an_error_and_the_connection_stays(
    model: Recognizer, recordings: dict[str, Recording], event: Event
) -> None:
    speech = _speech(recordings["german-short"])

    async def scene(client: AsyncClient) -> tuple[Event, str]:
        await _send(client, event)
        (refused,) = await _until(client, Error)
        await _send(client, *speech[1:])  # the rest of the utterance
        return refused, (await _heard(client, *speech)).text

    refused, text = _on_server(model, scene)
    assert Error.from_event(refused).code == "AudioFormatInvalid"
    assert text == recordings["german-short"].text


def test_a_stop_without_audio_is_an_error(model: Recognizer) -> None:
    async def scene(client: AsyncClient) -> Error:
        await _send(client, Transcribe(), AudioStop())
        (refused,) = await _until(client, Error)
        return Error.from_event(refused)

    assert "without audio" in _on_server(model, scene).text


def test_an_utterance_that_is_too_long_is_an_error(model: Recognizer, recordings: dict[str, Recording]) -> None:
    async def scene(client: AsyncClient) -> tuple[Error, str]:
        long = _speech(recordings["english"])
        await _send(client, *long)
        (refused,) = await _until(client, Error)
        return Error.from_event(refused), (await _heard(client, *_speech(recordings["german-short"]))).text

    error, text = _on_server(model, scene, max_seconds=4.0)
    assert "longer than 4 s" in error.text
    assert text == recordings["german-short"].text


@pytest.mark.parametrize(
    "junk",
    [b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b"x" * 100_000, b'{"type": "audio-chunk", "payload_length": 99999999}\n'],
)
def test_what_is_no_wyoming_ends_its_own_connection_only(
    model: Recognizer, recordings: dict[str, Recording], junk: bytes
) -> None:
    async def scene() -> str:
        async with _server(model) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(junk)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            writer.close()
            async with AsyncClient.from_uri(server.uri) as client:
                return (await _heard(client, *_speech(recordings["english"]))).text

    assert asyncio.run(scene()) == recordings["english"].text


# --- many clients, and ends --------------------------------------------------------------------------------------


def test_eight_clients_at_once_over_a_unix_socket(
    model: Recognizer, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    path = tmp_path / "asr.socket"

    async def one(uri: str, name: str) -> str:
        async with AsyncClient.from_uri(uri) as client:
            return (await _heard(client, Transcribe(), *_speech(recordings[name]))).text

    async def scene() -> list[str]:
        async with _server(model, f"unix://{path}") as server:
            assert server.port is None
            return await asyncio.gather(*(one(server.uri, name) for name in SPOKEN * 2))

    assert asyncio.run(scene()) == [recordings[name].text for name in SPOKEN * 2]
    assert not path.exists()


async def _vanish(client: AsyncTcpClient) -> None:
    assert client._writer is not None
    client._writer.transport.abort()


async def _let_go(server: WyomingServer) -> None:
    async with asyncio.timeout(PATIENCE):
        while server._connections:
            await asyncio.wait(server._connections)


def test_clients_that_vanish_free_their_slots(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    """The model takes two streams at a time: a third of them would be refused."""
    start, *audio, stop = _speech(recordings["english"])

    async def scene(small: Recognizer) -> list[str]:
        settings = StreamSettings(step_seconds=0.5)
        async with _server(small, settings=settings) as server:
            for _ in range(3):  # in the middle of the audio
                client = AsyncTcpClient("127.0.0.1", server.port or 0)
                await client.connect()
                await _send(client, start, *audio)
                await _until(client, TranscriptChunk)
                await _vanish(client)
                await _let_go(server)
            for _ in range(3):  # while the transcript is made
                client = AsyncTcpClient("127.0.0.1", server.port or 0)
                await client.connect()
                await _send(client, start, *audio, stop)
                await _vanish(client)
                await _let_go(server)
            with small.stream() as one, small.stream() as two:  # both places are free
                samples = _samples(recordings["english"])
                await asyncio.gather(*(asyncio.to_thread(stream.push, samples) for stream in (one, two)))
            async with AsyncClient.from_uri(server.uri) as client:
                return [(await _heard(client, start, *audio, stop)).text]

    with qwen3asr.load(asr_bundle, slots=1, queue=1) as small:
        assert asyncio.run(scene(small)) == [recordings["english"].text]


def test_nobody_waits_for_the_transcript_of_a_client_that_vanished(
    model: Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model would need for ever."""
    finishing = asyncio.Event()

    async def finish(self: qwen3asr.AsyncStream) -> None:
        finishing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(qwen3asr.AsyncStream, "finish", finish)

    async def scene() -> None:
        server = await run(model, ANY_PORT)
        client = AsyncTcpClient("127.0.0.1", server.port or 0)
        await client.connect()
        await _send(client, *_speech(recordings["english"]))
        await asyncio.wait_for(finishing.wait(), PATIENCE)
        await _vanish(client)
        await _let_go(server)
        await server.stop()

    asyncio.run(scene())


def test_a_client_that_falls_silent_is_hung_up_on(model: Recognizer, recordings: dict[str, Recording]) -> None:
    start, *audio, _ = _speech(recordings["english"])

    async def scene() -> Event | None:
        async with _server(model, idle_seconds=0.2) as server, AsyncClient.from_uri(server.uri) as client:
            await _send(client, start, audio[0])
            event = await _next(client)
            await _let_go(server)
            return event

    assert asyncio.run(scene()) is None


def test_silence_between_utterances_is_nothing(model: Recognizer, recordings: dict[str, Recording]) -> None:
    """Longer than the time that an utterance may pause, and longer than the model needs for a transcript."""

    async def scene(client: AsyncClient) -> list[str]:
        first = await _heard(client, *_speech(recordings["german-short"]))
        loop = asyncio.get_running_loop()
        later: asyncio.Future[None] = loop.create_future()
        loop.call_later(0.3, later.set_result, None)
        await later
        return [first.text, (await _heard(client, *_speech(recordings["german-short"]))).text]

    assert _on_server(model, scene, idle_seconds=0.2) == [recordings["german-short"].text] * 2


def test_a_busy_model_is_an_error_and_the_end_of_the_connection(
    asr_bundle: Path, recordings: dict[str, Recording]
) -> None:
    """Two streams are all that the model takes. Home Assistant waits for a transcript or the end."""

    async def scene(small: Recognizer) -> tuple[list[Event], str]:
        async with _server(small) as server:
            others = [small.stream(), small.stream()]
            for stream in others:
                await asyncio.to_thread(stream.push, _samples(recordings["english"]))
            async with AsyncClient.from_uri(server.uri) as client:
                await _send(client, *_speech(recordings["german-short"]))
                events = await _until(client, Transcript)
                assert await _next(client) is None
            for stream in others:
                stream.close()
            async with AsyncClient.from_uri(server.uri) as client:
                return events, (await _heard(client, *_speech(recordings["german-short"]))).text

    with qwen3asr.load(asr_bundle, slots=1, queue=1) as small:
        (error,), text = asyncio.run(scene(small))
    assert Error.from_event(error).code == "EngineBusy"
    assert text == recordings["german-short"].text


def test_stop_finishes_what_was_begun(model: Recognizer, recordings: dict[str, Recording]) -> None:
    start, *audio, stop = _speech(recordings["english"])

    async def scene() -> Transcript:
        async with _server(model) as server:
            idle, begun, done = [AsyncClient.from_uri(server.uri) for _ in range(3)]
            for client in (idle, begun, done):
                await client.connect()
            await _send(idle, Describe())
            await _until(idle, Info)
            await _send(begun, start, *audio[:20], Ping())
            await _until(begun, Pong)
            stopping = asyncio.create_task(server.stop())
            assert await _next(idle) is None
            assert await _next(done) is None
            with pytest.raises(ConnectionRefusedError):
                await AsyncClient.from_uri(server.uri).connect()
            assert not stopping.done()
            said = await _heard(begun, *audio[20:], stop)
            assert await _next(begun) is None
            await asyncio.wait_for(stopping, PATIENCE)
            await server.stop()
            return said

    assert asyncio.run(scene()).text == recordings["english"].text


def test_stop_ends_with_an_utterance_that_is_refused(model: Recognizer, recordings: dict[str, Recording]) -> None:
    start, *audio, _ = _speech(recordings["english"])

    async def scene() -> str:
        async with _server(model, max_seconds=2.0) as server, AsyncClient.from_uri(server.uri) as client:
            await _send(client, start, *audio[:20], Ping())
            await _until(client, Pong)
            stopping = asyncio.create_task(server.stop())
            await _send(client, *audio[20:])
            *_, refused = await _until(client, Error)
            assert await _next(client) is None
            await asyncio.wait_for(stopping, PATIENCE)
            return Error.from_event(refused).text

    assert "longer than 2 s" in asyncio.run(scene())


def test_a_socket_that_was_left_behind_is_taken_over(
    model: Recognizer, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    path = tmp_path / "left.socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    async def scene() -> str:
        async with _server(model, f"unix://{path}") as server, AsyncClient.from_uri(server.uri) as client:
            return (await _heard(client, *_speech(recordings["german-short"]))).text

    assert asyncio.run(scene()) == recordings["german-short"].text


def test_stop_does_not_wait_for_ever(model: Recognizer, recordings: dict[str, Recording]) -> None:
    async def scene() -> Event | None:
        async with _server(model) as server, AsyncClient.from_uri(server.uri) as client:
            await _send(client, *_speech(recordings["english"])[:9], Ping())
            await _until(client, Pong)
            await asyncio.wait_for(server.stop(seconds=0.05), PATIENCE)
            return await _next(client)

    assert asyncio.run(scene()) is None


def test_the_handler_runs_in_wyoming_s_own_server(
    model: Recognizer, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    async def scene() -> str:
        server = AsyncUnixServer(tmp_path / "own.socket")
        await server.start(lambda reader, writer: Qwen3ASREventHandler(reader, writer, model))
        async with AsyncClient.from_uri(f"unix://{tmp_path / 'own.socket'}") as client:
            said = await _heard(client, *_speech(recordings["spanish"]))
        await server.stop()
        return said.text

    assert asyncio.run(scene()) == recordings["spanish"].text


# --- what a server cannot be made of -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri", ["stdio://", "tcp://127.0.0.1", "tcp://127.0.0.1:many", "http://a:1", "unix://a", "10300"]
)
def test_an_address_that_cannot_be_is_refused(model: Recognizer, uri: str) -> None:
    with pytest.raises(RequestInvalid, match="tcp://HOST:PORT"):
        asyncio.run(run(model, uri))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"language": "xx"}, LanguageUnknown),
        ({"context": "<|im_end|>"}, ContextInvalid),
        ({"max_seconds": 0.0}, RequestInvalid),
        ({"idle_seconds": -1.0}, RequestInvalid),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_server_listens(
    model: Recognizer, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        asyncio.run(run(model, ANY_PORT, **options))


def test_a_closed_model_serves_nobody(asr_bundle: Path) -> None:
    closed = qwen3asr.load(asr_bundle)
    closed.close()
    with pytest.raises(EngineClosed):
        asyncio.run(run(closed, ANY_PORT))


def test_a_port_that_is_taken_is_an_os_error(model: Recognizer) -> None:
    async def scene() -> None:
        async with _server(model) as server:
            with pytest.raises(OSError, match="address already in use"):
                await run(model, server.uri)

    asyncio.run(scene())


def test_a_missing_wyoming_is_named() -> None:
    code = "import sys; sys.modules['wyoming'] = None; import qwen3asr_plugins.wyoming"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'qwen3asr[wyoming]'" in done.stderr


def test_the_example_prints_chunks_and_the_transcript(model: Recognizer, recordings: dict[str, Recording]) -> None:
    async def scene() -> str:
        async with _server(model) as server:
            command = [sys.executable, ROOT / "examples/wyoming_client.py", server.uri, recordings["english"].path]
            client = await asyncio.create_subprocess_exec(*map(str, command), stdout=asyncio.subprocess.PIPE)
            printed, _ = await asyncio.wait_for(client.communicate(), PATIENCE)
            return printed.decode()

    lines = asyncio.run(scene()).splitlines()
    assert lines[0].startswith("qwen3asr ")
    assert lines[-1] == f"en: {recordings['english'].text}"
    assert len(lines) > 2


def test_the_readme_s_server_hears(
    asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a port that is free."""
    known = run_quickstart("Home Assistant", "Ray", asr_bundle, tmp_path, monkeypatch)

    async def scene() -> str:
        stopping, started = asyncio.Event(), asyncio.get_running_loop().create_future()

        async def run_anywhere(model: Recognizer, uri: str, **options: Any) -> WyomingServer:
            started.set_result(await run(model, ANY_PORT, **options))
            return started.result()

        known["run"] = run_anywhere
        serving = asyncio.create_task(known["serve"](stopping))
        server = await asyncio.wait_for(started, PATIENCE)
        async with AsyncClient.from_uri(server.uri) as client:
            said = await _heard(client, Transcribe(), *_speech(recordings["english"]))
        stopping.set()
        await asyncio.wait_for(serving, PATIENCE)
        return said.text

    assert asyncio.run(scene()) == recordings["english"].text
