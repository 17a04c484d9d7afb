"""Precisions: what is stored, what is computed from it, and the overflow that plain fp16 would have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.checkpoints import TINY
from tests.conftest import ROOT, Recording
from tests.original import make_native, make_original

import qwen3asr
from qwen3asr import precisions
from qwen3asr.cli import exporting
from qwen3asr.errors import RequestInvalid, VerificationFailed
from qwen3asr_export import decoder, encoder, export, verify
from qwen3asr_export.blocks import quantise
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.convert import check_choice
from qwen3asr_export.dialects import DIALECTS
from qwen3asr_export.dynamic import Dynamic
from qwen3asr_export.graph import BFLOAT16, FLOAT, FLOAT16, INT64, Graph, WeightFile
from qwen3asr_export.numerics import Blocks, Float, Matrices, Numerics, Tables
from qwen3asr_export.precision import PRECISIONS
from qwen3asr_export.standin import STANDINS


def test_export_and_runtime_know_the_same_precisions() -> None:
    assert PRECISIONS.keys() == precisions.PRECISIONS.keys()
    assert list(exporting.Precision) == ["auto", *PRECISIONS, "fp8"]  # and the command line; fp8 is of engines alone
    assert list(exporting.Dialect) == list(DIALECTS)
    assert list(exporting.Device) == list(precisions.AUTO)
    assert list(exporting.StandIn) == list(STANDINS)
    for device, name in precisions.AUTO.items():
        assert name in precisions.for_device(device)
    for name, precision in PRECISIONS.items():
        half = precision.decoder.cache in (FLOAT16, BFLOAT16)
        assert precisions.PRECISIONS[name].cache_bytes == (2 if half else 4)


@pytest.mark.parametrize(
    ("asked", "device", "dialect", "given_name"),
    [("auto", "cpu", "ort", "int8"), ("auto", "cuda", "ort", "bf16"), ("auto", "cuda", "standard", "bf16"),
     ("auto", "cpu", "standard", "fp32"), ("int4", "cuda", "ort", "int4")],
)  # fmt: skip
def test_auto_is_what_the_device_runs_best(asked: str, device: str, dialect: str, given_name: str) -> None:
    precision, spelling = check_choice(asked, device, dialect)
    assert (precision.name, spelling.name) == (given_name, dialect)


@pytest.mark.parametrize(
    ("names", "match"),
    [(("int3", "cpu", "ort"), "'int3' is not offered"), (("int4", "cpu", "standard"), "choose from fp32, fp16, bf16$"),
     (("auto", "tpu", "ort"), "choose from cpu, cuda"), (("auto", "cpu", "onnx"), "choose from ort, standard")],
)  # fmt: skip
def test_what_is_not_offered_is_refused(names: tuple[str, str, str], match: str) -> None:
    with pytest.raises(RequestInvalid, match=match):
        check_choice(*names)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 200),
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from([16, 32, 128]),
    seed=st.integers(0, 99),
    offset=st.sampled_from([0.0, 3.0]),
)
def test_no_weight_moves_by_more_than_its_block_s_step(
    rows: int, width: int, bits: int, block: int, seed: int, offset: float
) -> None:
    weight = np.random.default_rng(seed).normal(offset, 1, (rows, width)).astype(np.float32)
    stored = quantise(weight, bits, block)
    step = np.repeat(np.abs(stored.scales), block, axis=1)[:, :width]
    assert (np.abs(stored.dequantise(width) - weight) <= step * 1.001 + 1e-6).all()
    widest = np.abs(weight).max() * 2 / (2**bits - 1)
    assert stored.scales.max() <= widest * 1.01 + 1e-6  # a step is no coarser than the range asks


def test_many_rows_are_quantised_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).normal(0, 1, (70, 96)).astype(np.float32)
    whole = quantise(weight, 4, 32)
    monkeypatch.setattr("qwen3asr_export.rows.ROWS", 16)
    parts = quantise(weight, 4, 32)
    for name in ("values", "scales", "zero_points"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def _run(
    tmp_path: Path, build: Callable[[Graph, str, str], dict[str, str]], width: int, **fed: np.ndarray
) -> list[Any]:
    """The tensors that ``build`` makes of ``x`` ``[n, width]`` and ``ids`` ``[k]``."""
    with WeightFile(tmp_path / "w.data") as file:
        g = Graph("g", file, Numerics(Float()), 23)
        made = build(g, g.input("x", FLOAT, ["n", width]), g.input("ids", INT64, ["k"]))
        for name, tensor in made.items():
            g.op("Identity", tensor, out=name)
            g.output(name, FLOAT, [None, None])  # type: ignore[list-item]
        content = g.model({}).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    return list(onnxruntime.InferenceSession(content, options).run(None, fed))


WIDTHS = pytest.mark.parametrize("width", [64, 80, 200])  # such as no block divides, too


@WIDTHS
@pytest.mark.parametrize(
    ("matrices", "tolerance"),
    [(Float(), 1e-6), (Blocks(8, 32), 0.02), (Blocks(8, 128), 0.02), (Blocks(4, 32), 0.2),
     (Blocks(4, 128), 0.2), (Dynamic(), 0.04)],
)  # fmt: skip
def test_a_layer_multiplies_by_what_is_stored(tmp_path: Path, width: int, matrices: Matrices, tolerance: float) -> None:
    rng = np.random.default_rng(width)
    weight, x = (rng.normal(0, 1, (n, width)).astype(np.float32) for n in (50, 3))
    (layer,) = _run(
        tmp_path, lambda g, x, ids: {"y": matrices.linear(g, x, "layer", weight)}, width, x=x, ids=np.array([0])
    )
    for stands_for, allowed in ((weight, tolerance), (matrices.stands_for(weight), 0.02)):
        assert np.abs(layer - x @ stands_for.T).max() <= allowed * np.abs(x @ weight.T).max()


@WIDTHS
@pytest.mark.parametrize("tables", [Float(), Float(FLOAT16), Dynamic()])
def test_a_table_is_looked_up_in_and_multiplied_by_alike(tmp_path: Path, width: int, tables: Tables) -> None:
    rng = np.random.default_rng(width)
    weight, x = (rng.normal(0, 1, (n, width)).astype(np.float32) for n in (50, 3))
    ids = np.array([0, 49, 7])

    def build(g: Graph, x: str, ids: str) -> dict[str, str]:
        table = tables.table(g, "table", weight)
        return {"head": table.project(g, x), "rows": table.rows(g, ids)}

    head, rows = _run(tmp_path, build, width, x=x, ids=ids)
    wanted = tables.stands_for(weight)
    np.testing.assert_allclose(rows, wanted[ids], atol=1e-6)
    np.testing.assert_allclose(head, x @ wanted.T, atol=0.02 * np.abs(x @ wanted.T).max())


def _changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    copy = Path(shutil.copytree(TINY / "asr", folder))
    tensors = load_file(copy / "model.safetensors")
    tensors = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, copy / "model.safetensors")
    return copy


def _loud_mlp(tensors: dict[str, torch.Tensor]) -> None:
    """The same function, but the product inside the MLP passes fp16's largest number by far."""
    for name, tensor in tensors.items():
        if "language_model" in name and "up_proj" in name:
            tensor.mul_(2.0**11)
        elif "language_model" in name and "down_proj" in name:
            tensor.mul_(2.0**-11)


