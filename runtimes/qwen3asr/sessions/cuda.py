"""NVIDIA's ``cuda-python``: how its calls are checked, and what is asked before memory is held.

CUDA's runtime shares one context a device with ONNX Runtime and TensorRT: addresses are good in all of them.
"""

from __future__ import annotations

from typing import Any

from qwen3asr.errors import BackendFailed, DeviceUnavailable, ExtraMissing

_CURE = "check the driver with `nvidia-smi`, or load with device='cpu'"


def device_count() -> int:
    """GPUs that CUDA sees.

    Raises:
        DeviceUnavailable: there is no driver, or no GPU behind it.
        ExtraMissing: cuda-python is not installed.
    """
    calls = runtime()
    error, count = calls.cudaGetDeviceCount()
    if error != calls.cudaError_t.cudaSuccess or not count:
        raise DeviceUnavailable(f"device='cuda' cannot be used: CUDA finds no GPU here ({error.name}); {_CURE}")
    return int(count)


def free_bytes(index: int) -> int:
    """Memory of a GPU that nobody uses, in bytes; makes it the calling thread's current one.

    Raises:
        BackendFailed: CUDA does not tell.
    """
    calls = runtime()
    checked(calls.cudaSetDevice(index))
    free, _ = checked(calls.cudaMemGetInfo())
    return int(free)


def checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call of CUDA's runtime gives behind its status.

    Raises:
        BackendFailed: the status is an error.
    """
    error, *values = result
    if int(error) != 0:
        raise BackendFailed("CUDA", RuntimeError(error.name))
    return tuple(values)


def runtime(feature: str = "running on an NVIDIA GPU", extra: str = "gpu") -> Any:
    """The module of CUDA's runtime calls.

    Args:
        feature: that needs it, for the error.
        extra: of this package that brings it, likewise.

    Raises:
        ExtraMissing: cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime as calls  # noqa: PLC0415 (an optional dependency)
    except ModuleNotFoundError as error:
        raise ExtraMissing(feature, "cuda-python", extra) from error
    return calls
