"""A tensor's place on the device, and its mirror on the host through which it is filled and read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen3asr.sessions.cuda_memory import Gpu


class Port:
    """Room for a tensor of up to a shape; one of a smaller shape lies at its beginning, without gaps.

    Args:
        gpu: whose memory.
        shape: the largest.
        dtype: of it.
        what: it holds, for the error where there is no room.
    """

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], dtype: npt.DTypeLike, what: str) -> None:
        self._gpu, self._dtype = gpu, np.dtype(dtype)
        size = math.prod(shape) * self._dtype.itemsize
        self.address = gpu.allocate(size, what)
        self._mirror = gpu.pin(size)
        self._mirror[:] = 0

    def host(self, *shape: int) -> npt.NDArray[Any]:
        """The mirror as an array; what :meth:`fetch` brings is there after the GPU's ``synchronize``."""
        return self._bytes(shape).view(self._dtype).reshape(shape)

    def send(self, *shape: int) -> None:
        """Queue the copy to the device of what the mirror holds then."""
        self._gpu.upload(self.address, self._bytes(shape))

    def fetch(self, *shape: int) -> None:
        """Queue the copy from the device."""
        self._gpu.download(self._bytes(shape), self.address)

    def fill(self, array: npt.NDArray[Any]) -> tuple[int, ...]:
        """Write an array into the mirror and queue its copy to the device; gives its shape."""
        self.host(*array.shape)[...] = array
        self.send(*array.shape)
        return array.shape

    def _bytes(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        return self._mirror[: math.prod(shape) * self._dtype.itemsize]
