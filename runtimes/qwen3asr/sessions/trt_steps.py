"""Steps of decoding: one token for each of the first slots, captured as CUDA graphs.

A graph's shapes are fixed, so there is one for 1, 2, 4, 8, 16, for each further 16 and for all slots, and a step takes
the smallest that holds its rows. The rows that it has too many are real slots, which may hold a stream's prefix or a
prompt that is being fed: their token is written to the last position of the slot, which no request is ever given (the
session's capacity is one less than the cache's), and their answer is dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from qwen3asr.errors import BackendFailed
from qwen3asr.sessions.base import Ids, Picked
from qwen3asr.sessions.cuda_memory import Gpu
from qwen3asr.sessions.trt_caches import SlotCaches
from qwen3asr.sessions.trt_engine import TrtEngine
from qwen3asr.sessions.trt_ports import Port

_log = logging.getLogger("qwen3asr")

_STRIDE = 16


def step_sizes(slots: int) -> tuple[int, ...]:
    """Numbers of rows that graphs are captured for: powers of two, from 16 on multiples of it, and all slots.

    By doubling, 65 rows would run as 128, each of which reads its cache.
    """
    sizes = (*(1 << power for power in range(_STRIDE.bit_length() - 1)), *range(_STRIDE, slots, _STRIDE))
    return (*(size for size in sizes if size < slots), slots)


class Steps:
    """Runs steps of the slots from 0 on.

    TensorRT keeps a graph's state in the context that it was captured from, which must not change afterwards: each
    number of rows has a context of its own. They share their scratch memory, as only one runs at a time.

    Args:
        gpu: that runs them.
        engine: of the decoder.
        profile: index of the step profile.
        scratch: memory of the contexts.
        hidden: width of an audio row, of which the graph wants one in any case.
        slots: rows of the cache.
    """

    def __init__(self, gpu: Gpu, engine: TrtEngine, profile: int, scratch: int, hidden: int, slots: int) -> None:
        self._gpu = gpu
        self._contexts = {size: engine.context(profile, scratch) for size in step_sizes(slots)}
        gpu.at_close(self._contexts.clear)
        self._ids, self._past, self._take, self._token = (
            Port(gpu, (slots, 1), np.int64, "steps") for _ in ("ids", "past", "take", "token")
        )
        self._logprob = Port(gpu, (slots, 1), np.float32, "steps")
        self._audio = Port(gpu, (1, hidden), np.float32, "steps")
        self._hidden = hidden
        self._graphs: dict[int, Callable[[], None]] = {}
        self._idle = 0

    def open(self, caches: SlotCaches, idle: int, *, capture: bool) -> None:
        """Bind all contexts to the slots, run each once, and capture it.

        Args:
            caches: the slots.
            idle: position that nobody uses, where the rows too many write.
            capture: as CUDA graphs; without, each step tells the GPU every kernel anew.

        Raises:
            BackendFailed: a step fails. One that cannot be captured runs without: a warning says so.
        """
        self._idle = idle
        addresses = {
            "ids": self._ids.address, "past": self._past.address, "take": self._take.address,
            "audio": self._audio.address, "token": self._token.address, "logprob": self._logprob.address,
            **caches.addresses(0),
        }  # fmt: skip
        for size, context in self._contexts.items():
            with self._gpu.work():
                self._take.send(size, 1)
                self._audio.send(1, self._hidden)
                context.bind(addresses)
                context.shape({"ids": (size, 1), "past": (size,), "take": (size, 1), "audio": (1, self._hidden)})
                context.shape(caches.shapes(size))
                self._prepare(size, np.zeros(0, np.int64), np.zeros(0, np.int64))
                self._queue(size)  # a context allocates when it first runs, which a capture forbids
            if capture:
                self._capture(size)

    def run(self, ids: Ids, past: Ids) -> Picked:
        """Feed one token to each of the first slots.

        Args:
            ids: int64 ``[B]``.
            past: int64 ``[B]``, tokens cached in each.

        Returns:
            ``[B, 1]`` answers.
        """
        rows = len(ids)
        size = next(size for size in self._contexts if size >= rows)
        with self._gpu.work():
            self._prepare(size, ids, past)
            if size in self._graphs:
                self._graphs[size]()
            else:
                self._queue(size)
        return Picked(self._token.host(rows, 1).copy(), self._logprob.host(rows, 1).copy())

    def _prepare(self, size: int, ids: Ids, past: Ids) -> None:
        for port, values, idle in ((self._ids, ids, 0), (self._past, past, self._idle)):
            mirror = port.host(size)
            mirror[: len(values)], mirror[len(values) :] = values, idle

    def _queue(self, size: int) -> None:
        self._ids.send(size)
        self._past.send(size)
        self._contexts[size].queue()
        self._token.fetch(size)
        self._logprob.fetch(size)

    def _capture(self, size: int) -> None:
        try:
            self._graphs[size] = self._gpu.capture(lambda: self._queue(size))
        except BackendFailed as error:
            _log.warning("steps of %d rows run without a CUDA graph: %s", size, error)
