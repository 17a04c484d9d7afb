"""Clients of every kind at once against a server process, and what each got.

Every clip is known by its words: an answer is either exactly what the model says of that clip, or a refusal that the
server documents. Clients that leave, or send what is no audio, are part of it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
import numpy as np
import soundfile
import soxr
from tests.abuse.process import LIMIT, MODEL
from websockets.asyncio.client import connect

from qwen3asr import Recognizer

PATH = "/v1/audio/transcriptions"
_FORMATS = (("FLAC", 16_000), ("WAV", 16_000), ("WAV", 8_000), ("OGG", 16_000), ("MP3", 44_100))
_PATIENCE = 120.0


@dataclass(frozen=True)
class Clip:
    """A file; what the model says of it; and, for realtime sessions, its samples as 24 kHz PCM."""

    name: str
    data: bytes
    text: str
    pcm: bytes


def clips(model: Recognizer, paths: Sequence[Path]) -> list[Clip]:
    """Recordings in several formats and rates."""
    made = []
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32")
        pcm = (np.clip(soxr.resample(samples, rate, 24_000), -1, 1) * 32767).astype("<i2").tobytes()
        for kind, wanted in _FORMATS:
            file = io.BytesIO()
            soundfile.write(file, np.clip(soxr.resample(samples, rate, wanted), -1, 1), wanted, format=kind)
            data = file.getvalue()
            made.append(Clip(f"{path.stem}.{kind}.{wanted}", data, model.transcribe(data).text, pcm))
    return made


@dataclass
class Load:
    """So many requests, so many at a time; of kinds in turn, clips by chance (but of a seed).

    Attributes:
        outcomes: how often a kind ended how: its status, or ``left`` where the client went.
        wrong: answers that were neither right nor a documented refusal; to be empty.
    """

    url: str
    clips: Sequence[Clip]
    texts: dict[str, str]  # of each recording, as a realtime session hears it
    seed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._kinds: dict[str, Callable[[Clip], Awaitable[str]]] = {
            "json": self._json, "text": self._text, "verbose": self._verbose, "srt": self._srt, "stream": self._stream,
            "realtime": self._realtime, "slow reader": self._slow_reader, "slow writer": self._slow_writer,
            "leaves uploading": self._leaves_uploading, "leaves waiting": self._leaves_waiting,
            "leaves a stream": self._leaves_a_stream, "leaves realtime": self._leaves_realtime,
            "oversized": self._oversized, "no audio": self._no_audio, "no form": self._no_form,
            "language": self._language,
        }  # fmt: skip

    def run(self, count: int, at_a_time: int) -> Load:
        """All of it; returns when every request has ended."""
        asyncio.run(self._all(count, at_a_time))
        return self

    async def _all(self, count: int, at_a_time: int) -> None:
        names = iter([name for _ in range(count) for name in self._kinds][:count])
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.url, timeout=_PATIENCE, limits=limits) as self._http:
            await asyncio.gather(*(self._client(names) for _ in range(at_a_time)))

    async def _client(self, names: Iterator[str]) -> None:
        for name in names:
            clip = self._random.choice(self.clips)
            try:
                async with asyncio.timeout(_PATIENCE):
                    outcome = await self._kinds[name](clip)
            except Exception as error:  # noqa: BLE001 (whatever a client meets is a result here)
                outcome = f"{type(error).__name__}: {error}"
                self.wrong.append(f"{name}, {clip.name}: {outcome}")
            self.outcomes[f"{name}: {outcome}"] += 1

    def _told(self, answer: httpx.Response, wanted: int = 200) -> str:
        """The status, which is the wanted one or that of a full server; a refusal is in OpenAI's form."""
        status = answer.status_code
        if status not in (wanted, 429):
            raise ValueError(f"status {status}: {answer.text[:200]}")
        if status != 200 and not answer.json()["error"]["message"]:
            raise ValueError(f"a refusal that does not say why: {answer.text[:200]}")
        if status == 429 and int(answer.headers["Retry-After"]) < 1:
            raise ValueError("a full server that does not say when to come again")
        return str(status)

    @staticmethod
    def _same(found: str, wanted: str) -> None:
        if found != wanted:
            raise ValueError(f"{found!r} instead of {wanted!r}")

    async def _post(self, clip: Clip, **parameters: str) -> httpx.Response:
        return await self._http.post(PATH, files={"file": ("a", clip.data)}, data={"model": MODEL} | parameters)

    # --- clients that behave ---------------------------------------------------------------------------------

    async def _json(self, clip: Clip) -> str:
        answer = await self._post(clip)
        if (told := self._told(answer)) == "200":
            self._same(answer.json()["text"], clip.text)
        return told

    async def _text(self, clip: Clip) -> str:
        answer = await self._post(clip, response_format="text")
        if (told := self._told(answer)) == "200":
            self._same(answer.text, clip.text + "\n")
        return told

    async def _verbose(self, clip: Clip) -> str:
        answer = await self._post(clip, response_format="verbose_json")
        if (told := self._told(answer)) == "200":
            self._same(answer.json()["text"], clip.text)
        return told

    async def _srt(self, clip: Clip) -> str:
        answer = await self._post(clip, response_format="srt")
        if (told := self._told(answer)) == "200":
            lines = [line for line in answer.text.splitlines() if line and "-->" not in line and not line.isdecimal()]
            self._same("".join("".join(lines).split()), "".join(clip.text.split()))
        return told

    async def _stream(self, clip: Clip) -> str:
        answer = await self._post(clip, stream="true")
        if (told := self._told(answer)) == "200":
            *events, end = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
            self._same(end, "[DONE]")
            self._same(json.loads(events[-1])["text"], clip.text)
        return told

    async def _realtime(self, clip: Clip) -> str:
        async with self._session() as session:
            await self._say(session, clip.pcm)
            await session.send(json.dumps({"type": "input_audio_buffer.commit"}))
            while True:
                event = json.loads(await session.recv())
                if event["type"].endswith(".failed") or event["type"] == "error":
                    self._same(event["error"]["code"], "rate_limit_exceeded")
                    return "429"
                if event["type"].endswith("transcription.completed"):
                    self._same(event["transcript"], self.texts[clip.name.split(".")[0]])
                    return "200"

    def _session(self) -> connect:
        return connect(self.url.replace("http", "ws") + "/v1/realtime?intent=transcription", open_timeout=_PATIENCE)

    async def _say(self, session: object, pcm: bytes) -> None:
        settings = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
        await session.send(json.dumps({"type": "session.update", "session": settings}))  # type: ignore[attr-defined]
        for start in range(0, len(pcm), 24_000):
            audio = base64.b64encode(pcm[start : start + 24_000]).decode()
            message = {"type": "input_audio_buffer.append", "audio": audio}
            await session.send(json.dumps(message))  # type: ignore[attr-defined]

    # --- slow ones -------------------------------------------------------------------------------------------

    def _body(self, clip: Clip) -> bytes:
        head = f'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n{MODEL}\r\n--x\r\nContent-Disposition: '
        return head.encode() + b'form-data; name="file"; filename="a"\r\n\r\n' + clip.data + b"\r\n--x--\r\n"

    async def _open(self, clip: Clip, route: str = PATH) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        target, body = urlsplit(self.url), self._body(clip)
        reader, writer = await asyncio.open_connection(target.hostname, target.port, limit=64)
        head = f"POST {route} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode())
        return reader, writer, body

    async def _finish(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, clip: Clip, bite: int) -> str:
        said = b""
        while part := await reader.read(bite):
            said += part
            await asyncio.sleep(0)
        writer.close()
        head, _, body = said.partition(b"\r\n\r\n")
        answer = httpx.Response(
            int(head[9:12]), content=body, headers=dict(re.findall(r"(?m)^(\S+): (.*?)\r?$", head.decode()))
        )
        if (told := self._told(answer)) == "200":
            self._same(answer.json()["text"], clip.text)
        return told

    async def _slow_reader(self, clip: Clip) -> str:
        reader, writer, body = await self._open(clip)
        writer.write(body)
        return await self._finish(reader, writer, clip, 7)

    async def _slow_writer(self, clip: Clip) -> str:
        reader, writer, body = await self._open(clip)
        for start in range(0, len(body), max(1, len(body) // 20)):
            writer.write(body[start : start + max(1, len(body) // 20)])
            await writer.drain()
            await asyncio.sleep(0.01)
        return await self._finish(reader, writer, clip, 4_096)

    # --- those that leave ------------------------------------------------------------------------------------

    async def _leaves_uploading(self, clip: Clip) -> str:
        _, writer, body = await self._open(clip)
        writer.write(body[: self._random.randrange(len(body))])
        await writer.drain()
        writer.transport.abort()
        return "left"

    async def _leaves_waiting(self, clip: Clip) -> str:
        _, writer, body = await self._open(clip)
        writer.write(body)
        await writer.drain()
        await asyncio.sleep(self._random.random() / 10)
        writer.transport.abort()
        return "left"

    async def _leaves_a_stream(self, clip: Clip) -> str:
        files, data = {"file": ("a", clip.data)}, {"model": MODEL, "stream": "true"}
        async with self._http.stream("POST", PATH, files=files, data=data) as answer:
            async for _ in answer.aiter_raw():
                break
        return "left"

    async def _leaves_realtime(self, clip: Clip) -> str:
        async with self._session() as session:
            await self._say(session, clip.pcm[: self._random.randrange(2, len(clip.pcm), 2)])
            session.transport.abort()
        return "left"

    # --- those that are refused ------------------------------------------------------------------------------

    async def _oversized(self, clip: Clip) -> str:
        return self._told(await self._http.post(PATH, files={"file": ("a", bytes(LIMIT + 1))}), 413)

    async def _no_audio(self, clip: Clip) -> str:
        broken = Clip("", clip.data[:30] + self._random.randbytes(500), "", b"")
        return self._told(await self._post(broken), 400)

    async def _no_form(self, clip: Clip) -> str:
        headers = {"Content-Type": "multipart/form-data; boundary=y"}
        return self._told(await self._http.post(PATH, content=self._body(clip), headers=headers), 400)

    async def _language(self, clip: Clip) -> str:
        return self._told(await self._post(clip, language="Klingon"), 400)
