"""TensorRT engines of the tiny models, built for real: the builder needs no GPU, running them does."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from tests.checkpoints import TINY

from qwen3asr import cli
from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.engines import engine_folders, open_engines
from qwen3asr.errors import (
    DiskFull,
    EngineBuildFailed,
    EngineUnexpected,
    ExtraMissing,
    GpuMemoryShort,
    GraphRefused,
    PackageTooOld,
    RequestInvalid,
)
from qwen3asr_export import export
from qwen3asr_export.tensorrt import Settings, build_engines, make_plan
from qwen3asr_export.tensorrt.builder import EngineBuilder
from qwen3asr_export.tensorrt.gpu import Gpu
from qwen3asr_export.tensorrt.library import find_library
from qwen3asr_export.tensorrt.log import Record, make_logger
from qwen3asr_export.tensorrt.network import check_network, parse
from qwen3asr_export.tensorrt.settings import QUANTISED
from qwen3asr_export.tensorrt.timings import Timings

if not os.environ.get("QWEN3ASR_NEED_TENSORRT"):  # CI sets it: there a missing builder is a failure
    pytest.importorskip(
        "tensorrt", reason="TensorRT is not installed; python .ci/tensorrt_builder.py installs a builder"
    )

SMALL = Settings(capacity=512, slots=2, chunk=128, draft=16, windows=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Bundles of the standard dialect, each exported once."""
    folders: dict[tuple[str, str], Path] = {}

    def bundle(kind: str, precision: str) -> Path:
        if (kind, precision) not in folders:
            target = tmp_path_factory.mktemp(f"{kind}-{precision}") / "bundle"
            folders[kind, precision] = target
            export(TINY / kind, target, precision=precision, dialect="standard", check=False)
        return folders[kind, precision]

    return bundle


@pytest.fixture
def bundle(made: Any) -> Iterator[Path]:
    """The bf16 recogniser, without engines before and after."""
    folder = made("asr", "bf16")
    yield folder
    _forget(folder)


def _forget(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder / "tensorrt", ignore_errors=True)


# --- engines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "precision"), [("asr", "bf16"), ("asr", "fp16"), ("aligner", "bf16")])
def test_engines_are_fused_and_as_large_as_planned(made: Any, kind: str, precision: str) -> None:
    told: list[tuple[str, int]] = []
    opened = open_bundle(made(kind, precision))
    folder, engines = build_engines(
        opened.folder, settings=SMALL, strict=True, progress=lambda stage, done, _: told.append((stage, done))
    )
    assert folder == opened.folder / "tensorrt" / f"any-trt{engines.version}"
    assert sorted(path.name for path in folder.iterdir()) == ["decoder.engine", "encoder.engine", "engine.json"]
    assert open_engines(folder, open_bundle(opened.folder).hashes, check_hashes=True) == engines
    assert (engines.kind, engines.precision, engines.capacity) == (kind, precision, 512)
    encoder, decoder = engines.components["encoder"], engines.components["decoder"]
    layers = opened.spec.layers
    assert decoder.layers["KV_CACHE_UPDATE"] == decoder.layers["ROTARY_EMBEDDING"] == 2 * layers
    assert decoder.layers["ATTENTION_INPUT"] == layers
    assert encoder.unfused == decoder.unfused == ()
    assert [profile.name for profile in encoder.profiles] == ["one", "many"]
    plan = make_plan(opened.spec, SMALL, precision)
    for name, engine in engines.components.items():
        assert engine.size == (folder / engine.file).stat().st_size > engine.weights_bytes
        assert engine.weights_bytes == pytest.approx(plan.weights[name], rel=0.05)
        assert 0.6 < plan.activations[name] / engine.activation_bytes < 1.7
    for stage in ("encoder engine, %", "decoder engine, %"):
        done = [percent for name, percent in told if name == stage]
        assert done == sorted(done)
        assert (done[0], 50 < done[-1] <= 100) == (0, True)
    _forget(opened.folder)


