"""ONNX Runtime's execution providers: what each is called, its options, and why it cannot be used here.

Options are documented at https://onnxruntime.ai/docs/execution-providers (CUDA, TensorRT, TensorRT RTX).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import onnxruntime

from qwen3asr.errors import DeviceUnavailable, ExtraMissing, PackageTooOld
from qwen3asr.sessions import cuda

CPU_NAME, CUDA_NAME = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT_NAME, RTX_NAME = "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"

_LIBRARIES = {
    CUDA_NAME: "libonnxruntime_providers_cuda.so",
    TENSORRT_NAME: "libonnxruntime_providers_tensorrt.so",
}

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Of each input the smallest, usual and largest shape."""


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider and where its memory lies.

    Attributes:
        name: ONNX Runtime's name.
        options: its options, as text.
        memory: kind of memory, as ONNX Runtime names devices.
        index: which of several devices.
        captures: name of the run option that takes a CUDA graph's number, where it is to capture them.
        prefix: of its options that take shapes; none where it takes any shape as it comes.
        behind: takes the nodes that this one does not; ``None``: only the CPU is left.
        packages: what pip is to install where its libraries are missing.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    memory: str = "cpu"
    index: int = 0
    captures: str | None = None
    prefix: str | None = None
    behind: Provider | None = None
    packages: str = "'onnxruntime-gpu[cuda,cudnn]'"

    @property
    def chain(self) -> tuple[Provider, ...]:
        """Itself and those behind it."""
        return (self, *(self.behind.chain if self.behind else ()))

    def shaped(self, shapes: Shapes) -> Provider:
        """For inputs of these shapes, where it must know them before it builds its engines."""
        if self.prefix is None:
            return self
        ends = zip(("min", "opt", "max"), range(3), strict=True)
        options = {
            f"{self.prefix}_profile_{end}_shapes": ",".join(
                f"{name}:{'x'.join(map(str, of[at]))}" for name, of in shapes.items()
            )
            for end, at in ends
        }
        return replace(self, options={**self.options, **options})


class MakeProvider(Protocol):
    """Makes a provider of its options."""

    def __call__(self, index: int, precision: str, cache: Path, *, graphs: bool = False) -> Provider:
        """For a GPU, a bundle's precision and a folder to keep engines in, perhaps with CUDA graphs."""


CPU = Provider(CPU_NAME)


def cuda_provider(index: int, precision: str, cache: Path, *, graphs: bool = False) -> Provider:
    """CUDA: every kernel is ONNX Runtime's own or the CUDA libraries'.

    Args:
        index: of the GPU.
        precision: of the bundle; fp32 products are not rounded to TF32.
        cache: not needed.
        graphs: capture CUDA graphs of runs that are numbered.
    """
    options = {
        "device_id": str(index),
        "arena_extend_strategy": "kSameAsRequested",  # the KV cache leaves no room to double
        "cudnn_conv_algo_search": "HEURISTIC",  # the other way measures again for every number of windows
        "use_tf32": "0" if precision == "fp32" else "1",
    }
    if graphs:
        options["enable_cuda_graph"] = "1"
    return Provider(CUDA_NAME, options, "cuda", index, captures="gpu_graph_id" if graphs else None)


def tensorrt_provider(index: int, precision: str, cache: Path, *, graphs: bool = False) -> Provider:
    """TensorRT inside ONNX Runtime; CUDA takes what it refuses.

    ONNX Runtime's wheels are built for one major version of TensorRT (1.31: TensorRT 10).

    Args:
        index: of the GPU.
        precision: allows the builder that type beside fp32.
        cache: folder of engines and timings; building them takes minutes.
        graphs: not done: steps of other lengths would share one graph.
    """
    options = {
        "device_id": str(index),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_fp16_enable": str(int(precision in ("fp16", "bf16"))),  # of bf16 bundles the encoder
        "trt_bf16_enable": str(int(precision == "bf16")),
    }
    behind = cuda_provider(index, precision, cache)
    packages = "'onnxruntime-gpu[cuda,cudnn]', and the TensorRT that it was built for: 'tensorrt-cu13>=10.15,<11'"
    return Provider(TENSORRT_NAME, options, "cuda", index, prefix="trt", behind=behind, packages=packages)


