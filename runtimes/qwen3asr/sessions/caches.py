"""The KV cache in a provider's own memory: allocated once, in the graph's own type, bound row by row."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from qwen3asr.errors import BundleInvalid
from qwen3asr.sessions.cuda_memory import Gpu
from qwen3asr.sessions.providers import Provider

_TYPES = {"tensor(float)": (1, 4), "tensor(float16)": (10, 2), "tensor(bfloat16)": (16, 2)}
"""ONNX Runtime's names of element types: ONNX's number, and bytes."""


class Memory(Protocol):
    """Blocks of one kind of memory, and copies between them."""

    def allocate(self, size: int, what: str) -> int:
        """Address of so many bytes."""

    def zero(self, address: int, size: int) -> None:
        """Queue zeros."""

    def copy_blocks(self, target: int, source: int, pitch: int, width: int, count: int) -> None:
        """Queue a copy: the first ``width`` bytes of each of ``count`` blocks, ``pitch`` bytes apart."""

    def work(self) -> AbstractContextManager[None]:
        """What is queued within is done at its end."""

    def close(self) -> None:
        """Give everything back; harmless when done twice."""


class HostMemory:
    """See :class:`Memory`: nothing is queued here, everything is done at once."""

    def __init__(self) -> None:
        self._blocks: list[npt.NDArray[np.uint8]] = []

    def allocate(self, size: int, what: str) -> int:
        """See :class:`Memory`."""
        self._blocks.append(np.empty(size, np.uint8))
        return int(self._blocks[-1].ctypes.data)

    def zero(self, address: int, size: int) -> None:
        """See :class:`Memory`."""
        ctypes.memset(address, 0, size)

    def copy_blocks(self, target: int, source: int, pitch: int, width: int, count: int) -> None:
        """See :class:`Memory`."""
        for offset in range(0, count * pitch, pitch):
            ctypes.memmove(target + offset, source + offset, width)

    def work(self) -> AbstractContextManager[None]:
        """See :class:`Memory`."""
        return nullcontext()

    def close(self) -> None:
        """See :class:`Memory`."""
        self._blocks.clear()


class KvCaches:
    """``[slots, kv_heads, capacity, head_dim]`` for each layer's keys and values.

    Args:
        session: its ``past.*`` inputs say which there are, and of what type and shape.
        provider: whose memory they lie in.
        slots: rows.
        capacity: tokens of a row.

    On a GPU the memory is CUDA's own: what ONNX Runtime allocates for values of Python stays in its arena, which grows
    by doubling and gives nothing back before the process ends.

    Raises:
        BundleInvalid: the graph has a cache of another type.
        GpuMemoryShort: there is no room.
        BackendFailed: CUDA fails.
    """

    def __init__(self, session: onnxruntime.InferenceSession, provider: Provider, *, slots: int, capacity: int) -> None:
        self._provider, self._capacity = provider, capacity
        inputs = {value.name.removeprefix("past."): value for value in session.get_inputs() if "past." in value.name}
        first = next(iter(inputs.values()))
        if first.type not in _TYPES:
            raise BundleInvalid(f"the graph has a KV cache of {first.type}; run `qwen3asr export` again")
        self.element, width = _TYPES[first.type]
        _, self._heads, _, self._dim = first.shape
        self._block = capacity * self._dim * width  # bytes of one head's row
        self._row: int = self._heads * self._block
        self._memory: Memory = HostMemory() if provider.memory == "cpu" else Gpu(provider.index)
        try:
            with self._memory.work():
                self._starts = {name: self._zeros(slots * self._row) for name in inputs}
                self._spare = self._zeros(self._row)
        except BaseException:
            self._memory.close()
            raise

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot."""
        return len(self._starts) * self._row

    def bind(self, io: onnxruntime.IOBinding, slots: range) -> None:
        """Bind rows as past and present: one buffer, updated in place."""
        place = self._provider.memory, self._provider.index
        shape = [len(slots), self._heads, self._capacity, self._dim]
        for name, start in self._starts.items():
            address = start + slots.start * self._row
            io.bind_input(f"past.{name}", *place, self.element, shape, address)
            io.bind_output(f"present.{name}", *place, self.element, shape, address)

    def swap(self, first: int, second: int, tokens: int) -> None:
        """Exchange the first ``tokens`` tokens of two rows, within the memory."""
        width = self._block * tokens // self._capacity
        with self._memory.work():  # and waited for: ONNX Runtime's stream does not wait for the one of the copies
            for start in self._starts.values():
                one, other = (start + slot * self._row for slot in (first, second))
                for target, source in ((self._spare, one), (one, other), (other, self._spare)):
                    self._memory.copy_blocks(target, source, self._block, width, self._heads)

    def close(self) -> None:
        """Give the memory back; harmless when done twice."""
        self._memory.close()

    def _zeros(self, size: int) -> int:
        """Zeros, not what lay there: attention under a mask multiplies it by 0, and 0 times NaN is NaN."""
        address = self._memory.allocate(size, "the KV cache")
        self._memory.zero(address, size)
        return address
