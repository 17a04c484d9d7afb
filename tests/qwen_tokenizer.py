"""The tokenizer of the released models, made from the vocabulary that PyPI's dashscope ships."""

from __future__ import annotations

import base64
from functools import cache
from importlib.metadata import files
from pathlib import Path

from transformers.convert_slow_tokenizer import TikTokenConverter

from qwen3asr_export.standin_tokenizer import make_tokenizer


class _Converter(TikTokenConverter):  # type: ignore[misc]
    """The library's own reading of the file needs one more package for this one line."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        lines = Path(tiktoken_url).read_bytes().splitlines()
        return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


@cache
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Qwen's regular tokens and the merges that lead to them."""
    found = [file for file in files("dashscope") or [] if file.name == "qwen.tiktoken"]
    vocab, merges = _Converter().extract_vocab_merges_from_model(str(found[0].locate()))
    return vocab, merges


def save_tokenizer(folder: Path) -> Path:
    """Write tokenizer.json; some seconds."""
    path = folder / "tokenizer.json"
    make_tokenizer(*vocabulary()).backend_tokenizer.save(str(path))
    return path
