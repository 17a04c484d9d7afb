"""How close every precision of every released shape stays to float32, on random weights: `qwen3asr verify`'s figures.

python benchmarks/agreement.py --work build/bench --out benchmarks/results/agreement.json [0.6b 1.7b aligner-0.6b]

Eleven clips, 528 forced positions. Random weights amplify rounding as no trained model does (answers hang on the last
bits), so "damage" is an upper bound of little meaning here; what it is on trained weights, tiny_precisions.py tells.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from machine import machine

from qwen3asr_export import export, verify
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.precision import PRECISIONS
from qwen3asr_export.standin import make_standin

SECONDS = (0.3, 0.5, 1.0, 1.01, 1.9, 2.5, 3.0, 4.2, 7.99, 8.01, 9.0)


def main() -> None:
    """Export and verify each; the results so far are written after each bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["0.6b", "aligner-0.6b", "1.7b"])
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/agreement.json"))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    args = parser.parse_args()
    report: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    report |= {"command": "python benchmarks/agreement.py", "machine": machine(), "clip_seconds": SECONDS}
    for model in args.models:
        folder = args.work / model
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            make_standin(model, folder)
        checkpoint = Checkpoint(folder)
        for precision in args.precisions:
            start, target = time.perf_counter(), args.work / f"agreement-{model}-{precision}"
            bundle = export(folder, target, precision=precision, check=False, replace=True)
            figures = verify(bundle, checkpoint, seconds=SECONDS).to_dict()
            shutil.rmtree(target)
            rows = {check["check"]: _rounded(check["worst"]) for check in figures["checks"]}
            report.setdefault("reference", figures["reference"])
            report.setdefault("models", {}).setdefault(model, {})[precision] = rows
            print(model, precision, round(time.perf_counter() - start), "s", rows, file=sys.stderr, flush=True)
            args.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def _rounded(worst: float | None) -> float | None:
    """To three figures; ``None`` where it is not finite."""
    return None if worst is None else float(f"{worst:.3g}")


if __name__ == "__main__":
    main()
