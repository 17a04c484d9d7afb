"""How fast it could be: what must be read and computed, over what this machine reads and computes in a second.

Counted are the weights (each once a run), the keys and values that a step looks at, and the products of matrices and
convolutions. Everything else (norms, softmax, activations between layers, the argmax) is left out, and the few products
in 32 bits of an integer precision count as if they were of integers, so a floor is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np

from qwen3asr.benchmark.machine import cores
from qwen3asr.benchmark.product import product
from qwen3asr.bundle import Bundle
from qwen3asr.precisions import PRECISIONS
from qwen3asr.spec import ModelSpec

_READ_BYTES, _WIDTH, _TRIES = 256 << 20, 2048, 5


@dataclass(frozen=True, slots=True)
class Work:
    """What some work must at least read (bytes) and compute (operations, two a multiply-add)."""

    bytes: float
    flops: float

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)

    def __mul__(self, times: float) -> Work:
        return Work(self.bytes * times, self.flops * times)


@dataclass(frozen=True, slots=True)
class Roof:
    """What this machine does in a second, all its cores together.

    Attributes:
        read_bytes: read from memory, by dot products over 256 MB a core; sums keep the cores busier than it.
        flops: operations of ONNX Runtime's product of large matrices.
        integer: the product is of 8-bit integers; otherwise of float32.
    """

    read_bytes: float
    flops: float
    integer: bool = False

    def seconds(self, work: Work) -> float:
        """The least time that work can take: that of reading or that of computing, whichever is longer."""
        return max(work.bytes / self.read_bytes, work.flops / self.flops)


def measure_roof(precision: str) -> Roof:
    """The best of several tries each; takes a few seconds, and 256 MB a core.

    Args:
        precision: of a bundle; decides which products are measured.
    """
    integer = PRECISIONS[precision].integer
    with Reading() as reading:
        read = reading.rate()
    return Roof(read, _multiplying(integer), integer)


class Reading:
    """Reads :attr:`bytes` from memory whenever it is called, all cores together; a context manager."""

    def __init__(self) -> None:
        self._halves = [np.ones((2, _READ_BYTES // 8), np.float32) for _ in range(cores())]
        self._pool = ThreadPoolExecutor(len(self._halves))
        self.bytes = _READ_BYTES * len(self._halves)

    def __call__(self) -> None:
        """Once."""
        list(self._pool.map(lambda two: np.dot(*two), self._halves))

    def rate(self) -> float:
        """Bytes a second, the best of several tries."""
        return self.bytes / _best(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def _multiplying(integer: bool) -> float:
    from qwen3asr.sessions.opening import open_session  # noqa: PLC0415 (where TensorRT runs it may be missing)

    kind, stored, given, result = "MatMul", "float32", "float32", "float32"
    if integer:
        kind, stored, given, result = "MatMulInteger", "int8", "uint8", "int32"
    rng, shape = np.random.default_rng(0), (_WIDTH, _WIDTH)
    session = open_session(product(kind, rng.integers(-64, 64, shape).astype(stored), given, result))
    rows = rng.integers(0, 256, shape).astype(given)
    return 2 * _WIDTH**3 / _best(lambda: session.run(None, {"x": rows}))


def _best(call: Callable[[], object]) -> float:
    call()
    seconds = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


class ModelWork:
    """What a bundle's graphs must read and compute.

    Args:
        bundle: of a recogniser or an aligner.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._spec, self._precision = bundle.spec, bundle.manifest.precision
        self._encoder_bytes, decoder_bytes = (
            sum(size for name, size in bundle.sizes.items() if name.startswith(bundle.manifest.components[part]))
            for part in ("encoder", "decoder")
        )
        self._step_bytes = decoder_bytes - _looked_up(bundle)

    def encode(self, frames: int) -> Work:
        """A clip of so many mel frames, one run a window."""
        spec, work = self._spec, Work(0, 0)
        for start in range(0, frames, spec.windows.window_frames):
            padded = spec.windows.pad_frames(min(frames - start, spec.windows.window_frames))
            work += Work(self._encoder_bytes, _encoder_flops(spec, padded // spec.windows.chunk_frames))
        return work

    def feed(self, tokens: int, past: int = 0, rows: int = 1, taken: int = 1) -> Work:
        """One run of the decoder.

        Args:
            tokens: that each row is fed.
            past: that each row has in its cache.
            rows: fed together.
            taken: positions of each whose answer is wanted.
        """
        spec = self._spec
        width = spec.heads * spec.head_dim
        layer = spec.hidden * (2 * width + 2 * spec.kv_heads * spec.head_dim + 3 * spec.ffn)
        seen = tokens * past + tokens * (tokens + 1) / 2  # keys that all queries of a row see
        flops = 2 * tokens * spec.layers * layer + 4 * spec.layers * width * seen
        flops += 2 * taken * spec.hidden * spec.classes
        cache = 2 * spec.layers * spec.kv_heads * spec.head_dim * PRECISIONS[self._precision].cache_bytes * past
        return Work(self._step_bytes + rows * cache, rows * flops)


def _looked_up(bundle: Bundle) -> int:
    """Bytes of the decoder that a run reads some rows of only: rotary tables, and an embedding that is no head."""
    spec = bundle.spec
    tables = bundle.manifest.limits["positions"] * spec.head_dim * 4  # cosines and sines of half a head, float32
    if spec.tied:
        return tables
    width = {"fp32": 4, "fp16": 2, "bf16": 2}.get(bundle.manifest.precision, 1)
    return tables + spec.vocab * spec.hidden * width


def _encoder_flops(spec: ModelSpec, chunks: int) -> float:
    enc, per_chunk = spec.encoder, spec.windows.chunk_tokens
    bands, frames, channels, convolutions = 128, spec.windows.chunk_frames, 1, 0.0
    for _ in range(3):  # 3 x 3, stride 2
        bands, frames = -(-bands // 2), -(-frames // 2)
        convolutions += 2 * 9 * channels * enc.conv_channels * bands * frames
        channels = enc.conv_channels
    flattened = 2 * per_chunk * channels * bands * enc.width
    tokens = chunks * per_chunk
    layer = 2 * tokens * (4 * enc.width**2 + 2 * enc.width * enc.ffn) + 4 * tokens**2 * enc.width
    projected = 2 * tokens * enc.width * (enc.width + spec.hidden)
    return chunks * (convolutions + flattened) + enc.layers * layer + projected
