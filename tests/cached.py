"""A model small enough to be known by heart: its answer is a hash of everything that the slot's cache holds.

A token in the wrong slot, a stale cache, a wrong position or another request's audio all change the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.features import MEL_BINS, Mel, WindowSpec
from qwen3asr.generate import Generation, Watch, generate
from qwen3asr.prompt import Frame, Prompt
from qwen3asr.sessions.base import Embeddings, Ids, Picked

AUDIO_PAD, END, VOCAB, HIDDEN = 99, 7, 50, 3


class CachedDecoder:
    """See :class:`qwen3asr.sessions.base.DecoderSession`.

    Args:
        slots: rows of the cache.
        capacity: tokens of a row.
        ending: one answer in so many is the end token.
        on_run: called before each run with its slots; may raise.
    """

    def __init__(
        self, slots: int = 1, capacity: int = 4096, ending: int = 12, on_run: Callable[[range], None] | None = None
    ) -> None:
        self.slots, self.capacity, self.slot_bytes = slots, capacity, 8 * capacity
        self.cache: list[list[int]] = [[] for _ in range(slots)]
        self.ending, self.on_run = ending, on_run
        self.runs: list[tuple[int, int]] = []  # rows, tokens of each
        self.swapped = 0
        self.poisoned: set[int] = set()  # a slot that holds one of these answers NaN

    def run(self, ids: Ids, audio: Embeddings, take: Ids, slots: range, past: Ids) -> Picked:
        if self.on_run is not None:
            self.on_run(slots)
        assert len(slots) == len(ids) == len(past) == len(take)
        assert slots.stop <= self.slots
        rows = iter(audio[:, 0].tolist())
        self.runs.append(ids.shape)
        answers = []
        for row, (slot, held) in enumerate(zip(slots, past.tolist(), strict=True)):
            assert held <= len(self.cache[slot]), "a gap in the cache"
            content = [hash((index, next(rows))) if index == AUDIO_PAD else index for index in ids[row].tolist()]
            self.cache[slot][held:] = content
            assert len(self.cache[slot]) <= self.capacity
            answers.append([self._answer(slot, held + at + 1) for at in take[row].tolist()])
        assert next(rows, None) is None, "audio rows that no pad takes"
        tokens = np.array([[token for token, _ in row] for row in answers], np.int64).reshape(take.shape)
        logprobs = np.array([[logprob for _, logprob in row] for row in answers], np.float32).reshape(take.shape)
        return Picked(tokens, logprobs)

    def _answer(self, slot: int, length: int) -> tuple[int, float]:
        seen = tuple(self.cache[slot][:length])
        if self.poisoned & set(seen):
            return 0, float("nan")
        value = hash(seen)
        return (END if value % self.ending == 0 else 100 + value % VOCAB), -(value % 1000) / 1000

    def swap(self, first: int, second: int, tokens: int) -> None:
        """Beyond ``tokens`` nothing is moved: what stood there must not be needed."""
        one, other = self.cache[first], self.cache[second]
        self.cache[first], self.cache[second] = other[:tokens], one[:tokens]
        self.swapped += 1

    def close(self) -> None:
        """Holds nothing."""


class SumEncoder:
    """A window's rows are its number of frames, the sum of its mel, and the row's index."""

    def __init__(self, batch_windows: int = 4, on_run: Callable[[], None] | None = None) -> None:
        self.batch_windows, self.on_run = batch_windows, on_run
        self.batches: list[int] = []

    def run(self, mel: Mel, frames: Ids) -> Embeddings:
        if self.on_run is not None:
            self.on_run()
        assert len(mel) <= self.batch_windows
        self.batches.append(len(mel))
        count = WindowSpec().tokens(mel.shape[2])
        out = np.zeros((len(mel), count, HIDDEN), np.float32)
        for row, (window, valid) in enumerate(zip(mel, frames.tolist(), strict=True)):
            out[row, :, 0] = window[:, :valid].sum() + valid + np.arange(count) / 128
        return out

    def close(self) -> None:
        """Holds nothing."""


def window(seconds: float, value: float) -> Mel:
    """A window of so many seconds, told from others by its value."""
    return np.full((MEL_BINS, round(seconds * 100)), value, np.float32)


def alone(
    windows: Sequence[Mel], frame: Frame, budget: int, *, ending: int = 12, watch: Watch | None = None
) -> Generation:
    """What the one-row loop writes."""
    (rows,) = [np.concatenate(Encoder(SumEncoder(), WindowSpec()).encode(list(windows)))]
    ids = np.concatenate([frame.head, np.full(len(rows), AUDIO_PAD), frame.tail])
    decoder = Decoder(CachedDecoder(capacity=10_000, ending=ending), AUDIO_PAD, HIDDEN)
    return generate(decoder, Prompt(ids, rows), eos={END}, budget=budget, watch=watch)
