"""``POST /v1/audio/alignments``: when each word of a known text is said; not part of OpenAI's API."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import BinaryIO

from fastapi import APIRouter, Request, Response

from qwen3asr.errors import EngineBusy
from qwen3asr.recognizer import Recognizer
from qwen3asr.server.answers import Alignment, json_of
from qwen3asr.server.formats import word_times
from qwen3asr.server.forms import AlignmentForm, parse
from qwen3asr.server.lifecycle import Lifecycle
from qwen3asr.server.openapi import WORK, multipart, refusals
from qwen3asr.server.patience import time_limit, unless_gone
from qwen3asr.server.settings import ServerSettings
from qwen3asr.server.uploads import file_of, receive_form
from qwen3asr.types import Word

_RETRY_SECONDS = 5.0


class _Aligning:
    """Alignments under way: as many as the model has slots.

    A pass of the aligner cannot be cancelled, so that one which nobody waits for any more still counts.
    """

    def __init__(self, model: Recognizer, settings: ServerSettings) -> None:
        self._model, self._settings, self._running = model, settings, 0
        # of its own: it must not hold up what the event loop's threads do for streams, or for a server that stops
        self._threads = ThreadPoolExecutor(model.kv_cache.slots, "qwen3asr-align")

    async def align(self, file: BinaryIO, form: AlignmentForm) -> tuple[Word, ...]:
        if self._running >= self._model.kv_cache.slots:
            raise EngineBusy(f"{self._running} alignments are under way", _RETRY_SECONDS)
        work = partial(
            self._model.align, file, form.text, language=form.language, max_seconds=self._settings.max_audio_seconds
        )  # which reads the file first: it is closed when the client leaves
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        self._running += 1
        future.add_done_callback(self._done)
        return await asyncio.shield(future)

    def _done(self, future: asyncio.Future[tuple[Word, ...]]) -> None:
        self._running -= 1
        if not future.cancelled():
            future.exception()  # nobody may be left to look at it


def alignment_routes(model: Recognizer, name: str, settings: ServerSettings, lifecycle: Lifecycle) -> APIRouter:
    """The route of alignment."""
    router, aligning = APIRouter(), _Aligning(model, settings)

    @router.post(
        "/v1/audio/alignments",
        response_class=Response,
        responses={200: {"model": Alignment}, **refusals(*WORK)},
        openapi_extra=multipart(AlignmentForm, name),
    )
    async def alignments(request: Request) -> Response:
        """Word times of a text that is known."""
        arrived = asyncio.get_running_loop().time()
        with lifecycle.work():
            async with (
                time_limit(settings.request_seconds, arrived),
                receive_form(request, settings.max_upload_bytes) as upload,
            ):
                form, file = parse(AlignmentForm, upload).check(name), file_of(upload)
                words = await unless_gone(request, aligning.align(file, form))
        return json_of(Alignment(text=form.text, words=word_times(words)))

    return router
