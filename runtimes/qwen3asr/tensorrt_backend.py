"""Which of a bundle's TensorRT engines run here, and the backend that runs them."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3asr.bundle import Bundle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.engines import FLAVOURS, FOLDER, Engines, engine_folders, open_engines
from qwen3asr.errors import (
    DeviceUnavailable,
    EngineBuildFailed,
    EnginesMissing,
    ExtraMissing,
    Qwen3AsrError,
    RequestInvalid,
)
from qwen3asr.sessions import cuda
from qwen3asr.sessions.cuda_memory import check_gpu, gpu_name
from qwen3asr.sessions.tensorrt import SLACK_BYTES, open_sessions, usable_capacity

_log = logging.getLogger("qwen3asr")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Engines that run here.

    Attributes:
        folder: of them.
        engines: what engine.json says.
        module: runs them.
    """

    folder: Path
    engines: Engines
    module: Any


class TensorRtBackend:
    """TensorRT on an NVIDIA GPU. Memory is taken at once. See :class:`qwen3asr.backends.Backend`.

    Args:
        bundle: of the engines.
        chosen: the engines.
        index: of the GPU.
        cuda_graphs: capture the steps of decoding.
    """

    share = 0.9

    def __init__(self, bundle: Bundle, chosen: Chosen, index: int, *, cuda_graphs: bool) -> None:
        self._bundle, self._chosen, self._index, self._cuda_graphs = bundle, chosen, index, cuda_graphs
        self.most_slots = chosen.engines.slots
        self.built_capacity: int | None = usable_capacity(chosen.engines)

    def free_bytes(self) -> int | None:
        """What weights and activations leave; :func:`open_sessions` looks again when both are there."""
        files = self._chosen.engines.components.values()
        activations = max(file.activation_bytes for file in files)  # they take turns
        return max(0, cuda.free_bytes(self._index) - sum(file.size for file in files) - activations - SLACK_BYTES)

    def open(self, slots: int, capacity: int) -> tuple[Encoder, Decoder]:
        """Load the engines.

        Raises:
            RequestInvalid: more slots than they were built for.
        """
        if slots > self.most_slots:
            raise RequestInvalid(
                f"slots={slots} are more than the {self.most_slots} that {self._chosen.folder} was built for; give "
                f"slots={self.most_slots}, or build again with: qwen3asr export --engine tensorrt --slots {slots} "
                f"--force {self._bundle.folder}"
            )
        spec, chosen = self._bundle.spec, self._chosen
        here = gpu_name(self._index)
        if chosen.engines.of_another_gpu(here):
            _log.warning(
                "%s was built on %s, and this is %s, of the same compute capability: it runs, with kernels that were "
                "chosen for the other; build engines here for the best speed",
                chosen.folder, chosen.engines.gpu, here,
            )  # fmt: skip
        encoder, decoder = open_sessions(
            chosen.module, chosen.folder, chosen.engines, spec, index=self._index, slots=slots, capacity=capacity,
            cuda_graphs=self._cuda_graphs,
        )  # fmt: skip
        return Encoder(encoder, spec.windows), Decoder(decoder, spec.audio_pad, spec.hidden)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What engines that are built for a model are to take; ``None``: the builder's defaults.

    Attributes:
        slots: requests decoded at a time.
        capacity: tokens of a slot that requests may use.
    """

    slots: int | None = None
    capacity: int | None = None

    @property
    def options(self) -> list[str]:
        """Of ``qwen3asr export --engine tensorrt``."""
        capacity = None if self.capacity is None else self.capacity + 1  # one is kept back, see usable_capacity
        given = {"--slots": self.slots, "--capacity": capacity}
        return [text for name, size in given.items() if size is not None for text in (name, str(size))]


def choose_engines(
    bundle: Bundle, index: int, *, named: Path | None = None, build: Sizes | None = None, check_hashes: bool = False
) -> Chosen:
    """The engines to run a bundle with.

    Args:
        bundle: the bundle.
        index: of the GPU.
        named: their folder, or its name in the bundle; by default those of the bundle's own precision among those
            that run here, or else the first.
        build: build them so where the bundle has none that run here.
        check_hashes: compare the SHA-256 of the engines too.

    Raises:
        EnginesMissing: there are none, or several of which none runs here.
        EnginesForeign: the only ones are for another GPU, TensorRT or version of it.
        EnginesInvalid: the only ones cannot be used: damaged, or built from other graphs.
        EngineBuildFailed: they cannot be built.
        DeviceUnavailable: there is no GPU.
        ExtraMissing: TensorRT, cuda-python or, to build, the exporter are not installed.
    """
    capability = check_gpu(index)
    if named is not None:
        folder = bundle.folder / FOLDER / named if len(named.parts) == 1 else named
        return _open(folder, bundle, capability, check_hashes)
    found, problems = _usable(bundle, capability, check_hashes)
    if not found and build is not None:
        _build(bundle, index, build)
        found, problems = _usable(bundle, capability, check_hashes)
    if not found:
        if len(problems) == 1:
            raise problems[0]
        raise EnginesMissing(bundle.folder, [str(problem) for problem in problems])
    return next((one for one in found if one.engines.precision == bundle.manifest.precision), found[0])


def has_engines(bundle: Bundle, index: int) -> bool:
    """Whether a bundle has engines that run here; why they do not is logged."""
    try:
        choose_engines(bundle, index)
    except Qwen3AsrError as error:
        _log.warning("%s is not run by TensorRT: %s", bundle.folder, error)
        return False
    return True


def _usable(bundle: Bundle, capability: str, check_hashes: bool) -> tuple[list[Chosen], list[Qwen3AsrError]]:
    found, problems = list[Chosen](), list[Qwen3AsrError]()
    for folder in engine_folders(bundle.folder):
        try:
            found.append(_open(folder, bundle, capability, check_hashes))
        except ExtraMissing:
            raise
        except Qwen3AsrError as error:
            problems.append(error)
    return found, problems


def _open(folder: Path, bundle: Bundle, capability: str, check_hashes: bool) -> Chosen:
    engines = open_engines(folder, bundle.hashes, check_hashes=check_hashes)
    # The one that built them; or else whichever is here, to be named in the refusal.
    for flavour, module in _modules(engines.flavour):
        engines.check_runtime(folder, flavour, str(module.__version__), capability)
        return Chosen(folder, engines, module)
    raise ExtraMissing("running TensorRT engines", engines.flavour, "tensorrt")


def _modules(first: str) -> Iterator[tuple[str, Any]]:
    for flavour in (first, *(other for other in FLAVOURS if other != first)):
        try:
            yield flavour, importlib.import_module(flavour)
        except ModuleNotFoundError as error:
            if error.name != flavour:
                raise
        except (ImportError, OSError) as error:  # its bindings raise either where its libraries are missing
            raise DeviceUnavailable(
                f"{flavour} is installed and cannot be loaded: {error}; install it again, whole, with: "
                f"pip install --force-reinstall {flavour}"
            ) from error


def _build(bundle: Bundle, index: int, sizes: Sizes) -> None:
    """Build in a process of its own: building takes torch, and several times the weights in host memory."""
    for package in ("torch", "onnx"):
        if importlib.util.find_spec(package) is None:
            raise ExtraMissing("building TensorRT engines", package, "export,tensorrt")
    _log.info("%s: building TensorRT engines, which takes minutes", bundle.folder)
    command = [sys.executable, "-m", "qwen3asr.cli", "export", "--engine", "tensorrt", "--force", *sizes.options]
    words = deque[str](maxlen=10)
    with subprocess.Popen(
        [*command, str(bundle.folder)], env=_seeing(index), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, errors="replace",
    ) as builder:  # fmt: skip
        for line in builder.stderr or ():  # a line when a stage begins, and the error if there is one
            words.append(line.strip())
            _log.info("%s: %s", bundle.folder, line.strip())
    if builder.returncode:
        reason = " ".join(words)[-500:] or builder.returncode
        raise EngineBuildFailed(f"engines of {bundle.folder} could not be built: {reason}")


def _seeing(index: int) -> dict[str, str]:
    """This environment with one GPU in it: the builder takes the first that it sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = str(index) if visible is None else visible.split(",")[index].strip()
    return os.environ | {"CUDA_VISIBLE_DEVICES": chosen}
