"""What engines are planned, shaped and quantised like, and what is said of them: nothing here needs a builder."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from tests.checkpoints import TINY
from tests.conftest import Recording
from tests.fake_hub import ID, WEIGHTS, Hub

import qwen3asr
from qwen3asr import cli
from qwen3asr.bundle import Bundle
from qwen3asr.errors import (
    BackendFailed,
    EngineBuildFailed,
    EngineUnexpected,
    ExtraMissing,
    GpuMemoryShort,
    RequestInvalid,
)
from qwen3asr.sessions.onnxruntime import OrtDecoder
from qwen3asr_export import export
from qwen3asr_export.tensorrt import Settings, check_order, find_spec, make_plan, standin_spec
from qwen3asr_export.tensorrt.builder import EngineBuilder, Order, _activations
from qwen3asr_export.tensorrt.gpu import Gpu, choose_gpu, find_gpu
from qwen3asr_export.tensorrt.graphs import quantise_symmetric, write_quantised
from qwen3asr_export.tensorrt.library import Library
from qwen3asr_export.tensorrt.log import Record
from qwen3asr_export.tensorrt.network import check_fusion, find_unfused
from qwen3asr_export.tensorrt.progress import Share
from qwen3asr_export.tensorrt.settings import QUANTISED
from qwen3asr_export.tensorrt.timings import Timings

SMALL = Settings(capacity=512, slots=2, chunk=128, draft=16, windows=2)


HERE = Gpu("nvidia-h100", "9.0", 80_000_000_000)


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny recogniser in fp32 and the standard dialect."""
    target = tmp_path_factory.mktemp("floats") / "bundle"
    return export(TINY / "asr", target, precision="fp32", dialect="standard", check=False)


def test_profiles_hold_what_the_runtime_calls_with(floats: Bundle) -> None:
    plan = make_plan(floats.spec, SMALL, "bf16")
    step, prefill = plan.profiles["decoder"]  # so short a chunk needs no profile for a stream's pass
    cache = (2, 512, 32)
    call = {"ids": (2, 1), "audio": (1, 128), "past": (2,), "take": (2, 1), "past.2.value": (2, *cache)}
    assert step.holds(call)
    assert not prefill.holds(call)
    call = {"ids": (1, 128), "audio": (128, 128), "past": (1,), "take": (1, 17), "past.0.key": (1, *cache)}
    assert prefill.holds(call)
    assert not step.holds(call)
    wide = make_plan(standin_spec("0.6b"), Settings(), "bf16")
    assert [profile.name for profile in wide.profiles["decoder"]] == ["step", "verify", "prefill"]
    assert wide.profiles["decoder"][1].holds({"ids": (1, 104 + 24 + 128), "audio": (104, 1024), "take": (1, 129)})
    aligner = make_plan(standin_spec("aligner-0.6b"), Settings(), "bf16")
    assert [profile.name for profile in aligner.profiles["decoder"]] == ["prefill"]
    assert aligner.profiles["decoder"][0].holds({"take": (1, 512)})
    assert (aligner.settings.slots, aligner.settings.capacity) == (1, 12_288)


@pytest.mark.parametrize("precision", list(QUANTISED))
def test_a_quantised_decoder_still_understands(
    floats: Bundle, precision: str, tmp_path: Path, recordings: dict[str, Recording]
) -> None:
    graph = write_quantised(floats.component("decoder"), tmp_path / "decoder.onnx", precision)
    onnx.checker.check_model(os.fspath(graph), full_check=True)
    model = qwen3asr.load(floats.folder, slots=1)
    decoder = OrtDecoder(graph, floats.spec, slots=1, capacity=512)
    model._engine._decoder._session = decoder  # type: ignore[attr-defined]
    right = {name: model.transcribe(recording.path).text == recording.text for name, recording in recordings.items()}
    assert sum(right.values()) >= len(right) - 1, right


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
def test_integers_are_the_nearest_and_symmetric(precision: str, bits: int) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    weight[:, 2] = 0
    values, scales = quantise_symmetric("w", weight, precision)
    wide = values.astype(np.float32) * (scales if bits == 8 else np.repeat(scales, 32, axis=0))
    half = (scales if bits == 8 else np.repeat(scales, 32, axis=0)) / 2
    assert (np.abs(wide - weight) <= half * 1.001).all()
    assert np.abs(values.astype(np.int32)).max() == 2 ** (bits - 1) - 1
    assert not values[:, 2].astype(np.int32).any()


