"""Integer products whose activations are quantised as they come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checkpoints import TINY

from qwen3asr.decoder import Decoder
from qwen3asr.errors import OutputNotFinite
from qwen3asr.prompt import Prompt
from qwen3asr.sessions.onnxruntime import OrtDecoder
from qwen3asr_export import export
from qwen3asr_export.channels import HIGHEST, quantise_channels
from qwen3asr_export.dynamic import Dynamic
from qwen3asr_export.graph import FLOAT, Graph, WeightFile
from qwen3asr_export.mixing import REACH
from qwen3asr_export.numerics import Convolution, Float, Numerics, Tables

DYNAMIC = Dynamic()

Run = Callable[[np.ndarray], np.ndarray]


def _session(
    folder: Path, matrices: Tables, shape: list[int | str], build: Callable[[Graph, str], str], *, mixed: bool = False
) -> Run:
    with WeightFile(folder / "w.data") as file:
        g = Graph("g", file, Numerics(matrices, mixed=mixed), 23)
        g.op("Identity", build(g, g.input("x", FLOAT, shape)), out="y")
        g.output("y", FLOAT, [f"y{axis}" for axis in range(len(shape))])
        content = g.model({}).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(content, options)
    return lambda x: np.asarray(session.run(None, {"x": x.astype(np.float32)})[0])


def _layer(folder: Path, weight: np.ndarray) -> Run:
    return _session(folder, DYNAMIC, ["n", weight.shape[1]], lambda g, x: g.linear(x, "layer", weight))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 40), width=st.integers(1, 200), seed=st.integers(0, 99), offset=st.sampled_from([0.0, 3.0]))
def test_no_weight_moves_by_more_than_half_its_channel_s_step(rows: int, width: int, seed: int, offset: float) -> None:
    weight = np.random.default_rng(seed).normal(offset, 1, (rows, width)).astype(np.float32)
    weight[0] = 0
    stored = quantise_channels(weight)
    assert np.abs(stored.values).max(initial=0) <= HIGHEST
    assert (np.abs(stored.dequantise() - weight) <= stored.scales[:, None] * 0.501).all()
    np.testing.assert_allclose(stored.scales, np.abs(weight).max(axis=1) / HIGHEST, rtol=1e-6)


def test_channels_are_rounded_alike_however_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).normal(0, 1, (20, 16)).astype(np.float32)
    whole = quantise_channels(weight)
    monkeypatch.setattr("qwen3asr_export.rows.ROWS", 7)
    parts = quantise_channels(weight)
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.scales, whole.scales)


def test_a_product_is_that_of_the_stored_weights_with_rounded_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, x = (rng.normal(0, 1, (n, 200)).astype(np.float32) for n in (48, 5))
    x *= np.array([[1e-6], [1], [1], [50], [3e4]])
    x[1] = 0
    steps = np.abs(x).max(axis=1, keepdims=True) / 127
    rounded = np.rint(x / np.where(steps > 0, steps, 1)) * steps
    wanted = rounded @ quantise_channels(weight).dequantise().T
    apart = np.abs(_layer(tmp_path, weight)(x) - wanted).max(axis=1)
    assert (apart <= 0.01 * np.abs(wanted).max(axis=1)).all()  # a tie may round the other way
    assert (np.abs(wanted - x @ weight.T).max(axis=1) <= 0.05 * np.abs(wanted).max(axis=1)).all()


def test_a_row_does_not_hear_of_its_neighbours(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    run = _layer(tmp_path, rng.normal(0, 1, (48, 96)).astype(np.float32))
    x = rng.normal(0, 1, (7, 96)) * 10.0 ** np.arange(-3, 4)[:, None]
    together = run(x)
    for index, row in enumerate(x):
        np.testing.assert_array_equal(run(row[None])[0], together[index])


def _spread_layer(folder: Path, weight: np.ndarray) -> Run:
    def build(g: Graph, x: str) -> str:
        return g.linear(g.normed(g.op("Identity", x)), "layer", weight)

    return _session(folder, DYNAMIC, ["n", weight.shape[1]], build, mixed=True)


def test_rows_behind_a_norm_have_one_step_for_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    weight, x = rng.normal(0, 1, (48, 256)).astype(np.float32), rng.normal(0, 1, (6, 256)).clip(-REACH, REACH)
    x[5] *= 1e-3  # a norm leaves so little of a row that its epsilon drowns
    rounded = np.rint(x / (REACH / 127)) * (REACH / 127)
    wanted = rounded @ quantise_channels(weight).dequantise().T
    found = _spread_layer(tmp_path, weight)(x)
    np.testing.assert_allclose(found, wanted, atol=0.003 * np.abs(wanted).max())  # a tie may round the other way
    assert np.abs(found[:5] - x[:5] @ weight.T).max() <= 0.05 * np.abs(found).max()


def test_what_lies_beyond_their_reach_is_cut_off(tmp_path: Path) -> None:
    run = _spread_layer(tmp_path, np.eye(32, dtype=np.float32))
    found = run(np.array([[REACH + 3, -REACH - 3, REACH, -REACH, *[0.0] * 28]]))
    step = REACH / 127
    np.testing.assert_allclose(found[0, :5], [REACH, -REACH - step, REACH, -REACH, 0], atol=1e-5)


def test_rows_of_a_stream_that_is_not_mixed_have_steps_of_their_own(tmp_path: Path) -> None:
    def build(g: Graph, x: str) -> str:
        return g.linear(g.normed(g.op("Identity", x)), "layer", np.eye(32, dtype=np.float32))

    run = _session(tmp_path, DYNAMIC, ["n", 32], build)
    x = np.zeros((1, 32))
    x[0, :2] = 100, -50
    np.testing.assert_allclose(run(x), x, atol=0.5)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_do_not_saturate(tmp_path: Path, sign: int) -> None:
    """Processors with AVX2 alone add pairs of 8-bit products in 16 bits: full-range weights would be clipped there."""
    run = _layer(tmp_path, sign * np.ones((32, 256), np.float32))
    np.testing.assert_allclose(run(np.ones((3, 256))), sign * 256, rtol=1e-5)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_is_still_found_out(tmp_path: Path, precision: str, value: float) -> None:
    """Rounded to an integer it looks like a number: what the encoder gave is checked before."""
    bundle = export(TINY / "asr", tmp_path / "asr", precision=precision, check=False)
    spec = bundle.spec
    decoder = Decoder(OrtDecoder(bundle.component("decoder"), spec, slots=1, capacity=64), spec.audio_pad, spec.hidden)
    embeddings = np.ones((3, spec.hidden), np.float32)
    ids = np.array([1, *[spec.audio_pad] * 3, 2])
    decoder.prefill(Prompt(ids, embeddings), np.array([4]), slot=0)
    embeddings[1, 5] = value
    with pytest.raises(OutputNotFinite):
        decoder.prefill(Prompt(ids, embeddings), np.array([4]), slot=0)


@pytest.mark.parametrize("size", [(16, 12), (13, 9), (8, 13)])
def test_convolutions_are_those_of_pytorch(tmp_path: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    kernels = [
        rng.normal(0, 0.3, shape).astype(np.float32) for shape in ((24, 1, 3, 3), (32, 24, 3, 3), (20, 32, 3, 3))
    ]
    biases = [rng.normal(0, 0.3, len(kernel)).astype(np.float32) for kernel in kernels]
    layers = [Convolution(f"c{index}", *pair) for index, pair in enumerate(zip(kernels, biases, strict=True))]
    biases[0][:] = 0
    x = rng.normal(0, 1, (4, 1, *size)) * np.array([1.0, 20.0, 0.05, 0.0]).reshape(4, 1, 1, 1)  # loud to silent chunks

    def theirs(chosen: list[np.ndarray]) -> np.ndarray:
        y = torch.from_numpy(x.astype(np.float32))
        for kernel, bias in zip(chosen, biases, strict=True):
            y = torch.nn.functional.conv2d(y, torch.from_numpy(kernel), torch.from_numpy(bias), stride=2, padding=1)
            y = torch.nn.functional.gelu(y)
        return y.numpy()

    def ours(matrices: Tables, name: str) -> np.ndarray:
        folder = tmp_path / name
        folder.mkdir()
        run = _session(folder, matrices, ["n", 1, *size], lambda g, x: matrices.convolutions(g, x, size, layers))
        alone = np.concatenate([run(chunk[None]) for chunk in x])
        np.testing.assert_array_equal(run(x), alone)  # chunks do not hear of each other either
        return alone

    wanted = theirs(kernels)
    np.testing.assert_allclose(ours(Float(), "float"), wanted, atol=1e-5 * np.abs(wanted).max())
    stored = [
        quantise_channels(kernel.reshape(len(kernel), -1)).dequantise().reshape(kernel.shape) for kernel in kernels
    ]
    closer = theirs([kernels[0], *stored[1:]])
    found = ours(DYNAMIC, "dynamic")
    for chunk in range(4):
        largest = np.abs(wanted[chunk]).max()
        assert np.abs(found[chunk] - closer[chunk]).max() < 0.03 * largest
        assert np.abs(found[chunk] - wanted[chunk]).max() < 0.05 * largest
