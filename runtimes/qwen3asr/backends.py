"""Which device and engine run a bundle: asked for or found, or an error that says why not."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from qwen3asr.bundle import Bundle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.engines import engine_folders
from qwen3asr.errors import BackendFailed, BundleInvalid, DeviceUnavailable, ExtraMissing, Qwen3AsrError, RequestInvalid
from qwen3asr.features import MEL_BINS
from qwen3asr.memory import free_bytes
from qwen3asr.precisions import PRECISIONS, for_device

if TYPE_CHECKING:
    from qwen3asr.sessions.providers import Provider

_log = logging.getLogger("qwen3asr")

_WORK_BYTES = 3 << 30
"""Device memory left to activations: a batch of encoder windows, and a prefill's attention."""
_CACHES = "ort-engines"
"""Where a bundle keeps what TensorRT builds inside ONNX Runtime."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller of :func:`qwen3asr.load` asks of the machine; sizes matter here where engines are built."""

    device: str = "auto"
    engine: str | None = None
    provider: str | None = None
    provider_cache: Path | None = None
    cuda_graphs: bool = True
    threads: int = 0
    share_weights: bool = False
    engines: Path | None = None
    build_engines: bool = False
    check_hashes: bool = False
    slots: int | None = None
    capacity: int | None = None

    @property
    def of_onnxruntime(self) -> bool:
        """Something is asked for that only ONNX Runtime has."""
        return self.provider is not None or self.provider_cache is not None or self.share_weights


class Backend(Protocol):
    """Runs a bundle on a device.

    Attributes:
        most_slots: default where memory is plenty.
        share: of the free memory that the default number of slots may fill.
        built_capacity: tokens of a row that graphs were built for; ``None``: any up to the model's limit.
    """

    most_slots: int
    share: float
    built_capacity: int | None

    def free_bytes(self) -> int | None:
        """Memory that KV caches may take, with the bundle loaded; ``None``: unknown."""

    def open(self, slots: int, capacity: int) -> tuple[Encoder, Decoder]:
        """Load the graphs."""


def choose_backend(bundle: Bundle, wishes: Wishes) -> Backend:
    """What runs a bundle.

    Raises:
        BundleInvalid: a precision of a newer version.
        EnginesMissing, EnginesForeign, EnginesInvalid, EngineBuildFailed: of TensorRT engines that were asked for.
        DeviceUnavailable: the device or provider is not here, or does not run the bundle.
        ExtraMissing: a package is not installed.
        RequestInvalid: wishes that do not go together, or are not known.
    """
    kind, index = _parse_device(wishes.device)
    engine = wishes.engine or _best_engine(bundle, wishes, kind, index)
    if engine not in ENGINES:
        raise RequestInvalid(f"engine={engine!r} is not known; give {' or '.join(map(repr, ENGINES))}, or None")
    if engine != "tensorrt" and (wishes.engines is not None or wishes.build_engines):
        raise RequestInvalid("engines and build_engines are TensorRT's; give engine='tensorrt', or leave them out")
    if bundle.manifest.precision not in PRECISIONS:
        raise BundleInvalid(
            f"{bundle.folder} has the precision {bundle.manifest.precision!r}, which this version does not know; "
            "upgrade with: pip install -U qwen3asr"
        )
    if kind == "auto" and engine == "tensorrt":
        kind = "cuda"
    if kind == "auto":
        best = not wishes.share_weights and _cuda_is_best(bundle)
        kind = "cuda" if wishes.provider or best else "cpu"
        _log.info("%s: device=%r", bundle.folder, kind)
    return ENGINES[engine](bundle, wishes, kind, index)


# --- ONNX Runtime ------------------------------------------------------------------------------------------------


class CpuBackend:
    """ONNX Runtime's CPU provider. Its memory is taken as it is first used."""

    most_slots, share = 8, 0.5
    built_capacity: int | None = None

    def __init__(self, bundle: Bundle, threads: int, *, share_weights: bool) -> None:
        self._bundle, self._threads, self._mapped = bundle, threads, share_weights

    def free_bytes(self) -> int | None:
        """See :class:`Backend`."""
        free = free_bytes()
        return free if free is None or self._mapped else max(0, free - self._bundle.bytes)

    def open(self, slots: int, capacity: int) -> tuple[Encoder, Decoder]:
        """See :class:`Backend`."""
        with _extra("running on the CPU", "cpu"):
            from qwen3asr.sessions.onnxruntime import OrtDecoder, OrtEncoder  # noqa: PLC0415 (an optional dependency)
        bundle, spec, threads = self._bundle, self._bundle.spec, self._threads
        decoder = OrtDecoder(
            bundle.component("decoder"), spec, slots=slots, capacity=capacity, threads=threads, mapped=self._mapped
        )
        encoder = OrtEncoder(bundle.component("encoder"), threads=threads)
        return Encoder(encoder, spec.windows), Decoder(decoder, spec.audio_pad, spec.hidden)


