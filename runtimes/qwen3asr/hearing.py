"""A stream's ear: the engine's side of :class:`qwen3asr.listener.Ear`."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

from qwen3asr.aligner import Aligner
from qwen3asr.engine import Engine
from qwen3asr.errors import AudioTooLong, EngineClosed, ExtraMissing
from qwen3asr.features import HOP, SAMPLE_RATE, Mel, Samples, WindowSpec
from qwen3asr.generate import Generation
from qwen3asr.jobs import Job, Prefix
from qwen3asr.languages import ALIGNER_LANGUAGES
from qwen3asr.prompt import Frame, PromptBuilder
from qwen3asr.request import Request
from qwen3asr.transcription import Transcriber
from qwen3asr.types import Word

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("qwen3asr")


class EngineEar:
    """See :class:`qwen3asr.listener.Ear`: jobs that go before those of files, and continue one prefix a segment.

    Args:
        engine: decodes.
        transcriber: knows budgets, guards, and how to read what was decoded.
        prompts: of the recogniser.
        windows: how the model cuts its audio.
        aligner: finds word times; ``None``: there are none.
        threads: where it works.
        language: to force, ``None``: detected.
    """

    def __init__(
        self, engine: Engine, transcriber: Transcriber, prompts: PromptBuilder, windows: WindowSpec,
        aligner: Aligner | None, threads: Executor, language: str | None,
    ) -> None:  # fmt: skip
        self._engine, self._transcriber, self._prompts, self._windows = engine, transcriber, prompts, windows
        self._aligner, self._threads, self._language = aligner, threads, language
        self._prefix: Prefix | None = None
        self._frame: Frame | None = None
        self._context = ""
        self._kept: list[int] = []  # frames of each window that the prefix keeps
        self._counted = 0.0  # seconds of the segment that were in a job

    def begin(self, context: str) -> None:
        """See :class:`qwen3asr.listener.Ear`.

        Raises:
            EngineBusy: at the first segment only: too many streams are open.
        """
        self._context = self._prompts.plain(context)
        self._frame, self._kept, self._counted = self._prompts.frame(self._context, self._language), [], 0.0
        if self._prefix is not None:
            self._engine.restart(self._prefix, self._frame)
            return
        self._prefix = self._engine.open(self._frame)
        self._forgotten = weakref.finalize(self, self._engine.abandon, self._prefix)
        self._forgotten.atexit = False

    def hear(self, *, keep: int, windows: Sequence[Mel], complete: int, draft: Sequence[int]) -> Future[Generation]:
        """See :class:`qwen3asr.listener.Ear`."""
        if self._frame is None:
            raise ValueError("no segment was begun")
        self._kept = self._kept[:keep]
        frames = [*self._kept, *(window.shape[1] for window in windows)]
        self._kept += frames[keep : keep + complete]
        seconds = sum(frames) * HOP / SAMPLE_RATE
        budget = self._transcriber.budget(self._frame, sum(map(self._windows.tokens, frames)), seconds)
        job = Job(
            self._frame, windows, budget, draft=draft[:budget], watch=self._transcriber.watch(seconds), live=True,
            prefix=self._prefix, keep=keep, complete=complete, seconds=max(seconds - self._counted, 0.0),
        )  # fmt: skip
        self._counted = seconds
        return self._engine.submit(job)

    def align(
        self, samples: Samples, text: str, language: str | None, generation: Generation
    ) -> Future[tuple[Word, ...]]:
        """See :class:`qwen3asr.listener.Ear`."""
        return self._in_thread(self._align, samples, text, language, generation)

    def read(self, generation: Generation) -> tuple[str | None, str]:
        """See :class:`qwen3asr.listener.Ear`."""
        return self._transcriber.read(generation, self._language)

    def confidence(self, generation: Generation) -> float | None:
        """See :class:`qwen3asr.listener.Ear`."""
        return self._transcriber.confidence(generation)

    def invented(self, samples: Samples, generation: Generation) -> Future[bool]:
        """See :class:`qwen3asr.listener.Ear`."""
        request = Request(self._language, self._context)
        return self._in_thread(self._transcriber.invented, samples, generation, request)

    def close(self) -> None:
        """See :class:`qwen3asr.listener.Ear`."""
        if self._prefix is not None:
            self._forgotten.detach()
            self._engine.release(self._prefix)
            self._prefix = None

    def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        try:
            return self._threads.submit(work, *args, **kwargs)
        except RuntimeError as error:
            if self._engine.closing:
                raise EngineClosed from error
            raise

    def _align(self, samples: Samples, text: str, language: str | None, generation: Generation) -> tuple[Word, ...]:
        if self._aligner is None or (language is not None and language not in ALIGNER_LANGUAGES):
            return ()
        try:
            words = self._aligner.align_samples(samples, text, language)
        except (AudioTooLong, ExtraMissing) as error:
            _log.warning("stream: no word times: %s", error)
            return ()
        return self._transcriber.scored(words, text, generation)
