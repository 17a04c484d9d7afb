"""Every contender against transformers on the same GPU: greedy ids, forced answers, logits, aligner classes."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_contender import Contender
from gpu_models import Peer, Progress, checkpoint

from qwen3asr.bundle import Bundle
from qwen3asr.features import Mel, log_mel
from qwen3asr.generate import generate
from qwen3asr.prompt import Prompt, PromptBuilder
from qwen3asr.tokenizer import open_tokenizer
from qwen3asr_export.expectation import synthetic

SECONDS = (0.5, 2.5, 8.0, 8.01, 20.0)
TEXT = "zero one two three four five six seven eight nine".split()


class Wanted:
    """What transformers says of a few clips: prompts, forced continuations, logits."""

    def __init__(self, folder: Path, bundle: Bundle, dtype: torch.dtype, device: str, budget: int) -> None:
        prompts = PromptBuilder(open_tokenizer(bundle.folder, bundle.spec))
        peer = Peer(folder, dtype, device)
        self.clips: list[tuple[Mel, np.ndarray, np.ndarray, np.ndarray, list[int]]] = []
        for seconds in SECONDS:
            mel = log_mel(synthetic(seconds))
            if bundle.spec.kind == "aligner":
                prompt, keep = prompts.alignment(peer.rows(mel), TEXT)
                ids, greedy = prompt.ids, list[int]()
            else:
                start = prompts.transcription(peer.rows(mel)).ids
                (greedy,) = peer.forced(start, [mel], budget, to_end=True)
                ids, keep = (
                    np.concatenate([start, greedy[:-1]]),
                    np.arange(len(start) - 1, len(start) + len(greedy) - 1),
                )
            self.clips.append((mel, ids, keep, peer.logits(ids, mel, keep), greedy))


def compare(contender: Contender, name: str, wanted: Wanted, work: Path) -> dict[str, Any]:
    """Worst figures of all clips.

    Returns:
        ``logits``: largest difference over the largest value, ``None`` where a contender has none to look at;
        ``answers_differ``: share of forced positions with another best token or class; ``clips_equal``: share of
        clips whose own greedy ids, or classes, are transformers'.
    """
    spec, budget = contender.bundle(name, work).spec, max(len(greedy) for *_, greedy in wanted.clips)
    capacity = max(len(ids) for _, ids, *_ in wanted.clips) + budget + 2
    logits_of, slots = contender.logits(name, work, capacity), 2 if spec.kind == "asr" else 1
    worst, differing, positions, equal = list[float](), 0, 0, 0
    with closing(contender.open(name, work, slots=slots, capacity=capacity)) as graphs:
        for mel, ids, keep, logits, greedy in wanted.clips:
            (rows,) = graphs.encoder.encode([mel])
            prompt, best = Prompt(ids, rows), logits.argmax(-1)
            if logits_of is not None:
                worst.append(float(np.abs(logits_of(prompt, keep) - logits).max() / np.abs(logits).max()))
            wrong = int((graphs.decoder.prefill(prompt, keep, slot=0).tokens[0] != best).sum())
            if spec.kind == "asr":
                start = Prompt(ids[: keep[0] + 1], rows)
                written = generate(graphs.decoder, start, eos=spec.eos, budget=budget, slot=1).tokens
                equal += list(written) == [token for token in greedy if token not in spec.eos]
            else:
                equal += not wrong
            differing, positions = differing + wrong, positions + len(keep)
        figures = {"logits": max(worst, default=None), "answers_differ": differing / positions, "positions": positions}
        return figures | {"clips_equal": equal / len(wanted.clips), **graphs.notes}


def parity(
    report: dict[str, Any], names: list[str], contenders: tuple[Contender, ...], device: str, work: Path, budget: int,
    progress: Progress,
) -> None:  # fmt: skip
    """All models and contenders, against transformers in fp32 and bf16; fills ``report``."""
    if device == "cuda":  # what fp32 means must not depend on torch's defaults
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name in names:
        first = contenders[-1].bundle(name, work)
        for label, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            wanted = Wanted(checkpoint(name, work), first, dtype, device, budget)
            rows = report.setdefault(name, {}).setdefault(f"against transformers {label}", {})
            for contender in contenders:
                progress.row(rows, contender.name, partial(compare, contender, name, wanted, work))
