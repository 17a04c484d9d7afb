"""Checkpoints with random weights in shapes that the tiny trained ones do not have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration, Qwen3ASRForTokenClassification

TINY = Path(__file__).resolve().parent.parent / "examples" / "tiny"

SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # more query width than hidden, three encoder heads, four-second windows
    "wide-heads": (
        {"d_model": 96, "encoder_layers": 3, "encoder_attention_heads": 3, "encoder_ffn_dim": 160,
         "downsample_hidden_size": 24, "output_dim": 80, "n_window_infer": 400},
        {"hidden_size": 80, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 6,
         "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 600, "tie_word_embeddings": True},
        {"tie_word_embeddings": True},
    ),
    # every head its own keys, one layer each, chunks of 104 frames, a head of its own
    "no-grouping": (
        {"d_model": 64, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 96,
         "downsample_hidden_size": 8, "output_dim": 64, "n_window": 52, "n_window_infer": 416},
        {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 1, "num_attention_heads": 8,
         "num_key_value_heads": 8, "head_dim": 16, "vocab_size": 613, "tie_word_embeddings": False},
        {"tie_word_embeddings": False},
    ),
    # one key head for all, deep, another rotary base
    "multi-query": (
        {"d_model": 128, "encoder_layers": 4, "encoder_attention_heads": 2, "encoder_ffn_dim": 256,
         "downsample_hidden_size": 16, "output_dim": 96},
        {"hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4,
         "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 640, "tie_word_embeddings": True,
         "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
        {"tie_word_embeddings": True},
    ),
    # a forced aligner
    "aligner": (
        {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128,
         "downsample_hidden_size": 16, "output_dim": 72, "n_window_infer": 200},
        {"hidden_size": 72, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 48, "vocab_size": 600, "tie_word_embeddings": False},
        {"tie_word_embeddings": False, "num_labels": 900},
    ),
}  # fmt: skip


def make_checkpoint(
    folder: Path, shape: str, *, scale: float = 3.0, dtype: torch.dtype = torch.float32, head_dim: int | None = None
) -> Path:
    """Save a random checkpoint in the ``-hf`` layout.

    Weights are scaled up: at their usual initial size attention is nearly uniform and hides mistakes.
    """
    audio, text, top = SHAPES[shape]
    text = text if head_dim is None else text | {"head_dim": head_dim}
    source = TINY / ("aligner" if shape == "aligner" else "asr")
    ids = json.loads((source / "config.json").read_text("utf-8"))
    special = {key: ids[key] for key in ("audio_token_id", "timestamp_token_id", "pad_token_id", "eos_token_id")}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "max_position_embeddings": 8192}
    config = Qwen3ASRConfig(
        audio_config={"model_type": "qwen3_asr_encoder"} | audio,
        text_config={"model_type": "qwen3", "eos_token_id": special["pad_token_id"]} | rope | text,
        **special,
        **top,
    )
    torch.manual_seed(sum(map(ord, shape)))
    cls = Qwen3ASRForTokenClassification if shape == "aligner" else Qwen3ASRForConditionalGeneration
    model = cls(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
            elif "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        shutil.copyfile(source / name, folder / name)
    return folder