def rtx_provider(index: int, precision: str, cache: Path, *, graphs: bool = False) -> Provider:
    """TensorRT for RTX, a plugin (``onnxruntime-ep-nv-tensorrt-rtx-cu13``); types are those of the graph.

    Args:
        index: of the GPU.
        precision: of the bundle; it takes no flags.
        cache: folder of what it compiles at run time.
        graphs: not done, as with TensorRT.
    """
    return Provider(RTX_NAME, {"nv_runtime_cache_path": str(cache)}, "cuda", index, prefix="nv")


PROVIDERS: Mapping[str, MakeProvider] = {
    "cuda": cuda_provider,
    "tensorrt": tensorrt_provider,
    "nv_tensorrt_rtx": rtx_provider,
}
"""What ``provider=`` of :func:`qwen3asr.load` may be."""


def check_available(provider: Provider) -> None:
    """Raise unless a session with the provider can be tried.

    CUDA's libraries are loaded first, from NVIDIA's or PyTorch's packages: otherwise a provider that does not find
    them is left out by ONNX Runtime with no more than a line in its log.

    Raises:
        DeviceUnavailable: the provider is not in this ONNX Runtime, or there is no such GPU.
        ExtraMissing: a package is not installed.
        PackageTooOld: this ONNX Runtime cannot tell where it places nodes.
    """
    if provider.memory == "cpu":
        return
    count = cuda.device_count()
    if provider.index >= count:
        raise DeviceUnavailable(f"there is no GPU {provider.index} here, only 0 to {count - 1}; give one of these")
    preload_libraries()
    if provider.name == RTX_NAME:
        _register_rtx()
    elif provider.name not in onnxruntime.get_available_providers():
        raise DeviceUnavailable(
            f"this onnxruntime {onnxruntime.__version__} is built without {provider.name}; install the other build: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'qwen3asr[gpu]'"
        )
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        raise PackageTooOld("onnxruntime-gpu", onnxruntime.__version__, "1.31")


def preload_libraries() -> None:
    """Load CUDA's and cuDNN's libraries, quietly: what is missing is told by :func:`missing_library`."""
    if hasattr(onnxruntime, "preload_dlls"):  # not in builds for other devices
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


def missing_library(provider: Provider) -> str | None:
    """What keeps a provider's library from being loaded, in the system's words; ``None`` if nothing does."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    if provider.name not in _LIBRARIES or not (folder / _LIBRARIES[provider.name]).exists():
        return None
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / _LIBRARIES[provider.name]))
    except OSError as error:
        return str(error)
    return None


def rtx_devices(index: int) -> list[onnxruntime.OrtEpDevice]:
    """What the plugin runs on: the GPU of that index.

    Raises:
        DeviceUnavailable: the plugin supports no such GPU.
    """
    found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == RTX_NAME]
    if index >= len(found):
        raise DeviceUnavailable(
            f"TensorRT for RTX supports {len(found)} of the GPUs here, and not number {index}; "
            "use provider='cuda' or 'tensorrt'"
        )
    return [found[index]]


def _register_rtx() -> None:
    if any(device.ep_name == RTX_NAME for device in onnxruntime.get_ep_devices()):
        return
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin  # noqa: PLC0415 (an optional dependency)
    except ModuleNotFoundError as error:
        raise ExtraMissing("TensorRT for RTX", "onnxruntime-ep-nv-tensorrt-rtx-cu13", "rtx") from error
    try:
        onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    except Exception as error:
        raise DeviceUnavailable(f"TensorRT for RTX cannot be used here: {error}; use provider='cuda'") from error
