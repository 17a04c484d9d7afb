"""Clients that transcribe at the same time, from samples to the last token, through the engine that users have."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise

from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.engine import Engine
from qwen3asr.features import Samples, WindowSpec, log_mel, split_windows
from qwen3asr.jobs import Job
from qwen3asr.prompt import Frame


@dataclass(slots=True)
class Stopwatch:
    """Notes when the tokens of one clip are written; see :class:`qwen3asr.generate.Watch`."""

    started: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)

    def push(self, token: int) -> None:
        """Take the next token, and never end the text."""
        self.times.append(time.perf_counter())

    @property
    def first_token(self) -> float:
        """Seconds until the first token."""
        return self.times[0] - self.started

    @property
    def gaps(self) -> list[float]:
        """Seconds from each token to the next."""
        return [after - before for before, after in pairwise(self.times)]

    @property
    def seconds(self) -> float:
        """Until the last token."""
        return self.times[-1] - self.started


@dataclass(frozen=True, slots=True)
class Round:
    """What a number of clients did together.

    Attributes:
        seconds: from the first clip's start to the last one's end.
        watches: of all their clips.
        rows_per_step: mean size of a decoder batch.
    """

    seconds: float
    watches: Sequence[Stopwatch]
    rows_per_step: float


@dataclass(frozen=True, slots=True)
class Clients:
    """Clients of one model, each with the same clip.

    Attributes:
        encoder, decoder: of an idle model; the decoder has a slot for every client.
        windows: how the model cuts audio.
        frame: of the prompt.
        samples: the clip, float32 ``[n]``.
        tokens: text tokens of every clip. The engine is told of no end token, so that none ends sooner.
    """

    encoder: Encoder
    decoder: Decoder
    windows: WindowSpec
    frame: Frame
    samples: Samples
    tokens: int

    def run(self, clients: int, clips: int) -> Round:
        """So many clients at a time; each sends its next clip when the one before is done.

        Raises:
            Qwen3AsrError: of the first clip that failed.
        """
        engine = Engine(self.encoder, self.decoder, (), queue=clients)
        with ThreadPoolExecutor(clients) as threads, closing(engine):  # closed first: what still waits is told so
            start = time.perf_counter()
            running = [threads.submit(self._client, engine, clips) for _ in range(clients)]
            watches = [watch for client in running for watch in client.result()]
            seconds = time.perf_counter() - start
        return Round(seconds, watches, engine.metrics.snapshot().rows_per_step)

    def _client(self, engine: Engine, clips: int) -> list[Stopwatch]:
        watches = []
        for _ in range(clips):
            watch = Stopwatch()
            windows = split_windows(log_mel(self.samples), self.windows)
            engine.submit(Job(self.frame, windows, self.tokens, watch=watch)).result()
            watches.append(watch)
        return watches
