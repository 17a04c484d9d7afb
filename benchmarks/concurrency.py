"""What continuous batching gains on this CPU: one 10 s clip after the other, against 2, 4 and 8 at a time.

python benchmarks/concurrency.py --work build/bench --out benchmarks/results/concurrency.json

Full-size 0.6B in int4 and int8 with random weights, 35 tokens forced a clip. Throughput against one by one, and time to
first token: of files, whose steps wait for those that can join them soon; and of live requests, for which the units of
admission work between two steps are counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from qwen3asr.bundle import open_bundle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.engine import Engine
from qwen3asr.features import MEL_BINS
from qwen3asr.jobs import Job
from qwen3asr.prompt import Frame
from qwen3asr.scheduler import Policy
from qwen3asr.sessions.onnxruntime import OrtDecoder, OrtEncoder
from qwen3asr_export import export
from qwen3asr_export.standin import make_standin

CLIPS, FORCED, CONCURRENT = 8, 35, (1, 2, 4, 8)
ADMISSIONS = {"files": (False, Policy()), "live": (True, Policy()), "live, 4 units": (True, Policy(units_per_step=4))}


def _clip(rng: np.random.Generator) -> Job:
    """Ten seconds of noise; prompt ids as many as the real prompt has."""
    windows = [rng.normal(0, 1, (MEL_BINS, frames)).astype(np.float32) for frames in (800, 200)]
    return Job(Frame(np.arange(9), np.arange(6)), windows, FORCED)


def _run(encoder: Encoder, decoder: Decoder, jobs: list[Job], at_a_time: int, admission: str) -> dict[str, float]:
    """All jobs, so many at a time; the next starts when one is done."""
    live, policy = ADMISSIONS[admission]
    engine = Engine(encoder, decoder, (), policy=policy)
    start = time.perf_counter()
    running = []
    for job in jobs:
        if len(running) == at_a_time:
            running.pop(0).result()
        running.append(engine.submit(replace(job, live=live)))
    for future in running:
        future.result()
    wall = time.perf_counter() - start
    engine.close()
    counted = engine.metrics.snapshot()
    return {
        "seconds": wall,
        "first_token_s": counted.time_to_first_token.mean,
        "inter_token_ms": counted.inter_token.mean * 1000,
        "inter_token_p99_ms": counted.inter_token.p99 * 1000,
        "rows_per_step": counted.rows_per_step,
    }


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """One bundle: medians over rounds in which every setting has its turn."""
    bundle = open_bundle(folder)
    spec = bundle.spec
    encoder = Encoder(OrtEncoder(bundle.component("encoder")), spec.windows)
    session = OrtDecoder(bundle.component("decoder"), spec, slots=max(CONCURRENT), capacity=1024)
    decoder = Decoder(session, spec.audio_pad, spec.hidden)
    rng = np.random.default_rng(0)
    jobs = [_clip(rng) for _ in range(CLIPS)]
    settings = [(1, "files")] + [(n, name) for n in CONCURRENT[1:] for name in ADMISSIONS]
    _run(encoder, decoder, jobs[:2], 2, "files")
    runs: dict[tuple[int, str], list[dict[str, float]]] = {setting: [] for setting in settings}
    for _ in range(rounds):
        for at_a_time, name in settings:
            runs[at_a_time, name].append(_run(encoder, decoder, jobs, at_a_time, name))
    alone = [run["seconds"] for run in runs[1, "files"]]
    table = []
    for (at_a_time, name), results in runs.items():
        ratios = [one / result["seconds"] for one, result in zip(alone, results, strict=True)]
        row: dict[str, Any] = {"clips_at_a_time": at_a_time, "policy": name}
        row |= {key: round(statistics.median(result[key] for result in results), 3) for key in results[0]}
        row["throughput_ratio"] = round(statistics.median(ratios), 2)
        row["throughput_ratio_spread"] = [round(min(ratios), 2), round(max(ratios), 2)]
        table.append(row)
    return {"clips": CLIPS, "forced_tokens": FORCED, "rounds": rounds, "rows": table}


def main() -> None:
    """Make what is missing, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/concurrency.json"))
    parser.add_argument("--precisions", nargs="+", default=["int4", "int8"])
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    report: dict[str, Any] = {"command": "python benchmarks/concurrency.py", "machine": machine(), "0.6b": {}}
    for precision in args.precisions:
        folder = args.work / f"b-{precision}"
        if not folder.exists():
            if not (args.work / "0.6b").exists():
                make_standin("0.6b", args.work / "0.6b")
            export(args.work / "0.6b", folder, precision=precision, check=False)
        report["0.6b"][precision] = measure(folder, args.rounds)
        print(json.dumps(report["0.6b"][precision], indent=1), flush=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
