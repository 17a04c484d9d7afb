"""Where a benchmark ran: processor, memory, versions; and what memory this process takes."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("qwen3asr", "onnxruntime", "onnxruntime-gpu", "tensorrt", "numpy")


@dataclass(frozen=True, slots=True)
class Machine:
    """A computer and what is installed on it.

    Attributes:
        processor: its name, as the system gives it.
        cores: that this process may run on.
        memory_bytes: of the machine; ``None`` where the system does not tell.
        system: operating system and architecture.
        gpus: names of NVIDIA's, as far as NVML is there to be asked.
        python: its version.
        packages: those installed of the ones that matter, with their versions.
    """

    processor: str
    cores: int
    memory_bytes: int | None
    system: str
    gpus: tuple[str, ...]
    python: str
    packages: dict[str, str]

    def __str__(self) -> str:
        """In words."""
        parts = [self.processor, f"{self.cores} cores"]
        if self.memory_bytes is not None:
            parts.append(f"{self.memory_bytes / 1e9:.0f} GB")
        return ", ".join([*parts, *(self.gpus or ("no GPU seen",))])


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of this process in bytes: now, and the most since it began; ``None`` outside of Linux."""

    resident: int | None
    peak: int | None


def this_machine(gpus: tuple[str, ...] = ()) -> Machine:
    """The computer that this runs on."""
    return Machine(
        processor=_field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        cores=cores(),
        memory_bytes=_kibibytes(Path("/proc/meminfo"), "MemTotal"),
        system=f"{platform.system()} {platform.machine()}",
        gpus=gpus,
        python=platform.python_version(),
        packages={name: found for name in _PACKAGES if (found := _version(name)) is not None},
    )


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> Memory:
    """What this process takes now, and took at most."""
    status = Path("/proc/self/status")
    return Memory(_kibibytes(status, "VmRSS"), _kibibytes(status, "VmHWM"))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _field(path: Path, name: str) -> str | None:
    """The first value of that name in a file of ``name: value`` lines; ``None`` where there is none."""
    if not path.is_file():
        return None
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), None)


def _kibibytes(path: Path, name: str) -> int | None:
    value = _field(path, name)
    return None if value is None else int(value.split()[0]) * 1024