def test_a_decoder_that_overflows_plain_fp16_is_right_in_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen3 decoders write "!!!!" in plain fp16: NaN logits, whose argmax is token 0."""
    loud = _changed(tmp_path / "loud", _loud_mlp)
    assert export(loud, tmp_path / "safe", precision="fp16").manifest.verified
    monkeypatch.setattr(decoder, "_HEADROOM", 1.0)
    with pytest.raises(VerificationFailed) as caught:
        export(loud, tmp_path / "plain", precision="fp16")
    broken = next(line for line in str(caught.value).splitlines() if line.startswith("NaN"))
    assert "FAILED" in broken


def _deafening_encoder(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.audio_tower.layers.0.fc2.bias"][3] += 60_000.0
    tensors["model.audio_tower.layers.1.fc2.bias"][3] += 60_000.0


def test_the_encoder_s_clamp_keeps_fp16_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deafening = _changed(tmp_path / "deafening", _deafening_encoder)

    assert export(deafening, tmp_path / "clamped", precision="fp16").manifest.verified
    monkeypatch.setattr(encoder, "_CLAMP", float("inf"))
    with pytest.raises(VerificationFailed) as caught:
        export(deafening, tmp_path / "free", precision="fp16")
    broken = next(line for line in str(caught.value).splitlines() if line.startswith("NaN"))
    assert "FAILED" in broken


@pytest.mark.parametrize(
    ("precision", "dialect"), [(name, "ort") for name in precisions.for_device("cpu")] + [("fp32", "standard")]
)
def test_the_recordings_are_right_at_every_precision_of_the_cpu(
    tmp_path: Path, recordings: dict[str, Recording], precision: str, dialect: str
) -> None:
    for kind in ("asr", "aligner"):
        export(TINY / kind, tmp_path / kind, precision=precision, dialect=dialect, check=False)
    model = qwen3asr.load(tmp_path / "asr", aligner=tmp_path / "aligner")
    for recording in recordings.values():
        result = model.transcribe(recording.path)
        assert (result.text, result.language) == (recording.text, recording.language)
    words = model.align(recordings["english"].path, recordings["english"].text, language="English")
    apart = [
        abs(word.start - float(str(true["start"])))
        for word, true in zip(words, recordings["english"].words, strict=True)
    ]
    assert np.mean(apart) < 0.08  # one time class


def test_the_offered_precisions_keep_what_was_measured_on_trained_weights() -> None:
    """On 600 utterances of voices never heard: the bound that a precision must meet to be offered."""
    measured = json.loads((ROOT / "benchmarks/results/tiny_precisions.json").read_text("utf-8"))
    assert measured["utterances"] == 600
    for weights, share, late in (("as_trained", 0.01, 2.0), ("loud_channels", 0.02, 10.0)):
        rows = measured[weights]
        assert rows.keys() == PRECISIONS.keys()
        for name, row in rows.items():
            assert row["exact"] >= rows["fp32"]["exact"] - share, (weights, name)
            assert row["boundary_mean_ms"] <= rows["fp32"]["boundary_mean_ms"] + late, (weights, name)


def test_the_model_card_tells_what_the_bundle_is_and_what_was_measured(tmp_path: Path) -> None:
    bundle = export(TINY / "asr", tmp_path / "out", precision="int4")
    card = (bundle.folder / "README.md").read_text("utf-8")
    header, _, text = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(header)["pipeline_tag"] == "automatic-speech-recognition"
    assert "| precision | int4:" in text
    assert bundle.manifest.verified is not None
    for check in bundle.manifest.verified["checks"]:
        assert f"| {check['check']} | {check['worst']:.2g} |" in text
    unverified = export(TINY / "aligner", tmp_path / "aligner", precision="fp32", check=False)
    assert "was not verified" in (unverified.folder / "README.md").read_text("utf-8")


def test_a_card_that_was_edited_keeps_all_but_what_was_measured(tmp_path: Path) -> None:
    bundle = export(TINY / "aligner", tmp_path / "aligner", precision="fp32", check=False)
    path = bundle.folder / "README.md"
    path.write_text(path.read_text("utf-8").replace("# aligner-fp32", "# Ours") + "\n## Licence\n\nOurs.\n", "utf-8")
    verify(bundle, Checkpoint(TINY / "aligner"), seconds=(1.0,))
    card = path.read_text("utf-8")
    assert "# Ours\n" in card
    assert card.endswith("\n\n## Licence\n\nOurs.\n")
    assert "was not verified" not in card
    assert "| aligner classes that differ | 0 |" in card
    path.write_text("# Mine\n", "utf-8")
    verify(bundle, Checkpoint(TINY / "aligner"), seconds=(1.0,))
    assert path.read_text("utf-8") == "# Mine\n"


@pytest.mark.parametrize("kind", ["asr", "aligner"])
def test_the_original_layout_exports_to_the_same_graphs(tmp_path: Path, kind: str) -> None:
    native, original = make_native(tmp_path / "hf", kind), make_original(tmp_path / "original", kind)
    graphs = [
        export(folder, tmp_path / f"out-{folder.name}", precision="int4", check=False).folder / "onnx"
        for folder in (native, original)
    ]
    for name in ("encoder.onnx", "encoder.onnx.data", "decoder.onnx", "decoder.onnx.data"):
        assert (graphs[0] / name).read_bytes() == (graphs[1] / name).read_bytes()
    bundle = export(original, tmp_path / "verified", precision="fp32")
    assert bundle.manifest.verified
    assert bundle.manifest.verified["passed"]
