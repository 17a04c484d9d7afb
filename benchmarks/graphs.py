"""Every released shape at every precision, with random weights: sizes, memory, and times of the graphs on this CPU.

python benchmarks/graphs.py --work build/bench --out benchmarks/results/graphs.json [0.6b 1.7b aligner-0.6b]

Stand-ins are made where they are not there. Each export and each measurement is a process of its own. Half-precision
bundles are exported only: no CPU runs them at speed.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import in_turn, machine, milliseconds, resident_mebibytes

from qwen3asr.benchmark.roofline import ModelWork, Reading
from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.precisions import PRECISIONS, for_device
from qwen3asr.sessions.onnxruntime import OrtDecoder, OrtEncoder

PROMPT, FORCED = 145, 35  # tokens of a 10 s clip's prompt, and of its text
CAPACITY, NEAR, FAR = 8_192, 150, 1_900  # tokens of the cache, and in it when a step is measured


class Graphs:
    """A bundle's two sessions, fed with noise."""

    def __init__(self, bundle: Bundle) -> None:
        self._spec, self._rng = bundle.spec, np.random.default_rng(0)
        self.encoder = OrtEncoder(bundle.component("encoder"))
        self.decoder = OrtDecoder(bundle.component("decoder"), bundle.spec, slots=1, capacity=CAPACITY)

    def encode(self, seconds: int) -> None:
        """One clip, window by window."""
        for start in range(0, seconds, 8):
            frames = min(seconds - start, 8) * 100
            mel = self._rng.normal(0, 1, (1, 128, frames)).astype(np.float32)
            self.encoder.run(mel, np.array([frames]))

    def feed(self, tokens: int, past: int) -> None:
        """New tokens, of which the last is answered."""
        ids = self._rng.integers(0, 1000, (1, tokens))
        nothing = np.zeros((0, self._spec.hidden), np.float32)
        self.decoder.run(ids, nothing, np.array([[tokens - 1]]), range(1), np.array([past]))

    def clip(self) -> None:
        """Ten seconds of audio and 35 forced tokens."""
        self.encode(10)
        self.feed(PROMPT, 0)
        for index in range(FORCED - 1):
            self.feed(1, PROMPT + index)


def measure(folder: Path) -> dict[str, Any]:
    """Times in milliseconds and memory in MiB of one bundle in this process."""
    bundle = open_bundle(folder)
    start = time.perf_counter()
    graphs = Graphs(bundle)
    row: dict[str, Any] = {"load_ms": round((time.perf_counter() - start) * 1000)}
    graphs.clip()
    row["memory_mib_one_clip"] = resident_mebibytes()
    row["encoder_ms"] = {f"{s} s": milliseconds(lambda s=s: graphs.encode(s), 5) for s in (1, 8, 30)}  # type: ignore[misc]
    row["prefill_ms"] = {f"{PROMPT} tokens": milliseconds(lambda: graphs.feed(PROMPT, 0), 7)}
    if bundle.manifest.kind == "asr":
        row |= _steps(graphs, ModelWork(bundle))
        row["clip_ms"] = milliseconds(graphs.clip, 3)
    return row


def _steps(graphs: Graphs, work: ModelWork) -> dict[str, Any]:
    """Steps behind little and much, in turn with the memory that they are held against: others use it, too."""
    for past in range(0, FAR, 475):
        graphs.feed(475, past)
    with Reading() as reading:
        read, near, far = in_turn([reading, lambda: graphs.feed(1, NEAR), lambda: graphs.feed(1, FAR)], 60)
        steps = {NEAR: near, FAR: far}
        floors = {p: [work.feed(1, p).bytes / reading.bytes * one for one in read] for p in steps}
    return {
        "read_gb_per_s": round(reading.bytes / median(read) / 1e9, 1),
        "step_ms": {f"{past} past": round(median(times) * 1000, 2) for past, times in steps.items()},
        "step_floor_ms": {f"{past} past": round(median(times) * 1000, 2) for past, times in floors.items()},
        "step_over_floor": {f"{past} past": _ratio(steps[past], floors[past]) for past in steps},
        "far_over_near": _ratio(far, near),
    }


def _ratio(these: list[float], those: list[float]) -> float:
    """Median of a ratio between two calls of one round."""
    return round(median(one / other for one, other in zip(these, those, strict=True)), 2)


def export_one(checkpoint: Path, folder: Path, precision: str) -> dict[str, Any]:
    """Export without verification in this process; seconds, peak MiB, size in MB."""
    from qwen3asr_export import export  # noqa: PLC0415 (counts into the memory)

    start = time.perf_counter()
    bundle = export(checkpoint, folder, precision=precision, check=False, replace=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    seconds = round(time.perf_counter() - start, 1)
    return {"bundle_mb": round(bundle.bytes / 1e6), "export_s": seconds, "export_peak_mib": peak}


def _child(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure what was asked for; the results so far are written after each bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["0.6b", "1.7b", "aligner-0.6b"])
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/graphs.json"))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--child", nargs="+")
    args = parser.parse_args()
    if args.child:
        kind, *rest = args.child
        run = {"measure": lambda: measure(Path(rest[0]))}
        run["export"] = lambda: export_one(Path(rest[0]), Path(rest[1]), rest[2])
        print(json.dumps(run[kind]()))
        return
    report: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    report |= {"command": "python benchmarks/graphs.py", "machine": machine(), "weights": "random (seed 0)"}
    for model in args.models:
        checkpoint = args.work / model
        if not checkpoint.exists():
            from qwen3asr_export.standin import make_standin  # noqa: PLC0415 (heavy)

            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            make_standin(model, checkpoint)
        rows = report.setdefault("models", {}).setdefault(model, {})
        rows["checkpoint_mb"] = round(sum(p.stat().st_size for p in checkpoint.glob("*.safetensors")) / 1e6)
        for precision in args.precisions:
            folder = args.work / f"{model}-{precision}"
            row = _child("export", checkpoint, folder, precision)
            if precision in for_device("cpu"):
                row |= _child("measure", folder)
            shutil.rmtree(folder)
            rows[precision] = row
            print(model, precision, json.dumps(row), file=sys.stderr, flush=True)
            args.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
