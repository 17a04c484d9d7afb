"""The tiny checkpoints in the layout of the original repositories, written here from its description."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import TINY

MROPE = {
    "rope_type": "default",
    "type": "default",
    "interleaved": True,
    "mrope_interleaved": True,
    "mrope_section": [24, 20, 20],
}


def original_name(name: str) -> str:
    """The original name of a tensor, written as the inverse of what the package does, and apart from it."""
    if name in ("lm_head.weight", "score.weight"):
        return "thinker.lm_head.weight"
    for number in "12":
        projector = f"model.multi_modal_projector.linear_{number}."
        if name.startswith(projector):
            return f"thinker.audio_tower.proj{number}." + name.removeprefix(projector)
    if name.startswith("model.language_model."):
        return "thinker.model." + name.removeprefix("model.language_model.")
    assert name.startswith("model.audio_tower."), name
    return "thinker." + name.removeprefix("model.")


def original_config(kind: str) -> dict[str, Any]:
    """config.json of a tiny model as the original package would have saved it, with what it saves besides."""
    flat = json.loads((TINY / kind / "config.json").read_text("utf-8"))
    audio, text = dict(flat["audio_config"]), dict(flat["text_config"])
    rope = text.pop("rope_parameters")
    for key in ("max_position_embeddings", "model_type"):
        del audio[key]
    for key in ("layer_types", "eos_token_id", "pad_token_id", "model_type"):
        del text[key]
    audio |= {"model_type": "qwen3_asr_audio_encoder", "max_source_positions": 1500, "conv_chunksize": 500}
    audio |= {"_name_or_path": "", "tie_word_embeddings": True, "id2label": {"0": "LABEL_0"}, "eos_token_id": None}
    text |= {"model_type": "qwen3_asr_text", "num_experts": 128, "eos_token_id": None, "pad_token_id": None}
    text |= {"rope_theta": rope["rope_theta"], "rope_scaling": dict(MROPE)}
    thinker = {"model_type": "qwen3_asr_thinker", "audio_config": audio, "text_config": text, "dtype": "bfloat16"}
    thinker |= {"audio_token_id": flat["audio_token_id"], "audio_start_token_id": 534, "pad_token_id": None}
    config = {"architectures": ["Qwen3ASRForConditionalGeneration"], "model_type": "qwen3_asr"}
    config |= {"support_languages": ["English", "German"], "thinker_config": thinker}
    if kind == "aligner":
        thinker |= {"model_type": "qwen3_forced_aligner", "classify_num": len(flat["id2label"])}
        config |= {"timestamp_token_id": flat["timestamp_token_id"], "timestamp_segment_time": 80}
    return config


def make_original(folder: Path, kind: str) -> Path:
    """A tiny model in bfloat16 and two shards, its tied head twice, its tokenizer in parts."""
    folder.mkdir()
    write_json(folder / "config.json", original_config(kind))
    source = TINY / kind
    if kind == "asr":
        shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")
    write_tokenizer_parts(source, folder)
    tensors = {original_name(name): tensor for name, tensor in bfloat16(kind).items()}
    if kind == "asr":
        tensors["thinker.lm_head.weight"] = tensors["thinker.model.embed_tokens.weight"].clone()
    names = sorted(tensors)
    shards = {f"model-0000{part}-of-00002.safetensors": names[part - 1 :: 2] for part in (1, 2)}
    for file, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, members in shards.items() for name in members}}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}} | index)
    return folder


def make_native(folder: Path, kind: str) -> Path:
    """The same model and values in the ``-hf`` layout."""
    shutil.copytree(TINY / kind, folder)
    save_file(bfloat16(kind), folder / "model.safetensors", {"format": "pt"})
    return folder


def bfloat16(kind: str) -> dict[str, torch.Tensor]:
    """A tiny model's weights, rounded."""
    return {name: tensor.bfloat16() for name, tensor in load_file(TINY / kind / "model.safetensors").items()}


def write_tokenizer_parts(source: Path, folder: Path) -> None:
    """vocab.json, merges.txt and tokenizer_config.json, as Qwen's repositories have them."""
    whole = json.loads((source / "tokenizer.json").read_text("utf-8"))
    settings = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    write_json(folder / "vocab.json", whole["model"]["vocab"])
    merges = "\n".join(" ".join(pair) for pair in whole["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")
    added = {str(token.pop("id")): token for token in whole["added_tokens"]}
    write_json(folder / "tokenizer_config.json", settings | {"added_tokens_decoder": added})


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