def test_fp32_is_built_and_says_what_is_not_fused(made: Any) -> None:
    folder = made("asr", "fp32")
    _, engines = build_engines(folder, settings=SMALL)
    unfused = engines.components["decoder"].unfused
    assert len(unfused) == open_bundle(folder).spec.layers
    assert all(text.startswith("Attention_") for text in unfused)


def test_attention_that_seems_not_fused_is_recorded_or_an_error_where_that_is_asked(
    bundle: Path, run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another TensorRT may word its log otherwise: its engines are none the worse."""
    monkeypatch.setattr("qwen3asr_export.tensorrt.builder.find_unfused", lambda *_: ("Attention_1 in 1 of 2 profiles",))
    with pytest.raises(EngineUnexpected, match="Attention_1 in 1 of 2 profiles"):
        build_engines(bundle, settings=SMALL, strict=True)
    code, _, told = run("export", "--engine", "tensorrt", "--strict", *SIZES, bundle)
    assert (code, "Attention_1" in told) == (cli.UNUSABLE, True)
    assert not (bundle / "tensorrt").exists()
    _, engines = build_engines(bundle, settings=SMALL)
    assert engines.components["decoder"].unfused == ("Attention_1 in 1 of 2 profiles",)
    assert "attention of the decoder is not fused, as far as the builder's log tells" in caplog.text


@pytest.mark.parametrize("precision", list(QUANTISED))
def test_weights_in_few_bits_stay_so(bundle: Path, precision: str) -> None:
    folder, engines = build_engines(bundle, settings=SMALL, precision=precision, strict=True)
    decoder, plan = engines.components["decoder"], make_plan(open_bundle(bundle).spec, SMALL, precision)
    assert folder.name.endswith(f"-{precision}")
    assert engines.precision == precision
    assert decoder.layers["DEQUANTIZE"] == 7 * open_bundle(bundle).spec.layers
    assert decoder.unfused == ()
    floats = make_plan(open_bundle(bundle).spec, SMALL, "bf16").weights["decoder"]
    assert floats - decoder.weights_bytes > 0.6 * (floats - plan.weights["decoder"]) > 0
    assert decoder.weights_bytes == pytest.approx(plan.weights["decoder"], rel=0.08)
    assert sorted(path.name for path in folder.iterdir()) == ["decoder.engine", "encoder.engine", "engine.json"]


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(made: Any) -> tuple[Any, Any, Bundle]:
    """(TensorRT, the parsed decoder, its bundle)."""
    return _parsed(open_bundle(made("asr", "bf16")))


def _parsed(opened: Bundle, graph: Path | None = None) -> tuple[Any, Any, Bundle]:
    import tensorrt

    logger = make_logger(tensorrt, Record())
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parse(tensorrt, logger, network, graph or opened.component("decoder"), 64)
    return tensorrt, network, opened


def test_the_node_that_the_parser_refuses_is_named(made: Any, tmp_path: Path) -> None:
    opened = open_bundle(made("asr", "bf16"))
    model = onnx.load(opened.component("decoder"))
    node = next(node for node in model.graph.node if node.op_type == "RMSNormalization")
    node.op_type, node.domain = "NoSuchNorm", "some.where"
    model.opset_import.append(onnx.helper.make_opsetid("some.where", 1))
    onnx.save(model, tmp_path / "decoder.onnx")
    with pytest.raises(GraphRefused, match=rf"decoder.onnx at the node '{node.name}' \(NoSuchNorm\)"):
        _parsed(opened, tmp_path / "decoder.onnx")


def test_a_network_with_other_layers_is_refused(network: tuple[Any, Any, Bundle]) -> None:
    module, parsed, opened = network
    check_network(module, parsed, "decoder", opened.spec, "bf16")
    with pytest.raises(EngineUnexpected, match="6 KV_CACHE_UPDATE, not 8"):
        check_network(module, parsed, "decoder", replace(opened.spec, layers=4), "bf16")
    with pytest.raises(EngineUnexpected, match="0 DEQUANTIZE, not 21"):
        check_network(module, parsed, "decoder", opened.spec, "int4")


def test_a_product_in_another_type_is_refused(network: tuple[Any, Any, Bundle]) -> None:
    module, parsed, opened = network
    for other in ("fp16", "fp32"):
        with pytest.raises(EngineUnexpected, match=r"q_proj.matmul computes in \S*BF16, not"):
            check_network(module, parsed, "decoder", opened.spec, other)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_bundles_for_onnx_runtime_are_refused(tmp_path: Path, precision: str) -> None:
    bundle = export(TINY / "asr", tmp_path / "out", precision=precision, check=False)
    with pytest.raises(RequestInvalid, match=f"ort dialect in {precision}.*--engine tensorrt"):
        build_engines(bundle.folder)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"precision": "fp4"}, RequestInvalid, "bf16, fp16, fp32, int8, fp8, int4"),
        ({"precision": "fp16"}, RequestInvalid, "built from a bundle of fp16, and this one is bf16"),
        ({"settings": Settings(capacity=30_000)}, RequestInvalid, "capacity=30000 is outside of 2 to 20480"),
        ({"settings": Settings(slots=0)}, RequestInvalid, "slots=0"),
        ({"settings": Settings(level=9)}, RequestInvalid, "level=9"),
        ({"gpu": "../x"}, RequestInvalid, "no name for a folder"),
        ({"gpu_memory": 150_000_000}, GpuMemoryShort, "not even one slot fits|would fit"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(
    bundle: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        build_engines(bundle, **options)
    assert not (bundle / "tensorrt").exists()


def test_a_layer_gets_no_more_workspace_than_was_asked_for(network: tuple[Any, Any, Bundle]) -> None:
    module, _, opened = network
    library, builder = find_library(["tensorrt"]), module.Builder(module.Logger(module.Logger.ERROR))
    empty = builder.create_network(0)
    limits = []
    for workspace in (None, 3 << 20):
        maker = EngineBuilder(library, opened.spec, Settings(workspace=workspace), Gpu(), Timings(None))
        config = maker._config(builder, empty, ())
        limits.append(config.get_memory_pool_limit(module.MemoryPoolType.WORKSPACE))
    assert limits[1] == 3 << 20 != limits[0]


def test_a_missing_and_an_old_tensorrt(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("tensorrt_rtx")
    old.__version__ = "1.1.0.5"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", old)
    with pytest.raises(PackageTooOld, match=r"tensorrt_rtx 1\.1\.0\.5 is too old; install 1\.2"):
        find_library(["tensorrt_rtx"])
    old.__version__ = "1.10.0"  # type: ignore[attr-defined]
    assert find_library(["tensorrt_rtx"]).portable
    old.__version__ = "10.14.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(PackageTooOld, match=r"tensorrt 10\.14\.1 is too old; install 10\.15"):  # has no rotary layer
        find_library(["tensorrt"])
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ExtraMissing, match=r"qwen3asr\[tensorrt\]"):
        build_engines(bundle, settings=SMALL)


def test_a_builder_that_does_not_start(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_builder(logger: Any) -> None:
        logger.log(logger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr("tensorrt.Builder", no_builder)
    with pytest.raises(EngineBuildFailed, match=r"cannot start \(CUDA initialization.*install tensorrt_rtx"):
        build_engines(bundle, settings=SMALL)
    assert not (bundle / "tensorrt").exists()


def test_a_build_that_fails_says_why(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused attention is asked for, and there is none in fp32: the builder's own refusal."""
    monkeypatch.setattr("qwen3asr_export.tensorrt.builder.allow_unfused", lambda *_: None)
    monkeypatch.setattr("qwen3asr_export.tensorrt.folder.COMPONENTS", ("decoder",))
    target = bundle.parent / "fp32"
    export(TINY / "asr", target, precision="fp32", dialect="standard", check=False)
    with pytest.raises(EngineBuildFailed, match="not supported by a dedicated kernel"):
        build_engines(target, settings=SMALL)
    assert not (target / "tensorrt").exists()


# --- nothing half-done -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_stops_the_build_and_leaves_nothing(bundle: Path) -> None:
    pressed = threading.Event()

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage.startswith("decoder") and done and not pressed.is_set():
            pressed.set()  # once: a second signal would hit whatever runs by then
            os.kill(os.getpid(), signal.SIGINT)  # this runs in the thread that builds, the signal in the main one

    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, settings=SMALL, progress=interrupt)
    assert not (bundle / "tensorrt").exists()


