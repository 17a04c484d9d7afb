"""``qwen3asr export --engine tensorrt``: what it is given, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qwen3asr import console
from qwen3asr.bundle import MANIFEST, Bundle
from qwen3asr.engines import Engines, engine_folders, open_engines
from qwen3asr.errors import RequestInvalid

if TYPE_CHECKING:
    from qwen3asr.spec import ModelSpec

_MB, _GB = 1_000_000, 1_000_000_000


def option(explained: str) -> Any:
    """An option of engines, in a panel of their own."""
    return typer.Option(help=explained, rich_help_panel="TensorRT engines")


@dataclass(frozen=True, slots=True)
class Building:
    """The options of ``--engine tensorrt``.

    Attributes:
        sizes: of :class:`qwen3asr_export.tensorrt.Settings`; ``None``: not given. ``workspace`` is in MB.
        precision: ``None`` for the bundle's.
        gpu: what they are for.
        gpu_memory: GB.
        timing_cache: file.
        force: replace engines of the same name.
        strict: refuse engines whose attention is not fused.
    """

    sizes: Mapping[str, int | None]
    precision: str | None
    gpu: str | None
    gpu_memory: float | None
    timing_cache: Path | None
    force: bool
    strict: bool = False

    @property
    def asked(self) -> set[str]:
        """Names of what was given that only engines have."""
        given = {**self.sizes, "gpu": self.gpu, "gpu_memory": self.gpu_memory, "timing_cache": self.timing_cache}
        given["strict"] = self.strict or None
        return {name for name, value in given.items() if value is not None}

    @property
    def bundle_precision(self) -> str:
        """What a bundle is exported in for these engines."""
        return "bf16" if self.precision in (None, "int8", "fp8", "int4") else self.precision

    def check(self, spec: ModelSpec) -> None:
        """Refuse what cannot be built, before the minutes of an export."""
        from qwen3asr_export import tensorrt  # noqa: PLC0415 (needs torch)

        tensorrt.check_order(spec, self._settings(), self._precision, self.gpu, self._memory)

    def print_plan(self, spec: ModelSpec) -> None:
        """Shapes and memory, on any machine."""
        from qwen3asr_export import tensorrt  # noqa: PLC0415 (needs torch)

        plan = tensorrt.make_plan(spec, self._settings(), self._precision)
        print(plan.table())
        plan.check_memory(self._memory)

    def run(self, bundle: Path) -> None:
        """Build, and print what was built."""
        from qwen3asr_export import tensorrt  # noqa: PLC0415 (needs torch)

        if not (bundle / MANIFEST).is_file():
            raise RequestInvalid(f"{bundle} is no bundle; behind a checkpoint, name the folder to make a bundle in")
        with console.stages() as progress:
            folder, engines = tensorrt.build_engines(
                bundle, settings=self._settings(), precision=self.precision, gpu=self.gpu, gpu_memory=self._memory,
                timing_cache=self.timing_cache, replace=self.force, strict=self.strict, progress=progress,
            )  # fmt: skip
        print("\n".join(describe(folder, engines)))

    def run_after_export(self, bundle: Path) -> None:
        """As :meth:`run`, for a bundle that was made for it: whatever happens, it stays."""
        try:
            self.run(bundle)
        except BaseException:
            console.warn(f"the bundle {bundle} is whole; go on with: qwen3asr export --engine tensorrt {bundle}")
            raise

    @property
    def _precision(self) -> str:
        return self.precision or "bf16"

    @property
    def _memory(self) -> int | None:
        return None if self.gpu_memory is None else int(self.gpu_memory * _GB)

    def _settings(self) -> Any:
        from qwen3asr_export import tensorrt  # noqa: PLC0415 (needs torch)

        given = {name: size for name, size in self.sizes.items() if size is not None}
        if "workspace" in given:
            given["workspace"] *= _MB
        return tensorrt.Settings(**given)


def describe(folder: Path, engines: Engines) -> list[str]:
    """What a folder of engines holds, a line each."""
    capability = f", compute capability {engines.compute_capability}" if engines.compute_capability else ""
    rows = {
        "engines": folder,
        "built with": f"{engines.flavour} {engines.version} for {engines.gpu}{capability}",
        "products": f"{engines.precision}, {engines.slots} slots of {engines.capacity} tokens",
    }
    for name, engine in engines.components.items():
        profiles = ", ".join(profile.name for profile in engine.profiles)
        memory = f"{engine.activation_bytes / _MB:.0f} MB of activations"
        rows[name] = f"{engine.size / _MB:.1f} MB, {memory}, {engine.seconds:.0f} s; profiles {profiles}"
        if engine.unfused:
            rows[f"  {name} unfused"] = "; ".join(engine.unfused)
    return [f"{label:<17} {value}" for label, value in rows.items()]


def describe_all(bundle: Bundle) -> list[str]:
    """As :func:`describe`, of every folder of engines in a bundle, each file's SHA-256 checked."""
    folders = engine_folders(bundle.folder)
    return [
        line for folder in folders for line in describe(folder, open_engines(folder, bundle.hashes, check_hashes=True))
    ]
