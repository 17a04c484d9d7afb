"""A clip of any length becomes a transcript: cut, decoded by the engine, checked, aligned, and put together."""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from qwen3asr.aligner import Aligner
from qwen3asr.audio import AudioReader, limit_peak
from qwen3asr.engine import Engine
from qwen3asr.errors import AudioTooLong, DeadlineExceeded, ExtraMissing, RequestInvalid
from qwen3asr.features import SAMPLE_RATE, Samples, WindowSpec, frame_count, log_mel, split_windows
from qwen3asr.generate import Generation, Watch
from qwen3asr.guards import Guards
from qwen3asr.jobs import Job
from qwen3asr.languages import ALIGNER_LANGUAGES
from qwen3asr.longform import LEAST_SECONDS, Piece, pieces, split_point
from qwen3asr.postprocess import parse_output
from qwen3asr.prompt import Frame, PromptBuilder
from qwen3asr.request import Cancellation, Progress, Report, Request
from qwen3asr.stitch import Part, stitch
from qwen3asr.tokenizer import Tokenizer
from qwen3asr.transcript import Transcript
from qwen3asr.types import Word

PIECE_SECONDS = 180.0
"""The longest stretch that is decoded in one pass: what the original package takes where it also aligns, and better
transcribed than longer ones by its users' reports."""

_log = logging.getLogger("qwen3asr")
_EXPECTED_TOKENS_A_SECOND = 12
"""More than anyone speaks: the default budget cuts loops, not speech."""
_LEAST_TOKENS_A_SECOND = 6
"""Fast speech: room that a pass must have for its text."""
_HALVED_FROM = 4.0
"""A piece of so many seconds whose text was cut, or ran in a circle, is decoded again in two halves."""


@dataclass(frozen=True, slots=True, eq=False)
class _Attempt:
    """A piece on its way through the engine; no future: there is nothing to hear in it."""

    piece: Piece
    samples: Samples
    future: Future[Generation] | None

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass(slots=True, eq=False)
class _Run:
    """One transcription."""

    request: Request
    name: str
    cancellation: Cancellation
    began: float
    patient: bool
    futures: list[Future[Generation]] = field(default_factory=list)

    def left(self) -> float | None:
        """Seconds that it may still take; ``None``: any.

        Raises:
            DeadlineExceeded: its time is over.
        """
        timeout = self.request.timeout
        if timeout is None:
            return None
        left = self.began + timeout - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(timeout)
        return left

    def wait(self, future: Future[Generation]) -> Generation:
        """What one of its passes wrote.

        Raises:
            DeadlineExceeded: the time of all of it is over.
            Qwen3AsrError: as the engine's futures.
        """
        try:
            return future.result()
        except DeadlineExceeded as error:  # which knows only what was left to this pass
            raise DeadlineExceeded(self.request.timeout or 0.0) from error


