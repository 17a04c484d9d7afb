"""TensorRT on an NVIDIA GPU: inputs, caches and outputs stay on the device, only answers come back.

Written from TensorRT's and CUDA's documentation and tested against a stand-in that runs the same graph on the CPU and
refuses what they refuse. On a GPU it has not been run.

Audio embeddings cross the host between encoder and decoder, as the protocol has them: 4 kB a token at the 0.6B shape,
6 MB for two minutes of audio, about a millisecond of a PCI Express link.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen3asr.engines import EngineFile, Engines, Shape
from qwen3asr.errors import EnginesInvalid, KvMemoryShort
from qwen3asr.features import Mel
from qwen3asr.sessions.base import Embeddings, Ids, Picked
from qwen3asr.sessions.cuda_memory import Gpu
from qwen3asr.sessions.pieces import Limits, run_rows
from qwen3asr.sessions.trt_caches import CacheShape, SlotCaches
from qwen3asr.sessions.trt_engine import TrtContext, TrtEngine
from qwen3asr.sessions.trt_ports import Port
from qwen3asr.sessions.trt_steps import Steps
from qwen3asr.spec import ModelSpec

STEP = "step"
"""Name of the profile of one token a row; an aligner has none."""
SLACK_BYTES = 256 << 20
"""Device memory left free beside the KV cache: for CUDA graphs, and what contexts take when they first run."""
ENCODER_TYPES = {"mel": "FLOAT", "frames": "INT64", "embeddings": "FLOAT"}
"""Every tensor of an encoder's engine, and TensorRT's name of its type."""
_CACHE_TYPES = {"fp32": ("FLOAT", 4), "fp16": ("HALF", 2)}
_BF16 = ("BF16", 2)  # int8, fp8 and int4 are of weights only


def cache_type(precision: str) -> tuple[str, int]:
    """TensorRT's name of the KV cache's type, and its bytes, at a precision of engines."""
    return _CACHE_TYPES.get(precision, _BF16)


def usable_capacity(engines: Engines) -> int:
    """Tokens that a slot of the engines takes: where steps share graphs, the last position is not for requests."""
    steps = any(profile.name == STEP for profile in engines.components["decoder"].profiles)
    return engines.capacity - steps


def open_sessions(
    module: Any, folder: Path, engines: Engines, spec: ModelSpec, *, index: int = 0, slots: int,
    capacity: int | None = None, cuda_graphs: bool = True,
) -> tuple[TrtEncoder, TrtDecoder]:  # fmt: skip
    """Load both engines of a folder onto a GPU, with one scratch memory, as they take turns.

    Args:
        module: ``tensorrt`` or ``tensorrt_rtx``, of the version that built them.
        folder: of the engines.
        engines: what its engine.json says; checked against this machine.
        spec: shapes of the model.
        index: of the GPU.
        slots: rows of the KV cache, at most ``engines.slots``.
        capacity: tokens of a row that may be used; by default all.
        cuda_graphs: capture the steps of decoding.

    Raises:
        EngineRefused: TensorRT does not take an engine.
        GpuMemoryShort, KvMemoryShort: there is too little memory; the latter says how many slots would fit.
        BackendFailed: CUDA or TensorRT refuses.
        ExtraMissing: cuda-python is not installed.
    """
    gpu = Gpu(index)
    try:
        encoding, decoding = (
            TrtEngine(module, folder, engines.components[name], types, gpu)
            for name, types in (("encoder", ENCODER_TYPES), ("decoder", decoder_types(spec, engines.precision)))
        )
        scratch = gpu.allocate(max(encoding.scratch_bytes, decoding.scratch_bytes, 1), "activations")
        encoder = TrtEncoder(gpu, encoding, scratch, spec)
        # TensorRT-RTX compiles better kernels as it runs: a graph would go on with those it was captured with.
        capture = cuda_graphs and engines.flavour == "tensorrt"
        decoder = TrtDecoder(gpu, decoding, scratch, spec, engines, slots=slots, capacity=capacity, cuda_graphs=capture)
    except BaseException:
        gpu.close()
        raise
    return encoder, decoder


class TrtEncoder:
    """See :class:`qwen3asr.sessions.base.EncoderSession`. Made by :func:`open_sessions`.

    Args:
        gpu: that runs it.
        engine: of the encoder.
        scratch: memory of the contexts, which only one uses at a time.
        spec: shapes of the model.
    """

    def __init__(self, gpu: Gpu, engine: TrtEngine, scratch: int, spec: ModelSpec) -> None:
        self._gpu, self._file, self._windows, self._hidden = gpu, engine.file, spec.windows, spec.hidden
        with gpu.work():
            self._contexts = [engine.context(at, scratch) for at in range(len(engine.file.profiles))]
        gpu.at_close(self._contexts.clear)
        windows, bins, frames = _largest(engine.file, "mel")
        self.batch_windows = windows
        self._mel = Port(gpu, (windows, bins, frames), np.float32, "the encoder's windows")
        self._frames = Port(gpu, (windows,), np.int64, "the encoder's windows")
        tokens = self._tokens(frames)
        self._embeddings = Port(gpu, (windows, tokens, spec.hidden), np.float32, "the encoder's windows")
        ports = {"mel": self._mel, "frames": self._frames, "embeddings": self._embeddings}
        for context in self._contexts:
            context.bind({name: port.address for name, port in ports.items()})

    def run(self, mel: Mel, frames: Ids) -> Embeddings:
        """See :class:`qwen3asr.sessions.base.EncoderSession`."""
        self._gpu.use()
        shapes: dict[str, Shape] = {"mel": mel.shape, "frames": frames.shape}
        context = _fitting(self._file, self._contexts, shapes)
        out = len(mel), self._tokens(mel.shape[2]), self._hidden
        with self._gpu.work():
            context.shape(shapes)
            self._mel.fill(mel)
            self._frames.fill(frames)
            context.queue()
            self._embeddings.fetch(*out)
        return np.array(self._embeddings.host(*out))

    def close(self) -> None:
        """See :class:`qwen3asr.sessions.base.EncoderSession`. The decoder is closed with it."""
        self._gpu.close()

    def _tokens(self, frames: int) -> int:
        return frames // self._windows.chunk_frames * self._windows.chunk_tokens


class TrtDecoder:
    """See :class:`qwen3asr.sessions.base.DecoderSession`. Made by :func:`open_sessions`.

    Args:
        gpu: that runs it.
        engine: of the decoder.
        scratch: memory of the contexts, which only one uses at a time.
        spec: shapes of the model.
        engines: sizes that were fixed when the engine was built.
        slots: rows of the KV cache.
        capacity: tokens of a row that may be used; by default all.
        cuda_graphs: capture steps.
    """

    def __init__(
        self, gpu: Gpu, engine: TrtEngine, scratch: int, spec: ModelSpec, engines: Engines, *, slots: int,
        capacity: int | None, cuda_graphs: bool,
    ) -> None:  # fmt: skip
        self._gpu, self._file, self._audio_pad, self._slots = gpu, engine.file, spec.audio_pad, slots
        usable = usable_capacity(engines)
        self._capacity = usable if capacity is None else min(capacity, usable)
        profiles, chunk = engine.file.profiles, _largest(engine.file, "ids", last=True)[1]
        answers = _largest(engine.file, "take", last=True)[1]
        self._limits = Limits(chunk, answers)
        with gpu.work():
            self._contexts = [engine.context(at, scratch) for at in range(len(profiles))]
            step = next((at for at, profile in enumerate(profiles) if profile.name == STEP), None)
            self._steps = None if step is None else Steps(gpu, engine, step, scratch, spec.hidden, slots)
        gpu.at_close(self._contexts.clear)
        self._ports = {
            "ids": Port(gpu, (1, chunk), np.int64, "prefills"),
            "audio": Port(gpu, _largest(engine.file, "audio"), np.float32, "prefills"),
            "past": Port(gpu, (1,), np.int64, "prefills"),
            "take": Port(gpu, (1, answers), np.int64, "prefills"),
            "token": Port(gpu, (1, answers), np.int64, "prefills"),
            "logprob": Port(gpu, (1, answers), np.float32, "prefills"),
        }
        self._no_audio = np.zeros((1, spec.hidden), np.float32)
        self._caches = _allocate(gpu, spec, engines, slots)
        for context in self._contexts:
            context.bind({name: port.address for name, port in self._ports.items()})
            context.shape(self._caches.shapes(1))
        if self._steps is not None:
            self._steps.open(self._caches, usable, capture=cuda_graphs)

    @property
    def slots(self) -> int:
        """Rows of the KV cache."""
        return self._slots

    @property
    def capacity(self) -> int:
        """Tokens of a row that requests may use."""
        return self._capacity

    @property
    def slot_bytes(self) -> int:
        """Memory of one row."""
        return self._caches.slot_bytes

    def run(self, ids: Ids, audio: Embeddings, take: Ids, slots: range, past: Ids) -> Picked:
        """See :class:`qwen3asr.sessions.base.DecoderSession`.

        Steps of the first slots run together; anything else row by row, in as many runs as the engine's limits ask.
        """
        if int(past.max()) + ids.shape[1] > self._capacity or slots.stop > self._slots:
            raise ValueError(  # TensorRT would write past the end of the cache
                f"{ids.shape[1]} tokens behind {past.max()} in slots {slots} leave {self._slots} x {self._capacity}"
            )
        self._gpu.use()
        step = not slots.start and ids.shape[1] == take.shape[1] == 1 and not (ids == self._audio_pad).any()
        if step and self._steps is not None:
            return self._steps.run(ids[:, 0], past)
        return run_rows(self._feed, self._limits, self._audio_pad, ids, audio, take, slots, past)

    def swap(self, first: int, second: int, tokens: int) -> None:
        """See :class:`qwen3asr.sessions.base.DecoderSession`."""
        self._caches.swap(first, second, tokens)

    def close(self) -> None:
        """See :class:`qwen3asr.sessions.base.DecoderSession`. The encoder is closed with it."""
        self._gpu.close()

    def _feed(self, ids: Ids, audio: Embeddings, take: Ids, slot: int, past: int) -> Picked:
        """See :class:`qwen3asr.sessions.pieces.Feed`."""
        inputs: dict[str, npt.NDArray[Any]] = {
            "ids": ids[None],
            "audio": audio if len(audio) else self._no_audio,
            "past": np.array([past]),
            "take": take[None],
        }
        shapes = {name: array.shape for name, array in inputs.items()}
        context = _fitting(self._file, self._contexts, shapes)
        token, logprob = self._ports["token"], self._ports["logprob"]
        with self._gpu.work():
            context.bind(self._caches.addresses(slot))
            context.shape(shapes)
            for name, array in inputs.items():
                self._ports[name].fill(array)
            context.queue()
            for port in (token, logprob):
                port.fetch(len(take))
        return Picked(token.host(len(take)), logprob.host(len(take)))


def decoder_types(spec: ModelSpec, precision: str) -> dict[str, str]:
    """Every tensor of a decoder's engine, and TensorRT's name of its type, at a precision of engines."""
    kept, _ = cache_type(precision)
    caches = {f"{side}.{name}": kept for name in _cache_names(spec) for side in ("past", "present")}
    ids = dict.fromkeys(("ids", "past", "take", "token"), "INT64")
    return ids | {"audio": "FLOAT", "logprob": "FLOAT"} | caches


def _cache_names(spec: ModelSpec) -> list[str]:
    return [f"{layer}.{side}" for layer in range(spec.layers) for side in ("key", "value")]


def _allocate(gpu: Gpu, spec: ModelSpec, engines: Engines, slots: int) -> SlotCaches:
    """The KV cache, last of all: what is free then is what it may take."""
    shape = CacheShape(spec.kv_heads, engines.capacity, spec.head_dim, cache_type(engines.precision)[1])
    names = _cache_names(spec)
    slot, free = len(names) * shape.row_bytes, gpu.free_bytes() - SLACK_BYTES - shape.row_bytes
    if slots * slot > free:
        raise KvMemoryShort(slots, slot, max(0, free))
    return SlotCaches(gpu, names, shape, slots)


def _largest(file: EngineFile, name: str, *, last: bool = False) -> Shape:
    """The largest shape of an input in any profile, or in the last one, which takes the longest rows."""
    profiles = file.profiles[-1:] if last else file.profiles
    return max(profile.inputs[name].most for profile in profiles)


def _fitting(file: EngineFile, contexts: list[TrtContext], shapes: Mapping[str, Shape]) -> TrtContext:
    at = file.profile(shapes)
    if at is None:
        raise EnginesInvalid(f"{file.file} takes no {dict(shapes)}; build the engines again for it, with --force")
    return contexts[at]