class CudaBackend:
    """ONNX Runtime on an NVIDIA GPU, by one of its providers. Memory is taken at once."""

    most_slots, share = 32, 0.8
    built_capacity: int | None = None

    def __init__(self, bundle: Bundle, threads: int, provider: Provider, captured: Provider) -> None:
        self._bundle, self._threads = bundle, threads
        self._provider, self._captured = provider, captured

    def free_bytes(self) -> int | None:
        """See :class:`Backend`."""
        from qwen3asr.sessions import cuda  # noqa: PLC0415 (an optional dependency)

        return max(0, cuda.free_bytes(self._provider.index) - self._bundle.bytes - _WORK_BYTES)

    def open(self, slots: int, capacity: int) -> tuple[Encoder, Decoder]:
        """See :class:`Backend`."""
        from qwen3asr.sessions import device  # noqa: PLC0415 (an optional dependency)
        from qwen3asr.sessions.onnxruntime import OrtEncoder  # noqa: PLC0415

        bundle, spec, most = self._bundle, self._bundle.spec, device.ENCODER_WINDOWS
        decoder = device.DeviceDecoder(
            bundle.component("decoder"), spec, self._captured, slots=slots, capacity=capacity, threads=self._threads
        )
        encoding = self._provider.shaped(device.encoder_shapes(spec.windows, most))
        encoder = OrtEncoder(bundle.component("encoder"), threads=self._threads, provider=encoding, batch_windows=most)
        graphs = Encoder(encoder, spec.windows), Decoder(decoder, spec.audio_pad, spec.hidden)
        _warm_up(*graphs, self._provider.name)
        return graphs


