"""This project on an NVIDIA GPU, beside transformers and what the GPU allows. Not run on one yet.

python benchmarks/gpu.py prepare                     (needs espeak-ng: utterances as files, for a machine without it)
python benchmarks/gpu.py parity [tiny-asr tiny-aligner 0.6b ...]
python benchmarks/gpu.py words
python benchmarks/gpu.py speed 0.6b [1.7b aligner-0.6b] [--only "cuda bf16 ort captured"]
python benchmarks/gpu.py COMMAND --dry-run           (the tiny models on the CPU, through the same code)

Results go to benchmarks/results/gpu_COMMAND.json with the machine's name, a dry run's to build/gpu/dry-run; what a
contender refuses is written down in its own words, and beside figures that have a bar, whether they meet it.
`tensorrt-native` engines are built for each row's slots and capacity, which takes minutes the first time and is told
beside the row's figures, and are kept in the bundle; they have no logits, so their answers are compared, and the log
probabilities of these. The GPU machine needs no network: pack the wheels of onnxruntime-gpu, cuda-python and TensorRT
elsewhere. Random checkpoints in the released shapes are made where they are not there (a minute); start `speed` once a
model, so that each call stays under ten minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch  # before onnxruntime: it brings CUDA's libraries
from gpu_contender import Contender
from gpu_machine import described, measure_limits
from gpu_models import Progress
from gpu_native import NativeContender
from gpu_ort import OrtContender
from gpu_parity import parity
from gpu_speed import DRY, Load, speed
from gpu_words import prepare, utterances, words

ON_GPU: tuple[Contender, ...] = (
    OrtContender("nv_tensorrt_rtx", "bf16", "standard"),  # first, for what it says on this GPU
    OrtContender("cuda", "fp32", "standard"),
    OrtContender("cuda", "bf16", "ort"),
    OrtContender("cuda", "bf16", "ort", graphs=True),
    OrtContender("cuda", "bf16", "standard", graphs=True),
    OrtContender("cuda", "fp16", "ort", graphs=True),
    OrtContender("tensorrt", "bf16", "standard"),
    NativeContender("bf16"),
    NativeContender("int8"),
    NativeContender("fp8"),
    NativeContender("int4"),
)
IN_PARITY: tuple[Contender, ...] = (NativeContender("fp16"), NativeContender("fp32"))
"""Compared beside them, for whether they are right; nobody would choose them for speed."""
ON_CPU: tuple[Contender, ...] = (OrtContender("cpu", "fp32", "ort"), OrtContender("cpu", "fp32", "standard"))
"""For a dry run: the code that a GPU runs, in host memory."""

RESULTS = Path(__file__).resolve().parent / "results"
MODELS = {"parity": ["tiny-asr", "tiny-aligner", "0.6b"], "words": [], "speed": ["0.6b"], "prepare": []}
DRY_MODELS = {"parity": ["tiny-asr", "tiny-aligner"], "words": [], "speed": ["tiny-asr", "tiny-aligner"], "prepare": []}


def arguments(given: list[str]) -> argparse.Namespace:
    """The command line, with the defaults of a dry run where that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=MODELS)
    parser.add_argument("models", nargs="*", help="tiny-asr, tiny-aligner, 0.6b, 1.7b, aligner-0.6b")
    parser.add_argument("--dry-run", action="store_true", help="tiny models, on the CPU")
    parser.add_argument("--only", nargs="+", default=[], help="contenders by name; all, if none is named")
    parser.add_argument("--concurrency", nargs="+", type=int, help="clips at a time")
    parser.add_argument("--budget", type=int, default=32, help="tokens of a greedy text in `parity`")
    parser.add_argument("--count", type=int, default=300, help="utterances of `prepare`")
    parser.add_argument("--seconds", type=float, default=480, help="after these, nothing more is begun")
    parser.add_argument("--work", type=Path, default=Path("build/gpu"), help="checkpoints, bundles, engines")
    parser.add_argument("--out", type=Path, help="folder of the results")
    args = parser.parse_args(given)
    args.models = args.models or (DRY_MODELS if args.dry_run else MODELS)[args.command]
    args.out = args.out or (args.work / "dry-run" if args.dry_run else RESULTS)
    args.device = "cpu" if args.dry_run else "cuda"
    return args


def chosen(command: str, only: list[str], dry_run: bool) -> tuple[Contender, ...]:
    """A command's contenders of these names.

    Raises:
        SystemExit: one of them is not known.
    """
    everyone = ON_CPU if dry_run else ON_GPU + (IN_PARITY if command == "parity" else ())
    unknown = set(only) - {contender.name for contender in everyone}
    if unknown:
        sys.exit(f"not known: {', '.join(sorted(unknown))}; known are: {', '.join(c.name for c in everyone)}")
    return tuple(contender for contender in everyone if not only or contender.name in only)


def load_of(args: argparse.Namespace) -> Load:
    """What `speed` measures."""
    base = DRY if args.dry_run else Load()
    return Load(**{**asdict(base), "concurrency": tuple(args.concurrency or base.concurrency)})


def run(args: argparse.Namespace, save: Callable[[dict[str, Any]], None]) -> None:
    """One command; its report is saved after each row, for the machine may be gone before the last."""
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; try the code with --dry-run")
    models: dict[str, Any] = {}
    report: dict[str, Any] = {"command": f"python benchmarks/gpu.py {args.command}", "dry_run": args.dry_run}
    report |= described(args.device) | {"models": models}
    contenders, progress = chosen(args.command, args.only, args.dry_run), Progress(lambda: save(report), args.seconds)
    if args.command == "parity":
        parity(models, args.models, contenders, args.device, args.work, args.budget, progress)
    elif args.command == "words":
        spoken = utterances(args.work / "utterances")
        words(models.setdefault("tiny-asr", {}), contenders, spoken, args.work, progress)
    else:
        limits, load = measure_limits(args.device, quick=args.dry_run), load_of(args)
        report |= {"limits": asdict(limits), "load": asdict(load)}
        speed(models, args.models, contenders, args.device, limits, load, args.work, progress)


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """One call's figures into those of earlier calls on the same machine; of another machine nothing is kept."""
    if old.get("gpu") != new.get("gpu") or old.get("machine") != new["machine"]:
        return new
    return old | new | {"models": _joined(old.get("models", {}), new["models"])}


def _joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Tables of tables: a row is replaced, the others stay."""
    both = dict(old)
    for name, value in new.items():
        nested = isinstance(value, dict) and isinstance(old.get(name), dict) and "error" not in value
        both[name] = _joined(old[name], value) if nested and all(isinstance(v, dict) for v in value.values()) else value
    return both


def main() -> None:
    """Run one command and write its results."""
    args = arguments(sys.argv[1:])
    if args.command == "prepare":
        prepare(args.work / "utterances", args.count)
        return
    path = args.out / f"gpu_{args.command}.json"
    args.out.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text("utf-8")) if path.exists() else {}
    run(args, lambda report: _write(path, merged(before, report)))


def _write(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
