"""engine.json: what a folder of TensorRT engines holds, and what must be so before they are used.

A bundle keeps them at ``tensorrt/<gpu>-trt<version>/``, as many such folders as there are GPUs and versions. Export
writes them, the runtime opens them; both know them by these classes only, and nothing here needs TensorRT.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast, get_args

from qwen3asr.bundle import COMPONENTS, sha256
from qwen3asr.errors import (
    EngineFileDamaged,
    EngineFileMissing,
    EnginesForeign,
    EnginesInvalid,
    EnginesStale,
    EnginesTooNew,
)
from qwen3asr.spec import Kind

FORMAT = 1
MANIFEST = "engine.json"
FOLDER = "tensorrt"
"""Where a bundle keeps its folders of engines."""
FLAVOURS: Mapping[str, str] = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}
"""Python modules that build and run engines, and what folder names call them."""
_CURE = "build again, with --force"

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Shapes of one input: the smallest, the one tuned for, and the largest."""

    least: Shape
    best: Shape
    most: Shape

    def __post_init__(self) -> None:
        for sizes in zip(self.least, self.best, self.most, strict=True):
            if not 0 <= sizes[0] <= sizes[1] <= sizes[2]:
                raise ValueError(f"{self.least}, {self.best}, {self.most} do not ascend")

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether a shape lies within."""
        return len(shape) == len(self.least) and all(
            low <= size <= high for low, size, high in zip(self.least, shape, self.most, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """One of an engine's optimisation profiles; the index in the engine is that in the list.

    Attributes:
        name: the work that it is for: ``one`` and ``many`` windows; ``step``, ``verify`` and ``prefill``.
        inputs: name of every input to its shapes.
    """

    name: str
    inputs: Mapping[str, Range]

    def holds(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether inputs of these shapes can run in it; inputs that are not named do not count."""
        return all(self.inputs[name].holds(shape) for name, shape in shapes.items())


@dataclass(frozen=True, slots=True)
class EngineFile:
    """One serialised engine.

    Attributes:
        file: its name in the folder.
        size: its bytes.
        sha256: of them.
        profiles: the tightest first, so that the first which holds a call's shapes is the one to run it in.
        weights_bytes: device memory of its weights, as the builder says; 0 if it did not.
        activation_bytes: device memory of one context, the largest of all profiles; as planned, if it did not say.
        layers: how many of each kind the parsed network has, where it matters: ``KV_CACHE_UPDATE`` ...
        unfused: attention layers that run as several kernels, and in how many profiles.
        seconds: that building took.
    """

    file: str
    size: int
    sha256: str
    profiles: tuple[Profile, ...]
    weights_bytes: int
    activation_bytes: int
    layers: Mapping[str, int]
    unfused: tuple[str, ...]
    seconds: float

    def profile(self, shapes: Mapping[str, Sequence[int]]) -> int | None:
        """Index of the first profile that holds inputs of these shapes."""
        return next((index for index, profile in enumerate(self.profiles) if profile.holds(shapes)), None)


@dataclass(frozen=True, slots=True)
class Engines:
    """A folder of engines: what engine.json says.

    Attributes:
        kind: ``asr`` or ``aligner``.
        precision: of the decoder's products and its KV cache; ``int8``, ``fp8`` and ``int4`` are of its weights,
            beside which everything is bf16.
        flavour: the Python module, ``tensorrt`` or ``tensorrt_rtx``.
        version: of the module; an engine runs in no other.
        gpu: its name as :func:`gpu_slug` writes it, or what it was called by who built them, or ``any``.
        compute_capability: as ``9.0``; ``None`` where the engines are for any.
        capacity: tokens of a KV-cache row; fixed when built.
        slots: rows of the KV cache, at most.
        graphs: each ONNX file to its SHA-256, as bundle.json has it.
        components: ``encoder`` and ``decoder``.
    """

    kind: Kind
    precision: str
    flavour: str
    version: str
    gpu: str
    compute_capability: str | None
    capacity: int
    slots: int
    graphs: Mapping[str, str]
    components: Mapping[str, EngineFile]

    def check_runtime(self, folder: Path, flavour: str, version: str, compute_capability: str) -> None:
        """Refuse to run where the engines were not built for.

        Args:
            folder: of the engines, to be named.
            flavour: the module that is to run them.
            version: of that module.
            compute_capability: of the GPU here, as ``9.0``.

        Raises:
            EnginesForeign: another module, version or GPU.
        """
        built, here = f"{self.flavour} {self.version}", f"{flavour} {version}"
        if built != here:
            raise EnginesForeign(folder, "the library", built, here)
        if self.compute_capability not in (None, compute_capability):
            wanted = f"{self.compute_capability} ({self.gpu})"
            raise EnginesForeign(folder, "compute capability", wanted, compute_capability)

    def of_another_gpu(self, name: str) -> bool:
        """Whether these engines were timed on a GPU of another name; they run, as long as the capability is the same.

        Args:
            name: of the GPU here.
        """
        unnamed = self.gpu == "any" or re.fullmatch(r"sm\d+", self.gpu) is not None
        return not unnamed and self.gpu != gpu_slug(name)


