"""How a call is cut where an engine takes less at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qwen3asr.sessions.base import Embeddings, Ids, Picked


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run takes.

    Attributes:
        chunk: tokens of a row, at most.
        answers: of a row, at most.
    """

    chunk: int
    answers: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of a row that are fed in one run.

    Attributes:
        start: the first token.
        stop: behind the last one.
        taken: int64 ``[T]``, positions among the row's tokens whose answers come with it, ascending, each once.
    """

    start: int
    stop: int
    taken: Ids

    @property
    def take(self) -> Ids:
        """Int64 ``[T]``, the positions within the piece; where none is wanted the first, as none is no shape."""
        return self.taken - self.start if len(self.taken) else np.zeros(1, np.int64)


class Feed(Protocol):
    """Runs one piece of a row."""

    def __call__(self, ids: Ids, audio: Embeddings, take: Ids, slot: int, past: int) -> Picked:
        """Answers ``[T]``, good until the next call.

        Args:
            ids: int64 ``[S]``, the piece's tokens.
            audio: float32 ``[N, hidden]``, their audio rows.
            take: int64 ``[T]``, :attr:`Piece.take`.
            slot: row of the cache.
            past: tokens already cached in it.
        """


def cut_row(tokens: int, take: Ids, limits: Limits) -> Iterator[Piece]:
    """Cut a row.

    Args:
        tokens: how many it has.
        take: int64 ``[T]``, positions whose answers are wanted.
        limits: of a run.

    Yields:
        Pieces that follow each other and cover the row.
    """
    positions, start = np.unique(take), 0
    while start < tokens:
        stop = min(start + limits.chunk, tokens)
        wanted = positions[(positions >= start) & (positions < stop)]
        if len(wanted) > limits.answers:
            stop, wanted = int(wanted[limits.answers]), wanted[: limits.answers]
        yield Piece(start, stop, wanted)
        start = stop


def run_rows(
    feed: Feed, limits: Limits, audio_pad: int, ids: Ids, audio: Embeddings, take: Ids, slots: range, past: Ids
) -> Picked:
    """A call of :class:`qwen3asr.sessions.base.DecoderSession`, row by row in pieces.

    Args:
        feed: runs a piece.
        limits: of a run.
        audio_pad: the id of tokens that take an audio row.
        ids: int64 ``[B, S]``, and all that follows, as the session's ``run`` has it.
        audio: float32 ``[N, hidden]``.
        take: int64 ``[B, T]``.
        slots: the B rows.
        past: int64 ``[B]``.
    """
    tokens, logprobs = np.zeros(take.shape, np.int64), np.zeros(take.shape, np.float32)
    before = _audio_slices((ids == audio_pad).ravel())
    for row, slot in enumerate(slots):
        first = row * ids.shape[1]
        for piece in cut_row(ids.shape[1], take[row], limits):
            rows = audio[before[first + piece.start] : before[first + piece.stop]]
            part, start = ids[row, piece.start : piece.stop], int(past[row]) + piece.start
            answers = feed(part, rows, piece.take, slot, start)
            asked = np.isin(take[row], piece.taken)
            where = np.searchsorted(piece.taken, take[row][asked])
            tokens[row, asked], logprobs[row, asked] = answers.tokens[where], answers.logprobs[where]
    return Picked(tokens, logprobs)


def _audio_slices(pads: npt.NDArray[np.bool_]) -> Ids:
    """Index of the audio row that the next pad takes, before each token of bool ``[B * S]`` and behind the last."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(pads, dtype=np.int64)])
