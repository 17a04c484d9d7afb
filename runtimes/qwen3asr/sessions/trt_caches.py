"""The KV cache on the device: every layer's keys and values of every slot, allocated once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen3asr.engines import Shape
from qwen3asr.sessions.cuda_memory import Gpu


@dataclass(frozen=True, slots=True)
class CacheShape:
    """A slot in one of the caches, ``[heads, capacity, dim]`` of values of ``width`` bytes."""

    heads: int
    capacity: int
    dim: int
    width: int

    @property
    def head_bytes(self) -> int:
        """Bytes of one head."""
        return self.capacity * self.dim * self.width

    @property
    def row_bytes(self) -> int:
        """Bytes of a slot."""
        return self.heads * self.head_bytes


class SlotCaches:
    """``[slots, heads, capacity, dim]`` for each layer's keys and values, in place: past and present are one.

    Args:
        gpu: whose memory.
        names: of the caches, as ``0.key``.
        shape: of a slot in each.
        slots: how many.

    Raises:
        GpuMemoryShort: there is no room.
    """

    def __init__(self, gpu: Gpu, names: Sequence[str], shape: CacheShape, slots: int) -> None:
        self._gpu, self._shape = gpu, shape
        size = slots * shape.row_bytes
        self._starts = {name: gpu.allocate(size, "the KV cache") for name in names}
        self._spare = gpu.allocate(shape.row_bytes, "the KV cache")
        with gpu.work():
            for start in self._starts.values():  # a masked value counts 0 times, and 0 times NaN is NaN
                gpu.zero(start, size)

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot in all of them."""
        return len(self._starts) * self._shape.row_bytes

    def addresses(self, slot: int) -> dict[str, int]:
        """Where the graph's tensors lie, for rows from a slot on."""
        offset = slot * self._shape.row_bytes
        sides = ((side, name, start) for name, start in self._starts.items() for side in ("past", "present"))
        return {f"{side}.{name}": start + offset for side, name, start in sides}

    def shapes(self, rows: int) -> dict[str, Shape]:
        """Shapes of the graph's inputs, for so many rows."""
        shape = (rows, self._shape.heads, self._shape.capacity, self._shape.dim)
        return {f"past.{name}": shape for name in self._starts}

    def swap(self, first: int, second: int, tokens: int) -> None:
        """Exchange the first tokens of two slots, on the device: three copies a cache."""
        shape, width = self._shape, tokens * self._shape.dim * self._shape.width
        if first == second or not tokens:
            return
        with self._gpu.work():
            for start in self._starts.values():
                one, other = (start + slot * shape.row_bytes for slot in (first, second))
                for target, source in ((self._spare, one), (one, other), (other, self._spare)):
                    self._gpu.copy_blocks(target, source, shape.head_bytes, width, shape.heads)
