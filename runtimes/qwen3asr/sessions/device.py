"""The decoder on a device of its own: everything bound there, only ids go in, only answers come back.

What of it needs no GPU is run on the CPU by the tests; on a GPU it has not been run.

Audio embeddings cross the host between encoder and decoder, as the protocol has them: 4 kB a token, 6 MB for two
minutes of audio, which a PCI Express link carries in about a millisecond each way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from qwen3asr.errors import BackendFailed, EngineClosed
from qwen3asr.features import MEL_BINS, WindowSpec
from qwen3asr.sessions.base import Embeddings, Ids, Picked
from qwen3asr.sessions.caches import KvCaches
from qwen3asr.sessions.opening import NAME, open_session
from qwen3asr.sessions.pieces import Limits, run_rows
from qwen3asr.sessions.providers import Provider, Shapes
from qwen3asr.sessions.shapes import check_shapes
from qwen3asr.spec import ModelSpec

ENCODER_WINDOWS = 16
"""Windows of one run: fills a GPU, and their convolutions take about a gigabyte in 16 bits."""
_LEAST_LENGTH = 1024
"""Shorter rows share a CUDA graph."""
_CHUNK = 512
"""Tokens of a row that an engine takes at a time."""
_LOGITS_BYTES = 256 << 20
"""Memory for the logits of an engine's largest run, in 32 bits."""


