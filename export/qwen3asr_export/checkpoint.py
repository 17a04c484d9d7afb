"""Reading a checkpoint folder: config.json, safetensors (one file or shards), tokenizer. One tensor at a time."""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from qwen3asr.bundle import sha256
from qwen3asr.errors import CheckpointInvalid, CheckpointKeysWrong
from qwen3asr.spec import ModelSpec

CARRIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
           "preprocessor_config.json", "processor_config.json")  # fmt: skip
"""Small files that a bundle takes over from the checkpoint as they are, where they exist."""


_HEAD, _EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
_FEATURES = {"feature_size": 128, "sampling_rate": 16_000, "hop_length": 160, "n_fft": 400, "min_length": 8_000}
"""Front end that the runtime computes; a checkpoint that was trained on another one is refused."""


class Tensors:
    """The checkpoint's weights by name, each read when asked for; float32 ``numpy`` arrays."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files
        self._open: dict[Path, Any] = {}

    @property
    def names(self) -> set[str]:
        """Every tensor name."""
        return set(self._files)

    def _file(self, name: str) -> Any:
        path = self._files[name]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        return self._open[path]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._file(name).get_slice(name).get_shape())

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        tensor: torch.Tensor = self._file(name).get_tensor(name)
        array: npt.NDArray[np.float32] = tensor.to(torch.float32).numpy()
        return array


class Checkpoint:
    """A checkpoint folder in transformers' ``-hf`` layout.

    Raises:
        CheckpointInvalid: no such folder, no config.json, no weights, no tokenizer, or damaged ones.
        CheckpointKeysWrong: tensor names or shapes are not exactly those that config.json implies.
        ConfigInvalid: config.json is not that of a Qwen3-ASR model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise CheckpointInvalid(
                f"there is no checkpoint folder at {folder}; give the folder that holds config.json"
            )
        self.config = self._json("config.json")
        if "thinker_config" in self.config:
            raise CheckpointInvalid(
                f"{folder} has the original layout (thinker_config), which this version does not read; "
                "use the -hf repository of the same model"
            )
        self.spec = ModelSpec.from_config(self.config)
        self._check_features()
        if not (folder / "tokenizer.json").is_file():
            raise CheckpointInvalid(f"tokenizer.json is not in {folder}; download the checkpoint again, whole")
        try:
            self.tensors = Tensors(self._weight_files())
            self._check_keys()
        except SafetensorError as error:
            raise CheckpointInvalid(f"the weights in {folder} are damaged ({error}); download them again") from error

    @property
    def weight_paths(self) -> list[Path]:
        """The safetensors files, sorted."""
        return sorted(set(self._weight_files().values()))

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weight files, read once."""
        return sha256(*self.weight_paths)

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file():
            raise CheckpointInvalid(f"{name} is not in {self.folder}; give the folder of a whole checkpoint")
        try:
            content = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise CheckpointInvalid(f"{path} is not JSON ({error}); download it again") from error
        if not isinstance(content, dict):
            raise CheckpointInvalid(f"{path} does not hold a JSON object; download it again")
        return content

    def _check_features(self) -> None:
        """The audio front end's settings, in whichever file the checkpoint keeps them."""
        for name in ("preprocessor_config.json", "processor_config.json"):
            settings = self._json(name) if (self.folder / name).is_file() else {}
            settings = settings.get("feature_extractor", settings)
            wrong = [key for key, value in _FEATURES.items() if settings.get(key, value) != value]
            if wrong:
                named = ", ".join(f"{key} {settings[key]} where {_FEATURES[key]} is known" for key in wrong)
                raise CheckpointInvalid(f"{name} in {self.folder} asks for another audio front end: {named}")

    def _weight_files(self) -> dict[str, Path]:
        if (self.folder / "model.safetensors.index.json").is_file():
            index = self._json("model.safetensors.index.json")["weight_map"]
            files = {name: self.folder / file for name, file in index.items()}
        elif (single := self.folder / "model.safetensors").is_file():
            with safe_open(single, framework="pt") as file:
                files = dict.fromkeys(file.keys(), single)
        else:
            raise CheckpointInvalid(f"model.safetensors is not in {self.folder}; only safetensors weights are read")
        for path in sorted(set(files.values())):
            if not path.is_file():
                raise CheckpointInvalid(f"the shard {path.name} is not in {self.folder}; download the checkpoint again")
        return files

    def _check_keys(self) -> None:
        expected = expected_tensors(self.spec)
        names = self.tensors.names
        missing, unexpected = sorted(expected.keys() - names), sorted(names - expected.keys())
        if self.spec.tied and unexpected == [_HEAD] and np.array_equal(self.tensors[_HEAD], self.tensors[_EMBEDDING]):
            unexpected = []  # a duplicate of the embedding, as the original repositories ship it
        shapes = {name: self.tensors.shape(name) for name in expected.keys() & names}
        misshaped = sorted(f"{name} {shape}" for name, shape in shapes.items() if shape != expected[name])
        if missing or unexpected or misshaped:
            raise CheckpointKeysWrong(self.folder, missing, unexpected, misshaped)