def test_fp8_uses_the_whole_range_and_rounds_to_three_bits() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    weight[:, 2] = 0
    values, scales = quantise_symmetric("w", weight, "fp8")
    wide = values.astype(np.float32)
    assert np.abs(wide[:, [0, 1, 3, 4, 5]]).max(0).tolist() == [448] * 5
    assert not wide[:, 2].any()
    normal = np.abs(wide) >= 2**-6
    assert (np.abs(wide * scales - weight)[normal] <= np.abs(weight)[normal] / 16 * 1.001).all()


def test_int4_needs_whole_blocks() -> None:
    with pytest.raises(RequestInvalid, match="whole blocks of 32"):
        quantise_symmetric("q_proj", np.ones((80, 4), np.float32), "int4")


def test_attention_that_is_not_fused_is_told_or_fails_where_that_is_asked_but_in_fp32(
    caplog: pytest.LogCaptureFixture,
) -> None:
    record = Record(fused=Counter({"Attention_1": 3, "Attention_2": 1}), described=True)
    missing = ("Attention_2 in 2 of 3 profiles", "Attention_3 in 3 of 3 profiles")
    assert find_unfused(["Attention_1", "Attention_2", "Attention_3"], 3, record) == missing
    check_fusion("decoder", missing, "fp32", strict=True)
    check_fusion("decoder", (), "bf16", strict=True)
    assert not caplog.records
    check_fusion("decoder", missing, "bf16", strict=False)
    assert "decoder is not fused, as far as the builder's log tells: Attention_2 in 2 of 3 profiles" in caplog.text
    with pytest.raises(EngineUnexpected, match="Attention_2 in 2 of 3 profiles"):
        check_fusion("decoder", missing, "bf16", strict=True)
    unknown = find_unfused(["Attention_1"], 3, Record())
    assert "unknown" in unknown[0]
    with pytest.raises(EngineUnexpected, match="did not list its kernels"):
        check_fusion("decoder", unknown, "bf16", strict=True)


def test_what_the_builder_does_not_tell_of_activations_is_what_was_planned(caplog: pytest.LogCaptureFixture) -> None:
    order = Order("decoder", Path("decoder.onnx"), (), "bf16", 5_000)
    told = Record(memory={"Weights": [], "Activation": [700, 900]})
    assert _activations(order, told) == 900
    assert not caplog.records
    assert _activations(order, Record()) == 5_000
    assert "did not tell the activations of the decoder" in caplog.text


def test_components_share_the_memory_of_their_activations() -> None:
    plan = make_plan(standin_spec("0.6b"), Settings(), "bf16")
    assert plan.device_bytes == plan.stored + plan.cache + max(plan.activations.values())


@pytest.mark.parametrize(("wanted", "known"), [("9.0", True), ("8.9", True), ("13.0", False)])
def test_a_portable_builder_is_told_the_gpu_or_has_none_of_that_kind(wanted: str, known: bool) -> None:
    config = _Config()
    make = _builder("tensorrt_rtx", Gpu("there", wanted))
    if not known:
        with pytest.raises(RequestInvalid, match=r"tensorrt_rtx builds for SM\S*, SM\S*, not SM130"):
            make._config(SimpleNamespace(create_builder_config=lambda: config), _NO_INPUTS, ())
        return
    make._config(SimpleNamespace(create_builder_config=lambda: config), _NO_INPUTS, ())
    assert (config.num_compute_capabilities, config.capability) == (1, f"SM{wanted.replace('.', '')}")
    config.takes = False
    with pytest.raises(EngineBuildFailed, match="does not build for there"):
        make._config(SimpleNamespace(create_builder_config=lambda: config), _NO_INPUTS, ())


def test_only_portable_builders_are_told_a_gpu() -> None:
    for flavour, gpu in (("tensorrt", Gpu("here", "9.0")), ("tensorrt_rtx", Gpu())):
        config = _Config()
        _builder(flavour, gpu)._config(SimpleNamespace(create_builder_config=lambda c=config: c), _NO_INPUTS, ())
        assert config.capability is None


