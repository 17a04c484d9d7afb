"""Which TensorRT engines are loaded, and what is said of those that cannot be."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import TINY
from tests.trt_folder import tensors, write_folder
from tests.trt_standin import Context, Engine, Machine, Misused, Runtime

import qwen3asr
from qwen3asr import cli
from qwen3asr.backends import CpuBackend, Wishes, choose_backend
from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.engines import open_engines, write_engines
from qwen3asr.errors import (
    DeviceUnavailable,
    EngineBuildFailed,
    EngineFileDamaged,
    EngineRefused,
    EnginesForeign,
    EnginesInvalid,
    EnginesMissing,
    EnginesStale,
    ExtraMissing,
    KvMemoryShort,
    RequestInvalid,
)
from qwen3asr.sessions import cuda_memory, tensorrt
from qwen3asr.sessions.tensorrt import ENCODER_TYPES, TrtDecoder, cache_type, decoder_types
from qwen3asr.sessions.trt_ports import Port
from qwen3asr.tensorrt_backend import TensorRtBackend, has_engines
from qwen3asr_export import export
from qwen3asr_export.tensorrt import Settings

SMALL = Settings(capacity=128, slots=3, chunk=32, draft=4, windows=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("standard") / "asr"
    return export(TINY / "asr", target, precision="fp32", dialect="standard", check=False).folder


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Bundle:
    """Without engines."""
    return open_bundle(shutil.copytree(made, tmp_path / "bundle"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    there = Machine()
    there.install(monkeypatch)
    return there


def _choose(bundle: Bundle, **wishes: Any) -> Any:
    return choose_backend(bundle, Wishes(**{"device": "cuda", "engine": "tensorrt", **wishes}))


def _folder(backend: TensorRtBackend) -> str:
    return backend._chosen.folder.name


# --- what is chosen ------------------------------------------------------------------------------------------------


def test_engines_that_run_here_are_chosen_by_themselves(machine: Machine, bundle: Bundle) -> None:
    assert isinstance(_choose(bundle, device="auto", engine=None, share_weights=True), CpuBackend)
    write_folder(bundle, SMALL)
    for wishes in ({"device": "auto", "engine": None}, {"engine": None}, {"device": "auto"}, {}):
        assert isinstance(_choose(bundle, **wishes), TensorRtBackend)
    assert isinstance(_choose(bundle, device="cpu", engine=None), CpuBackend)
    assert isinstance(_choose(bundle, device="auto", engine=None, share_weights=True), CpuBackend)


def test_engines_that_do_not_run_here_leave_the_work_to_onnx_runtime(
    machine: Machine, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(bundle, SMALL, capability="12.0")
    assert isinstance(_choose(bundle, device="auto", engine=None), CpuBackend)
    assert "is not run by TensorRT" in caplog.text
    assert "compute capability 12.0 (h100), and here is 9.0" in caplog.text


def test_of_several_the_bundles_own_precision_or_the_one_that_is_named(machine: Machine, bundle: Bundle) -> None:
    write_folder(bundle, SMALL, name="a-int8", precision="int8")
    write_folder(bundle, SMALL, name="b-old", version="10.15.0")
    assert _folder(_choose(bundle)) == "a-int8"
    write_folder(bundle, SMALL, name="c")
    assert _folder(_choose(bundle)) == "c"
    assert _folder(_choose(bundle, engines=Path("a-int8"))) == "a-int8"
    assert _folder(_choose(bundle, engine=None, engines=bundle.folder / "tensorrt" / "a-int8")) == "a-int8"
    with pytest.raises(EnginesForeign, match=r"b-old was built for the library tensorrt 10.15.0, and here is .*11.4"):
        _choose(bundle, engines=Path("b-old"))
    with pytest.raises(EnginesInvalid, match=r"has no engine\.json"):
        _choose(bundle, engines=Path("missing"))


def test_quantised_engines_have_a_16_bit_cache() -> None:
    assert [cache_type(name) for name in ("fp32", "fp16", "bf16", "int8", "int4")] == [
        ("FLOAT", 4), ("HALF", 2), ("BF16", 2), ("BF16", 2), ("BF16", 2),
    ]  # fmt: skip


def test_tensorrt_for_rtx_runs_its_own_engines_without_our_graphs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Machine()
    there.install(monkeypatch, flavour="tensorrt_rtx", version="1.3.0")
    write_folder(bundle, SMALL, flavour="tensorrt_rtx", version="1.3.0", capability=None)
    _, decoder = _choose(bundle).open(2, 127)
    assert decoder.step_rows([1], [0]).tokens.shape == (1, 1)
    assert not there.graphs


def test_wishes_that_do_not_go_together(machine: Machine, bundle: Bundle) -> None:
    write_folder(bundle, SMALL)
    with pytest.raises(RequestInvalid, match="needs an NVIDIA GPU"):
        _choose(bundle, device="cpu")
    for wishes in ({"provider": "cuda"}, {"share_weights": True}, {"provider_cache": Path("x")}):
        with pytest.raises(RequestInvalid, match="are ONNX Runtime's"):
            _choose(bundle, **wishes)
    with pytest.raises(RequestInvalid, match="are TensorRT's"):
        _choose(bundle, engine="onnxruntime", build_engines=True)
    with pytest.raises(RequestInvalid, match="'onnxruntime' or 'tensorrt'"):
        _choose(bundle, engine="openvino")


# --- what is missing or foreign is named ---------------------------------------------------------------------------


def test_no_engines(machine: Machine, bundle: Bundle) -> None:
    with pytest.raises(EnginesMissing, match=r"has no TensorRT engines; build them .* build_engines=True"):
        qwen3asr.load(bundle.folder, engine="tensorrt")


def test_the_only_engines_are_for_something_else(machine: Machine, bundle: Bundle, tmp_path: Path) -> None:
    write_folder(bundle, SMALL, name="one", capability="8.9")
    with pytest.raises(EnginesForeign, match=r"compute capability 8.9 .* here is 9.0; build engines here"):
        qwen3asr.load(bundle.folder, engine="tensorrt")
    write_folder(bundle, SMALL, name="two", flavour="tensorrt_rtx", version="1.3")
    with pytest.raises(
        EnginesMissing, match=r"none|one was built .*; .*two was built for the library tensorrt_rtx 1.3"
    ):
        qwen3asr.load(bundle.folder, engine="tensorrt")


def test_engines_of_other_graphs_or_damaged_ones(machine: Machine, bundle: Bundle) -> None:
    folder = write_folder(bundle, SMALL)
    engines = open_engines(folder, bundle.hashes)
    write_engines(folder, replace(engines, graphs=dict.fromkeys(engines.graphs, "0" * 64)))
    with pytest.raises(EnginesStale, match="--force"):
        _choose(bundle)
    write_engines(folder, engines)
    content = bytearray((folder / "decoder.engine").read_bytes())
    content[0:1] = b"?"
    (folder / "decoder.engine").write_bytes(content)
    with pytest.raises(EngineFileDamaged, match="SHA-256"):
        qwen3asr.load(bundle.folder, engine="tensorrt", check_hashes=True)
    with pytest.raises(EngineRefused, match=r"decoder.engine: Magic tag does not match; build the engines again"):
        qwen3asr.load(bundle.folder, engine="tensorrt")
    gc.collect()
    assert machine.held == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["types"].update({"past.0.key": "HALF"}), "past.0.key is HALF, not FLOAT"),
        (lambda d: d["types"].pop("logprob"), "logprob is None, not FLOAT"),
        (lambda d: d["profiles"].pop(), "it has 1 profiles"),
    ],
)
def test_engines_with_other_tensors_than_the_model(machine: Machine, bundle: Bundle, change: Any, reason: str) -> None:
    folder = write_folder(bundle, SMALL)
    path = folder / "decoder.engine"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))
    engines = open_engines_of_any_size(folder, bundle)
    with pytest.raises(EngineRefused, match=reason):
        tensorrt.open_sessions(sys.modules["tensorrt"], folder, engines, bundle.spec, slots=1)


def open_engines_of_any_size(folder: Path, bundle: Bundle) -> Any:
    content = json.loads((folder / "engine.json").read_text())
    for component in content["components"].values():
        component["size"] = (folder / component["file"]).stat().st_size
    (folder / "engine.json").write_text(json.dumps(content))
    return open_engines(folder, bundle.hashes)


def test_packages_that_are_missing_are_named_with_their_extra(
    machine: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(bundle, SMALL)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ExtraMissing, match=r"needs the package tensorrt; .*qwen3asr\[tensorrt\]"):
        _choose(bundle)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(ExtraMissing, match=r"needs the package cuda-python; .*qwen3asr\[tensorrt\]"):
        _choose(bundle)
    assert not has_engines(bundle, 0)


def test_a_broken_installation_is_no_missing_one(
    machine: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_folder(bundle, SMALL)
    (tmp_path / "tensorrt.py").write_text("raise FileNotFoundError('libnvinfer.so.11')")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DeviceUnavailable, match=r"cannot be loaded: libnvinfer.so.11; install it again"):
        _choose(bundle)
    assert isinstance(_choose(bundle, device="auto", engine=None), CpuBackend)


def test_no_gpu_or_not_so_many(machine: Machine, bundle: Bundle) -> None:
    write_folder(bundle, SMALL)
    with pytest.raises(DeviceUnavailable, match="no GPU 1 here, only 0 to 0"):
        _choose(bundle, device="cuda:1")
    machine.gpus = 0
    with pytest.raises(DeviceUnavailable, match="CUDA finds no GPU here"):
        _choose(bundle)
    assert isinstance(_choose(bundle, device="auto", engine=None), CpuBackend)


def test_engines_of_another_gpu_of_that_capability_run_with_a_warning(
    machine: Machine, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(bundle, SMALL)
    engines = open_engines(bundle.folder / "tensorrt" / "h100-trt11.4.0", bundle.hashes)
    qwen3asr.load(bundle.folder).close()
    assert "was built on" not in caplog.text
    machine.name = "NVIDIA H200"
    qwen3asr.load(bundle.folder).close()
    assert "was built on h100, and this is NVIDIA H200, of the same compute capability" in caplog.text
    for name, other in (("nvidia-h200", False), ("any", False), ("sm90", False), ("nvidia-h200-nvl", True)):
        assert replace(engines, gpu=name).of_another_gpu("NVIDIA H200") is other


# --- sizes ---------------------------------------------------------------------------------------------------------


def test_slots_and_capacity_are_those_that_were_built(machine: Machine, bundle: Bundle) -> None:
    write_folder(bundle, SMALL)
    with qwen3asr.load(bundle.folder) as model:
        assert (model.kv_cache.slots, model.kv_cache.capacity) == (3, 127)
    with qwen3asr.load(bundle.folder, slots=2, capacity=100) as model:
        assert (model.kv_cache.slots, model.kv_cache.capacity) == (2, 100)
    with pytest.raises(RequestInvalid, match="capacity=128 is outside of these engines' 1 to 127"):
        qwen3asr.load(bundle.folder, capacity=128)
    with pytest.raises(RequestInvalid, match=r"slots=4 are more than the 3 .* --slots 4"):
        qwen3asr.load(bundle.folder, slots=4)


def test_default_slots_are_as_many_as_fit_and_more_are_refused(machine: Machine, bundle: Bundle) -> None:
    write_folder(bundle, SMALL)
    row = 2 * bundle.spec.layers * bundle.spec.kv_heads * 127 * bundle.spec.head_dim * 4
    backend = _choose(bundle)
    machine.free -= backend.free_bytes() - int(2.5 * row / backend.share)
    assert backend.free_bytes() == int(2.5 * row / backend.share)
    with pytest.raises(KvMemoryShort, match=r"slots=3 need .* 2 would fit"):
        qwen3asr.load(bundle.folder, slots=3)
    machine.free = 10
    assert backend.free_bytes() == 0


def test_a_model_that_nobody_holds_any_more_gives_the_memory_back(machine: Machine, bundle: Bundle) -> None:
    write_folder(bundle, SMALL)
    model = qwen3asr.load(bundle.folder)
    model.transcribe((np.zeros(16_000, np.float32), 16_000))
    assert isinstance(model.engine._decoder._session, TrtDecoder)
    model.close()
    del model
    gc.collect()
    assert machine.held == 0


# --- building ------------------------------------------------------------------------------------------------------


@dataclass
class Builds:
    """Stands in for processes that build: what they were asked, what they say, and how they end."""

    bundle: Bundle
    says: str = "encoder engine, %: 100\ndecoder engine, %: 100\n"
    returncode: int = 0
    asked: list[list[str]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def __call__(self, command: list[str], *, env: dict[str, str], **options: Any) -> Builds:
        self.asked.append(command)
        self.seen.append(env["CUDA_VISIBLE_DEVICES"])
        if not self.returncode:
            write_folder(self.bundle, SMALL)
        return self

    def __enter__(self) -> Builds:
        self.stderr = iter(self.says.splitlines(keepends=True))
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def builds(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Builds:
    made = Builds(bundle)
    monkeypatch.setattr(subprocess, "Popen", made)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


def test_engines_are_built_where_there_are_none_that_run_here(
    machine: Machine, bundle: Bundle, builds: Builds, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "qwen3asr")
    write_folder(bundle, SMALL, name="old", version="10.15.0")
    assert _folder(_choose(bundle, build_engines=True)) == "h100-trt11.4.0"
    assert _folder(_choose(bundle, engine=None, build_engines=True)) == "h100-trt11.4.0"
    (command,) = builds.asked  # the second time they were there
    assert command[:3] == [sys.executable, "-m", "qwen3asr.cli"]
    assert "decoder engine, %: 100" in caplog.text
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:  # the CLI knows these arguments, and stops at what is asked in addition
        cli.main([*command[3:], "--dry-run"])
    assert not end.value.code


def test_engines_are_built_for_the_slots_the_capacity_and_the_gpu_that_were_asked_for(
    machine: Machine, bundle: Bundle, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.gpus = 2
    qwen3asr.load(bundle.folder, device="cuda:1", build_engines=True, slots=3, capacity=127).close()
    (command,) = builds.asked
    assert command[-5:] == ["--slots", "3", "--capacity", "128", str(bundle.folder)]  # one position is kept back
    shutil.rmtree(bundle.folder / "tensorrt")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-7")
    qwen3asr.load(bundle.folder, device="cuda:1", build_engines=True).close()
    assert not {"--slots", "--capacity"} & set(builds.asked[1])
    assert builds.seen == ["1", "GPU-7"]


def test_a_build_that_fails_or_cannot_be_tried(
    machine: Machine, bundle: Bundle, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds.returncode, builds.says = 1, "Error: the graph\nis refused\n"
    with pytest.raises(EngineBuildFailed, match="could not be built: Error: the graph is refused"):
        _choose(bundle, build_engines=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(ExtraMissing, match=r"torch; .*'qwen3asr\[export,tensorrt\]'"):
        _choose(bundle, build_engines=True)


# --- the stand-in --------------------------------------------------------------------------------------------------


def test_the_stand_in_has_no_call_that_the_real_ones_lack() -> None:
    tensorrt_module = pytest.importorskip("tensorrt")
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for standin, real in (
        (Context, tensorrt_module.IExecutionContext), (Engine, tensorrt_module.ICudaEngine), (Runtime, runtime),
    ):  # fmt: skip
        assert {name for name in dir(standin) if not name.startswith("_")} <= set(dir(real))
    assert "deserialize_cuda_engine" in dir(tensorrt_module.Runtime)
    assert "device_memory_size_v2" in dir(tensorrt_module.ICudaEngine)
    assert "USER_MANAGED" in tensorrt_module.ExecutionContextAllocationStrategy.__members__
    assert {"FLOAT", "HALF", "BF16", "INT64"} <= set(tensorrt_module.DataType.__members__)
    severities = ("INTERNAL_ERROR", "ERROR", "WARNING")
    assert all(hasattr(tensorrt_module.ILogger.Severity, name) for name in severities)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_the_graphs_have_the_tensors_that_sessions_bind(precision: str, tmp_path: Path) -> None:
    """As TensorRT's own parser names and types them."""
    module = pytest.importorskip("tensorrt")
    from qwen3asr_export.tensorrt.network import parse

    opened = export(TINY / "asr", tmp_path / "asr", precision=precision, dialect="standard", check=False)
    logger = module.Logger(module.Logger.ERROR)
    wanted = {"encoder": ENCODER_TYPES, "decoder": decoder_types(opened.spec, precision)}
    for component, types in wanted.items():
        builder = module.Builder(logger)
        network = builder.create_network(0)
        parse(module, logger, network, opened.component(component), 256)
        tensors = [network.get_input(at) for at in range(network.num_inputs)]
        tensors += [network.get_output(at) for at in range(network.num_outputs)]
        assert {tensor.name: tensor.dtype.name for tensor in tensors} == types


