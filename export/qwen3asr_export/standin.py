"""Checkpoints with random weights in the shapes of the released models, for where those cannot be had.

Time and memory are those of the released models, and an export can be held against transformers at full size; what is
transcribed is nonsense. Weights are normally distributed, scaled so that activations stay of a healthy size, attention
picks some positions out of many, and greedy output varies.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import GenerationConfig, Qwen3ASRConfig

from qwen3asr.bundle import new_folder
from qwen3asr.errors import RequestInvalid
from qwen3asr.spec import Kind, ModelSpec
from qwen3asr_export.checkpoint import RANDOM, expected_tensors
from qwen3asr_export.standin_tokenizer import SPECIAL, save_processor

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a tensor's name, the bytes done with it, and those of all tensors."""

SHARD_BYTES = 10**9
_AUDIO_KEYS = ("encoder_layers", "d_model", "encoder_attention_heads", "encoder_ffn_dim", "downsample_hidden_size")
_SMALL_FILES = 4 << 20  # more than all but the weights need
_BLOCK = 1 << 20  # weights drawn at a time


@dataclass(frozen=True, slots=True)
class StandIn:
    """Shape of a checkpoint; the names are those of config.json's ``audio_config`` and ``text_config``."""

    kind: Kind
    encoder_layers: int
    d_model: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    downsample_hidden_size: int = 480
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    classes: int = 5000

    def config(self) -> Any:
        """Transformers' configuration, with the ids and limits of the released models."""
        aligner, shape = self.kind == "aligner", asdict(self)
        audio = {"model_type": "qwen3_asr_encoder", "output_dim": self.hidden_size}
        audio |= {key: shape.pop(key) for key in _AUDIO_KEYS}
        text = {"model_type": "qwen3", "tie_word_embeddings": not aligner, "max_position_embeddings": 65_536}
        text |= {"eos_token_id": SPECIAL["<|im_end|>"], "pad_token_id": SPECIAL["<|endoftext|>"]}
        text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
        text |= {key: value for key, value in shape.items() if key not in ("kind", "classes")}
        make: Any = Qwen3ASRConfig
        return make(
            architectures=["Qwen3ASRForTokenClassification" if aligner else "Qwen3ASRForConditionalGeneration"],
            dtype="bfloat16",
            **{RANDOM: True},
            audio_config=audio,
            text_config=text,
            tie_word_embeddings=not aligner,
            audio_token_id=SPECIAL["<|audio_pad|>"],
            timestamp_token_id=SPECIAL["<timestamp>"],
            eos_token_id=[SPECIAL["<|endoftext|>"], SPECIAL["<|im_end|>"]],
            pad_token_id=SPECIAL["<|endoftext|>"],
            **({"num_labels": self.classes} if aligner else {}),
        )


STANDINS = {
    "0.6b": StandIn("asr", 18, 896, 14, 3584, 1024, 3072, 151_936),
    "1.7b": StandIn("asr", 24, 1024, 16, 4096, 2048, 6144, 151_936),
    "aligner-0.6b": StandIn("aligner", 24, 1024, 16, 4096, 1024, 3072, 152_064),
}
"""The released models."""


def make_standin(
    name: str, folder: Path, *, seed: int = 0, progress: Progress = lambda name, done, total: None
) -> Path:
    """Write the stand-in for a released model in transformers' ``-hf`` layout, weights in bfloat16.

    Args:
        name: a key of :data:`STANDINS`.
        folder: where the checkpoint goes; its parents are made.
        seed: another one gives other weights.
        progress: called after each tensor.

    Raises:
        RequestInvalid: there is no stand-in of that name.
        TargetExists: the folder exists already.
        DiskFull: too little room, at the start or on the way.
    """
    if name not in STANDINS:
        raise RequestInvalid(f"there is no stand-in {name!r}; there are {', '.join(STANDINS)}")
    return write_standin(STANDINS[name], folder, seed=seed, progress=progress)


