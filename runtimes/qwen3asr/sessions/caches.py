"""The KV cache in a provider's own memory: allocated once, in the graph's own type, bound row by row."""

from __future__ import annotations

import ctypes
import math
from typing import Protocol

import numpy as np
import onnxruntime

from qwen3asr.errors import BundleInvalid
from qwen3asr.sessions import cuda
from qwen3asr.sessions.providers import Provider

_TYPES = {"tensor(float)": (1, 4), "tensor(float16)": (10, 2), "tensor(bfloat16)": (16, 2)}
"""ONNX Runtime's names of element types: ONNX's number, and bytes."""


class Memory(Protocol):
    """Copies between addresses of one kind of memory."""

    def copy_blocks(self, target: int, source: int, pitch: int, width: int, count: int) -> None:
        """Copy the first ``width`` bytes of each of ``count`` blocks, ``pitch`` bytes apart."""

    def wait(self) -> None:
        """Until all of it is copied."""


class HostMemory:
    """See :class:`Memory`."""

    def copy_blocks(self, target: int, source: int, pitch: int, width: int, count: int) -> None:
        """See :class:`Memory`."""
        for offset in range(0, count * pitch, pitch):
            ctypes.memmove(target + offset, source + offset, width)

    def wait(self) -> None:
        """See :class:`Memory`."""


class KvCaches:
    """``[slots, kv_heads, capacity, head_dim]`` for each layer's keys and values.

    Args:
        session: its ``past.*`` inputs say which there are, and of what type and shape.
        provider: whose memory they lie in.
        slots: rows.
        capacity: tokens of a row.

    Raises:
        BundleInvalid: the graph has a cache of another type.
    """

    def __init__(self, session: onnxruntime.InferenceSession, provider: Provider, *, slots: int, capacity: int) -> None:
        self._provider, self._capacity = provider, capacity
        self._memory: Memory = HostMemory() if provider.memory == "cpu" else cuda
        inputs = {value.name.removeprefix("past."): value for value in session.get_inputs() if "past." in value.name}
        first = next(iter(inputs.values()))
        if first.type not in _TYPES:
            raise BundleInvalid(f"the graph has a KV cache of {first.type}; run `qwen3asr export` again")
        self.element, width = _TYPES[first.type]
        _, self._heads, _, self._dim = first.shape
        self._block = capacity * self._dim * width  # bytes of one head's row
        self._row: int = self._heads * self._block
        # Zeros, not what lay there: attention under a mask multiplies it by 0, and 0 times NaN is NaN.
        self._caches = {name: self._zeros(slots) for name in inputs}
        self._spare = self._zeros(1)

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot."""
        return len(self._caches) * self._row

    def bind(self, io: onnxruntime.IOBinding, slots: range) -> None:
        """Bind rows as past and present: one buffer, updated in place."""
        place = self._provider.memory, self._provider.index
        shape = [len(slots), self._heads, self._capacity, self._dim]
        for name, cache in self._caches.items():
            address = cache.data_ptr() + slots.start * self._row
            io.bind_input(f"past.{name}", *place, self.element, shape, address)
            io.bind_output(f"present.{name}", *place, self.element, shape, address)

    def swap(self, first: int, second: int, tokens: int) -> None:
        """Exchange the first ``tokens`` tokens of two rows, within the memory."""
        width = self._block * tokens // self._capacity
        spare = self._spare.data_ptr()
        for cache in self._caches.values():
            one, other = (cache.data_ptr() + slot * self._row for slot in (first, second))
            for target, source in ((spare, one), (one, other), (other, spare)):
                self._memory.copy_blocks(target, source, self._block, width, self._heads)
        self._memory.wait()

    def _zeros(self, slots: int) -> onnxruntime.OrtValue:
        """Bytes: numpy has no bfloat16, and they are bound by their address."""
        zeros = np.zeros(math.prod((slots, self._row)), np.uint8)
        return onnxruntime.OrtValue.ortvalue_from_numpy(zeros, self._provider.memory, self._provider.index)
