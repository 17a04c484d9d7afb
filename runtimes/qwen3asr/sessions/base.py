"""The protocol between the loop and a backend. A new backend implements these two classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from qwen3asr.features import Mel

Ids: TypeAlias = npt.NDArray[np.int64]
Embeddings: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Picked:
    """The model's greedy answers.

    Attributes:
        tokens: int64 ``[B, T]``, the most probable token (or time class) at each taken position.
        logprobs: float32 ``[B, T]``, its natural log probability.
    """

    tokens: Ids
    logprobs: npt.NDArray[np.float32]


class EncoderSession(Protocol):
    """Runs the audio encoder."""

    @property
    def batch_windows(self) -> int:
        """Windows of one run, at most: what the device gains from, and its memory allows."""

    def run(self, mel: Mel, frames: Ids) -> Embeddings:
        """Encode windows.

        Args:
            mel: float32 ``[windows, 128, frames]``, frames a multiple of the chunk.
            frames: int64 ``[windows]``, valid frames of each.

        Returns:
            float32 ``[windows, tokens, hidden]``; rows past a window's valid tokens are meaningless.

        Raises:
            EngineClosed: the session was closed.
        """

    def close(self) -> None:
        """Let go of a device's memory, while nothing runs; harmless when done twice, and nothing on the CPU."""


class DecoderSession(Protocol):
    """Runs the decoder; owns the KV cache, ``slots`` rows of ``capacity`` tokens, allocated once."""

    @property
    def slots(self) -> int:
        """Rows of the KV cache."""

    @property
    def capacity(self) -> int:
        """Tokens of a row."""

    @property
    def slot_bytes(self) -> int:
        """Memory of one row when it is full."""

    def run(self, ids: Ids, audio: Embeddings, take: Ids, slots: range, past: Ids) -> Picked:
        """Feed new tokens to consecutive slots.

        Args:
            ids: int64 ``[B, S]``.
            audio: float32 ``[N, hidden]``, one row for each audio pad among the ids, in order.
            take: int64 ``[B, T]``, indices into ``S`` whose answer is wanted; ``T`` may be 0.
            slots: the B consecutive cache rows.
            past: int64 ``[B]``, tokens already cached in each; new ones are written after them.

        Raises:
            EngineClosed: the session was closed.
        """

    def swap(self, first: int, second: int, tokens: int) -> None:
        """Exchange the first ``tokens`` tokens of two cache rows: so that the rows of a step stand together."""

    def close(self) -> None:
        """As :meth:`EncoderSession.close`; sizes can still be asked for."""
