"""Which device, engine and provider run a bundle, and what is said of those that cannot."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
from tests.conftest import ROOT

import qwen3asr
from qwen3asr import backends
from qwen3asr.backends import Wishes, choose_backend
from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.errors import (
    BackendFailed,
    BundleInvalid,
    DeviceUnavailable,
    ExtraMissing,
    KvMemoryShort,
    NodesMisplaced,
    PackageTooOld,
    RequestInvalid,
)
from qwen3asr.sessions import cuda, opening, providers
from qwen3asr.sessions.device import decoder_limits, decoder_shapes, encoder_shapes
from qwen3asr.sessions.opening import check_placement
from qwen3asr.sessions.providers import CPU, PROVIDERS
from qwen3asr_export import export
from qwen3asr_export.tensorrt import standin_spec

TINY = ROOT / "examples" / "tiny"


@pytest.fixture(scope="module")
def bundle(asr_bundle: Path) -> Bundle:
    return open_bundle(asr_bundle)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it can be told from here: one GPU, and an ONNX Runtime that has every provider."""
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    names = [providers.CUDA_NAME, providers.TENSORRT_NAME, providers.CPU_NAME]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)


# --- providers -----------------------------------------------------------------------------------------------------


def test_cuda_rounds_no_fp32_products_and_captures_only_where_asked(tmp_path: Path) -> None:
    plain, captured = (PROVIDERS["cuda"](1, "fp32", tmp_path, graphs=graphs) for graphs in (False, True))
    assert plain.options == {
        "device_id": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }
    assert captured.options == {**plain.options, "enable_cuda_graph": "1"}
    assert (plain.captures, captured.captures) == (None, "gpu_graph_id")
    assert PROVIDERS["cuda"](0, "bf16", tmp_path).options["use_tf32"] == "1"


def test_tensorrt_keeps_engines_and_timings_in_the_folder_and_cuda_stands_behind_it(tmp_path: Path) -> None:
    made = PROVIDERS["tensorrt"](0, "bf16", tmp_path)
    assert [p.name for p in made.chain] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    assert made.options == {
        "device_id": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
        "trt_fp16_enable": "1",
        "trt_bf16_enable": "1",
    }
    exact = PROVIDERS["tensorrt"](0, "fp32", tmp_path).options
    assert (exact["trt_fp16_enable"], exact["trt_bf16_enable"]) == ("0", "0")
    assert PROVIDERS["nv_tensorrt_rtx"](0, "fp16", tmp_path).options == {"nv_runtime_cache_path": str(tmp_path)}


def test_shapes_hold_every_input_of_the_graphs_and_what_the_loop_feeds(bundle: Bundle, standard: Bundle) -> None:
    spec = standard.spec
    shapes = {
        "decoder": decoder_shapes(spec, 4, 256, decoder_limits(spec, 4)),
        "encoder": encoder_shapes(spec.windows, 16),
    }
    for name, of_graph in shapes.items():
        inputs = opening.open_session(standard.component(name)).get_inputs()
        assert {value.name for value in inputs} == set(of_graph)
        for value in inputs:
            for at, size in enumerate(value.shape):
                least, usual, most = (shape[at] for shape in of_graph[value.name])
                assert least <= usual <= most
                assert not isinstance(size, int) or {least, usual, most} == {size}
    given = PROVIDERS["tensorrt"](0, "fp32", Path("x")).shaped(shapes["encoder"]).options
    assert given["trt_profile_max_shapes"] == "mel:16x128x800,frames:16"
    assert given["trt_profile_min_shapes"] == "mel:1x128x100,frames:1"
    assert (
        "nv_profile_opt_shapes" in PROVIDERS["nv_tensorrt_rtx"](0, "fp32", Path("x")).shaped(shapes["encoder"]).options
    )
    assert PROVIDERS["cuda"](0, "fp32", Path("x")).shaped(shapes["encoder"]) == PROVIDERS["cuda"](0, "fp32", Path("x"))


@pytest.mark.parametrize("slots", [1, 8, 32, 128])
@pytest.mark.parametrize(("name", "least"), [("0.6b", 3), ("1.7b", 3), ("aligner-0.6b", 100)])
def test_the_largest_shapes_hold_no_more_logits_than_are_ever_asked_for(name: str, least: int, slots: int) -> None:
    spec = standin_spec(name)
    limits = decoder_limits(spec, slots)
    rows, answers = decoder_shapes(spec, slots, 4096, limits)["take"][2]
    assert 4 * rows * answers * spec.classes <= 256 << 20
    assert (rows, answers) == (slots, limits.answers)
    assert least <= answers <= limits.chunk


# --- what is missing is named ---------------------------------------------------------------------------------------


