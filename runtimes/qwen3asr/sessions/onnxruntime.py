"""ONNX Runtime on the CPU: caches in place, inputs bound once. The encoder on any provider.

Graphs of the ``ort`` dialect are meant for it; those of the ``standard`` dialect run too, at half the speed.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from qwen3asr.errors import BackendFailed, EngineClosed
from qwen3asr.features import Mel
from qwen3asr.sessions.base import Embeddings, Ids, Picked
from qwen3asr.sessions.opening import NAME, open_session
from qwen3asr.sessions.providers import CPU, Provider
from qwen3asr.sessions.shapes import check_shapes
from qwen3asr.spec import ModelSpec


def _zeros(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Zeros in pages that take memory when they are written, and small ones.

    Every head of every layer writes its own part of a cache: with huge pages the first token would take 2 MB of each.
    """
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, np.float32)
    pages = mmap.mmap(-1, 4 * math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, np.float32).reshape(shape)


class OrtEncoder:
    """See :class:`qwen3asr.sessions.base.EncoderSession`.

    Args:
        graph: path of encoder.onnx, or the model itself with its weights in ``weights``.
        weights: folder of the external data, where ``graph`` is not a path.
        threads: threads of one operator; 0: one a physical core.
        provider: runs it.
        batch_windows: windows of one run. A batch takes a CPU as long as one after the other, and the memory of their
            convolutions adds up.
    """

    def __init__(
        self, graph: Path | bytes, weights: Path | None = None, *, threads: int = 0, provider: Provider = CPU,
        batch_windows: int = 1,
    ) -> None:  # fmt: skip
        self._session: onnxruntime.InferenceSession | None = open_session(
            graph, provider, threads=threads, weights=weights
        )
        self._on_host = provider.memory == "cpu"
        self.batch_windows = batch_windows

    def run(self, mel: Mel, frames: Ids) -> Embeddings:
        """See :class:`qwen3asr.sessions.base.EncoderSession`."""
        if self._session is None:
            raise EngineClosed
        try:
            embeddings: Embeddings = self._session.run(["embeddings"], {"mel": mel, "frames": frames})[0]
        except Exception as error:
            raise BackendFailed(NAME, error) from error
        return embeddings

    def close(self) -> None:
        """See :class:`qwen3asr.sessions.base.EncoderSession`."""
        if not self._on_host:
            self._session = None


class OrtDecoder:
    """See :class:`qwen3asr.sessions.base.DecoderSession`.

    Args:
        graph: path of decoder.onnx, or the model itself with its weights in ``weights``.
        spec: shapes of the model.
        slots: rows of the KV cache.
        capacity: tokens of a row. Pages that were never written take no memory.
        threads: threads of one operator; 0: one a physical core.
        weights: folder of the external data, where ``graph`` is not a path.
        mapped: use the weights as they lie in the mapped file, which processes then share, where otherwise they are
            copied into the kernels' own order: loading takes a tenth of the time, decoding up to two thirds more.
            For floating point only, integer weights need that order.

    Raises:
        BundleInvalid: the graph cannot be loaded, or has other shapes than ``spec``.
    """

    def __init__(
        self, graph: Path | bytes, spec: ModelSpec, *, slots: int, capacity: int, threads: int = 0,
        weights: Path | None = None, mapped: bool = False,
    ) -> None:  # fmt: skip
        self._session = open_session(graph, threads=threads, weights=weights, mapped=mapped)
        check_shapes(self._session, spec)
        shape = (slots, spec.kv_heads, capacity, spec.head_dim)
        self._caches = {f"{layer}.{side}": _zeros(shape) for layer in range(spec.layers) for side in ("key", "value")}
        self._slots, self._capacity, self._classes = slots, capacity, spec.classes
        self._no_audio = np.zeros((1, spec.hidden), np.float32)
        self._has_total = any(value.name == "total_length" for value in self._session.get_inputs())
        self._bindings: dict[range, _Binding] = {}

    @property
    def slots(self) -> int:
        """Rows of the KV cache."""
        return self._slots

    @property
    def capacity(self) -> int:
        """Tokens of a row."""
        return self._capacity

    @property
    def slot_bytes(self) -> int:
        """Memory of one row when it is full."""
        return sum(cache.nbytes for cache in self._caches.values()) // self._slots

    def run(self, ids: Ids, audio: Embeddings, take: Ids, slots: range, past: Ids) -> Picked:
        """See :class:`qwen3asr.sessions.base.DecoderSession`."""
        binding = self._binding(slots)
        binding.feed(ids=ids, audio=audio if len(audio) else self._no_audio, take=take, past=past)
        if self._has_total:
            binding.feed(total_length=np.array(past.max() + ids.shape[1], np.int32))
        tokens = binding.receive("token", take.shape, np.int64)
        logprobs = binding.receive("logprob", take.shape, np.float32)
        try:
            self._session.run_with_iobinding(binding.io)
        except Exception as error:
            raise BackendFailed(NAME, error) from error
        return Picked(tokens.copy(), logprobs.copy())

    def swap(self, first: int, second: int, tokens: int) -> None:
        """See :class:`qwen3asr.sessions.base.DecoderSession`."""
        for cache in self._caches.values():
            one, other = cache[first, :, :tokens], cache[second, :, :tokens]
            kept = one.copy()
            one[...] = other
            other[...] = kept

    def close(self) -> None:
        """See :class:`qwen3asr.sessions.base.DecoderSession`: memory of the host goes with its last holder."""

    def logits(self, ids: Ids, audio: Embeddings, take: Ids, slots: range, past: Ids) -> npt.NDArray[np.float32]:
        """As :meth:`run`, for a graph whose ``logits`` were made an output: float32 ``[B, T, classes]``."""
        logits = self._binding(slots).receive("logits", (*take.shape, self._classes), np.float32)
        self.run(ids, audio, take, slots, past)
        return logits.copy()

    def _binding(self, slots: range) -> _Binding:
        if slots not in self._bindings:
            binding = _Binding(self._session)
            for name, cache in self._caches.items():  # a view of the rows, both past and present: updated in place
                binding.share(name, cache[slots.start : slots.stop])
            self._bindings[slots] = binding
        return self._bindings[slots]


class _Binding:
    """Arrays bound to a session's inputs and outputs; an array of the same shape is refilled, not bound again."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.io = session.io_binding()
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._kept: list[onnxruntime.OrtValue] = []

    def share(self, name: str, cache: npt.NDArray[np.float32]) -> None:
        value = onnxruntime.OrtValue.ortvalue_from_numpy(cache)
        self._kept.append(value)
        self.io.bind_ortvalue_input(f"past.{name}", value)
        self.io.bind_ortvalue_output(f"present.{name}", value)

    def feed(self, **inputs: npt.NDArray[Any]) -> None:
        for name, array in inputs.items():
            bound = self._arrays.get(name)
            if bound is not None and bound.shape == array.shape:
                np.copyto(bound, array)
                continue
            self._arrays[name] = array.copy(order="C")
            self.io.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(self._arrays[name]))

    def receive(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        bound = self._arrays.get(name)
        if bound is None or bound.shape != shape:
            bound = self._arrays[name] = np.zeros(shape, dtype)
            self.io.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(bound))
        return bound
