"""How a call is cut where an engine takes less at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen3asr.sessions.base import Ids


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


def cut_row(tokens: int, take: Ids, chunk: int, answers: int) -> Iterator[Piece]:
    """Cut a row.

    Args:
        tokens: how many it has.
        take: int64 ``[T]``, positions whose answers are wanted.
        chunk: tokens of a piece, at most.
        answers: of a piece, at most.

    Yields:
        Pieces that follow each other and cover the row.
    """
    positions, start = np.unique(take), 0
    while start < tokens:
        stop = min(start + chunk, tokens)
        wanted = positions[(positions >= start) & (positions < stop)]
        if len(wanted) > answers:
            stop, wanted = int(wanted[answers]), wanted[:answers]
        yield Piece(start, stop, wanted)
        start = stop


def audio_slices(pads: npt.NDArray[np.bool_]) -> Ids:
    """Index of the audio row that the next pad takes, before each token of bool ``[B * S]`` and behind the last."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(pads, dtype=np.int64)])
