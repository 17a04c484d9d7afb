"""What every benchmark needs: the machine's name, its read bandwidth, timings, and memory of a process."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np


def machine() -> str:
    """Processor and cores as the system gives them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """Median of several calls, after one that is not counted."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1000, 2)


def read_bandwidth() -> float:
    """Bytes a second that all cores together read from memory: the best of several sums over 256 MB each."""
    blocks = [np.ones(64 << 20, np.float32) for _ in range(os.cpu_count() or 1)]
    with ThreadPoolExecutor(len(blocks)) as pool:
        best = 0.0
        for _ in range(8):
            start = time.perf_counter()
            list(pool.map(np.sum, blocks))
            best = max(best, sum(block.nbytes for block in blocks) / (time.perf_counter() - start))
    return best


def resident_megabytes() -> dict[str, int]:
    """Resident memory of this process now: all, what is its own, and its peak."""
    names = {"VmRSS": "resident", "RssAnon": "private", "VmHWM": "peak"}
    lines = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {names[key]: int(value.split()[0]) // 1024 for key, value in lines if key in names}
