"""Greedy decoding of one request: the oracle that every faster loop is held against."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qwen3asr.decoder import Decoder
from qwen3asr.prompt import Prompt
from qwen3asr.types import FinishReason


@dataclass(frozen=True, slots=True)
class Generation:
    """What the model wrote.

    Attributes:
        tokens: ids, without the end token.
        logprobs: of each.
        finish_reason: how it ended.
        end: the end token, if one was chosen.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    end: int | None = None


class Watch(Protocol):
    """Sees the tokens of one text as they are written."""

    def push(self, token: int) -> int | None:
        """Take the next token; the number of tokens to keep if the text is to end here."""


def generate(
    decoder: Decoder, prompt: Prompt, *, eos: Collection[int], budget: int, watch: Watch | None = None, slot: int = 0
) -> Generation:
    """Decode greedily until an end token or the budget.

    Args:
        decoder: feeds the model.
        prompt: ids and audio rows; with the budget it must fit the decoder's capacity.
        eos: ids that end the text.
        budget: most tokens to write, at least 1.
        watch: ends a text that runs in circles.
        slot: cache row to use.

    Raises:
        OutputNotFinite: the model computed NaN or infinity.
    """
    # 1. prefill; only the last position is asked for its answer
    picked = decoder.prefill(prompt, np.array([len(prompt.ids) - 1], np.int64), slot)
    tokens: list[int] = []
    logprobs: list[float] = []
    while True:
        # 2. the most probable token ends the text, or is written
        token = int(picked.tokens[0, 0])
        if token in eos:
            return Generation(tuple(tokens), tuple(logprobs), "stop", token)
        tokens.append(token)
        logprobs.append(float(picked.logprobs[0, 0]))
        kept = None if watch is None else watch.push(token)
        if kept is not None:
            return Generation(tuple(tokens[:kept]), tuple(logprobs[:kept]), "loop")
        if len(tokens) == budget:
            return Generation(tuple(tokens), tuple(logprobs), "length")
        # 3. feed it back
        picked = decoder.step(token, slot, len(prompt.ids) + len(tokens) - 1)