class DeviceDecoder:
    """See :class:`qwen3asr.sessions.base.DecoderSession`.

    Steps (one token a row) are captured as CUDA graphs where the provider does so, one for each number of rows and
    each doubling of the longest row's length, if the graph is told that.

    A provider that builds engines for shapes gets one range of them, as ONNX Runtime's TensorRT never runs in another
    than the first, and calls beyond it are cut. It gets caches of a fixed length, as TensorRT writes to no others.

    Attributes:
        limits: what one run takes, where the provider builds engines.

    Args:
        graph: path of decoder.onnx, or the model itself with its weights in ``weights``.
        spec: shapes of the model.
        provider: runs it.
        slots: rows of the KV cache.
        capacity: tokens of a row; its memory is taken at once.
        threads: threads of one operator on the host.
        weights: folder of the external data, where ``graph`` is not a path.

    Raises:
        BundleInvalid, DeviceUnavailable, NodesMisplaced: see :func:`qwen3asr.sessions.opening.open_session`.
        GpuMemoryShort: the memory does not hold the cache.
        BackendFailed: CUDA fails.
    """

    def __init__(
        self, graph: Path | bytes, spec: ModelSpec, provider: Provider, *, slots: int, capacity: int,
        threads: int = 0, weights: Path | None = None,
    ) -> None:  # fmt: skip
        self.limits = None if provider.prefix is None else decoder_limits(spec, slots)
        if self.limits is not None:
            provider = provider.shaped(decoder_shapes(spec, slots, capacity, self.limits))
        sizes = {} if self.limits is None else {"capacity": capacity}
        session = open_session(graph, provider, threads=threads, weights=weights, sizes=sizes)
        check_shapes(session, spec)
        self._provider, self._slots, self._capacity, self._classes = provider, slots, capacity, spec.classes
        caches = KvCaches(session, provider, slots=slots, capacity=capacity)
        self._opened: tuple[onnxruntime.InferenceSession, KvCaches] | None = session, caches
        self._slot_bytes = caches.slot_bytes
        self._has_total = any(value.name == "total_length" for value in session.get_inputs())
        self._no_audio, self._audio_pad = np.zeros((1, spec.hidden), np.float32), spec.audio_pad
        self._bindings: dict[tuple[range, bool], DeviceBinding] = {}
        self._numbers: dict[tuple[range, int], onnxruntime.RunOptions] = {}
        self._uncaptured = None if provider.captures is None else _numbered(provider.captures, -1)

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
        """Memory of one row."""
        return self._slot_bytes

    def run(self, ids: Ids, audio: Embeddings, take: Ids, slots: range, past: Ids) -> Picked:
        """See :class:`qwen3asr.sessions.base.DecoderSession`."""
        limits = self.limits
        if limits is None or (max(ids.shape[1], len(audio)) <= limits.chunk and take.shape[1] <= limits.answers):
            return self._run(ids, audio, take, slots, past)
        return run_rows(self._feed, limits, self._audio_pad, ids, audio, take, slots, past)

    def _feed(self, ids: Ids, audio: Embeddings, take: Ids, slot: int, past: int) -> Picked:
        """See :class:`qwen3asr.sessions.pieces.Feed`."""
        picked = self._run(ids[None], audio, take[None], range(slot, slot + 1), np.array([past]))
        return Picked(picked.tokens[0], picked.logprobs[0])

    def _run(self, ids: Ids, audio: Embeddings, take: Ids, slots: range, past: Ids) -> Picked:
        """What fits one run."""
        (session, _), (rows, wanted) = self._held, take.shape
        if wanted == 0:  # no tensor without elements on a device: one answer, which nobody sees
            take = np.zeros((rows, 1), np.int64)
        step = self._is_step(ids, audio, take)
        binding = self._binding(slots, step)
        length = self._length(int(past.max()) + ids.shape[1], step)
        try:
            binding.feed(ids=ids, audio=audio if len(audio) else self._no_audio, take=take, past=past)
            if self._has_total:
                binding.feed_host("total_length", np.array(length, np.int32))
            binding.receive(token=(take.shape, np.int64), logprob=(take.shape, np.float32))
            session.run_with_iobinding(binding.io, self._options(slots, length, step))
            tokens, logprobs = binding.fetch("token"), binding.fetch("logprob")
        except Exception as error:
            raise BackendFailed(NAME, error) from error
        return Picked(tokens[:, :wanted], logprobs[:, :wanted])

    def logits(self, ids: Ids, audio: Embeddings, take: Ids, slots: range, past: Ids) -> npt.NDArray[np.float32]:
        """As :meth:`run`, for a graph whose ``logits`` were made an output: float32 ``[B, T, classes]``, T at least 1.

        Not for captured steps, which would go on without it, nor for more than :attr:`limits`.
        """
        binding = self._binding(slots, self._is_step(ids, audio, take))
        binding.receive(logits=((*take.shape, self._classes), np.float32))
        self._run(ids, audio, take, slots, past)
        return binding.fetch("logits")

    def swap(self, first: int, second: int, tokens: int) -> None:
        """See :class:`qwen3asr.sessions.base.DecoderSession`."""
        self._held[1].swap(first, second, tokens)

    def close(self) -> None:
        """See :class:`qwen3asr.sessions.base.DecoderSession`."""
        self._bindings.clear()  # they hold the session, and addresses of the cache
        if self._opened is not None:
            caches, self._opened = self._opened[1], None
            caches.close()

    @property
    def _held(self) -> tuple[onnxruntime.InferenceSession, KvCaches]:
        if self._opened is None:
            raise EngineClosed
        return self._opened

    def _is_step(self, ids: Ids, audio: Embeddings, take: Ids) -> bool:
        return ids.shape[1] == take.shape[1] == 1 and not len(audio)

    def _length(self, longest: int, step: bool) -> int:
        """The longest row's length as the graph is told it; a captured step keeps what it was told first."""
        if self._provider.captures is None or not step:
            return longest
        if not self._has_total:  # steps of any length are the same graph
            return self._capacity
        return min(self._capacity, max(_LEAST_LENGTH, 1 << (longest - 1).bit_length()))

    def _options(self, slots: range, length: int, step: bool) -> onnxruntime.RunOptions | None:
        if self._provider.captures is None or not step:
            return self._uncaptured
        if (slots, length) not in self._numbers:
            self._numbers[slots, length] = _numbered(self._provider.captures, len(self._numbers) + 1)
        return self._numbers[slots, length]

    def _binding(self, slots: range, step: bool) -> DeviceBinding:
        """Steps have one of their own, whose addresses never change: a captured graph reads and writes there."""
        if (slots, step) not in self._bindings:
            session, caches = self._held
            binding = DeviceBinding(session, self._provider)
            caches.bind(binding.io, slots)
            self._bindings[slots, step] = binding
        return self._bindings[slots, step]