def write_standin(
    standin: StandIn, folder: Path, *, seed: int, progress: Progress, shard_bytes: int = SHARD_BYTES
) -> Path:
    """As :func:`make_standin` for any shape; a weight file of several tensors holds ``shard_bytes`` at most."""
    config = standin.config()
    shapes = expected_tensors(ModelSpec.from_config(config.to_dict()))
    needed = sum(2 * math.prod(shape) for shape in shapes.values()) + _SMALL_FILES
    with new_folder(folder, needed) as draft:
        config.save_pretrained(draft)
        if standin.kind == "asr":
            _generation(config).save_pretrained(draft)
        save_processor(draft, standin.kind)
        _write_weights(shapes, draft, seed, shard_bytes, progress)
    return folder


def _generation(config: Any) -> Any:
    make: Any = GenerationConfig
    ends = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    return make(do_sample=False, max_new_tokens=512, **ends)


def _write_weights(
    shapes: dict[str, tuple[int, ...]], folder: Path, seed: int, shard_bytes: int, progress: Progress
) -> None:
    split = split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=lambda shape: 2 * math.prod(shape),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    done, total = 0, split.metadata["total_size"]
    for file, names in split.filename_to_tensors.items():
        shard = {}
        for name in names:
            shard[name] = draw(name, shapes[name], seed)
            done += shard[name].nbytes
            progress(name, done, total)
        _save(shard, folder / file)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _save(shard: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(shard, path, metadata={"format": "pt"})
    except SafetensorError as error:  # what the system said is in its text only
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
    path.chmod(0o644)  # it was made readable by its owner alone


def draw(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The bfloat16 weights of one tensor: a function of its name, its shape and the seed, and of nothing else."""
    mean, deviation, least = _distribution(name, shape)
    table = (mean + deviation * _quantiles()).clamp(min=least).to(torch.bfloat16).view(torch.uint16).numpy()
    entropy = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest())
    source = np.random.SFC64(np.random.SeedSequence(entropy))
    bits = np.empty(math.prod(shape), np.uint16)
    for start in range(0, len(bits), _BLOCK):
        block = bits[start : start + _BLOCK]
        picks: npt.NDArray[np.uint16] = source.random_raw(-(-len(block) // 4)).view(np.uint16)
        block[:] = table[picks[: len(block)]]
    return torch.from_numpy(bits).view(torch.bfloat16).reshape(shape)


@cache
def _quantiles() -> torch.Tensor:
    """The standard normal distribution in 65536 equally likely steps: drawing is then no more than looking up."""
    steps = torch.arange(1 << 16, dtype=torch.float64)
    quantiles: torch.Tensor = torch.special.ndtri((steps + 0.5) / (1 << 16))
    return quantiles


_GAINS = {
    "conv2d1.weight": 5.6,  # log-mel deviates by a quarter or so
    "conv2d2.weight": 1.4,  # GELU halves the power of what it is given
    "conv2d3.weight": 1.4,
    "conv_out.weight": 2.0,  # louder than the positions, which all seconds of audio share
    "q_proj.weight": 2.0,  # attention picks; in the decoder, where q_norm undoes this, by the norms below
    "k_proj.weight": 2.0,
    "out_proj.weight": 0.7,  # what every frame gets alike must not drown what is its own
    "fc2.weight": 0.7,
}
"""Standard deviations by the end of the name, times the root of fan-in; 1 where none is given."""

_PICKING = ("q_norm.weight", "k_norm.weight")
_TABLES = ("embed_tokens.weight", "lm_head.weight", "score.weight")


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Mean, standard deviation and lower bound of a tensor's weights."""
    if name.endswith(".bias"):
        return 0.0, 0.1, -math.inf
    if len(shape) == 1:  # of a norm
        return 1.6 if name.endswith(_PICKING) else 1.0, 0.3, 0.1
    gain = next((gain for end, gain in _GAINS.items() if name.endswith(end)), 1.0)
    if name.endswith(_TABLES):
        gain = 3.0  # what logits deviate by, as they are this times a normed row
    return 0.0, gain / math.sqrt(math.prod(shape[1:])), -math.inf
