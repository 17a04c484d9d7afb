"""Exports equal transformers' native models, for trained and for random weights; and verify notices when not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests.checkpoints import SHAPES, TINY, make_checkpoint

from qwen3asr.bundle import MANIFEST, open_bundle
from qwen3asr.errors import VerificationFailed
from qwen3asr_export import export, verify
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.expectation import CLIP_SECONDS, synthetic
from qwen3asr_export.precision import PRECISIONS

CHECKS = {
    "mel", "encoder embeddings", "encoder: batch against single", "decoder logits", "log probabilities",
    "NaN and infinite values",
}  # fmt: skip
ASR_CHECKS = CHECKS | {"forced tokens that differ", "decoder: batch against single"}
EXACT = ASR_CHECKS | {"greedy token ids"}
LOSSY = [name for name in PRECISIONS if name != "fp32"]


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("shape", ["tiny asr", "tiny aligner", *SHAPES])
def test_every_stage_equals_pytorch(tmp_path: Path, shape: str, dialect: str) -> None:
    source = TINY / shape.removeprefix("tiny ") if shape.startswith("tiny") else make_checkpoint(tmp_path / "c", shape)
    bundle = export(source, tmp_path / "out", precision="fp32", dialect=dialect)
    verified = bundle.manifest.verified
    assert verified is not None
    assert verified["passed"]
    assert "transformers" in verified["reference"]
    checks = {check["check"]: check for check in verified["checks"]}
    if bundle.manifest.kind == "asr":
        assert set(checks) == EXACT
        assert checks["greedy token ids"]["worst"] == 0
        assert checks["decoder: batch against single"]["worst"] <= (0 if dialect == "ort" else 1e-5)
        assert checks["forced tokens that differ"]["comparisons"] >= 500
    else:
        assert set(checks) == CHECKS | {"aligner classes that differ"}
        assert checks["aligner classes that differ"]["worst"] == 0
        assert checks["aligner classes that differ"]["comparisons"] >= 500
    assert checks["encoder: batch against single"]["worst"] == 0
    assert checks["decoder logits"]["comparisons"] == len(CLIP_SECONDS)
    assert open_bundle(bundle.folder, check_hashes=True)


@pytest.mark.parametrize("kind", ["asr", "aligner"])
@pytest.mark.parametrize(
    ("precision", "dialect"),
    [(name, "ort") for name in LOSSY]
    + [(name, "standard") for name in LOSSY if "standard" in PRECISIONS[name].dialects],
)
def test_every_precision_stays_within_its_bounds(tmp_path: Path, kind: str, precision: str, dialect: str) -> None:
    bundle = export(TINY / kind, tmp_path / "out", precision=precision, dialect=dialect)
    verified = bundle.manifest.verified
    assert verified is not None
    assert verified["passed"]
    assert (bundle.manifest.precision, bundle.manifest.dialect) == (precision, dialect)
    answers = "forced tokens that differ" if kind == "asr" else "aligner classes that differ"
    damage = {"damage: encoder embeddings", f"damage: {answers}"} if PRECISIONS[precision].quantised else set()
    checks = {check["check"] for check in verified["checks"]}
    assert checks == (ASR_CHECKS if kind == "asr" else CHECKS | {answers}) | damage


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_are_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    source = make_checkpoint(tmp_path / "c", "wide-heads", dtype=dtype)
    bundle = export(source, tmp_path / "out", precision="fp32", check=False)
    assert verify(bundle, Checkpoint(source), seconds=(0.3, 8.01)).passed


def test_attention_matters_in_the_random_models(tmp_path: Path) -> None:
    """Were it uniform, wrong masks and rotations would go unseen: changing one far token must move the answer."""
    from qwen3asr_export.reference import Reference

    checkpoint = Checkpoint(make_checkpoint(tmp_path / "c", "multi-query"))
    reference = Reference(checkpoint)
    mel = reference.mel(synthetic(2.0))
    pads = [checkpoint.spec.audio_pad] * checkpoint.spec.windows.tokens(mel.shape[1])
    first, second = (np.array([token, *pads, *range(20, 60)], np.int64) for token in (5, 6))
    last = np.array([len(first) - 1])
    moved = np.abs(reference.logits(first, mel, last) - reference.logits(second, mel, last))
    assert moved.max() > 0.05 * np.abs(reference.logits(first, mel, last)).max()


def test_a_wrong_weight_fails_with_the_whole_table(tmp_path: Path) -> None:
    """All checks run before the verdict: the table shows which stage is the first to differ."""
    bundle = export(TINY / "asr", tmp_path / "out", precision="fp32", check=False)
    path = bundle.folder / "onnx" / "encoder.onnx"
    graph = onnx.load(path, load_external_data=False).graph
    entry = next(
        t
        for t in graph.initializer
        if t.name == "model.audio_tower.layers.0.fc1.weight.weight" or "fc1.weight" in t.name
    )
    place = {item.key: item.value for item in entry.external_data}
    data = path.with_name(place["location"])
    raw = bytearray(data.read_bytes())
    start, length = int(place["offset"]), int(place["length"])
    raw[start : start + length] = bytes(length)
    data.write_bytes(raw)
    with pytest.raises(VerificationFailed) as caught:
        verify(bundle, Checkpoint(TINY / "asr"), seconds=(1.0, 3.0))
    message = str(caught.value)
    rows = {line[:34].strip(): line for line in message.splitlines()}
    assert rows["mel"].endswith("ok")
    assert "FAILED at" in rows["encoder embeddings"]
    assert rows["decoder logits"].endswith("ok")  # it was fed with the reference's embeddings: not its fault
    assert "FAILED at" in rows["log probabilities"]
    assert rows.keys() >= EXACT


def test_an_export_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3asr_export.encoder.MASKED", 0.0)  # padding heard as sound
    with pytest.raises(VerificationFailed, match="encoder embeddings"):
        export(TINY / "asr", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_synthetic_clips_are_the_same_every_time() -> None:
    np.testing.assert_array_equal(synthetic(1.01), synthetic(1.01))
    assert synthetic(0.3).shape == (4800,)
    assert 0.05 < np.abs(synthetic(3.0)).max() <= 1


def test_the_manifest_names_no_place_of_this_machine(asr_bundle: Path) -> None:
    assert str(TINY.parent) not in (asr_bundle / MANIFEST).read_text("utf-8")