class Transcriber:
    """Transcribes clips over one engine; several threads may.

    Args:
        engine: decodes.
        tokenizer: of the recogniser.
        windows: how the model cuts its audio.
        aligner: finds word times; ``None``: there are none.
        guards: what keeps loops and invented text out.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, windows: WindowSpec, aligner: Aligner | None, guards: Guards
    ) -> None:
        self._engine, self._tokenizer, self._windows = engine, tokenizer, windows
        self._aligner, self._guards = aligner, guards
        self._prompts = PromptBuilder(tokenizer)

    def transcribe(
        self, reader: AudioReader, request: Request, report: Report | None = None,
        cancellation: Cancellation | None = None, *, patient: bool = False, began: float | None = None,
    ) -> Transcript:  # fmt: skip
        """Transcribe a clip; of several slots its pieces leave one to others, who need not wait for hours of audio.

        Args:
            reader: its audio.
            request: how.
            report: called, on this thread, after each piece.
            cancellation: ends it from another thread.
            patient: wait where the engine's queue is full, also with the first piece.
            began: when it was asked for, by ``time.monotonic()``: its timeout counts from there; by default now.

        Raises:
            AudioTooLong: it needs more than one pass, and the request does not allow that.
            Qwen3AsrError: as :meth:`qwen3asr.engine.Engine.submit` and its futures.
        """
        parts: list[Part] = []
        began = time.monotonic() if began is None else began
        run = _Run(request, reader.name, cancellation or Cancellation(), began, patient)
        with closing(self._pieces(reader, run)) as done:
            for piece, of_piece in done:
                parts += of_piece
                if report is not None:
                    segments = stitch(of_piece, piece.end).segments
                    report(Progress(piece.end, reader.duration, segments))
        return stitch(parts, parts[-1].end)

    def parts(self, reader: AudioReader, request: Request) -> list[Part]:
        """What is said in each piece of a clip; for those who go on with the pieces themselves."""
        run = _Run(request, reader.name, Cancellation(), time.monotonic(), patient=True)
        return [part for _, parts in self._pieces(reader, run) for part in parts]

    def check(self, request: Request) -> None:
        """Refuse a request that has no room for audio.

        Raises:
            RequestInvalid: the KV cache is too small for its settings.
        """
        longest = self.longest_pass(request)
        wanted = LEAST_SECONDS if request.piece_seconds is None else request.piece_seconds
        if not wanted >= LEAST_SECONDS:
            raise RequestInvalid(f"piece_seconds={wanted} is too short; give at least {LEAST_SECONDS}")
        if longest < wanted:
            raise RequestInvalid(
                f"a KV cache of {self._engine.capacity} tokens takes {max(longest, 0.0):.1f} s of audio in a pass "
                f"beside this context and max_new_tokens, not {wanted:.1f}; load the model with a larger capacity="
            )

    def longest_pass(self, request: Request) -> float:
        """Seconds of audio that fit the KV cache in one pass, with their text."""
        frame = self._prompts.frame(request.context, request.language)
        room = self._engine.capacity - len(frame.head) - len(frame.tail) - 1  # a last token may be begun
        audio_a_second = self._windows.chunk_tokens / self._windows.chunk_frames * 100
        if request.max_new_tokens is not None:
            return (room - request.max_new_tokens) / audio_a_second
        return (room - _LEAST_TOKENS_A_SECOND) / (audio_a_second + _LEAST_TOKENS_A_SECOND)

    def budget(self, frame: Frame, audio_tokens: int, seconds: float) -> int:
        """Tokens that a text may have: more than the audio can hold, as far as the KV cache has room."""
        room = self._engine.capacity - len(frame.head) - len(frame.tail) - audio_tokens
        return min(room, 32 + math.ceil(seconds * _EXPECTED_TOKENS_A_SECOND))

    def watch(self, seconds: float) -> Watch | None:
        """What ends a text of so much audio that runs in a circle."""
        loop = self._guards.loop
        return None if loop is None else loop.watch(seconds, lambda token: self._tokenizer.decode([token]))

    # --- pieces ----------------------------------------------------------------------------------------------

    def _pieces(self, reader: AudioReader, run: _Run) -> Generator[tuple[Piece, list[Part]], None, None]:
        """Each piece with what was said in it, in order."""
        waiting: deque[_Attempt] = deque()
        most = max(1, self._engine.slots - 1)
        try:
            for piece in self._cut(reader, run.request):
                if len(waiting) == most:
                    yield waiting[0].piece, self._parts(waiting.popleft(), run)
                waiting.append(self._attempt(piece, run))
                run.patient = True  # what was begun is not refused
            while waiting:
                yield waiting[0].piece, self._parts(waiting.popleft(), run)
        finally:
            for future in run.futures:  # of those that nobody waits for any more
                future.cancel()

    def _cut(self, reader: AudioReader, request: Request) -> Iterator[Piece]:
        longest = self.longest_pass(request)
        if request.split:
            speech = self._guards.speech
            longest = min(longest, request.piece_seconds or PIECE_SECONDS)
            yield from pieces(reader, longest=longest, detector=None if speech is None else speech.detector())
            return
        if reader.duration is not None and reader.duration > longest:
            raise AudioTooLong(reader.duration, longest)
        piece = Piece(0, np.concatenate(list(reader)))
        if piece.end > longest:
            raise AudioTooLong(piece.end, longest)
        yield piece

    def _attempt(self, piece: Piece, run: _Run) -> _Attempt:
        run.left()
        samples, speech = limit_peak(piece.samples), self._guards.speech
        if speech is not None and speech.silent(samples):
            return _Attempt(piece, samples, None)
        return _Attempt(piece, samples, self._submit(samples, run.request, run))

    def _submit(self, samples: Samples, request: Request, run: _Run) -> Future[Generation]:
        frame = self._prompts.frame(request.context, request.language)
        audio = self._windows.tokens(frame_count(len(samples)))
        seconds = len(samples) / SAMPLE_RATE
        budget = request.max_new_tokens or self.budget(frame, audio, seconds)
        windows = split_windows(log_mel(samples), self._windows)
        job = Job(frame, windows, budget, watch=self.watch(seconds), timeout=run.left())
        future = self._engine.submit(job, wait=run.patient)
        run.cancellation.watch(future)
        run.futures.append(future)
        return future

    def _parts(self, attempt: _Attempt, run: _Run) -> list[Part]:
        """What is said in a piece; cut in two where its text was cut, as long as there is something to cut."""
        generation = Generation((), (), "no_speech") if attempt.future is None else run.wait(attempt.future)
        unfinished = generation.finish_reason == "loop" or (
            generation.finish_reason == "length" and run.request.max_new_tokens is None
        )
        if not unfinished or not run.request.split or attempt.seconds < _HALVED_FROM:
            return [self._part(attempt, generation, run)]
        samples, middle = attempt.piece.samples, split_point(attempt.piece.samples)
        _log.info(
            "%s: the text of %.1f s from %.1f s on ended by %r; it is decoded again in two halves",
            run.name, attempt.seconds, attempt.piece.start, generation.finish_reason,
        )  # fmt: skip
        offset = attempt.piece.offset
        halves = [Piece(offset, samples[:middle]), Piece(offset + middle, samples[middle:])]
        return [part for half in [self._attempt(half, run) for half in halves] for part in self._parts(half, run)]

    # --- text ------------------------------------------------------------------------------------------------

    def _part(self, attempt: _Attempt, generation: Generation, run: _Run) -> Part:
        request, piece = run.request, attempt.piece
        language, text = self.read(generation, request.language)
        finish, confidence = generation.finish_reason, self.confidence(generation)
        if finish == "length":
            cure = "raise max_new_tokens" if request.max_new_tokens else "load the model with a larger capacity="
            _log.warning("%s: the text is cut after %d tokens; %s", run.name, len(generation.tokens), cure)
        if finish in ("stop", "loop") and (not text or self.invented(attempt.samples, generation, request, run)):
            language, text, finish = request.language, "", "no_speech"
        if finish == "no_speech":
            self._engine.metrics.no_speech()
        words = self._words(attempt, generation, text, language, run) if request.align and text else ()
        return Part(
            text, language, piece.start, piece.end, words, finish, confidence if text else None, len(generation.tokens)
        )

    def read(self, generation: Generation, forced: str | None) -> tuple[str | None, str]:
        """Language and text of what was decoded."""
        raw = self._tokenizer.decode(generation.tokens)
        if generation.finish_reason != "stop":
            raw = raw.rstrip("\ufffd")  # the cut may go through a character
            if forced is None and self._tokenizer.asr_text not in generation.tokens:
                raw = ""  # only the beginning of "language ..." was written
        return parse_output(raw, forced, repair=self._guards.loop is None)

    def invented(self, samples: Samples, generation: Generation, request: Request, run: _Run | None = None) -> bool:
        """Whether nobody said what was decoded: text on noise, or the context's own words."""
        speech, echo = self._guards.speech, self._guards.echo
        text = self.read(generation, request.language)[1]
        if speech is not None and speech.invented(samples, text, self.confidence(generation)):
            return True
        if echo is None or not echo.suspicious(text, request.context):
            return False
        plain = replace(request, context="")
        run = run or _Run(plain, "audio", Cancellation(), time.monotonic(), patient=True)
        heard = run.wait(self._submit(samples, plain, run))
        without = self.read(heard, request.language)[1]
        made_up = speech is not None and speech.invented(samples, without, self.confidence(heard))
        return echo.echo("" if made_up else without)

    def confidence(self, generation: Generation) -> float | None:
        """Geometric mean probability of the text's tokens; ``None`` without any."""
        logprobs = generation.logprobs[self._header(generation) :]
        return math.exp(float(np.mean(logprobs))) if logprobs else None

    def _header(self, generation: Generation) -> int:
        """Tokens of "language German<asr_text>", which are not text."""
        tag = self._tokenizer.asr_text
        return generation.tokens.index(tag) + 1 if tag in generation.tokens else 0

    # --- words -----------------------------------------------------------------------------------------------

    def _words(
        self, attempt: _Attempt, generation: Generation, text: str, language: str | None, run: _Run
    ) -> tuple[Word, ...]:
        """Word times; a text that cannot be aligned is kept without them, and the reason is logged."""
        if self._aligner is None:
            return ()
        run.left()
        if language is not None and language not in ALIGNER_LANGUAGES:
            _log.warning("%s: no word times: the forced aligner does not know %s", run.name, language)
            return ()
        try:
            words = self._aligner.align_samples(attempt.samples, text, language)
        except (AudioTooLong, ExtraMissing) as error:  # of a text that only now is known
            _log.warning("%s: no word times: %s", run.name, error)
            return ()
        return self.scored(words, text, generation)

    def scored(self, words: Sequence[Word], text: str, generation: Generation) -> tuple[Word, ...]:
        """Words of a text, each with the geometric mean probability of the tokens that wrote it."""
        raw, spans = self._tokenizer.join(generation.tokens)
        header = self._header(generation)
        begin = spans[header - 1][1] if header else 0
        offset = raw.rfind(text) if raw.rstrip().endswith(text) else raw.find(text, begin)
        if offset < 0:  # a repetition was taken out: characters and tokens no longer correspond
            return tuple(words)
        starts, ends = [start for start, _ in spans], [end for _, end in spans]
        scored = []
        for word in words:
            first, last = word.span[0] + offset, word.span[1] + offset
            inside = generation.logprobs[bisect_right(ends, first) : bisect_left(starts, last)]
            scored.append(replace(word, confidence=math.exp(float(np.mean(inside)))) if inside else word)
        return tuple(scored)
