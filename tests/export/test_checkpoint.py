"""What a checkpoint that cannot be exported says, before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import TINY, make_checkpoint

from qwen3asr.errors import CheckpointInvalid, CheckpointKeysWrong, ConfigInvalid
from qwen3asr_export import export
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.reference import Reference

INDEX = "model.safetensors.index.json"
NORM = "model.language_model.norm.weight"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY / "asr", tmp_path / "checkpoint"))


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _refused(folder: Path, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        export(folder, folder.parent / "out")
    assert not (folder.parent / "out").exists()


def test_a_missing_tensor_is_named(copy: Path) -> None:
    _rewrite(copy, lambda tensors: tensors.pop(NORM))
    _refused(copy, CheckpointKeysWrong, f"1 missing: {NORM}.*download")


def test_an_unknown_tensor_is_named(copy: Path) -> None:
    _rewrite(copy, lambda tensors: tensors.update({"adapter.weight": torch.zeros(2)}))
    _refused(copy, CheckpointKeysWrong, "1 unexpected: adapter.weight")


def test_a_tensor_of_another_shape_is_named(copy: Path) -> None:
    _rewrite(copy, lambda tensors: tensors.update({NORM: torch.zeros(64)}))
    _refused(copy, CheckpointKeysWrong, rf"1 of another shape: {NORM} \(64,\)")


def test_a_duplicate_head_is_no_mistake(copy: Path) -> None:
    """The original repositories ship the tied head a second time."""
    embedding = load_file(copy / "model.safetensors")["model.language_model.embed_tokens.weight"]
    _rewrite(copy, lambda tensors: tensors.update({"lm_head.weight": embedding.clone()}))
    checkpoint = Checkpoint(copy)
    assert (checkpoint.spec.tied, checkpoint.repeated) == (True, "lm_head.weight")
    assert Reference(checkpoint).name


def test_a_second_head_that_differs_is_not_dropped_silently(copy: Path) -> None:
    _rewrite(copy, lambda tensors: tensors.update({"lm_head.weight": torch.ones(539, 128)}))
    _refused(copy, CheckpointKeysWrong, r"1 unexpected: lm_head\.weight")


def test_another_audio_front_end_is_refused(copy: Path) -> None:
    settings = json.loads((copy / "processor_config.json").read_text("utf-8"))
    settings["feature_extractor"]["feature_size"] = 80
    (copy / "processor_config.json").write_text(json.dumps(settings))
    _refused(copy, CheckpointInvalid, "feature_size 80 where 128")


@pytest.fixture
def sharded(copy: Path) -> Path:
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, copy / file)
    (copy / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, members in parts.items() for name in members}}
    (copy / INDEX).write_text(json.dumps(index))
    return copy


def test_shards_are_read_as_one(sharded: Path, tmp_path: Path) -> None:
    bundle = export(sharded, tmp_path / "sharded", check=False)
    whole = export(TINY / "asr", tmp_path / "whole", check=False)
    for name in ("encoder", "decoder"):
        data = f"onnx/{name}.onnx.data"
        assert (bundle.folder / data).read_bytes() == (whole.folder / data).read_bytes()


def test_one_whole_file_counts_before_shards_as_in_transformers(sharded: Path) -> None:
    shutil.copyfile(TINY / "asr" / "model.safetensors", sharded / "model.safetensors")
    (sharded / "a.safetensors").unlink()
    assert [path.name for path in Checkpoint(sharded).weight_paths] == ["model.safetensors"]


def test_a_shard_that_is_not_whole_is_named(sharded: Path) -> None:
    shard = sharded / "b.safetensors"
    content = shard.read_bytes()
    for rest in (content[:-1], content[:100], b"version https://git-lfs.github.com/spec/v1\n", b""):
        shard.write_bytes(rest)
        _refused(sharded, CheckpointInvalid, r"b\.safetensors in .* is damaged or not whole .*; download it again")
    shard.unlink()
    _refused(sharded, CheckpointInvalid, r"shard b\.safetensors is not in")


def test_a_tensor_that_its_shard_lacks_is_named(sharded: Path) -> None:
    shard = sharded / "b.safetensors"
    tensors = load_file(shard)
    name = max(tensors)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, shard)
    _refused(sharded, CheckpointInvalid, rf"^{name} is not in the shard b\.safetensors, where {INDEX}")


@pytest.mark.parametrize("way", ["../{}", "{folder}/{}", "sub/../../{}", "..\\{}"])
def test_an_index_cannot_name_files_outside_of_its_folder(sharded: Path, way: str) -> None:
    """They used to be read."""
    shutil.copyfile(sharded / "b.safetensors", sharded.parent / "secret.safetensors")
    outside = way.format("secret.safetensors", folder=sharded.parent)
    text = (sharded / INDEX).read_text().replace('"b.safetensors"', json.dumps(outside))
    (sharded / INDEX).write_text(text)
    _refused(sharded, CheckpointInvalid, "outside of it; do not use this checkpoint")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_without_its_map_is_named(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    _refused(sharded, CheckpointInvalid, f"{INDEX} in .* has no weight_map")


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is not JSON"), ("[" * 100_000, "is not JSON"), ("[]", "does not hold a JSON object")],
)
def test_an_index_that_is_damaged_is_named(sharded: Path, content: str, words: str) -> None:
    (sharded / INDEX).write_text(content)
    _refused(sharded, CheckpointInvalid, f"{INDEX} {words}")


@pytest.mark.parametrize(
    ("dtype", "named"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.float64, "F64")]
)
def test_quantised_weights_are_refused_with_their_type(copy: Path, dtype: torch.dtype, named: str) -> None:
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    _rewrite(copy, lambda tensors: tensors.update({name: tensors[name].to(dtype), f"{name}_scale": torch.ones(1)}))
    _refused(copy, CheckpointInvalid, f"{name} in .* is stored as {named}, .* give the checkpoint it was made from")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    _refused(copy, CheckpointInvalid, name)


def test_damaged_files_are_named(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    _refused(copy, CheckpointInvalid, "damaged")
    (copy / "config.json").write_text("{")
    _refused(copy, CheckpointInvalid, "not JSON")


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    change(config)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda c: c.update(model_type="qwen2_audio"), "model_type"),
        (lambda c: c.pop("architectures"), "architectures"),
        (lambda c: c["text_config"].pop("head_dim"), "text_config.head_dim"),
        (lambda c: c["text_config"].update(rope_parameters={"rope_type": "default"}), "rope_theta"),
        (lambda c: c["text_config"].update(rope_parameters={"rope_type": "yarn", "rope_theta": 1e6}), "rope_type"),
        (lambda c: c["audio_config"].update(n_window_infer=850), "n_window_infer"),
        (lambda c: c["audio_config"].update(output_dim=64), "output_dim"),
        (lambda c: c["audio_config"].update(num_mel_bins=80), "num_mel_bins"),
        (lambda c: c["audio_config"].update(activation_function="relu"), "activation_function"),
    ],
)
def test_a_config_that_cannot_be_meant_names_its_key(
    copy: Path, change: Callable[[dict[str, Any]], object], key: str
) -> None:
    _edit(copy, change)
    _refused(copy, ConfigInvalid, key)


def test_a_head_size_that_the_engine_cannot_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    _refused(make_checkpoint(tmp_path / "c", "wide-heads", head_dim=24), ConfigInvalid, "head_dim: .* multiples of 16")


def test_the_original_layout_is_recognised_and_not_misread(copy: Path) -> None:
    _edit(copy, lambda config: config.update(thinker_config={}))
    _refused(copy, ConfigInvalid, r"thinker_config\.audio_config: it is not there")