def _wish(**changes: Any) -> Wishes:
    return Wishes(**{"device": "cuda", **changes})


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "auto:1", "CUDA", ""])
def test_a_device_that_is_not_known(asr_bundle: Path, device: str) -> None:
    with pytest.raises(DeviceUnavailable, match="'cuda', or 'cuda:1'"):
        qwen3asr.load(asr_bundle, device=device)


def test_engines_and_providers_that_are_not_known_are_named_with_those_that_are(bundle: Bundle) -> None:
    with pytest.raises(RequestInvalid, match="engine='openvino' is not known; give 'onnxruntime'"):
        choose_backend(bundle, _wish(engine="openvino"))
    with pytest.raises(RequestInvalid, match="'cuda', 'tensorrt', 'nv_tensorrt_rtx'"):
        choose_backend(bundle, _wish(provider="rocm"))
    with pytest.raises(RequestInvalid, match="for GPUs"):
        choose_backend(bundle, _wish(device="cpu", provider="cuda"))
    with pytest.raises(RequestInvalid, match="for the CPU"):
        choose_backend(bundle, _wish(share_weights=True))


def _runtime(error: int = 0, count: int = 1) -> SimpleNamespace:
    """cuda.bindings.runtime, as far as it is asked."""
    status = SimpleNamespace(name="cudaErrorNoDevice" if error else "cudaSuccess", __int__=lambda: error)
    status = type("Status", (), {"name": status.name, "__int__": lambda self: error})()
    return SimpleNamespace(
        cudaGetDeviceCount=lambda: (status, count),
        cudaSetDevice=lambda index: (status,),
        cudaMemGetInfo=lambda: (status, 6_000, 9_000),
        cudaError_t=SimpleNamespace(cudaSuccess=None if error else status),
    )


def test_no_gpu_is_said_with_cudas_own_name_for_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for runtime in (_runtime(error=100, count=0), _runtime(count=0)):
        monkeypatch.setattr(cuda, "runtime", lambda runtime=runtime: runtime)
        with pytest.raises(DeviceUnavailable, match=r"no GPU here \(cuda.*nvidia-smi.*device='cpu'"):
            choose_backend(bundle, _wish())
    monkeypatch.setattr(cuda, "runtime", lambda: _runtime(error=100))
    with pytest.raises(BackendFailed, match="CUDA failed: cudaErrorNoDevice"):
        cuda.free_bytes(0)
    monkeypatch.setattr(cuda, "runtime", _runtime)
    assert (cuda.device_count(), cuda.free_bytes(0)) == (1, 6_000)


def test_a_gpu_that_is_not_there(bundle: Bundle, one_gpu: None) -> None:
    with pytest.raises(DeviceUnavailable, match="no GPU 1 here, only 0 to 0"):
        choose_backend(bundle, _wish(device="cuda:1"))


def test_an_onnxruntime_without_the_provider(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceUnavailable, match=r"built without CUDAExecutionProvider.*qwen3asr\[gpu\]"):
        choose_backend(bundle, _wish())


