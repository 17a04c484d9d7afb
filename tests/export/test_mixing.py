"""The mixed basis of the residual stream: another basis, the same model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checkpoints import SHAPES, TINY, make_checkpoint

from qwen3asr_export import export
from qwen3asr_export.channels import quantise_channels
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.expectation import synthetic
from qwen3asr_export.mixing import REACH, Mixed, mixing
from qwen3asr_export.numerics import Float, Numerics
from qwen3asr_export.precision import PRECISIONS, Precision
from qwen3asr_export.reference import Reference

MIXED = replace(PRECISIONS["fp32"], encoder=Numerics(Float(), mixed=True), decoder=Numerics(Float(), mixed=True))


@settings(max_examples=30, deadline=None)
@given(width=st.integers(2, 300))
def test_a_basis_is_its_own_inverse_and_keeps_means(width: int) -> None:
    basis = mixing(width)
    np.testing.assert_allclose(basis @ basis, np.eye(width), atol=1e-5)
    np.testing.assert_array_equal(basis, basis.T)
    rows = np.random.default_rng(width).normal(1, 1, (3, width))
    np.testing.assert_allclose((rows @ basis).mean(axis=1), rows.mean(axis=1), atol=1e-5)


@pytest.mark.parametrize("width", [128, 896, 1024, 2048])
def test_no_channel_stays_loud_in_the_basis(width: int) -> None:
    assert np.abs(mixing(width)).max() < 6 / np.sqrt(width)


@pytest.mark.parametrize("kind", ["even", "one channel in forty 30 times louder", "one channel half of the power"])
@pytest.mark.parametrize("width", [128, 896, 1024, 2048])
def test_normed_rows_lie_within_reach_in_the_basis(width: int, kind: str) -> None:
    """Integers have one scale for them all: what is cut off must be next to nothing, whatever the channels are."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (2000, width))
    if kind.startswith("one channel in"):
        rows[:, rng.permutation(width)[: width // 40]] *= 30
    elif kind.startswith("one channel half"):
        rows[np.arange(2000), np.arange(2000) % width] = np.sqrt(width)
    rows /= np.sqrt((rows**2).mean(axis=1, keepdims=True))
    beyond = np.maximum(np.abs(rows @ mixing(width)) - REACH, 0)
    assert (beyond > 0).mean() < 1e-5
    assert beyond.max() < 0.5


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("shape", ["tiny asr", "tiny aligner", *SHAPES])
def test_the_mixed_graphs_equal_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, dialect: str
) -> None:
    """In float32, held to float32's bounds, token ids included: gains and biases of all norms were random."""
    monkeypatch.setitem(PRECISIONS, "fp32", MIXED)
    source = TINY / shape.removeprefix("tiny ") if shape.startswith("tiny") else make_checkpoint(tmp_path / "c", shape)
    verified = export(source, tmp_path / "out", precision="fp32", dialect=dialect).manifest.verified
    assert verified is not None
    assert verified["passed"]


@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_model_that_mixed_graphs_stand_for_is_the_checkpoint_s(tmp_path: Path, shape: str) -> None:
    """Into the basis and back, norms folded: what verify holds the graphs of integer precisions against."""
    checkpoint = Checkpoint(make_checkpoint(tmp_path / "c", shape))
    reference = Reference(checkpoint)
    mel = reference.mel(synthetic(2.0))
    pads = [checkpoint.spec.audio_pad] * checkpoint.spec.windows.tokens(mel.shape[1])
    ids = np.array([5, *pads, *range(20, 40)], np.int64)
    keep = np.arange(len(ids) - 8, len(ids))
    wanted = reference.logits(ids, mel, keep)
    reference.replace(MIXED.stands_for(checkpoint.tensors))
    found = reference.logits(ids, mel, keep)
    assert 0 < np.abs(found - wanted).max() < 2e-4 * np.abs(wanted).max()


def test_a_loud_channel_costs_integer_products_less_in_the_basis() -> None:
    rng = np.random.default_rng(0)
    rows, weight = rng.normal(0, 1, (40, 512)), rng.normal(0, 1, (64, 512)).astype(np.float32)
    rows[:, 7] *= 80

    def error(basis: np.ndarray) -> float:
        stored = quantise_channels((weight @ basis).astype(np.float32)).dequantise()
        turned = rows @ basis
        steps = np.abs(turned).max(axis=1, keepdims=True) / 127
        return float(np.abs(np.rint(turned / steps) * steps @ stored.T - rows @ weight.T).mean())

    assert error(mixing(512)) < error(np.eye(512)) / 2.5


def test_only_integer_precisions_are_mixed() -> None:
    def is_mixed(precision: Precision) -> bool:
        assert precision.encoder.mixed == precision.decoder.mixed
        return precision.encoder.mixed

    assert [name for name, precision in PRECISIONS.items() if is_mixed(precision)] == ["int8", "int4"]


@pytest.mark.parametrize("name", ["embed_tokens", "layers.1.self_attn.q_proj", "layers.0.mlp.up_proj"])
def test_no_matrix_that_reads_the_stream_keeps_a_loud_column(name: str) -> None:
    tensors = Checkpoint(TINY / "asr").tensors
    weight = f"model.language_model.{name}.weight"

    class Loud:
        def __getitem__(self, asked: str) -> np.ndarray:
            tensor = tensors[asked].copy()
            if asked == weight:
                tensor[:, 3] *= 100
            return tensor

    def loudness(matrix: np.ndarray) -> float:
        columns = np.linalg.norm(matrix, axis=0)
        return float(columns.max() / np.median(columns))

    assert loudness(Loud()[weight]) > 20
    assert loudness(Mixed(Loud())[weight]) < 5
