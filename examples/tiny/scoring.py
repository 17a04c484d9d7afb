"""Scores of the tiny checkpoints on voices that they have never heard."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from qwen3asr.features import Mel, log_mel
from qwen3asr.prompt import PromptBuilder
from qwen3asr.sessions.base import Embeddings
from qwen3asr.times import repair_times
from qwen3asr.tokenizer import open_tokenizer
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.reference import Reference
from speech import Lexicon, Utterance, compose


def test_set(lexicon: Lexicon, seed: int, count: int, low: int, high: int) -> list[Utterance]:
    """``count`` utterances; one in twenty without speech."""
    rng = np.random.default_rng(seed)
    return [compose(lexicon, rng, 0 if i % 20 == 0 else int(rng.integers(low, high + 1))) for i in range(count)]


class Pair:
    """Both checkpoints as transformers runs them, fed as the runtime feeds them."""

    def __init__(self, folder: Path) -> None:
        self._asr, self._aligner = (Checkpoint(folder / kind) for kind in ("asr", "aligner"))
        self._recogniser, self._stamper = Reference(self._asr), Reference(self._aligner)
        self._tokenizer = open_tokenizer(folder / "asr", self._asr.spec)
        self._prompts = PromptBuilder(self._tokenizer)

    def recognise(self, utterance: Utterance) -> str:
        """The raw output for one utterance, greedy."""
        mel = log_mel(utterance.samples)
        prompt = self._prompts.transcription(self._rows(mel), utterance.context)
        return self._tokenizer.decode(self._recogniser.greedy(prompt.ids, mel, 64))

    def boundaries(self, utterance: Utterance) -> np.ndarray:
        """Start and end of every word in seconds, repaired as the runtime repairs them."""
        mel = log_mel(utterance.samples)
        prompt, marks = self._prompts.alignment(self._rows(mel), [word.text for word in utterance.words])
        classes = self._stamper.logits(prompt.ids, mel, marks).argmax(-1)
        return np.array(repair_times((classes * 80).tolist())) / 1000

    def _rows(self, mel: Mel) -> Embeddings:
        """As many rows as the encoder will make; only their number matters here."""
        return np.zeros((self._asr.spec.windows.tokens(mel.shape[1]), 1), np.float32)


def score(folder: Path, lexicon: Lexicon) -> dict[str, Any]:
    """Exact-utterance rates and boundary errors of the saved checkpoints, for 1-9 words and for long utterances."""
    pair = Pair(folder)
    report: dict[str, Any] = {}
    for name, seed, count, low, high in (("utterances", 21, 600, 1, 9), ("long", 22, 100, 10, 22)):
        utterances = test_set(lexicon, seed, count, low, high)
        exact, by_language, errors, misses = 0, Counter[str](), [], []
        for utterance in utterances:
            wanted = f"language {utterance.language}<asr_text>{utterance.text}"
            got = pair.recognise(utterance)
            right = got == wanted
            exact += right
            by_language[f"{utterance.language} {'right' if right else 'wrong'}"] += 1
            if not right:
                misses.append(f"{wanted} -> {got}")
            if utterance.words:
                true = np.array([time for word in utterance.words for time in (word.start, word.end)])
                errors.append(np.abs(pair.boundaries(utterance) - true))
        entry: dict[str, Any] = {"count": count, "words": [low, high], "exact": round(exact / count, 4)}
        entry["by_language"] = dict(sorted(by_language.items()))
        flat = np.concatenate(errors)
        entry["boundary_mean_ms"] = round(float(flat.mean() * 1000), 1)
        entry["boundary_within_80_ms"] = round(float((flat <= 0.08).mean()), 4)
        report[name] = entry
        print(*misses[:25], sep="\n")
    return report
