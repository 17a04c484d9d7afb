"""``POST /v1/audio/transcriptions``, whole or as it is decoded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial
from typing import Any, BinaryIO, TypeAlias

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from qwen3asr.errors import AlignerMissing, ExtraMissing, LanguageUnknown
from qwen3asr.recognizer import Options, Recognizer
from qwen3asr.request import Progress, Report
from qwen3asr.server.answers import TextAnswer, VerboseAnswer
from qwen3asr.server.formats import SRT, VTT, event, render
from qwen3asr.server.forms import TranscriptionForm, parse
from qwen3asr.server.lifecycle import Lifecycle
from qwen3asr.server.openapi import WORK, multipart, refusals
from qwen3asr.server.patience import time_limit, unless_gone
from qwen3asr.server.problems import error_body, problem_of
from qwen3asr.server.settings import ServerSettings
from qwen3asr.server.uploads import file_of, receive_form
from qwen3asr.stitch import join_texts
from qwen3asr.transcript import Transcript

Transcribe: TypeAlias = Callable[[Report | None], Awaitable[Transcript]]

_log = logging.getLogger("qwen3asr.server")
_ANSWERS: dict[str, Any] = {
    "model": TextAnswer | VerboseAnswer,
    "description": "The text, in the format that was asked for.",
    "content": {kind: {} for kind in ("text/plain", SRT, VTT, "text/event-stream")},
}


def transcription_routes(model: Recognizer, name: str, settings: ServerSettings, lifecycle: Lifecycle) -> APIRouter:
    """The routes of transcription."""
    router = APIRouter()

    @router.post(
        "/v1/audio/transcriptions",
        response_class=Response,
        responses={200: _ANSWERS, **refusals(*WORK)},
        openapi_extra=multipart(TranscriptionForm, name),
    )
    async def transcriptions(request: Request) -> Response:
        """Speech to text."""
        arrived = asyncio.get_running_loop().time()
        async with AsyncExitStack() as held:
            held.enter_context(lifecycle.work())
            async with time_limit(settings.request_seconds, arrived):
                upload = await held.enter_async_context(receive_form(request, settings.max_upload_bytes))
                form, file = parse(TranscriptionForm, upload).check(name), file_of(upload)
                options = _options(model, form, settings)
            transcribe = partial(_transcribe, model, file, options, settings, arrived)
            if not form.stream:
                return render(await unless_gone(request, transcribe(None)), form)
            events = await held.enter_async_context(aclosing(_events(transcribe, request.state.request_id)))
            first = await unless_gone(request, anext(events))  # errors before it still have their status
            return _EventStream(first, events, held.pop_all())

    return router


class _EventStream(StreamingResponse):
    """Server-sent events; what they need is held until the last is sent, or the client leaves."""

    def __init__(self, first: str, rest: AsyncGenerator[str, None], held: AsyncExitStack) -> None:
        async def all_of_them() -> AsyncGenerator[str, None]:
            yield first
            async for each in rest:
                yield each

        super().__init__(all_of_them(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _transcribe(
    model: Recognizer, file: BinaryIO, options: Options, settings: ServerSettings, arrived: float, report: Report | None
) -> Transcript:
    async with time_limit(settings.request_seconds, arrived):
        return await model.transcribe_async(file, progress=report, **options)


async def _events(transcribe: Transcribe, request_id: str) -> AsyncGenerator[str, None]:
    """Deltas as pieces are decoded, which make up the text; then all of it. An error after the first is an event."""
    begun = False
    try:
        async with aclosing(_texts(transcribe)) as texts:
            async for each in texts:
                if isinstance(each, Transcript):
                    done = {"type": "transcript.text.done", "text": each.text, "finish_reason": each.finish_reason}
                    yield event(done)
                else:
                    yield event({"type": "transcript.text.delta", "delta": each})
                begun = True
    except Exception as error:
        if not begun:
            raise
        if problem_of(error).status == 500:
            _log.exception("request %s failed", request_id)
        yield event(error_body(error, request_id))
        return
    yield "data: [DONE]\n\n"


async def _texts(transcribe: Transcribe) -> AsyncGenerator[str | Transcript, None]:
    """What each piece adds to the text, and the transcript."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Progress | None]()

    def report(progress: Progress) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, progress)

    task = asyncio.ensure_future(transcribe(report))
    task.add_done_callback(lambda _: queue.put_nowait(None))
    said = ""
    try:
        while (progress := await queue.get()) is not None:
            whole = join_texts([said, *(segment.text for segment in progress.segments)])
            if len(whole) > len(said):
                yield whole[len(said) :]
            said = whole
        yield await task
    finally:
        task.cancel()


def _options(model: Recognizer, form: TranscriptionForm, settings: ServerSettings) -> Options:
    """How to transcribe; checked before the audio is looked at."""
    plain = Options(language=form.language, context=form.prompt, max_seconds=settings.max_audio_seconds)
    timed: Options = {**plain, "timestamps": "word"}
    model.check(**plain)
    if "word" in form.timestamp_granularities:
        model.check(**timed)
        return timed
    if form.response_format in ("srt", "vtt", "verbose_json"):
        with suppress(AlignerMissing, LanguageUnknown, ExtraMissing):  # finer segments, where words can have times
            model.check(**timed)
            return timed
    return plain