_NO_INPUTS = SimpleNamespace(num_inputs=0)


class _Config:
    """IBuilderConfig, as far as it is set."""

    capability: str | None = None
    takes = True

    def set_compute_capability(self, capability: str, index: int) -> bool:
        self.capability = capability
        return self.takes and index == 0


def _builder(flavour: str, gpu: Gpu) -> EngineBuilder:
    capabilities = SimpleNamespace(__members__={name: name for name in ("NONE", "CURRENT", "SM89", "SM90")})
    module = SimpleNamespace(ProfilingVerbosity=SimpleNamespace(DETAILED=2), ComputeCapability=capabilities)
    return EngineBuilder(Library(flavour, "1.7", module), standin_spec("0.6b"), Settings(), gpu, Timings(None))


def test_memory_says_how_many_slots_would_fit() -> None:
    plan = make_plan(standin_spec("0.6b"), Settings(slots=32), "bf16")
    with pytest.raises(GpuMemoryShort, match="slots=5 would fit"):
        plan.check_memory(6_000_000_000)
    make_plan(standin_spec("0.6b"), Settings(slots=5), "bf16").check_memory(6_000_000_000)
    plan.check_memory(None)


def test_progress_never_falls_though_phases_come_again() -> None:
    share, seen = Share(), []
    share.start("all", None, 2)
    for step in range(2):
        for _ in range(2):  # an inner phase that begins again
            share.start("inner", "all", 4)
            for inner in range(4):
                share.step("inner", inner)
                seen.append(share.best)
            share.finish("inner")
        share.step("all", step)
        seen.append(share.best)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.125, 1.0)


