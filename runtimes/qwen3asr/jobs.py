"""What an engine is asked for, and what it knows of it on its way."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Container, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from qwen3asr.features import HOP, SAMPLE_RATE, Mel
from qwen3asr.generate import Generation, Watch
from qwen3asr.prompt import Frame
from qwen3asr.sessions.base import Embeddings, Ids
from qwen3asr.types import FinishReason


class Prefix:
    """What a stream keeps between its requests. Made by :meth:`Engine.open`; only the engine looks inside.

    The embeddings of complete windows and, while nobody needs its slot more, their keys and values in the cache.
    """

    def __init__(self, number: int, frame: Frame) -> None:
        self.number, self.frame = number, frame
        self.windows: list[Embeddings] = []
        self.busy = False

    def tokens(self) -> int:
        """Tokens of the prompt up to the end of the kept windows."""
        return len(self.frame.head) + sum(map(len, self.windows))


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One request.

    Attributes:
        frame: token ids before and behind the audio.
        windows: log-mel windows, float32 ``[128, frames]`` each, in order; only the last may be short.
        budget: most tokens to write, at least 1.
        draft: tokens that the answer may begin with; checked in the prefill's own pass, and never trusted.
        watch: sees every token, and cuts the text when it runs in circles.
        live: goes before those that are not.
        timeout: seconds from submission after which it is given up.
        prefix: where it continues; its frame counts, and its kept windows come before ``windows``.
        keep: leading windows of the prefix that are still valid.
        complete: leading ``windows`` that the prefix is to keep.
        seconds: of audio that no job before had, which metrics count; ``None``: all of it.
    """

    frame: Frame
    windows: Sequence[Mel]
    budget: int
    draft: Sequence[int] = ()
    watch: Watch | None = None
    live: bool = False
    timeout: float | None = None
    prefix: Prefix | None = None
    keep: int = 0
    complete: int = 0
    seconds: float | None = None


@dataclass(slots=True, eq=False)
class Task:
    """A job on its way: what the engine knows of it beside the scheduler's ints.

    Attributes:
        number: its name in the scheduler.
        job: what was asked, but for its windows.
        windows: those that are still to be encoded; what is encoded is let go, for hours of audio are many.
        audio_seconds: of audio that it brings.
        submitted: when it came (seconds of the engine's clock).
        ids: the whole prompt, draft included; int64 ``[n]``.
        head: tokens before the audio.
        rows: embeddings of its windows, those of its prefix first, as far as they are encoded.
        audio: the rows in one, once all are there.
        answers: tokens and log probabilities at the prompt's last position and at the draft's.
        begun: it has had work done.
        last: when its latest token came.
        end: the end token, once it is chosen.
    """

    number: int
    job: Job
    windows: deque[Mel]
    audio_seconds: float
    submitted: float
    ids: Ids
    head: int
    rows: list[Embeddings]
    future: Future[Generation] = field(default_factory=Future)
    audio: Embeddings | None = None
    answers: list[tuple[int, float]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    begun: bool = False
    last: float | None = None
    end: int | None = None

    @property
    def deadline(self) -> float:
        """When it is given up."""
        return math.inf if self.job.timeout is None else self.submitted + self.job.timeout

    @property
    def asked(self) -> int:
        """First position whose answer is wanted: the prompt's last token."""
        return len(self.ids) - len(self.job.draft) - 1

    @classmethod
    def of(cls, number: int, job: Job, submitted: float, ids: Ids, head: int, kept: list[Embeddings]) -> Task:
        """A job that has just come; ``kept`` are the embeddings of its prefix."""
        length = sum(mel.shape[1] for mel in job.windows) * HOP / SAMPLE_RATE
        seconds = length if job.seconds is None else job.seconds
        return cls(number, replace(job, windows=()), deque(job.windows), seconds, submitted, ids, head, kept)

    def next_windows(self, count: int) -> list[Mel]:
        """Those that are to be encoded now."""
        return list(islice(self.windows, count))

    def encoded(self, rows: list[Embeddings]) -> None:
        """Take the embeddings of the next windows."""
        self.rows += rows
        for _ in rows:
            self.windows.popleft()

    def audio_rows(self, start: int, stop: int) -> Embeddings:
        """Rows of the audio pads among the prompt's positions ``start .. stop``."""
        if self.audio is None:
            self.audio = np.concatenate(self.rows)
        return self.audio[max(start - self.head, 0) : max(stop - self.head, 0)]

    def prefilled(self) -> None:
        """The prompt is fed: nothing of its audio is needed any more."""
        self.audio, self.rows = None, []

    def write(self, token: int, logprob: float, eos: Container[int]) -> FinishReason | None:
        """Take an answer; how the text ends, if it ends with it."""
        if token in eos:
            self.end = token
            return "stop"
        self.tokens.append(token)
        self.logprobs.append(logprob)
        kept = None if self.job.watch is None else self.job.watch.push(token)
        if kept is not None:
            del self.tokens[kept:], self.logprobs[kept:]
            return "loop"
        return "length" if len(self.tokens) == self.job.budget else None

    def generation(self, reason: FinishReason) -> Generation:
        """What was written."""
        return Generation(tuple(self.tokens), tuple(self.logprobs), reason, self.end)
