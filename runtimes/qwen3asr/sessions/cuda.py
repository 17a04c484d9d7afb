"""The few calls to CUDA that ONNX Runtime's Python has none for: count, free memory, copies within the device.

From NVIDIA's ``cuda-python``. CUDA's runtime shares one context a device with ONNX Runtime: addresses are good in both.
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
    runtime = _runtime()
    error, count = runtime.cudaGetDeviceCount()
    if error != runtime.cudaError_t.cudaSuccess or not count:
        raise DeviceUnavailable(f"device='cuda' cannot be used: CUDA finds no GPU here ({error.name}); {_CURE}")
    return int(count)


def free_bytes(index: int) -> int:
    """Memory of a GPU that nobody uses, in bytes; makes it the calling thread's current one.

    Raises:
        BackendFailed: CUDA does not tell.
    """
    runtime = _runtime()
    _check(runtime.cudaSetDevice(index))
    free, _ = _check(runtime.cudaMemGetInfo())
    return int(free)


def copy_blocks(target: int, source: int, pitch: int, width: int, count: int) -> None:
    """Copy the first ``width`` bytes of each of ``count`` blocks, ``pitch`` bytes apart, between addresses of one GPU.

    Returns before they are copied: see :func:`wait`.

    Raises:
        BackendFailed: CUDA refuses.
    """
    runtime = _runtime()
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    _check(runtime.cudaMemcpy2D(target, pitch, source, pitch, width, count, kind))


def wait() -> None:
    """Wait for copies: ONNX Runtime's own stream does not wait for CUDA's default stream, where they run.

    Raises:
        BackendFailed: one of them failed.
    """
    _check(_runtime().cudaStreamSynchronize(0))


def _check(result: tuple[Any, ...]) -> tuple[Any, ...]:
    error, *values = result
    if int(error) != 0:
        raise BackendFailed("CUDA", RuntimeError(error.name))
    return tuple(values)


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime  # noqa: PLC0415 (an optional dependency)
    except ModuleNotFoundError as error:
        raise ExtraMissing("running on an NVIDIA GPU", "cuda-python", "gpu") from error
    return runtime