def test_what_progress_raises_comes_out(bundle: Path) -> None:
    def broken(stage: str, done: int, total: int) -> None:
        if done:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build_engines(bundle, settings=SMALL, progress=broken)
    assert not (bundle / "tensorrt").exists()


def test_a_full_disk_at_the_start_and_on_the_way(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
        with pytest.raises(DiskFull, match="MB free"):
            build_engines(bundle, settings=SMALL)
    monkeypatch.setattr("qwen3asr_export.tensorrt.builder.sha256", full)  # the encoder is written
    with pytest.raises(DiskFull, match="is full"):
        build_engines(bundle, settings=SMALL, precision="int4")
    assert not (bundle / "tensorrt").exists()


# --- the command -----------------------------------------------------------------------------------------------

SIZES = ("--slots", 2, "--capacity", 512, "--chunk", 128, "--draft", 16, "--windows", 2)


def test_export_makes_bundle_and_engines_and_more_engines(run: Any, tmp_path: Path) -> None:
    out, cache = tmp_path / "asr", tmp_path / "times"
    options = ("--engine", "tensorrt", *SIZES, "--timing-cache", cache)
    code, shown, told = run("export", TINY / "asr", out, "--no-verify", "--strict", *options, "--gpu", "sm89")
    assert code == 0, told
    (folder,) = engine_folders(out)
    engines = open_engines(folder, open_bundle(out).hashes)
    assert open_bundle(out).manifest.precision == engines.precision == "bf16"
    assert (engines.gpu, engines.compute_capability, engines.slots) == ("sm89", "8.9", 2)
    assert f"bf16, {engines.slots} slots of {engines.capacity} tokens" in shown
    assert cache.stat().st_size > 0

    code, _, told = run("export", out, *options, "--gpu", "sm89")
    assert (code, "--force" in told) == (cli.USAGE, True)
    shown = run("info", out)[1]
    assert "built with        tensorrt" in shown
    assert "profiles step, prefill" in shown
    (folder / "decoder.engine").write_bytes(b"")
    code, _, told = run("info", out)
    assert (code, "decoder.engine" in told) == (cli.UNUSABLE, True)
    code, _, told = run("export", out, *options, "--gpu", "sm89", "--force")
    assert code == 0, told
    open_engines(folder, open_bundle(out).hashes, check_hashes=True)
    assert sorted(path.name for path in (out / "tensorrt").iterdir()) == [folder.name]


def test_a_failed_build_leaves_the_bundle_and_says_how_to_go_on(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qwen3asr_export.tensorrt.builder.parse", interrupted)
    out = tmp_path / "asr"
    code, _, told = run("export", TINY / "asr", out, "--no-verify", "--engine", "tensorrt", *SIZES)
    assert code == cli.INTERRUPTED
    assert f"go on with: qwen3asr export --engine tensorrt {out}" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asr"]
    assert not (open_bundle(out).folder / "tensorrt").exists()


def test_too_little_gpu_memory_is_said_before_the_export(run: Any, tmp_path: Path) -> None:
    arguments = ("export", TINY / "asr", tmp_path / "out", "--engine", "tensorrt", "--gpu-memory", 0.1)
    code, _, told = run(*arguments)
    assert (code, "0.10 GB" in told) == (cli.UNUSABLE, True)
    assert list(tmp_path.iterdir()) == []
