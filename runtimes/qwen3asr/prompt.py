"""Token sequences that the models expect around the audio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen3asr.errors import ContextInvalid, RequestInvalid
from qwen3asr.sessions.base import Embeddings, Ids
from qwen3asr.tokenizer import Tokenizer

_AUDIO = "<|audio_start|><|audio_pad|><|audio_end|>"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a decoder is fed: int64 ``[n]`` ids and the float32 ``[N, hidden]`` rows of its N audio pads."""

    ids: Ids
    audio: Embeddings


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A prompt without its audio: int64 ids before the audio rows, and behind them."""

    head: Ids
    tail: Ids

    @classmethod
    def around(cls, ids: Ids, pad: int, audio: int) -> Frame:
        """Of a whole prompt, int64 ``[n]``, which holds ``audio`` pads in one run.

        Raises:
            RequestInvalid: it does not.
        """
        at = np.flatnonzero(ids == pad)
        if len(at) != audio or not audio or at[-1] - at[0] != audio - 1:
            raise RequestInvalid(
                f"the prompt needs {audio} audio pads (id {pad}) in one run for these features, and has {len(at)}"
                f"{', not in one run' if len(at) == audio else ''}; make both from one clip"
            )
        return cls(ids[: at[0]], ids[at[-1] + 1 :])


class PromptBuilder:
    """Prompts of the recogniser and inputs of the aligner, token for token as the reference makes them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pad = tokenizer.id("<|audio_pad|>")
        self._timestamp = tokenizer.id("<timestamp>")

    def transcription(self, audio: Embeddings, context: str = "", language: str | None = None) -> Prompt:
        """Chat prompt: context as the system turn, the audio as the user's, perhaps a forced language.

        Args:
            audio: float32 ``[N, hidden]``.
            context: background text and hot words; not an instruction.
            language: full name to force, ``None``: the model detects it.

        Raises:
            ContextInvalid: see :meth:`check_context`.
        """
        self.check_context(context)
        return self._expand(_chat(context, language), audio)

    def frame(self, context: str = "", language: str | None = None) -> Frame:
        """What :meth:`transcription` puts around the audio; tokenised as a whole.

        Raises:
            ContextInvalid: see :meth:`check_context`.
        """
        self.check_context(context)
        ids = np.array(self._tokenizer.encode(_chat(context, language)), np.int64)
        at = int(np.argmax(ids == self._pad))
        return Frame(ids[:at], ids[at + 1 :])

    def alignment(self, audio: Embeddings, units: Sequence[str]) -> tuple[Prompt, Ids]:
        """Input of the aligner and the positions of its time stamps, two a unit (start, end)."""
        prompt = self._expand(_AUDIO + "".join(f"{unit}<timestamp><timestamp>" for unit in units), audio)
        return prompt, np.flatnonzero(prompt.ids == self._timestamp)

    def plain(self, text: str) -> str:
        """A text that the model wrote, as context: without special tokens that it may have spelt out."""
        for token in self._tokenizer.added:
            text = text.replace(token, "")
        return text

    def check_context(self, context: str) -> None:
        """Refuse a context that holds one of the tokenizer's special tokens: it would change the prompt.

        Raises:
            ContextInvalid: names the token; or half of a surrogate pair, which is no text.
        """
        try:
            context.encode()
        except UnicodeEncodeError as error:
            half = f"{context[error.start]!r} at {error.start}"
            raise ContextInvalid(f"the context holds half of a surrogate pair, {half}; remove it") from error
        for token in self._tokenizer.added:
            if token in context:
                raise ContextInvalid(f"the context holds the special token {token}; remove it, it is not plain text")

    def _expand(self, text: str, audio: Embeddings) -> Prompt:
        ids = np.array(self._tokenizer.encode(text), np.int64)
        repeats = np.where(ids == self._pad, len(audio), 1)
        return Prompt(np.repeat(ids, repeats), audio)


def _chat(context: str, language: str | None) -> str:
    forced = f"language {language}<asr_text>" if language else ""
    system, user = f"<|im_start|>system\n{context}<|im_end|>\n", f"<|im_start|>user\n{_AUDIO}<|im_end|>\n"
    return f"{system}{user}<|im_start|>assistant\n{forced}"
