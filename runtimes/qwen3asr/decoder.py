"""Prefill and step over a decoder session. No policy: what to feed and when to stop is the loop's business."""

from __future__ import annotations

import numpy as np

from qwen3asr.errors import OutputNotFinite, RequestInvalid
from qwen3asr.prompt import Prompt
from qwen3asr.sessions.base import DecoderSession, Embeddings, Ids, Picked

PREFILL_CHUNK = 512
"""Tokens of one prefill run: bounds the attention's memory; chunks give what one pass gives (to rounding)."""

_TAKE_ONLY = np.zeros((1, 1), np.int64)


class Decoder:
    """One request at a time into a slot of the KV cache.

    Args:
        session: runs the graph and owns the cache.
        audio_pad: id of ``<|audio_pad|>``.
        hidden: width of an embedding row.
    """

    def __init__(self, session: DecoderSession, audio_pad: int, hidden: int) -> None:
        self._session, self._audio_pad = session, audio_pad
        self._no_audio: Embeddings = np.zeros((0, hidden), np.float32)

    @property
    def capacity(self) -> int:
        """Tokens that a slot holds."""
        return self._session.capacity

    def prefill(self, prompt: Prompt, take: Ids, slot: int) -> Picked:
        """Feed a prompt to an empty slot.

        Args:
            prompt: at most ``capacity`` tokens, with one audio row for each of its audio pads.
            take: int64 ``[T]``, ascending positions whose answer is wanted.
            slot: row of the cache; what it held is overwritten.

        Returns:
            ``[1, T]`` answers.

        Raises:
            RequestInvalid: the prompt is longer than a slot.
            OutputNotFinite: the model computed NaN or infinity.
        """
        if len(prompt.ids) > self.capacity:
            raise RequestInvalid(
                f"{len(prompt.ids)} tokens do not fit a KV cache of {self.capacity}; load a larger one"
            )
        pads = prompt.ids == self._audio_pad
        if int(pads.sum()) != len(prompt.audio):
            raise ValueError(f"the prompt has {int(pads.sum())} audio pads for {len(prompt.audio)} audio rows")
        rows_before = np.concatenate([[0], np.cumsum(pads)])
        tokens, logprobs = [], []
        for start in range(0, len(prompt.ids), PREFILL_CHUNK):
            stop = min(start + PREFILL_CHUNK, len(prompt.ids))
            wanted = take[(take >= start) & (take < stop)] - start
            picked = self._session.run(
                prompt.ids[None, start:stop], prompt.audio[rows_before[start] : rows_before[stop]], wanted[None],
                range(slot, slot + 1), np.array([start], np.int64),
            )  # fmt: skip
            tokens.append(picked.tokens)
            logprobs.append(picked.logprobs)
        return _finite(Picked(np.concatenate(tokens, 1), np.concatenate(logprobs, 1)), slot, len(prompt.ids))

    def step(self, token: int, slot: int, past: int) -> Picked:
        """Feed one token to a slot that holds ``past`` tokens; ``[1, 1]`` answer.

        Raises:
            OutputNotFinite: the model computed NaN or infinity.
        """
        picked = self._session.run(
            np.array([[token]], np.int64), self._no_audio, _TAKE_ONLY, range(slot, slot + 1), np.array([past], np.int64)
        )
        return _finite(picked, slot, past + 1)


def _finite(picked: Picked, slot: int, position: int) -> Picked:
    if not np.isfinite(picked.logprobs).all():
        raise OutputNotFinite(
            f"the decoder computed NaN or infinity in slot {slot} by position {position}; "
            "check the bundle with `qwen3asr verify`, or export it at a wider precision"
        )
    return picked
