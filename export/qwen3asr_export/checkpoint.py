"""A checkpoint folder, in either layout: its configuration, checked against its weights and its tokenizer."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qwen3asr.bundle import sha256
from qwen3asr.errors import CheckpointInvalid, CheckpointKeysWrong
from qwen3asr.spec import ModelSpec
from qwen3asr_export import layout
from qwen3asr_export.files import Tensors, read_json, weight_files

__all__ = ["RANDOM", "Checkpoint", "Layout", "Tensors", "expected_tensors"]

Layout: TypeAlias = Literal["hf", "original"]

CARRIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
           "preprocessor_config.json", "processor_config.json")  # fmt: skip
"""Small files that a bundle takes over from the checkpoint, where they exist."""

RANDOM = "random_weights"
"""Key of config.json that marks a stand-in."""

_HEAD, _EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FEATURES = {"feature_size": 128, "sampling_rate": 16_000, "hop_length": 160, "n_fft": 400, "min_length": 8_000}
"""Front end that the runtime computes; a checkpoint that was trained on another one is refused."""


class Checkpoint:
    """A checkpoint folder, in transformers' ``-hf`` layout or in that of the original repositories.

    Attributes:
        folder: where it is.
        layout: ``hf`` or ``original``.
        config: config.json as the ``-hf`` layout has it.
        spec: shapes and special ids.
        tensors: the weights, by the names of the ``-hf`` layout.

    Raises:
        CheckpointInvalid: no such folder, no config.json, no weights, no tokenizer, or damaged or quantised ones.
        CheckpointKeysWrong: tensor names or shapes are not exactly those that config.json implies.
        ConfigInvalid: config.json is not that of a Qwen3-ASR model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise CheckpointInvalid(
                f"there is no checkpoint folder at {folder}; give the folder that holds config.json"
            )
        self.config = read_json(folder, "config.json")
        layout.check_tokenizer(folder)
        self.layout: Layout = "hf"
        self._processor: dict[str, Any] | None = None
        if layout.is_original(self.config):
            self.layout = "original"
            self._flatten()
        self.spec = ModelSpec.from_config(self.config)
        self._check_features()
        self.tensors = Tensors(self._places())
        self._check_dtypes()
        self._check_keys()

    @property
    def random(self) -> bool:
        """A stand-in with random weights: what it answers means nothing."""
        return bool(self.config.get(RANDOM))

    @property
    def repeated(self) -> str | None:
        """What the files call a tied head, where they hold it beside the embedding that it equals."""
        return self.tensors.stored_name(_HEAD) if self.spec.tied and _HEAD in self.tensors.names else None

    @property
    def weight_paths(self) -> list[Path]:
        """The safetensors files, sorted."""
        return self.tensors.paths

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weight files, read once."""
        return sha256(*self.weight_paths)

    def carried(self) -> dict[str, bytes]:
        """The small files that a bundle takes over, by name.

        They are the checkpoint's own; what the original layout has elsewhere or in another form is rewritten as the
        ``-hf`` layout has it, and tokenizer.json is built where there is none.

        Raises:
            CheckpointInvalid: tokenizer.json cannot be built.
        """
        paths = {name: self.folder / name for name in CARRIED}
        files = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
        if "tokenizer.json" not in files:
            files["tokenizer.json"] = layout.build_tokenizer(self.folder)
        if self.layout == "original":
            files["config.json"] = _dump(self.config)
        if self._processor is not None:
            files["processor_config.json"] = _dump(self._processor)
        return files

    def _flatten(self) -> None:
        stored, self.config = self.config, layout.flatten_config(self.config)
        generation = read_json(self.folder, "generation_config.json", optional=True)
        self.config = layout.complete_config(self.config, generation, layout.added_tokens(self.folder))
        if "num_labels" in self.config:
            time = {"timestamp_segment_time": layout.segment_milliseconds(stored)}
            self._processor = read_json(self.folder, "processor_config.json", optional=True) | time

    def _check_features(self) -> None:
        """The audio front end's settings, in whichever file the checkpoint keeps them."""
        for name in ("preprocessor_config.json", "processor_config.json"):
            settings = read_json(self.folder, name, optional=True)
            settings = settings.get("feature_extractor", settings)
            wrong = [key for key, value in _FEATURES.items() if settings.get(key, value) != value]
            if wrong:
                named = ", ".join(f"{key} {settings[key]} where {_FEATURES[key]} is known" for key in wrong)
                raise CheckpointInvalid(f"{name} in {self.folder} asks for another audio front end: {named}")

    def _places(self) -> dict[str, tuple[Path, str]]:
        """Of every tensor by its ``-hf`` name: its file and its name in there."""
        places: dict[str, tuple[Path, str]] = {}
        again = []
        for stored, path in weight_files(self.folder).items():
            name = layout.hf_name(stored, self.spec.kind) if self.layout == "original" else stored
            if name in places:
                again.append(stored)
            places[name] = path, stored
        if again:
            raise CheckpointKeysWrong(self.folder, [], again, [])
        return places

    def _check_dtypes(self) -> None:
        for name in sorted(self.tensors.names):
            if (dtype := self.tensors.dtype(name)) not in _DTYPES:
                raise CheckpointInvalid(
                    f"{self.tensors.stored_name(name)} in {self.folder} is stored as {dtype}, as in a quantised "
                    f"checkpoint, and only {', '.join(_DTYPES.values())} are read; give the checkpoint it was made from"
                )

    def _check_keys(self) -> None:
        expected, tensors = expected_tensors(self.spec), self.tensors
        missing = sorted(expected.keys() - tensors.names)
        shapes = {name: tensors.shape(name) for name in tensors.names}
        unexpected = sorted(shapes.keys() - expected.keys())
        if _HEAD in unexpected and self._head_is_embedding():
            unexpected.remove(_HEAD)
        misshaped = sorted(name for name, shape in shapes.items() if shape != expected.get(name, shape))
        if missing or unexpected or misshaped:
            described = [f"{tensors.stored_name(name)} {shapes[name]}" for name in misshaped]
            raise CheckpointKeysWrong(self.folder, missing, [tensors.stored_name(n) for n in unexpected], described)

    def _head_is_embedding(self) -> bool:
        """The original repositories ship a tied head beside the embedding."""
        if not self.spec.tied or _EMBEDDING not in self.tensors.names:
            return False
        shapes = {self.tensors.shape(name) for name in (_HEAD, _EMBEDDING)}
        return shapes == {(self.spec.vocab, self.spec.hidden)} and self.tensors.equal(_HEAD, _EMBEDDING)


def _dump(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


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
