"""Scores of the tiny checkpoints on voices that they have never heard."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen3ASRForConditionalGeneration, Qwen3ASRForTokenClassification

from qwen3asr.features import WindowSpec, log_mel
from qwen3asr.words import repair_times
from speech import Lexicon, Utterance, compose

SPEC = WindowSpec()


def test_set(lexicon: Lexicon, seed: int, count: int, low: int, high: int) -> list[Utterance]:
    """``count`` utterances; one in twenty without speech."""
    rng = np.random.default_rng(seed)
    return [compose(lexicon, rng, 0 if i % 20 == 0 else int(rng.integers(low, high + 1))) for i in range(count)]


def _features(utterance: Utterance) -> tuple[torch.Tensor, torch.Tensor]:
    mel = log_mel(utterance.samples)
    padded = np.zeros((1, 128, SPEC.pad_frames(mel.shape[1])), np.float32)
    padded[0, :, : mel.shape[1]] = mel
    mask = torch.zeros(1, padded.shape[2], dtype=torch.long)
    mask[0, : mel.shape[1]] = 1
    return torch.from_numpy(padded), mask


def _pads(mask: torch.Tensor) -> str:
    return "<|audio_pad|>" * SPEC.tokens(int(mask.sum()))


@torch.inference_mode()
def recognise(model: nn.Module, tokenizer: Tokenizer, utterance: Utterance) -> str:
    """The model's raw output for one utterance, greedy."""
    mel, mask = _features(utterance)
    head = f"<|im_start|>system\n{utterance.context}<|im_end|>\n<|im_start|>user\n<|audio_start|>"
    ids = tokenizer.encode(f"{head}{_pads(mask)}<|audio_end|><|im_end|>\n<|im_start|>assistant\n").ids
    out = model.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), input_features=mel,
        input_features_mask=mask, max_new_tokens=64, do_sample=False,
    )  # fmt: skip
    return str(tokenizer.decode(out[0, len(ids) :].tolist(), skip_special_tokens=True))


@torch.inference_mode()
def boundaries(model: nn.Module, tokenizer: Tokenizer, utterance: Utterance) -> np.ndarray:
    """Start and end of every word in seconds, repaired as the runtime repairs them."""
    mel, mask = _features(utterance)
    stamped = "".join(f"{word.text}<timestamp><timestamp>" for word in utterance.words)
    ids = torch.tensor([tokenizer.encode(f"<|audio_start|>{_pads(mask)}<|audio_end|>{stamped}").ids])
    logits = model(input_ids=ids, input_features=mel, input_features_mask=mask).logits
    picked = logits[0, ids[0] == model.config.timestamp_token_id].argmax(-1)
    return np.array(repair_times((picked.numpy() * 80).tolist())) / 1000


def score(folder: Path, tokenizer: Tokenizer, lexicon: Lexicon) -> dict[str, Any]:
    """Exact-utterance rates and boundary errors of the saved checkpoints, for 1-9 words and for long utterances."""
    asr = Qwen3ASRForConditionalGeneration.from_pretrained(folder / "asr", dtype=torch.float32).eval()
    aligner = Qwen3ASRForTokenClassification.from_pretrained(folder / "aligner", dtype=torch.float32).eval()
    report: dict[str, Any] = {}
    for name, seed, count, low, high in (("utterances", 21, 600, 1, 9), ("long", 22, 100, 10, 22)):
        utterances = test_set(lexicon, seed, count, low, high)
        exact, by_language, errors, misses = 0, Counter[str](), [], []
        for utterance in utterances:
            wanted = f"language {utterance.language}<asr_text>{utterance.text}"
            got = recognise(asr, tokenizer, utterance)
            right = got == wanted
            exact += right
            by_language[f"{utterance.language} {'right' if right else 'wrong'}"] += 1
            if not right:
                misses.append(f"{wanted} -> {got}")
            if utterance.words:
                true = np.array([time for word in utterance.words for time in (word.start, word.end)])
                errors.append(np.abs(boundaries(aligner, tokenizer, utterance) - true))
        entry: dict[str, Any] = {"count": count, "words": [low, high], "exact": round(exact / count, 4)}
        entry["by_language"] = dict(sorted(by_language.items()))
        flat = np.concatenate(errors)
        entry["boundary_mean_ms"] = round(float(flat.mean() * 1000), 1)
        entry["boundary_within_80_ms"] = round(float((flat <= 0.08).mean()), 4)
        report[name] = entry
        print(*misses[:25], sep="\n")
    return report
