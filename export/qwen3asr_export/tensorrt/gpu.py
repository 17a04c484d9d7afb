"""Which GPU engines are for: the one here, the one that was named, or any."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from qwen3asr.engines import gpu_slug
from qwen3asr.errors import BackendFailed, ExtraMissing, RequestInvalid

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_CAPABILITY = re.compile(r"sm(\d+)(\d)")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, as far as it is known.

    Attributes:
        name: lower case, fit for a folder's name; ``any`` where nothing is known.
        compute_capability: as ``9.0``, or ``None``.
        memory: its bytes, or ``None``.
    """

    name: str = "any"
    compute_capability: str | None = None
    memory: int | None = None


def choose_gpu(named: str | None, here: Gpu | None, *, portable: bool) -> Gpu:
    """What engines are built for.

    Args:
        named: what the user said: ``sm90``, ``any``, a name; ``None``: the GPU here, or any.
        here: the GPU of this machine.
        portable: the builder can build for a GPU that is not here.

    Raises:
        RequestInvalid: no such name, or a GPU that the builder cannot build for from here.
    """
    if named is None:
        return here or Gpu()
    name = named.lower()
    if not _NAME.fullmatch(name):
        raise RequestInvalid(f"the GPU {named!r} is no name for a folder; give one as sm90, rtx4090 or any")
    match = _CAPABILITY.fullmatch(name)
    capability = f"{match[1]}.{match[2]}" if match else None
    if here is None or portable:
        return Gpu(name, capability)
    if capability not in (None, here.compute_capability):
        raise RequestInvalid(
            f"TensorRT builds for the GPU that it runs on, here {here.name} of compute capability "
            f"{here.compute_capability}, not {capability}; leave the GPU out, or build where it is"
        )
    return Gpu(name, here.compute_capability, here.memory)


def find_gpu(*, needed: bool = False) -> Gpu | None:
    """The first GPU of this machine, as cuda-python sees it; ``None`` without GPU or driver.

    Args:
        needed: engines will be for that GPU only, so they must not be called after none; otherwise it is also ``None``
            without cuda-python.

    Raises:
        ExtraMissing: cuda-python is needed, and not installed.
        BackendFailed: the driver is there and fails.
    """
    try:
        from cuda.bindings import driver  # noqa: PLC0415 (an optional dependency)
    except ModuleNotFoundError as error:
        if needed:
            raise ExtraMissing("building engines for the GPU here", "cuda-python", "tensorrt") from error
        return None
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError:  # cuda-python's error for a machine without NVIDIA's driver
        return None
    if status != driver.CUresult.CUDA_SUCCESS or _call(driver.cuDeviceGetCount) == 0:
        return None
    device = _call(driver.cuDeviceGet, 0)
    words = bytes(_call(driver.cuDeviceGetName, 256, device)).split(b"\0")[0].decode()
    attribute = driver.CUdevice_attribute
    major, minor = (
        _call(driver.cuDeviceGetAttribute, name, device)
        for name in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return Gpu(gpu_slug(words), f"{major}.{minor}", int(_call(driver.cuDeviceTotalMem, device)))


def _call(function: Any, *arguments: Any) -> Any:
    """The result of one of the driver's functions, which give their status first."""
    status, result = function(*arguments)
    if int(status):
        raise BackendFailed("CUDA", RuntimeError(f"its driver answers {status!r}"))
    return result
