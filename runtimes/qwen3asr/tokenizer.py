"""The checkpoint's own tokenizer (tokenizer.json), and which characters each token wrote."""

from __future__ import annotations

from codecs import register_error
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer

from qwen3asr.errors import BundleFileDamaged, BundleInvalid
from qwen3asr.spec import ModelSpec

NEEDED = (
    "<|im_start|>",
    "<|im_end|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<|audio_pad|>",
    "<asr_text>",
    "<timestamp>",
)


class Tokenizer:
    """Byte-level BPE as Qwen uses it.

    Args:
        path: tokenizer.json.

    Raises:
        BundleFileDamaged: not a tokenizer, or one without Qwen3-ASR's special tokens.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = _Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleFileDamaged(path.name, path.parent, f"not a tokenizer: {error}") from error
        lacking = [text for text in NEEDED if self._tokenizer.token_to_id(text) is None]
        if lacking:
            raise BundleFileDamaged(path.name, path.parent, f"no token {', '.join(lacking)}")
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {index: token.content for index, token in added.items()}
        self._special = {index for index, token in added.items() if token.special}
        self.asr_text = self.id("<asr_text>")

    @property
    def added(self) -> list[str]:
        """Texts of the special and other added tokens."""
        return list(self._added.values())

    def id(self, text: str) -> int:
        """Id of a token that is in the vocabulary as ``text``."""
        index = self._tokenizer.token_to_id(text)
        if index is None:
            raise KeyError(f"the tokenizer has no token {text!r}")
        return int(index)

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens in the text are recognised."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens; ``<asr_text>``, which is not one, stays."""
        return self.join(ids)[0]

    def join(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """Text of the ids, and the span of characters that each id wrote or helped to write."""
        ends, raw = [], b""
        for index in ids:
            raw += self._bytes(index)
            ends.append(len(raw))
        at = _character_index(raw)
        starts = [0, *ends][: len(ends)]
        spans = [
            (at[start], at[end - 1] + 1 if end > start else at[start]) for start, end in zip(starts, ends, strict=True)
        ]
        return raw.decode("utf-8", "replace"), spans

    def _bytes(self, index: int) -> bytes:
        if index in self._special:
            return b""
        if index in self._added:
            return self._added[index].encode()
        piece = self._tokenizer.id_to_token(index)  # None: a row of the padded vocabulary that has no token
        if piece is None:
            return b""
        alphabet = _byte_alphabet()
        return b"".join(bytes([alphabet[char]]) if char in alphabet else char.encode() for char in piece)


def open_tokenizer(folder: Path, spec: ModelSpec) -> Tokenizer:
    """The tokenizer of a bundle; its special tokens must be those that the model was built with.

    Raises:
        BundleFileDamaged: as :class:`Tokenizer`.
        BundleInvalid: tokenizer and model give a special token different ids.
    """
    tokenizer = Tokenizer(folder / "tokenizer.json")
    for text, wanted in (("<|audio_pad|>", spec.audio_pad), ("<timestamp>", spec.timestamp)):
        if tokenizer.id(text) != wanted:
            raise BundleInvalid(
                f"tokenizer.json in {folder} gives {text} the id {tokenizer.id(text)}, config.json {wanted}: "
                "they belong to different models; export the checkpoint again, whole"
            )
    return tokenizer


def _character_index(raw: bytes) -> list[int]:
    """For each byte the index of the character that it belongs to (and one entry past the end).

    Bytes that are no UTF-8 belong together as they do where ``"replace"`` writes U+FFFD for them.
    """
    text, index = raw.decode("utf-8", _SPANS), list[int]()
    for number, character in enumerate(text):
        code = ord(character) - _SPAN
        index += [number] * (code if 0 < code <= _LONGEST else len(character.encode()))
    return [*index, len(text)]


_SPANS, _SPAN, _LONGEST = "qwen3asr.spans", 0xD800, 3
"""UTF-8 never decodes to halves of surrogate pairs: they stand for so many invalid bytes here."""


def _as_span(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(_SPAN + error.end - error.start), error.end


register_error(_SPANS, _as_span)


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """Characters that stand for bytes in byte-level BPE vocabularies (GPT-2's scheme).

    Printable Latin-1 bytes are themselves; the others take the code points from 256 up, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