class DeviceBinding:
    """Values on a device, bound to a session; one of the same shape is refilled where it is, not bound again.

    Args:
        session: whose inputs and outputs they are.
        provider: whose memory they lie in.
    """

    def __init__(self, session: onnxruntime.InferenceSession, provider: Provider) -> None:
        self.io = session.io_binding()
        self._place = provider.memory, provider.index
        self._values: dict[str, onnxruntime.OrtValue] = {}
        self._host: dict[str, npt.NDArray[Any]] = {}

    def feed(self, **inputs: npt.NDArray[Any]) -> None:
        """Copy inputs to the device."""
        for name, array in inputs.items():
            bound = self._values.get(name)
            if bound is not None and tuple(bound.shape()) == array.shape:
                bound.update_inplace(np.ascontiguousarray(array))
                continue
            # a copy: on the CPU the value would be the caller's array itself
            self._values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(order="C"), *self._place)
            self.io.bind_ortvalue_input(name, self._values[name])

    def feed_host(self, name: str, value: npt.NDArray[Any]) -> None:
        """Set an input that kernels read on the host."""
        if name in self._host:
            self._host[name][...] = value
            return
        self._host[name] = value.copy()
        self._values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(self._host[name])
        self.io.bind_ortvalue_input(name, self._values[name])

    def receive(self, **outputs: tuple[tuple[int, ...], npt.DTypeLike]) -> None:
        """Provide room for outputs of a shape and type."""
        for name, (shape, dtype) in outputs.items():
            bound = self._values.get(name)
            if bound is None or tuple(bound.shape()) != shape:
                self._values[name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, *self._place)
                self.io.bind_ortvalue_output(name, self._values[name])

    def fetch(self, name: str) -> npt.NDArray[Any]:
        """An output, as a copy."""
        return np.array(self._values[name].numpy())


def decoder_limits(spec: ModelSpec, slots: int) -> Limits:
    """What an engine of the decoder takes at a time: so many answers that their logits fit :data:`_LOGITS_BYTES`.

    A range of shapes has no corners cut: an engine that takes many rows and many answers takes many answers of each of
    many rows.
    """
    return Limits(_CHUNK, max(1, min(_CHUNK, _LOGITS_BYTES // (4 * slots * spec.classes))))


def decoder_shapes(spec: ModelSpec, slots: int, capacity: int, limits: Limits) -> Shapes:
    """Shapes of the decoder's inputs, for providers that must know them.

    Args:
        spec: of the model.
        slots: rows of a step, at most.
        capacity: tokens of a row.
        limits: of a run.
    """
    row, chunk = (spec.kv_heads, capacity, spec.head_dim), limits.chunk
    caches = {f"past.{layer}.{side}": row for layer in range(spec.layers) for side in ("key", "value")}
    return {
        "ids": ((1, 1), (1, 1), (slots, chunk)),
        "audio": ((1, spec.hidden), (1, spec.hidden), (chunk, spec.hidden)),
        "past": ((1,), (1,), (slots,)),
        "take": ((1, 1), (1, 1), (slots, limits.answers)),
        **{name: ((1, *shape), (1, *shape), (slots, *shape)) for name, shape in caches.items()},
    }


def encoder_shapes(windows: WindowSpec, most: int) -> Shapes:
    """Shapes of the encoder's inputs, up to ``most`` windows."""
    widths = windows.chunk_frames, windows.window_frames, windows.window_frames
    counts = 1, 1, most
    mel = tuple((count, MEL_BINS, width) for count, width in zip(counts, widths, strict=True))
    return {"mel": (mel[0], mel[1], mel[2]), "frames": ((1,), (1,), (most,))}


def _numbered(key: str, number: int) -> onnxruntime.RunOptions:
    """Options of a run whose CUDA graph has this number; -1: none is captured."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(key, str(number))
    return options