def test_an_onnxruntime_that_cannot_tell_where_nodes_go(
    bundle: Bundle, one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", object)
    with pytest.raises(PackageTooOld, match="onnxruntime-gpu"):
        choose_backend(bundle, _wish())


@pytest.mark.parametrize(
    ("module", "package"), [("cuda.bindings", "cuda-python"), ("onnxruntime_ep_nv_tensorrt_rtx", "tensorrt-rtx")]
)
def test_packages_that_are_missing(
    standard: Bundle, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    if package != "cuda-python":
        monkeypatch.setattr(cuda, "device_count", lambda: 1)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ExtraMissing, match=package):
        choose_backend(standard, _wish(provider="nv_tensorrt_rtx"))


class _Plugin:
    """ONNX Runtime's calls for plugins, and the plugin: it brings devices once it is registered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpus: int, refusal: str = "") -> None:
        self.registered: list[tuple[str, str]] = []
        self._gpus, self._refusal = gpus, refusal
        module = SimpleNamespace(get_ep_name=lambda: providers.RTX_NAME, get_library_path=lambda: "rtx.so")
        monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", module)
        monkeypatch.setattr(onnxruntime, "get_ep_devices", self.devices)
        monkeypatch.setattr(onnxruntime, "register_execution_provider_library", self.register)

    def devices(self) -> list[Any]:
        return [SimpleNamespace(ep_name=providers.RTX_NAME, number=at) for at in range(self._gpus)] * bool(
            self.registered
        )

    def register(self, name: str, path: str) -> None:
        if self._refusal:
            raise RuntimeError(self._refusal)
        self.registered.append((name, path))


def test_the_rtx_plugin_is_registered_once_and_gives_the_gpu_of_that_index(
    one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, wanted = _Plugin(monkeypatch, gpus=2), PROVIDERS["nv_tensorrt_rtx"](0, "bf16", Path())
    for _ in range(2):
        providers.check_available(wanted)
    assert plugin.registered == [(providers.RTX_NAME, "rtx.so")]
    assert [device.number for device in providers.rtx_devices(1)] == [1]
    with pytest.raises(DeviceUnavailable, match=r"supports 2 of the GPUs here, and not number 2; use provider='cuda'"):
        providers.rtx_devices(2)


def test_an_rtx_plugin_that_cannot_be_loaded_says_why(one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _Plugin(monkeypatch, gpus=1, refusal="libcuda.so.1: cannot open")
    with pytest.raises(DeviceUnavailable, match=r"RTX cannot be used here: libcuda.so.1: .*; use provider='cuda'"):
        providers.check_available(PROVIDERS["nv_tensorrt_rtx"](0, "bf16", Path()))


def test_cudas_libraries_are_loaded_first_and_quietly(
    one_gpu: None, standard: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[int] = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append(sys.stdout.write("Failed to load it\n")))
    choose_backend(standard, _wish())
    assert loaded
    assert capsys.readouterr().out == ""


def test_a_library_that_is_missing_is_named_with_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ONNX Runtime drops the provider and goes on with the CPU: the reason is asked of the system."""
    (tmp_path / "capi").mkdir()
    shutil.copy(Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_shared.so", tmp_path / "capi")
    for name in ("cuda", "tensorrt"):
        (tmp_path / "capi" / f"libonnxruntime_providers_{name}.so").write_bytes(b"no library")
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    session: Any = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceUnavailable, match=r"could not start CUDA.*providers_cuda.so: .*gpu\[cuda,cudnn\]"):
        opening._check_started(session, PROVIDERS["cuda"](0, "fp32", Path()))
    with pytest.raises(DeviceUnavailable, match=r"providers_tensorrt.so: .*'tensorrt-cu13>=10.15,<11'"):
        opening._check_started(session, PROVIDERS["tensorrt"](0, "fp32", Path()))
    with pytest.raises(DeviceUnavailable, match=r"in its log; .*device='cpu'"):
        opening._check_started(session, PROVIDERS["nv_tensorrt_rtx"](0, "fp32", Path()))


def test_onnxruntime_is_kept_from_trying_again_on_the_cpu(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    """By itself it prints an error, and opens the session on the providers that are left."""
    asked: list[dict[str, Any]] = []

    def fail(*arguments: Any, **named: Any) -> None:
        asked.append(named)
        raise RuntimeError("no such provider")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(BundleInvalid, match=r"encoder.onnx on CUDAExecutionProvider: no such provider; export"):
        opening.open_session(bundle.component("encoder"), PROVIDERS["cuda"](0, "fp32", Path()))
    assert asked == [{"enable_fallback": 0}]


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_ignores_itself_is_never_a_silent_cpu(bundle: Bundle, one_gpu: None) -> None:
    """This ONNX Runtime is built without CUDA, and refuses or drops the provider."""
    chosen = choose_backend(open_bundle(bundle.folder), _wish(device="cpu"))
    assert isinstance(chosen, backends.CpuBackend)
    with pytest.raises((BundleInvalid, DeviceUnavailable), match="CUDAExecutionProvider"):
        opening.open_session(bundle.component("encoder"), PROVIDERS["cuda"](0, "fp32", Path()))


def test_a_library_that_the_first_kernel_misses_is_found_at_load() -> None:
    class Failing:
        def encode(self, mels: object) -> None:
            raise BackendFailed("ONNX Runtime", RuntimeError("cuDNN is unavailable")) from RuntimeError(
                "no libcudnn.so"
            )

    with pytest.raises(DeviceUnavailable, match=r"cannot run this model: no libcudnn.so; .*\[cuda,cudnn\]"):
        backends._warm_up(Failing(), None, "CUDAExecutionProvider")  # type: ignore[arg-type]


# --- which bundles run where ------------------------------------------------------------------------------------------


def test_integers_are_for_cpus(tmp_path: Path, one_gpu: None) -> None:
    small = export(TINY / "asr", tmp_path / "int8", precision="int8", check=False)
    with pytest.raises(DeviceUnavailable, match=r"int8, which runs on cpu, not on GPUs; .*fp32, fp16, bf16"):
        qwen3asr.load(small.folder, device="cuda")


def test_fp32_on_cuda_needs_the_standard_dialect_and_tensorrt_always(
    bundle: Bundle, standard: Bundle, half: Bundle, one_gpu: None, tmp_path: Path
) -> None:
    with pytest.raises(DeviceUnavailable, match=r"fp32 in the dialect 'ort'.*--precision fp32 --dialect standard"):
        choose_backend(bundle, _wish())
    with pytest.raises(DeviceUnavailable, match=r"provider='tensorrt' does not run.*--dialect standard"):
        choose_backend(half, _wish(provider="tensorrt"))
    assert isinstance(choose_backend(standard, _wish()), backends.CudaBackend)
    assert isinstance(choose_backend(half, _wish()), backends.CudaBackend)
    chosen = choose_backend(standard, _wish(provider="tensorrt", provider_cache=tmp_path / "kept" / "here"))
    assert isinstance(chosen, backends.CudaBackend)
    assert (tmp_path / "kept" / "here").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(RequestInvalid, match="provider_cache="):
        choose_backend(standard, _wish(provider="tensorrt", provider_cache=tmp_path / "file"))


def test_auto_takes_cuda_where_it_is_and_runs_the_bundle(
    bundle: Bundle, standard: Bundle, half: Bundle, one_gpu: None
) -> None:
    kinds = [type(choose_backend(b, _wish(device="auto"))).__name__ for b in (standard, half, bundle)]
    assert kinds == ["CudaBackend", "CudaBackend", "CpuBackend"]
    assert isinstance(choose_backend(standard, _wish(device="auto", share_weights=True)), backends.CpuBackend)


def test_auto_without_a_gpu_is_the_cpu_or_says_what_the_bundle_needs(
    standard: Bundle, half: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "runtime", lambda: _runtime(count=0))
    caplog.set_level("INFO", "qwen3asr")
    assert isinstance(choose_backend(standard, _wish(device="auto")), backends.CpuBackend)
    assert "leaves CUDA out" in caplog.text
    with pytest.raises(DeviceUnavailable, match="fp16, which runs on cuda, not on the CPU"):
        choose_backend(half, _wish(device="auto"))


def test_slots_are_counted_in_what_the_weights_and_the_work_leave(
    standard: Bundle, one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "free_bytes", lambda index: standard.bytes + backends._WORK_BYTES + 10_000)
    chosen = choose_backend(standard, _wish())
    assert chosen.free_bytes() == 10_000
    with pytest.raises(KvMemoryShort, match="1 would fit"):
        qwen3asr.load(standard.folder, device="cuda", slots=9)
    monkeypatch.setattr(cuda, "free_bytes", lambda index: 5)
    assert chosen.free_bytes() == 0


# --- placement ----------------------------------------------------------------------------------------------------


def test_nodes_left_to_the_cpu_are_named_but_for_shapes() -> None:
    provider = PROVIDERS["tensorrt"](0, "bf16", Path())
    good = [("CUDAExecutionProvider", "MatMul", "a"), ("TensorrtExecutionProvider", "X", "b")]
    shapes = [("CPUExecutionProvider", kind, "s") for kind in ("Shape", "Squeeze", "Concat")]
    check_placement("decoder.onnx", provider, iter([*good, *shapes]))
    bad = [("CPUExecutionProvider", "GroupQueryAttention", f"layers.{at}") for at in range(8)]
    with pytest.raises(NodesMisplaced, match=r"8 nodes of decoder.onnx \(GroupQueryAttention layers.0, .* and 2 more"):
        check_placement("decoder.onnx", provider, iter([*good, *bad]))


def test_where_nodes_are_is_read_from_the_session(bundle: Bundle) -> None:
    """The CPU's own placement, held against a provider that was meant to have the nodes."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    path = str(bundle.component("decoder"))
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    nodes = list(opening._nodes(session))
    assert sum(kind == "GroupQueryAttention" for _, kind, _ in nodes) == bundle.spec.layers
    check_placement("decoder.onnx", CPU, iter(nodes))
    with pytest.raises(NodesMisplaced, match=r"decoder.onnx"):
        check_placement("decoder.onnx", PROVIDERS["cuda"](0, "fp32", Path()), iter(nodes))


def test_the_longest_row_is_an_input_of_the_graph(bundle: Bundle) -> None:
    """No length of a row is computed from a tensor that lies on the device: it would be fetched in every step."""
    graph = onnx.load(bundle.component("decoder"), load_external_data=False)
    attention = next(node for node in graph.graph.node if node.op_type == "GroupQueryAttention")
    assert attention.input[6] in {value.name for value in graph.graph.input}


def test_graphs_ask_for_no_newer_onnx_than_their_operators_need(bundle: Bundle, standard: Bundle) -> None:
    """ONNX Runtime's GPU builds come later than onnx's releases, and refuse a version that they do not know."""
    for of, version in ((bundle, 11), (standard, 12)):
        assert onnx.load(of.component("decoder"), load_external_data=False).ir_version == version
