"""Prefill and step over a decoder session. No policy: what to feed and when to stop is the loop's business."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qwen3asr.errors import OutputNotFinite, RequestInvalid
from qwen3asr.prompt import Prompt
from qwen3asr.sessions.base import DecoderSession, Embeddings, Ids, Picked

PREFILL_CHUNK = 512
"""Tokens of one prefill run: bounds the attention's memory; chunks give what one pass gives (to rounding)."""


class Decoder:
    """Feeds the slots of a session's KV cache: a prompt into one of them, or one token into each of several.

    Args:
        session: runs the graph and owns the cache.
        audio_pad: id of ``<|audio_pad|>``.
        hidden: width of an embedding row.
    """

    def __init__(self, session: DecoderSession, audio_pad: int, hidden: int) -> None:
        self._session, self.audio_pad = session, audio_pad
        self._no_audio: Embeddings = np.zeros((0, hidden), np.float32)

    @property
    def capacity(self) -> int:
        """Tokens that a slot holds."""
        return self._session.capacity

    @property
    def slots(self) -> int:
        """Requests that the KV cache holds at a time."""
        return self._session.slots

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot when it is full."""
        return self._session.slot_bytes

    @property
    def hidden(self) -> int:
        """Width of an audio row."""
        return int(self._no_audio.shape[1])

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
        pads = prompt.ids == self.audio_pad
        if int(pads.sum()) != len(prompt.audio):
            raise ValueError(f"the prompt has {int(pads.sum())} audio pads for {len(prompt.audio)} audio rows")
        rows_before = np.concatenate([[0], np.cumsum(pads)])
        tokens, logprobs = [], []
        for start in range(0, len(prompt.ids), PREFILL_CHUNK):
            stop = min(start + PREFILL_CHUNK, len(prompt.ids))
            wanted = take[(take >= start) & (take < stop)] - start
            picked = self.feed(
                prompt.ids[start:stop], prompt.audio[rows_before[start] : rows_before[stop]], wanted, slot, start
            )
            tokens.append(picked.tokens)
            logprobs.append(picked.logprobs)
        return Picked(np.concatenate(tokens, 1), np.concatenate(logprobs, 1))

    def feed(self, ids: Ids, audio: Embeddings, take: Ids, slot: int, past: int) -> Picked:
        """Feed tokens to a slot that holds ``past`` of them.

        Args:
            ids: int64 ``[S]``.
            audio: float32 ``[N, hidden]``, a row for each audio pad among them.
            take: int64 ``[T]``, indices into ``ids`` whose answer is wanted; may be empty.
            slot: row of the cache.
            past: tokens in it that stay; what is behind them is overwritten.

        Returns:
            ``[1, T]`` answers.

        Raises:
            OutputNotFinite: the model computed NaN or infinity, or the audio rows hold it: integer products would make
                numbers of it.
        """
        if not np.isfinite(audio).all():
            raise _broken("the encoder computed NaN or infinity")
        picked = self._session.run(ids[None], audio, take[None], range(slot, slot + 1), np.array([past], np.int64))
        if not np.isfinite(picked.logprobs).all():
            raise not_finite(slot, past + len(ids))
        return picked

    def step(self, token: int, slot: int, past: int) -> Picked:
        """Feed one token to a slot that holds ``past`` tokens; ``[1, 1]`` answer.

        Raises:
            OutputNotFinite: the model computed NaN or infinity.
        """
        picked = self.step_rows([token], [past], slot)
        if not np.isfinite(picked.logprobs).all():
            raise not_finite(slot, past + 1)
        return picked

    def step_rows(self, tokens: Sequence[int], past: Sequence[int], first: int = 0) -> Picked:
        """Feed one token to each of several slots that stand together.

        Args:
            tokens: one a row.
            past: tokens that each row's slot holds.
            first: slot of the first row.

        Returns:
            ``[rows, 1]`` answers. They are not checked: a row that is not finite must not harm the others.
        """
        ids, take = np.array(tokens, np.int64)[:, None], np.zeros((len(tokens), 1), np.int64)
        slots = range(first, first + len(tokens))
        return self._session.run(ids, self._no_audio, take, slots, np.array(past, np.int64))

    def swap(self, first: int, second: int, tokens: int) -> None:
        """Exchange the first ``tokens`` tokens of two slots."""
        self._session.swap(first, second, tokens)

    def close(self) -> None:
        """Let go of a device's memory; see :class:`qwen3asr.sessions.base.DecoderSession`."""
        self._session.close()


def not_finite(slot: int, position: int) -> OutputNotFinite:
    """The error of a row whose answers are NaN or infinite."""
    return _broken(f"the decoder computed NaN or infinity in slot {slot} by position {position}")


def _broken(what: str) -> OutputNotFinite:
    return OutputNotFinite(f"{what}; check the bundle with `qwen3asr verify`, or export it at a wider precision")
