"""Stand-ins: the released shapes, weights that follow from seed and name, and all or nothing on disk."""

from __future__ import annotations

import json
import math
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoProcessor

from qwen3asr import cli
from qwen3asr.errors import DiskFull, RequestInvalid, TargetExists
from qwen3asr.prompt import PromptBuilder
from qwen3asr.spec import ModelSpec
from qwen3asr.tokenizer import open_tokenizer
from qwen3asr_export import export, standin
from qwen3asr_export.checkpoint import Checkpoint, expected_tensors
from qwen3asr_export.reference import Reference
from qwen3asr_export.standin import STANDINS, StandIn, draw, make_standin, write_standin

SMALL = {"encoder_layers": 2, "d_model": 64, "encoder_attention_heads": 1, "encoder_ffn_dim": 96,
         "downsample_hidden_size": 16, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip
ASR, ALIGNER = (replace(STANDINS[name], **SMALL) for name in ("0.6b", "aligner-0.6b"))
SHARD = 9_750_000  # the embedding alone has 9.72 MB


def ignore(name: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def spec_of(shape: StandIn) -> ModelSpec:
    return ModelSpec.from_config(shape.config().to_dict())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_standin(ASR, tmp_path_factory.mktemp("standin") / "asr", seed=0, progress=ignore)


@pytest.mark.parametrize(
    ("name", "encoder", "decoder", "vocab", "head"),
    [
        ("0.6b", 185, 596, 151_936, None),
        ("1.7b", 314, 1721, 151_936, None),
        ("aligner-0.6b", 314, 596, 152_064, (5000, 1024)),
    ],
)
def test_shapes_are_the_released_ones(
    name: str, encoder: int, decoder: int, vocab: int, head: tuple[int, int] | None
) -> None:
    spec = spec_of(STANDINS[name])
    shapes = expected_tensors(spec)
    millions = {
        part: round(sum(math.prod(shape) for key, shape in shapes.items() if key.startswith(f"model.{part}.")) / 1e6)
        for part in ("audio_tower", "language_model")
    }
    assert millions == {"audio_tower": encoder, "language_model": decoder}
    assert (spec.vocab, shapes.get("score.weight"), "lm_head.weight" in shapes) == (vocab, head, False)
    assert (spec.layers, spec.heads, spec.kv_heads, spec.head_dim) == (28, 16, 8, 128)
    assert (spec.encoder.width // spec.encoder.heads, spec.encoder.conv_channels) == (64, 480)
    assert (spec.rope_theta, spec.norm_eps, spec.max_positions) == (1e6, 1e-6, 65_536)
    assert (spec.audio_pad, spec.timestamp, set(spec.eos)) == (151_676, 151_705, {151_643, 151_645})
    assert (spec.windows.chunk_frames, spec.windows.window_frames) == (100, 800)


@pytest.mark.parametrize("shape", [ASR, ALIGNER], ids=["asr", "aligner"])
def test_is_a_checkpoint_like_any_other(shape: StandIn, tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_standin(shape, tmp_path / "made", seed=3, progress=ignore))
    assert checkpoint.spec == spec_of(shape)
    assert checkpoint.config["architectures"] == shape.config().architectures
    reference = Reference(checkpoint)  # refuses missing and unknown names
    mel = reference.mel(np.random.default_rng(0).standard_normal(16_000).astype(np.float32) / 10)
    prompts = PromptBuilder(open_tokenizer(checkpoint.folder, checkpoint.spec))
    ids = prompts.transcription(reference.embeddings(mel)).ids
    logits = reference.logits(ids, mel, np.arange(len(ids)))
    assert logits.shape == (len(ids), checkpoint.spec.classes)
    assert 2 < logits.std(axis=-1).mean() < 4


def test_prompts_equal_those_of_transformers(folder: Path) -> None:
    checkpoint, second = Checkpoint(folder), np.zeros(16_000, np.float32)
    prompts = PromptBuilder(open_tokenizer(folder, checkpoint.spec))
    processor = AutoProcessor.from_pretrained(folder)
    for language in (None, "English"):
        asked = processor.apply_transcription_request(audio=second, language=language)["input_ids"][0].tolist()
        assert prompts.transcription(np.zeros((13, 1), np.float32), language=language).ids.tolist() == asked


def test_same_seed_same_weights_however_sharded(folder: Path, tmp_path: Path) -> None:
    again = write_standin(ASR, tmp_path / "again", seed=0, progress=ignore, shard_bytes=SHARD)
    other = write_standin(ASR, tmp_path / "other", seed=1, progress=ignore)
    one, same, another = (Checkpoint(path).tensors for path in (folder, again, other))
    assert all(np.array_equal(one[name], same[name]) for name in one.names)
    assert not any(np.array_equal(one[name], another[name]) for name in one.names)


def test_shards_keep_within_their_bound(folder: Path, tmp_path: Path) -> None:
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]
    made = write_standin(ASR, tmp_path / "made", seed=0, progress=ignore, shard_bytes=SHARD)
    index = json.loads((made / "model.safetensors.index.json").read_text("utf-8"))
    shards = sorted(made.glob("*.safetensors"))
    assert [path.name for path in shards] == [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    assert all(path.stat().st_size < SHARD + 10_000 for path in shards)
    assert index["metadata"]["total_size"] == sum(
        2 * math.prod(shape) for shape in expected_tensors(spec_of(ASR)).values()
    )
    for path in shards:
        with safe_open(path, framework="pt") as file:
            assert {name for name, place in index["weight_map"].items() if place == path.name} == set(file.keys())
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


@pytest.mark.parametrize(
    ("name", "shape", "mean", "deviation"),
    [
        ("model.language_model.layers.3.mlp.down_proj.weight", (1024, 3072), 0, 3072**-0.5),
        ("model.audio_tower.conv2d2.weight", (480, 480, 3, 3), 0, 1.4 * 4320**-0.5),
        ("model.language_model.embed_tokens.weight", (3000, 1024), 0, 3 * 1024**-0.5),
        ("model.audio_tower.layers.0.fc1.bias", (1 << 20,), 0, 0.1),
        ("model.language_model.norm.weight", (1 << 20,), 1, 0.3),
    ],
)
def test_weights_are_normally_distributed(name: str, shape: tuple[int, ...], mean: float, deviation: float) -> None:
    weights = draw(name, shape, 0).double()
    normal = (weights - mean) / deviation
    assert abs(normal.mean()) < 0.01
    assert abs(normal.std() - 1) < 0.01
    assert [float((normal.abs() < k).double().mean()) for k in (1, 2, 3)] == pytest.approx(
        [0.6827, 0.9545, 0.9973], abs=5e-3
    )
    other = draw(name.replace("model", "another"), shape, 0).double()
    assert abs(torch.corrcoef(torch.stack([weights.ravel(), other.ravel()]))[0, 1]) < 0.01
    assert "norm" not in name or weights.min() > 0


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    write_standin(ASR, tmp_path / "made", seed=0, progress=lambda *step: seen.append(step))
    assert [name for name, _, _ in seen] == list(expected_tensors(spec_of(ASR)))
    assert seen[-1][1] == seen[-1][2]
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_standin(ASR, tmp_path / "made", seed=0, progress=interrupt, shard_bytes=SHARD)
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(TargetExists, match="choose another"):
        make_standin("0.6b", tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_too_little_room_is_said_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**10, 10**10 - 10**9, 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFull, match=r"1\.7b needs 4080 MB .* has 1000 MB free; free some space"):
        make_standin("1.7b", tmp_path / "1.7b")
    assert list(tmp_path.iterdir()) == []


def test_disk_full_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(standin, "save_file", fail)
    with pytest.raises(DiskFull, match="is full; free"):
        write_standin(ASR, tmp_path / "made", seed=0, progress=ignore)
    assert list(tmp_path.iterdir()) == []


def test_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(RequestInvalid, match=r"'8b'; there are 0\.6b, 1\.7b, aligner-0\.6b"):
        make_standin("8b", tmp_path / "8b")


def test_the_command_makes_the_stand_in_once_and_exports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(standin, "STANDINS", {"0.6b": ASR})
    command = ["export", "--random-like", "0.6b", str(tmp_path / "checkpoint"), str(tmp_path / "out")]
    for extra in ([], ["--force", "--precision", "int4"]):
        with pytest.raises(SystemExit) as end:
            cli.main([*command, "--no-verify", *extra])
        assert end.value.code == 0
        made = (tmp_path / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    printed = capsys.readouterr()
    assert printed.err.count("random 0.6b") == 1  # the second time it was there
    assert "int4" in printed.out
    assert made == (tmp_path / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    assert Checkpoint(tmp_path / "checkpoint").random


def test_damage_is_measured_on_a_stand_in_and_not_judged(tmp_path: Path, folder: Path) -> None:
    bundle = export(folder, tmp_path / "out", precision="int4")
    assert bundle.manifest.verified
    bounds = {check["check"]: check["bound"] for check in bundle.manifest.verified["checks"]}
    assert bounds["damage: forced tokens that differ"] is None
    assert bounds["forced tokens that differ"] is not None
    assert "not judged" in (bundle.folder / "README.md").read_text("utf-8")