def expected_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor name of the architecture and its shape: the whole model at a glance."""
    enc, width, conv = spec.encoder, spec.encoder.width, spec.encoder.conv_channels
    q_width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {}

    def biased(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    tower = "model.audio_tower"
    biased(f"{tower}.conv2d1", conv, 1, 3, 3)
    biased(f"{tower}.conv2d2", conv, conv, 3, 3)
    biased(f"{tower}.conv2d3", conv, conv, 3, 3)
    shapes[f"{tower}.conv_out.weight"] = (width, conv * enc.conv_bands)
    for index in range(enc.layers):
        layer = f"{tower}.layers.{index}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            biased(f"{layer}.self_attn.{part}", width, width)
        biased(f"{layer}.self_attn_layer_norm", width)
        biased(f"{layer}.fc1", enc.ffn, width)
        biased(f"{layer}.fc2", width, enc.ffn)
        biased(f"{layer}.final_layer_norm", width)
    biased(f"{tower}.ln_post", width)
    biased("model.multi_modal_projector.linear_1", width, width)
    biased("model.multi_modal_projector.linear_2", spec.hidden, width)
    text = "model.language_model"
    shapes[f"{text}.embed_tokens.weight"] = (spec.vocab, spec.hidden)
    for index in range(spec.layers):
        layer = f"{text}.layers.{index}"
        shapes[f"{layer}.input_layernorm.weight"] = (spec.hidden,)
        shapes[f"{layer}.self_attn.q_proj.weight"] = (q_width, spec.hidden)
        shapes[f"{layer}.self_attn.k_proj.weight"] = (kv_width, spec.hidden)
        shapes[f"{layer}.self_attn.v_proj.weight"] = (kv_width, spec.hidden)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (spec.hidden, q_width)
        shapes[f"{layer}.self_attn.q_norm.weight"] = (spec.head_dim,)
        shapes[f"{layer}.self_attn.k_norm.weight"] = (spec.head_dim,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (spec.hidden,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (spec.ffn, spec.hidden)
        shapes[f"{layer}.mlp.up_proj.weight"] = (spec.ffn, spec.hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (spec.hidden, spec.ffn)
    shapes[f"{text}.norm.weight"] = (spec.hidden,)
    if spec.kind == "aligner":
        shapes["score.weight"] = (spec.classes, spec.hidden)
    elif not spec.tied:
        shapes["lm_head.weight"] = (spec.vocab, spec.hidden)
    return shapes


def parameter_bytes(spec: ModelSpec) -> int:
    """Bytes of all weights in float32, each stored once."""
    return sum(4 * math.prod(shape) for shape in expected_tensors(spec).values())