def _warm_up(encoder: Encoder, decoder: Decoder, provider: str) -> None:
    """Run both once: libraries such as cuDNN are looked for by the first kernel that needs them."""
    try:
        encoder.encode([np.zeros((MEL_BINS, 100), np.float32)])
        decoder.step_rows([0], [0])
    except BackendFailed as error:
        raise DeviceUnavailable(
            f"{provider} starts, but cannot run this model: {error.__cause__}; update the driver, and install CUDA's "
            "libraries with: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        ) from error


def _onnxruntime(bundle: Bundle, wishes: Wishes, kind: str, index: int) -> Backend:
    precision = bundle.manifest.precision
    if kind == "cpu":
        if wishes.provider is not None:
            raise RequestInvalid(f"provider={wishes.provider!r} is for GPUs; give device='cuda', or leave it out")
        _check_runs(bundle, "cpu", "the CPU")
        _check_shared(bundle, wishes.share_weights)
        return CpuBackend(bundle, wishes.threads, share_weights=wishes.share_weights)
    if wishes.share_weights:
        raise RequestInvalid("share_weights is for the CPU: a GPU has a copy of its own; leave it out")
    with _extra("running on an NVIDIA GPU", "gpu"):
        from qwen3asr.sessions import providers  # noqa: PLC0415 (an optional dependency)
    name = wishes.provider or "cuda"
    if name not in providers.PROVIDERS:
        raise RequestInvalid(f"provider={name!r} is not known; give {', '.join(map(repr, providers.PROVIDERS))}")
    cache = wishes.provider_cache or bundle.folder / _CACHES
    plain, captured = (
        providers.PROVIDERS[name](index, precision, cache, graphs=graphs) for graphs in (False, wishes.cuda_graphs)
    )
    providers.check_available(plain)
    _check_runs(bundle, "cuda", "GPUs")
    _check_dialect(bundle, name)
    if name != "cuda":
        _make_folder(cache)
    return CudaBackend(bundle, wishes.threads, plain, captured)


# --- TensorRT ----------------------------------------------------------------------------------------------------


def _tensorrt(bundle: Bundle, wishes: Wishes, kind: str, index: int) -> Backend:
    if kind == "cpu":
        raise RequestInvalid("engine='tensorrt' needs an NVIDIA GPU; give device='cuda', or leave the engine out")
    if wishes.of_onnxruntime:
        raise RequestInvalid(
            "provider, provider_cache and share_weights are ONNX Runtime's; leave them out, or engine='tensorrt'"
        )
    from qwen3asr import tensorrt_backend  # noqa: PLC0415 (an optional dependency)

    sizes = tensorrt_backend.Sizes(wishes.slots, wishes.capacity) if wishes.build_engines else None
    chosen = tensorrt_backend.choose_engines(
        bundle, index, named=wishes.engines, build=sizes, check_hashes=wishes.check_hashes
    )
    return tensorrt_backend.TensorRtBackend(bundle, chosen, index, cuda_graphs=wishes.cuda_graphs)


ENGINES: Mapping[str, Callable[[Bundle, Wishes, str, int], Backend]] = {
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
}
"""What runs graphs, by its name; each is told the kind of device, ``cpu`` or ``cuda``, and which of several."""


# --- checks ------------------------------------------------------------------------------------------------------


def _parse_device(device: str) -> tuple[Literal["auto", "cpu", "cuda"], int]:
    """Kind and index of ``auto``, ``cpu``, ``cuda`` or ``cuda:1``."""
    match = re.fullmatch(r"(auto|cpu|cuda)(?::(\d+))?", device)
    if match is None or (match[2] and match[1] != "cuda"):
        raise DeviceUnavailable(
            f"device={device!r} is not known; give 'auto', 'cpu', 'cuda', or 'cuda:1' for another GPU"
        )
    kind: Literal["auto", "cpu", "cuda"] = "cpu" if match[1] == "cpu" else "cuda" if match[1] == "cuda" else "auto"
    return kind, int(match[2] or 0)


def _best_engine(bundle: Bundle, wishes: Wishes, kind: str, index: int) -> str:
    """TensorRT where its engines are asked for, or lie in the bundle and run here."""
    if wishes.engines is not None or wishes.build_engines:
        return "tensorrt"
    if kind == "cpu" or wishes.of_onnxruntime or not engine_folders(bundle.folder):
        return "onnxruntime"
    from qwen3asr import tensorrt_backend  # noqa: PLC0415 (an optional dependency)

    return "tensorrt" if tensorrt_backend.has_engines(bundle, index) else "onnxruntime"


def _cuda_is_best(bundle: Bundle) -> bool:
    """Whether the bundle runs on CUDA, and CUDA is here: the provider, and a GPU. A reason against it is logged."""
    if bundle.manifest.dialect not in PRECISIONS[bundle.manifest.precision].cuda_dialects:
        return False
    try:
        from qwen3asr.sessions.providers import check_available, cuda_provider  # noqa: PLC0415

        check_available(cuda_provider(0, bundle.manifest.precision, bundle.folder))
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        return False
    except Qwen3AsrError as error:
        _log.info("device='auto' leaves CUDA out: %s", error)
        return False
    return True


def _check_runs(bundle: Bundle, kind: str, called: str) -> None:
    name = bundle.manifest.precision
    if kind not in PRECISIONS[name].devices:
        raise DeviceUnavailable(
            f"{bundle.folder} has the precision {name}, which runs on {' and '.join(PRECISIONS[name].devices)}, not on "
            f"{called}; export the checkpoint again with --precision {', '.join(for_device(kind))} or auto"
        )


def _check_dialect(bundle: Bundle, provider: str) -> None:
    """TensorRT has no ONNX Runtime operators; CUDA lacks some of them in 32 bits."""
    name, dialect = bundle.manifest.precision, bundle.manifest.dialect
    known = PRECISIONS[name].cuda_dialects if provider == "cuda" else ("standard",)
    if dialect not in known:
        raise DeviceUnavailable(
            f"{bundle.folder} is {name} in the dialect {dialect!r}, which provider={provider!r} does not run; export "
            f"the checkpoint again with --precision {name} --dialect {known[0]}"
        )


def _check_shared(bundle: Bundle, share_weights: bool) -> None:
    name = bundle.manifest.precision
    if share_weights and name != "fp32":
        raise RequestInvalid(
            f"share_weights needs an fp32 bundle, and {bundle.folder} is {name}, whose weights "
            "the kernels copy into their own order; leave share_weights out"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestInvalid(
            f"engines cannot be kept in {folder}: {error}; give provider_cache= a folder that can be written to"
        ) from error


@contextmanager
def _extra(feature: str, extra: str) -> Iterator[None]:
    """An ONNX Runtime that is not there, as the error that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise ExtraMissing(feature, "onnxruntime", extra) from error
