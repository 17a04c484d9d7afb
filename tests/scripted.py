"""Stand-in sessions: a decoder whose answers are written down, and which checks how it is fed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qwen3asr.sessions.base import Embeddings, Ids, Picked


class ScriptedDecoder:
    """Answers the tokens of a script, one for each taken position; records every call.

    It refuses what a real cache would corrupt: a gap or an overlap in what a slot holds, audio rows that do
    not belong to the audio pads, and tokens past the capacity.
    """

    def __init__(self, script: Sequence[int], *, audio_pad: int = 99, slots: int = 1, capacity: int = 4096) -> None:
        self.script, self.audio_pad = list(script), audio_pad
        self.slots, self.capacity = slots, capacity
        self.held = [0] * slots
        self.calls: list[tuple[list[int], list[int], int]] = []  # ids, taken positions, tokens cached before
        self.heard: list[float] = []  # first value of each audio row
        self.logprobs: list[float] = []  # of the answers, where they matter

    def run(self, ids: Ids, audio: Embeddings, take: Ids, slots: range, past: Ids) -> Picked:
        assert len(slots) == len(ids) == 1
        if int(past[0]) == 0:
            self.held[slots[0]] = 0
        assert self.held[slots[0]] == int(past[0])
        assert int((ids == self.audio_pad).sum()) == len(audio)
        self.held[slots[0]] += ids.shape[1]
        assert self.held[slots[0]] <= self.capacity
        self.heard += audio[:, 0].tolist()
        self.calls.append((ids[0].tolist(), take[0].tolist(), int(past[0])))
        tokens = np.array([[self.script.pop(0) for _ in range(take.shape[1])]], np.int64).reshape(take.shape)
        logprobs = [self.logprobs.pop(0) if self.logprobs else -0.5 for _ in range(take.shape[1])]
        return Picked(tokens, np.array([logprobs], np.float32).reshape(take.shape))

    def close(self) -> None:
        """Holds nothing."""
