"""A 10 s clip with 35 forced tokens at full size: this runtime's bundles against transformers, alternating in one run.

python benchmarks/against_transformers.py CHECKPOINT OUT.json BUNDLE...

Both start from the same log-mel, have the same weights and write the same number of tokens; ours through the engine, as
users have it, which feeds what every prompt begins with to a slot once. The checkpoint may be a stand-in
(`qwen3asr export --random-like`): times do not depend on what the weights say.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
from graphs import CAPACITY, FORCED
from machine import in_turn, machine

from qwen3asr.bundle import open_bundle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.engine import Engine
from qwen3asr.features import log_mel, split_windows
from qwen3asr.jobs import Job
from qwen3asr.prompt import PromptBuilder
from qwen3asr.sessions.onnxruntime import OrtDecoder, OrtEncoder
from qwen3asr.tokenizer import open_tokenizer
from qwen3asr_export.expectation import synthetic

ROUNDS, SECONDS = 5, 10.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def ours(folder: Path, mel: np.ndarray) -> Callable[[int], object]:
    """Mel to tokens through a bundle, with a budget that never ends early."""
    bundle = open_bundle(folder)
    encoder = Encoder(OrtEncoder(bundle.component("encoder")), bundle.spec.windows)
    session = OrtDecoder(bundle.component("decoder"), bundle.spec, slots=1, capacity=CAPACITY)
    decoder = Decoder(session, bundle.spec.audio_pad, bundle.spec.hidden)
    frame = PromptBuilder(open_tokenizer(folder, bundle.spec)).frame()
    engine, windows = Engine(encoder, decoder, ()), split_windows(mel, bundle.spec.windows)

    def run(budget: int) -> object:
        return engine.submit(Job(frame, windows, budget)).result()

    return run


def theirs(checkpoint: Path, dtype: torch.dtype, mel: np.ndarray, ids: np.ndarray) -> Callable[[int], object]:
    """The same through transformers' native model, scaled-dot-product attention."""
    loader: Any = transformers.Qwen3ASRForConditionalGeneration
    model = loader.from_pretrained(checkpoint, dtype=dtype, attn_implementation="sdpa").eval()
    features, tokens = torch.from_numpy(mel)[None].to(dtype), torch.from_numpy(ids)[None]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "input_features": features}
    inputs["input_features_mask"] = torch.ones(1, mel.shape[1], dtype=torch.long)

    @torch.inference_mode()
    def run(budget: int) -> object:
        return model.generate(**inputs, do_sample=False, min_new_tokens=budget, max_new_tokens=budget, pad_token_id=0)

    return run


def main() -> None:
    """Time every contender in turn, several rounds; ratios are within a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES, help="of transformers")
    args = parser.parse_args()
    mel = log_mel(synthetic(SECONDS))
    first = open_bundle(args.bundles[0])
    rows = np.zeros((first.spec.windows.tokens(mel.shape[1]), first.spec.hidden), np.float32)
    ids = PromptBuilder(open_tokenizer(first.folder, first.spec)).transcription(rows).ids
    runs = {open_bundle(folder).manifest.precision: ours(folder, mel) for folder in args.bundles}
    for dtype in args.dtypes:
        runs[f"transformers {dtype}"] = theirs(args.checkpoint, DTYPES[dtype], mel, ids)
    taken = in_turn([partial(run, budget) for run in runs.values() for budget in (1, FORCED)], ROUNDS)
    first_token, times = dict(zip(runs, taken[::2], strict=True)), dict(zip(runs, taken[1::2], strict=True))
    report: dict[str, Any] = {"command": "python benchmarks/against_transformers.py CHECKPOINT OUT.json BUNDLE..."}
    report |= {"machine": machine(), "checkpoint": args.checkpoint.name, "clip_seconds": SECONDS, "tokens": FORCED}
    versions = {lib.__name__: lib.__version__ for lib in (transformers, torch, onnxruntime)}
    report |= {"rounds": ROUNDS, "versions": versions, "seconds": {}, "first_token_seconds": {}, "ratios": {}}
    for name in runs:
        report["seconds"][name] = round(statistics.median(times[name]), 3)
        report["first_token_seconds"][name] = round(statistics.median(first_token[name]), 3)
    for peer in (f"transformers {dtype}" for dtype in args.dtypes):
        for name in runs:
            if not name.startswith("transformers"):
                ratios = sorted(b / a for a, b in zip(times[name], times[peer], strict=True))
                spread = {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]}
                report["ratios"][f"{peer} / {name}"] = {key: round(value, 2) for key, value in spread.items()}
    args.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
