"""One clip from samples to forced tokens: this runtime's bundles against its peers, with the same weights, in one run.

python benchmarks/peers.py CHECKPOINT OUT.json BUNDLE... [--sherpa int8 fp32]      (pip install sherpa-onnx==2.0.1)

Peers are transformers' native model, in whichever of float32 and bfloat16, fused and plain attention is fastest here,
and sherpa-onnx, for which the checkpoint is converted beside the results (benchmarks/sherpa.py). Everybody hears the
same samples, uses the same number of threads and writes the same number of tokens; contenders take turns, and a ratio
is between two runs of one round. The checkpoint may be a stand-in (`qwen3asr export --random-like`): times do not
depend on what the weights say.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from machine import in_turn, machine
from sherpa import FILES, convert

import qwen3asr
from qwen3asr.benchmark.clients import Clients
from qwen3asr.benchmark.machine import cores
from qwen3asr.benchmark.speech import speech_like
from qwen3asr.features import SAMPLE_RATE, Samples, frame_count, log_mel
from qwen3asr.prompt import PromptBuilder
from qwen3asr.spec import ModelSpec
from qwen3asr.tokenizer import open_tokenizer

Run: TypeAlias = Callable[[int], None]
"""Samples to so many tokens."""

_ROOM = 64  # tokens of prompts and for rounding up


class WrongLength(RuntimeError):
    """A contender wrote another number of tokens than it was asked for."""

    def __init__(self, name: str, wrote: int, asked: int) -> None:
        super().__init__(f"{name} wrote {wrote} tokens of {asked}: its time cannot be compared; leave it out")


def ours(bundle: Path, samples: Samples, capacity: int, threads: int) -> Run:
    """Through the engine, as users have it."""
    model = qwen3asr.load(bundle, slots=1, capacity=capacity, threads=threads)
    spec = model.bundle.spec
    frame = PromptBuilder(open_tokenizer(bundle, spec)).frame()
    clients = Clients(model.engine.encoder, model.engine.decoder, spec.windows, frame, samples, tokens=1)

    def run(budget: int) -> None:
        (watch,) = replace(clients, tokens=budget).run(1, 1).watches
        if len(watch.times) != budget:
            raise WrongLength(str(bundle), len(watch.times), budget)

    return run


def theirs(checkpoint: Path, spec: ModelSpec, samples: Samples, dtype: str, attention: str) -> Run:
    """Through transformers' native model; features are made in the same way as ours, within the time."""
    loader: Any = transformers.Qwen3ASRForConditionalGeneration
    model = loader.from_pretrained(checkpoint, dtype=dtype, attn_implementation=attention).eval()
    frame = PromptBuilder(open_tokenizer(checkpoint, spec)).frame()
    pads = [spec.audio_pad] * spec.windows.tokens(frame_count(len(samples)))
    ids = torch.tensor([[*frame.head.tolist(), *pads, *frame.tail.tolist()]])

    @torch.inference_mode()
    def run(budget: int) -> None:
        mel = log_mel(samples)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs |= {"input_features": torch.from_numpy(mel)[None].to(model.dtype)}
        inputs |= {"input_features_mask": torch.ones(1, mel.shape[1], dtype=torch.long)}
        done = model.generate(**inputs, do_sample=False, min_new_tokens=budget, max_new_tokens=budget, pad_token_id=0)
        if done.shape[1] - ids.shape[1] != budget:
            raise WrongLength("transformers", done.shape[1] - ids.shape[1], budget)

    return run


def best_of_theirs(checkpoint: Path, spec: ModelSpec, samples: Samples, tokens: int) -> tuple[str, dict[str, float]]:
    """The fastest element type and attention of transformers here, and the seconds of all."""
    seconds = {}
    for dtype in ("float32", "bfloat16"):
        for attention in ("sdpa", "eager"):
            run = theirs(checkpoint, spec, samples, dtype, attention)
            run(2)
            seconds[f"{dtype} {attention}"] = round(_seconds(run, tokens), 3)
            del run
            gc.collect()
    return min(seconds, key=lambda name: seconds[name]), seconds


def sherpa(folder: Path, samples: Samples, capacity: int, threads: int, budgets: Sequence[int]) -> Run:
    """Through sherpa-onnx; its budget is fixed when it is loaded, so it is loaded once for each."""
    library: Any = importlib.import_module("sherpa_onnx")
    files = {name: str(folder / f"{name}.onnx") for name in FILES}
    loaded = {
        budget: library.OfflineRecognizer.from_qwen3_asr(
            **files, tokenizer=str(folder / "tokenizer"), num_threads=threads, max_total_len=capacity,
            max_new_tokens=budget,
        )
        for budget in budgets
    }  # fmt: skip

    def run(budget: int) -> None:
        stream = loaded[budget].create_stream()
        stream.accept_waveform(SAMPLE_RATE, samples)
        loaded[budget].decode_stream(stream)
        if len(stream.result.tokens) != budget:
            raise WrongLength("sherpa-onnx", len(stream.result.tokens), budget)

    return run


