"""What every benchmark needs: the machine's name, timings, and memory of a process."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_WIDEST = {"amx_int8": "AMX", "avx512_bf16": "AVX-512 and bf16", "avx512f": "AVX-512", "avx2": "AVX2"}
"""What decides how fast a processor multiplies, the best first; one name stands for several generations."""


def machine() -> str:
    """Processor and cores as the system gives them, and its widest instructions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    widest = next((f" with {name}" for flag, name in _WIDEST.items() if flag in flags), "")
    return f"{fields.get('model name', platform.processor())}{widest}, {os.cpu_count()} cores"


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """Median of several calls, after one that is not counted."""
    return round(statistics.median(in_turn([call], rounds)[0]) * 1000, 2)


def in_turn(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each call in each round, after a round that is not counted."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, of_call in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            of_call.append(time.perf_counter() - start)
    return [of_call[1:] for of_call in times]


def resident_mebibytes() -> dict[str, int]:
    """Resident memory of this process now in MiB: all, what is its own, and its peak."""
    names = {"VmRSS": "resident", "RssAnon": "private", "VmHWM": "peak"}
    lines = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {names[key]: int(value.split()[0]) // 1024 for key, value in lines if key in names}
