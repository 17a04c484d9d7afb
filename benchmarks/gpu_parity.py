"""Every contender against transformers on the same GPU: greedy ids, forced answers, logits, aligner classes."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_contender import Contender
from gpu_models import Peer, Progress, checkpoint, release

from qwen3asr.bundle import Bundle
from qwen3asr.decoder import Decoder
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
        ``logprobs``: largest difference of the answers' log probabilities, where they are the same answers;
        ``answers_differ``: share of forced positions with another best token or class; ``clips_equal``: share of
        clips whose own greedy ids, or classes, are transformers'; ``rows_equal``, of recognisers: share of rows whose
        ids, stepping together, are those that each has alone.
    """
    spec, budget = contender.bundle(name, work).spec, max(len(greedy) for *_, greedy in wanted.clips)
    capacity = max(len(ids) for _, ids, *_ in wanted.clips) + budget + 2
    logits_of, slots = contender.logits(name, work, capacity), len(wanted.clips) if spec.kind == "asr" else 1
    worst, unsure, differing, positions, equal = list[float](), list[float](), 0, 0, 0
    starts, alone = list[Prompt](), list[list[int]]()
    with closing(contender.open(name, work, slots=slots, capacity=capacity)) as graphs:
        for mel, ids, keep, logits, greedy in wanted.clips:
            (rows,) = graphs.encoder.encode([mel])
            prompt, best = Prompt(ids, rows), logits.argmax(-1)
            if logits_of is not None:
                worst.append(float(np.abs(logits_of(prompt, keep) - logits).max() / np.abs(logits).max()))
            picked = graphs.decoder.prefill(prompt, keep, slot=0)
            same = picked.tokens[0] == best
            wrong = int((~same).sum())
            unsure += np.abs(picked.logprobs[0] - _best_logprobs(logits))[same].tolist()
            if spec.kind == "asr":
                starts.append(Prompt(ids[: keep[0] + 1], rows))
                # in the first slot: only steps of the slots from there on are captured
                alone.append(list(generate(graphs.decoder, starts[-1], eos=spec.eos, budget=budget).tokens))
                equal += alone[-1] == [token for token in greedy if token not in spec.eos]
            else:
                equal += not wrong
            differing, positions = differing + wrong, positions + len(keep)
        figures: dict[str, Any] = {"logits": max(worst, default=None), "logprobs": max(unsure, default=None)}
        figures |= {"answers_differ": differing / positions, "positions": positions}
        figures |= {"clips_equal": equal / len(wanted.clips)}
        if starts:
            texts = zip(together(graphs.decoder, starts, budget), alone, strict=True)
            figures["rows_equal"] = sum(text[: len(own)] == own for text, own in texts) / len(starts)
        return figures | dict(graphs.notes)


def together(decoder: Decoder, prompts: list[Prompt], budget: int) -> list[list[int]]:
    """Greedy ids of prompts in the first slots, all of which step together; none ends before the budget."""
    texts = []
    for slot, prompt in enumerate(prompts):
        picked = decoder.prefill(prompt, np.array([len(prompt.ids) - 1]), slot)
        texts.append([int(picked.tokens[0, 0])])
    for step in range(budget - 1):
        picked = decoder.step_rows([text[-1] for text in texts], [len(prompt.ids) + step for prompt in prompts])
        for text, token in zip(texts, picked.tokens[:, 0], strict=True):
            text.append(int(token))
    return texts


def _best_logprobs(logits: np.ndarray) -> np.ndarray:
    """Of the best answer at each position, float64 ``[T]``."""
    above = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(-np.log(np.exp(above).sum(-1)))


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
            release()  # transformers' model
            rows = report.setdefault(name, {}).setdefault(f"against transformers {label}", {})
            for contender in contenders:
                progress.row(rows, contender.name, partial(compare, contender, name, wanted, work))
