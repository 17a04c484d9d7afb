"""ONNX Runtime on the CPU: caches in place, inputs bound once.

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

from qwen3asr.errors import BackendFailed, BundleInvalid
from qwen3asr.features import Mel
from qwen3asr.sessions.base import Embeddings, Ids, Picked
from qwen3asr.spec import ModelSpec

_NAME, _PROVIDERS = "ONNX Runtime", ["CPUExecutionProvider"]

# ONNX Runtime's errors have no common base but Exception: it is caught where one of its calls is all that runs.


def _session(
    graph: Path | bytes, threads: int, weights: Path | None = None, *, mapped: bool = False
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 4  # what goes wrong is raised
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    try:
        return onnxruntime.InferenceSession(graph if isinstance(graph, bytes) else str(graph), options, _PROVIDERS)
    except Exception as error:
        name = "the graph" if isinstance(graph, bytes) else graph.name
        raise BundleInvalid(f"{_NAME} cannot load {name}: {error}") from error


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
    """

    batch_windows = 1
    """A batch of windows takes a CPU as long as one after the other, and their convolutions' memory adds up."""

    def __init__(self, graph: Path | bytes, weights: Path | None = None, *, threads: int = 0) -> None:
        self._session = _session(graph, threads, weights)

    def run(self, mel: Mel, frames: Ids) -> Embeddings:
        """See :class:`qwen3asr.sessions.base.EncoderSession`."""
        try:
            embeddings: Embeddings = self._session.run(["embeddings"], {"mel": mel, "frames": frames})[0]
        except Exception as error:
            raise BackendFailed(_NAME, error) from error
        return embeddings


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
    """

    def __init__(
        self, graph: Path | bytes, spec: ModelSpec, *, slots: int, capacity: int, threads: int = 0,
        weights: Path | None = None, mapped: bool = False,
    ) -> None:  # fmt: skip
        self._session = _session(graph, threads, weights, mapped=mapped)
        shape = (slots, spec.kv_heads, capacity, spec.head_dim)
        self._caches = {f"{layer}.{side}": _zeros(shape) for layer in range(spec.layers) for side in ("key", "value")}
        self._slots, self._capacity, self._classes = slots, capacity, spec.classes
        self._no_audio = np.zeros((1, spec.hidden), np.float32)
        self._bindings: dict[range, _Binding] = {}

    @property
    def slots(self) -> int:
        """Rows of the KV cache."""
        return self._slots

    @property
    def capacity(self) -> int:
        """Tokens of a row."""
        return self._capacity

    def run(self, ids: Ids, audio: Embeddings, take: Ids, slots: range, past: Ids) -> Picked:
        """See :class:`qwen3asr.sessions.base.DecoderSession`."""
        binding = self._binding(slots)
        binding.feed(ids=ids, audio=audio if len(audio) else self._no_audio, take=take, past=past)
        tokens = binding.receive("token", take.shape, np.int64)
        logprobs = binding.receive("logprob", take.shape, np.float32)
        try:
            self._session.run_with_iobinding(binding.io)
        except Exception as error:
            raise BackendFailed(_NAME, error) from error
        return Picked(tokens.copy(), logprobs.copy())

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