def gpu_slug(name: str) -> str:
    """A GPU's name in lower case, fit for a folder: ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def engine_folders(bundle: Path) -> list[Path]:
    """The folders of engines in a bundle, sorted by name."""
    return sorted(path.parent for path in (bundle / FOLDER).glob(f"*/{MANIFEST}"))


def open_engines(folder: Path, graphs: Mapping[str, str], *, check_hashes: bool = False) -> Engines:
    """Read and check a folder of engines.

    Args:
        folder: such as ``BUNDLE/tensorrt/sm90-trt11.4.0``.
        graphs: of each of the bundle's ONNX files the SHA-256 (:attr:`qwen3asr.bundle.Bundle.hashes`).
        check_hashes: compare the SHA-256 of the engines too (seconds a gigabyte).

    Raises:
        EnginesInvalid, EnginesTooNew: there is no engine.json that can be read.
        EngineFileMissing, EngineFileDamaged: a file is not what was built.
        EnginesStale: built from other graphs.
    """
    engines = _parse(folder, _read(folder))
    for name, digest in engines.graphs.items():
        if graphs.get(name) != digest:
            raise EnginesStale(folder, name)
    for engine in engines.components.values():
        _check_file(folder, engine, check_hashes)
    return engines


def write_engines(folder: Path, engines: Engines) -> None:
    """Write engine.json."""
    content = {"format": FORMAT, **asdict(engines)}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _read(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise EnginesInvalid(
            f"{folder} has no {MANIFEST}; build engines with: qwen3asr export --engine tensorrt BUNDLE"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
        version = content["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EnginesInvalid(f"{path} cannot be read ({error!r}); {_CURE}") from error
    if not isinstance(version, int) or version < 1:
        raise EnginesInvalid(f"{path} has the format version {version!r}, not a number; {_CURE}")
    if version > FORMAT:
        raise EnginesTooNew(version, FORMAT)
    return cast(dict[str, Any], content)


def _parse(folder: Path, content: Mapping[str, Any]) -> Engines:
    try:
        engines = Engines(
            **{name: content[name] for name in Engines.__dataclass_fields__ if name != "components"},
            components={name: _engine(content["components"][name]) for name in COMPONENTS},
        )
        _check_values(engines)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EnginesInvalid(f"{MANIFEST} in {folder} is damaged ({error!r}); {_CURE}") from error
    return engines


def _engine(content: Mapping[str, Any]) -> EngineFile:
    profiles = tuple(
        Profile(
            str(profile["name"]),
            {
                name: Range(*(tuple(map(int, shapes[end])) for end in ("least", "best", "most")))
                for name, shapes in profile["inputs"].items()
            },
        )
        for profile in content["profiles"]
    )
    if not profiles or Path(content["file"]).name != content["file"]:
        raise ValueError("no profiles, or a file elsewhere")
    return EngineFile(
        file=content["file"], size=int(content["size"]), sha256=str(content["sha256"]), profiles=profiles,
        weights_bytes=int(content["weights_bytes"]), activation_bytes=int(content["activation_bytes"]),
        layers=dict(content["layers"]), unfused=tuple(content["unfused"]), seconds=float(content["seconds"]),
    )  # fmt: skip


def _check_values(engines: Engines) -> None:
    if engines.kind not in get_args(Kind) or engines.flavour not in FLAVOURS:
        raise ValueError(f"kind {engines.kind!r} or flavour {engines.flavour!r}")
    for name in ("capacity", "slots"):
        value = getattr(engines, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} {value!r}")
    if not engines.graphs or not isinstance(engines.version, str):
        raise ValueError("no graphs or no version")


def _check_file(folder: Path, engine: EngineFile, check_hashes: bool) -> None:
    path = folder / engine.file
    if not path.is_file():
        raise EngineFileMissing(engine.file, folder)
    size = path.stat().st_size
    if size != engine.size:
        raise EngineFileDamaged(engine.file, folder, f"{size} bytes, not {engine.size}")
    if check_hashes and sha256(path) != engine.sha256:
        raise EngineFileDamaged(engine.file, folder, "its SHA-256 differs")