def measure(runs: Mapping[str, Run], budgets: Sequence[int], rounds: int) -> dict[str, dict[int, list[float]]]:
    """Seconds of every contender at every budget, round by round."""
    taken = iter(in_turn([partial(run, budget) for run in runs.values() for budget in budgets], rounds))
    return {name: {budget: next(taken) for budget in budgets} for name in runs}


def _seconds(run: Run, budget: int) -> float:
    start = time.perf_counter()
    run(budget)
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def summary(taken: Mapping[str, Mapping[int, Sequence[float]]], peers: Sequence[str]) -> dict[str, Any]:
    """Seconds of all, and how many times as long each peer took as each bundle in the same round."""
    first, whole = next(iter(taken.values())).keys()
    report: dict[str, Any] = {"first_token_seconds": {}, "seconds": {}, "ratios": {}, "first_token_ratios": {}}
    for name, of_budget in taken.items():
        report["first_token_seconds"][name] = spread(of_budget[first])
        report["seconds"][name] = spread(of_budget[whole])
    for peer in peers:
        for name in (name for name in taken if name not in peers):
            for key, budget in (("ratios", whole), ("first_token_ratios", first)):
                pairs = zip(taken[peer][budget], taken[name][budget], strict=True)
                report[key][f"{peer} / {name}"] = spread([theirs / ours for theirs, ours in pairs])
    return report


def table(report: Mapping[str, Any], peers: Sequence[str]) -> str:
    """Markdown: first token, all tokens, and times faster than each peer."""

    def cell(value: Mapping[str, float] | None, digits: int = 2) -> str:
        if value is None:
            return "-"
        return f"{value['median']:.{digits}f} ({value['min']:.{digits}f}-{value['max']:.{digits}f})"

    head = ["", "first token, s", f"all {report['tokens']} tokens, s", *(f"times faster than {peer}" for peer in peers)]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for name in report["seconds"]:
        cells = [name, cell(report["first_token_seconds"][name]), cell(report["seconds"][name])]
        cells += [cell(report["ratios"].get(f"{peer} / {name}")) for peer in peers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--sherpa", nargs="*", default=["int8"], choices=["int8", "fp32"])
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=35)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores())
    return parser.parse_args()


def main() -> None:
    """Time every contender in turn, and write."""
    args = arguments()
    torch.set_num_threads(args.threads)
    samples, budgets = speech_like(args.seconds), (1, args.tokens)
    opened = {bundle: qwen3asr.bundle.open_bundle(bundle) for bundle in args.bundles}
    spec = next(iter(opened.values())).spec
    capacity = spec.windows.tokens(frame_count(len(samples))) + args.tokens + _ROOM
    runs = {opened[path].manifest.precision: ours(path, samples, capacity, args.threads) for path in args.bundles}
    report: dict[str, Any] = {
        "command": "python benchmarks/peers.py CHECKPOINT OUT.json BUNDLE...",
        "machine": machine(),
    }
    report |= {"checkpoint": args.checkpoint.name, "clip_seconds": args.seconds, "tokens": args.tokens}
    report |= {"rounds": args.rounds, "threads": args.threads}
    packages = ["onnxruntime", *(["sherpa-onnx"] if args.sherpa else [])]
    packages += [] if args.no_transformers else ["torch", "transformers"]
    report["versions"] = {name: version(name) for name in packages}
    peers = []
    work = Path(tempfile.mkdtemp(prefix=".peers-", dir=args.out.absolute().parent))
    try:
        if not args.no_transformers:
            best, report["transformers_choice"] = best_of_theirs(args.checkpoint, spec, samples, args.tokens)
            peers.append(f"transformers {best}")
            runs[peers[-1]] = theirs(args.checkpoint, spec, samples, *best.split())
        for precision in args.sherpa:
            folder = convert(
                args.checkpoint, work / precision, int8=precision == "int8", capacity=capacity, forced=True
            )  # fmt: skip
            peers.append(f"sherpa-onnx {precision}")
            runs[peers[-1]] = sherpa(folder, samples, capacity, args.threads, budgets)
        report |= summary(measure(runs, budgets, args.rounds), peers)
    finally:
        shutil.rmtree(work)
    args.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(table(report, peers))


if __name__ == "__main__":
    main()