def test_the_stand_in_refuses_what_a_gpu_would_not_forgive(machine: Machine, bundle: Bundle) -> None:
    gpu = cuda_memory.Gpu(0)
    port = Port(gpu, (4,), np.float32, "a test")
    port.host(4)[:] = 1
    port.send(4)
    port.fetch(4)
    assert np.isnan(port.host(4)).all()  # read too early
    gpu.synchronize()
    assert np.isnan(port.host(4)).all()  # what was sent was spoilt before it was on its way
    port.fill(np.ones(4, np.float32))
    gpu.synchronize()
    port.fetch(4)
    gpu.synchronize()
    assert port.host(4).tolist() == [1, 1, 1, 1]
    with pytest.raises(Misused, match="17 bytes"):
        gpu.zero(port.address, 17)
        gpu.synchronize()
    gpu.close()
    with pytest.raises(Misused, match="destroyed"):
        machine.here(gpu._stream)


def test_the_stand_in_refuses_what_tensorrt_refuses(machine: Machine, bundle: Bundle) -> None:
    folder = write_folder(bundle, SMALL)
    described = json.loads((folder / "decoder.engine").read_text())
    assert list(described["types"]) == list(tensors(bundle.spec)["decoder"])
    logger = SimpleNamespace(log=lambda severity, message: said.append(message))
    said: list[str] = []
    context = Engine(machine, logger, described).create_execution_context(2)
    gpu = cuda_memory.Gpu(0)
    context.set_optimization_profile_async(0, gpu.stream)
    assert not context.set_input_shape("ids", (4, 1))  # three slots
    assert not context.set_input_shape("id", (1, 1))
    assert not context.set_tensor_address("tokens", 1)
    assert not context.execute_async_v3(gpu.stream)
    assert [message.split()[0] for message in said] == ["ids", "there", "there", "ids"]
    with pytest.raises(Misused, match="too small"):
        context.set_device_memory(0, 5)
