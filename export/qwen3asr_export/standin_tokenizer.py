"""Tokenizer, processor and chat templates of the released models, as far as they can be had without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, pre_tokenizers
from transformers import Qwen2Tokenizer, Qwen3ASRFeatureExtractor, Qwen3ASRProcessor

from qwen3asr.spec import Kind

SPECIAL = {
    "<|endoftext|>": 151_643,
    "<|im_start|>": 151_644,
    "<|im_end|>": 151_645,
    "<|audio_start|>": 151_669,
    "<|audio_end|>": 151_670,
    "<|audio_pad|>": 151_676,
    "<asr_text>": 151_704,
    "<timestamp>": 151_705,
}
"""Added tokens of the released models with their ids."""

_PLAIN = ("<asr_text>", "<timestamp>")  # not flagged special: they survive ``skip_special_tokens``
_WORDS = {"system": 8948, "user": 872, "assistant": 77_091, "language": 11_528, "Ġ" + "English": 6364}
_FIRST_PIECE = 100_000  # ids for the beginnings of those words, which no released prompt uses

TEMPLATES: dict[Kind, str] = {
    "asr": """\
{%- set ns = namespace(system='') -%}
{%- for message in messages if message.role == 'system' -%}
{%- for part in message.content -%}{%- set ns.system = ns.system + part.text -%}{%- endfor -%}
{%- endfor -%}
<|im_start|>system
{{ ns.system }}<|im_end|>
<|im_start|>user
{% for message in messages if message.role == 'user' -%}
{%- for part in message.content if part.type == 'audio' -%}<|audio_start|><|audio_pad|><|audio_end|>{%- endfor -%}
{%- endfor -%}<|im_end|>
<|im_start|>assistant
{% for message in messages if message.role == 'assistant' -%}
{%- for part in message.content -%}{{ part.text }}{%- endfor -%}
{%- if not loop.last or not continue_final_message %}<|im_end|>{% endif -%}
{%- endfor -%}""",
    "aligner": """\
{%- for message in messages -%}{%- for part in message.content -%}
{%- if part.type == 'audio' -%}<|audio_start|><|audio_pad|><|audio_end|>
{%- else -%}{{ part.text }}<timestamp><timestamp>{%- endif -%}
{%- endfor -%}{%- endfor -%}""",
}
"""Chat templates of both kinds; the tiny models have them too."""


def make_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """Transformers' tokenizer of Qwen over a byte-level vocabulary, with Qwen3-ASR's added tokens at their ids."""
    roles = {"audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"}
    roles |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    make: Any = Qwen2Tokenizer
    # in the vocabulary too: an added token that is not there gets the next free id
    tokenizer = make(vocab | SPECIAL, merges, unk_token=None, model_max_length=65_536, **roles)
    tokenizer.add_tokens([AddedToken(text, special=text not in _PLAIN, normalized=False) for text in SPECIAL])
    return tokenizer


def save_processor(folder: Path, kind: Kind) -> None:
    """Write tokenizer, feature extractor and chat template; the tokenizer knows bytes and the prompts' words.

    Prompts without a context get exactly the ids that the released tokenizer gives them.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: index for index, char in enumerate(alphabet)}
    merges = []
    for word, index in _WORDS.items():
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocab[word[:end]] = index if end == len(word) else _FIRST_PIECE + len(merges)
    extractor: Any = Qwen3ASRFeatureExtractor
    processor = Qwen3ASRProcessor(extractor(), make_tokenizer(vocab, merges), chat_template=TEMPLATES[kind])
    processor.save_pretrained(folder)
