"""The tiny checkpoints' tokenizer: byte-level BPE with Qwen3-ASR's special tokens and chat templates."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qwen3asr_export.standin_tokenizer import TEMPLATES
from speech import WORDS

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>",
]  # fmt: skip
PLAIN = ["<asr_text>", "<timestamp>"]
"""Added tokens that, as in Qwen3-ASR, are not flagged special: they survive ``skip_special_tokens``."""

_SPLIT = (  # Qwen2's pre-tokenizer
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build() -> Tokenizer:
    """Train the tokenizer: every word of the vocabulary becomes one token, any other text falls to bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    words = [word for vocabulary in WORDS.values() for word in vocabulary]
    corpus = ["system", "user", "assistant", "language", "language None", *(f"language {name}" for name in WORDS)]
    corpus += [word for word in words for _ in range(2)] + [f" {word}" for word in words for _ in range(2)]
    trainer = trainers.BpeTrainer(
        vocab_size=1024, min_frequency=1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in PLAIN])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, aligner: bool) -> None:
    """Write tokenizer, processor configuration and chat template as a ``-hf`` checkpoint has them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATES["aligner" if aligner else "asr"], "utf-8")
    extractor = {
        "feature_extractor_type": "Qwen3ASRFeatureExtractor", "feature_size": 128, "sampling_rate": 16000,
        "hop_length": 160, "n_fft": 400, "chunk_length": 30, "padding_side": "right", "padding_value": 0.0,
        "dither": 0.0, "n_window": 50, "min_length": 8000, "return_attention_mask": True,
    }  # fmt: skip
    processor = {"processor_class": "Qwen3ASRProcessor", "timestamp_segment_time": 80.0, "feature_extractor": extractor}
    config = {
        "tokenizer_class": "Qwen2Tokenizer", "model_max_length": 65536, "bos_token": None, "unk_token": None,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "clean_up_tokenization_spaces": False,
        "audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>",
        "extra_special_tokens": {
            "audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>",
        },
    }  # fmt: skip
    for name, content in (("processor_config", processor), ("tokenizer_config", config)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