def test_timings_of_another_version_are_left_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Config:
        def create_timing_cache(self, known: bytes) -> Any:
            return SimpleNamespace(serialize=lambda: known + b" and more", known=known)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            self.chosen = cache
            return not ignore_mismatch and cache.known != b"of another version"

        def get_timing_cache(self) -> Any:
            return self.chosen

    path = tmp_path / "times"
    path.write_bytes(b"of another version")
    for expected in (b" and more", b" and more and more"):
        config, timings = Config(), Timings(path)
        timings.use(config)
        timings.learn(config)
        timings.write()
        assert path.read_bytes() == expected
    assert caplog.text.count("is not used") == 1
    Timings(None).use(None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "{tiny}", "{tmp}/out", "--gpu", "sm90"], "add --engine tensorrt"),
        (["export", "{tiny}", "{tmp}/out", "--dry-run"], "add --engine tensorrt"),
        (["export", "{tiny}", "{tmp}/out", "--strict"], "add --engine tensorrt"),
        (["export", "{tiny}", "{tmp}/out", "--precision", "fp8"], "'fp8' is not offered in the ort dialect"),
        (["export", "{tiny}", "{tmp}/out", "--engine", "tensorrt", "--dialect", "ort"], "leave --dialect out"),
        (["export", "{tiny}", "--engine", "tensorrt"], "name the folder to make a bundle in"),
        (["export", "{tiny}"], "name the bundle folder"),
        (["export"], "name a checkpoint"),
        (["export", "{tiny}", "{tmp}/out", "--engine", "tensorrt", "--slots", "0"], "slots=0"),
    ],
)
def test_wrong_arguments(run: Any, tmp_path: Path, arguments: list[str], words: str) -> None:
    code, _, told = run(*(text.format(tiny=TINY / "asr", tmp=tmp_path) for text in arguments))
    assert (code, words in told) == (cli.USAGE, True), told
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_needs_no_weights_and_no_tensorrt(
    run: Any, tmp_path: Path, floats: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen3asr_export.tensorrt.folder.find_library", lambda: 1 / 0)
    (tmp_path / "config.json").write_bytes((TINY / "asr/config.json").read_bytes())
    (from_config, from_bundle, large, small) = (
        run("export", "--engine", "tensorrt", "--dry-run", *source)
        for source in (
            [tmp_path],
            [floats.folder],
            ["--random-like", "1.7b"],
            ["--random-like", "1.7b", "--precision", "int4"],
        )
    )
    assert from_config == from_bundle
    assert large[0] == 0
    assert "past.*.key/value 1x8x4096x128 to 8x8x4096x128" in large[1]
    assert "weights           encoder 0.63 GB, decoder 3.45 GB" in large[1]
    assert "KV cache          3.76 GB for 8 slots of 4096 tokens" in large[1]
    assert "disk              4.09 GB" in large[1]
    assert "disk              2.59 GB" in small[1]
    code, _, told = run("export", "--engine", "tensorrt", "--dry-run", "--random-like", "1.7b", "--gpu-memory", 8)
    assert (code, "would fit" in told) == (cli.UNUSABLE, True)


def test_a_dry_run_fetches_the_configuration_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with Hub(TINY / "asr") as hub:
        thread = Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        spec = find_spec(ID, cache_dir=tmp_path, endpoint=hub.address)
        hub.shutdown()
        thread.join()
    assert spec == find_spec(TINY / "asr")
    assert hub.served(WEIGHTS) == 0


def test_engines_are_for_the_gpu_here_or_the_one_that_is_named() -> None:
    assert choose_gpu(None, HERE, portable=False) == HERE
    assert choose_gpu(None, None, portable=True) == Gpu("any")
    assert choose_gpu("SM120", None, portable=True) == Gpu("sm120", "12.0")
    assert choose_gpu("sm75", HERE, portable=True) == Gpu("sm75", "7.5")
    assert choose_gpu("lab-1", HERE, portable=False) == replace(HERE, name="lab-1")
    assert choose_gpu("sm90", HERE, portable=False).compute_capability == "9.0"
    with pytest.raises(RequestInvalid, match=r"nvidia-h100 of compute capability 9.0, not 8.9"):
        choose_gpu("sm89", HERE, portable=False)


def test_the_gpu_here_is_read_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the driver's answers made up: its names are checked against cuda-python where that is installed."""
    attributes = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=12, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1
    )
    driver = SimpleNamespace(
        CUresult=SimpleNamespace(CUDA_SUCCESS=0),
        CUdevice_attribute=attributes,
        cuInit=lambda flags: (0,),
        cuDeviceGetCount=lambda: (0, 1),
        cuDeviceGet=lambda index: (0, index),
        cuDeviceGetName=lambda size, device: (0, b"NVIDIA GB10 (Blackwell)\0\0\0"),
        cuDeviceGetAttribute=lambda name, device: (0, name),
        cuDeviceTotalMem=lambda device: (0, 128),
    )
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(bindings=SimpleNamespace(driver=driver)))
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=driver))
    assert find_gpu() == Gpu("nvidia-gb10-blackwell", "12.1", 128)
    driver.cuDeviceGetCount = lambda: (0, 0)
    assert find_gpu() is None
    driver.cuDeviceGetCount = lambda: (999, 0)
    with pytest.raises(BackendFailed, match="999"):
        find_gpu()
    driver.cuInit = lambda flags: (100,)
    assert find_gpu() is None
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert find_gpu() is None
    with pytest.raises(ExtraMissing, match=r"for the GPU here needs the package cuda-python; .*qwen3asr\[tensorrt\]"):
        find_gpu(needed=True)


@pytest.mark.parametrize(("flavour", "needed"), [("tensorrt", True), ("tensorrt_rtx", False)])
def test_engines_that_only_run_here_are_never_called_after_no_gpu(
    floats: Bundle, monkeypatch: pytest.MonkeyPatch, flavour: str, needed: bool
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setattr("qwen3asr_export.tensorrt.folder.find_library", lambda: Library(flavour, "11.4", None))
    if needed:
        with pytest.raises(ExtraMissing, match="cuda-python"):
            check_order(floats.spec, SMALL, "fp32", None, None)
    else:
        assert check_order(floats.spec, SMALL, "fp32", None, None)[1] == Gpu("any")


def test_the_driver_has_those_names() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    for name in ("cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"):
        assert hasattr(driver, name)
    assert hasattr(driver, "cuDeviceTotalMem")
    assert hasattr(driver.CUdevice_attribute, "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR")
    assert int(driver.CUresult.CUDA_SUCCESS) == 0
