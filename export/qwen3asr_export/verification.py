"""Does the bundle do what the checkpoint does in PyTorch? Stage by stage, then one table and one verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from qwen3asr.bundle import Bundle, amend_manifest
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.errors import RequestInvalid, VerificationFailed
from qwen3asr.features import SAMPLE_RATE, Mel, Samples, log_mel
from qwen3asr.generate import generate
from qwen3asr.prompt import Prompt, PromptBuilder
from qwen3asr.sessions.base import Embeddings, Ids
from qwen3asr.sessions.onnxruntime import OrtDecoder, OrtEncoder
from qwen3asr.tokenizer import open_tokenizer
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.graph import FLOAT
from qwen3asr_export.reference import Reference

CLIP_SECONDS = (0.3, 0.5, 1.0, 1.01, 3.0, 7.99, 8.0, 8.01, 16.0, 23.7, 60.0)
"""Around the lengths where things change: half a second, whole seconds (chunks), 8 s (windows)."""
MEL_BOUND = 1e-4
RELATIVE_BOUND = 2e-4
LOGPROB_BOUND = 1e-3
_FORCED = 48  # text tokens of the forced sequence
_GREEDY = 24  # tokens decoded freely
_UNITS = 12  # words given to the aligner


@dataclass(slots=True)
class Check:
    """One comparison: the worst figure over all clips, against its bound."""

    name: str
    bound: float
    unit: str
    worst: float = 0.0
    where: str = "-"
    count: int = 0

    @property
    def passed(self) -> bool:
        """Within the bound, and run at all."""
        return self.count > 0 and self.worst <= self.bound

    def add(self, value: float, where: str) -> None:
        """Take in one clip's figure; NaN counts as infinite."""
        self.count += 1
        value = float("inf") if np.isnan(value) else float(value)
        if value > self.worst:
            self.worst, self.where = value, where


@dataclass(slots=True)
class Report:
    """What verification measured."""

    reference: str
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Every check held."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """For bundle.json."""
        rows = [
            {"check": c.name, "worst": c.worst, "bound": c.bound, "unit": c.unit, "comparisons": c.count}
            for c in self.checks
        ]
        return {"reference": self.reference, "passed": self.passed, "checks": rows}

    def table(self) -> str:
        """One line a check."""
        lines = [f"{'check':<34}{'worst':>12}{'bound':>10}  {'unit':<18}{'clips':>6}  verdict"]
        for c in self.checks:
            verdict = "ok" if c.passed else f"FAILED at {c.where}"
            lines.append(f"{c.name:<34}{c.worst:>12.3g}{c.bound:>10.3g}  {c.unit:<18}{c.count:>6}  {verdict}")
        return "\n".join(lines)


def verify(
    bundle: Bundle,
    checkpoint: Checkpoint,
    *,
    seconds: tuple[float, ...] = CLIP_SECONDS,
    recordings: dict[str, Samples] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Compare a bundle with its checkpoint run by transformers.

    Args:
        bundle: what was exported.
        checkpoint: what it was exported from.
        seconds: lengths of the synthetic clips.
        recordings: more clips by name, float32 at 16 kHz.
        progress: told how many clips are done.

    The figures are recorded in the bundle, good or bad.

    Raises:
        RequestInvalid: the bundle was made from another checkpoint.
        VerificationFailed: some figure is past its bound; the message holds the whole table.
    """
    if bundle.spec != checkpoint.spec or bundle.manifest.source["weights_sha256"] != checkpoint.weights_sha256:
        raise RequestInvalid(
            f"{bundle.folder} was not exported from {checkpoint.folder}, but from a checkpoint called "
            f"{bundle.manifest.source['name']} with other weights; give that one"
        )
    clips = {f"{length:g} s": synthetic(length) for length in seconds} | (recordings or {})
    judge = _AlignerJudge(bundle, checkpoint) if bundle.manifest.kind == "aligner" else _AsrJudge(bundle, checkpoint)
    for done, (name, samples) in enumerate(clips.items()):
        progress(done, len(clips) + 1)
        judge.clip(name, samples)
    judge.batch(list(clips.values()))
    progress(len(clips) + 1, len(clips) + 1)
    report = Report(judge.reference.name, judge.checks)
    amend_manifest(bundle, report.to_dict())
    if not report.passed:
        raise VerificationFailed(f"{bundle.manifest.source['name']} and its export differ:\n{report.table()}")
    return report


def synthetic(seconds: float) -> Samples:
    """A clip with speech's rhythm: gliding harmonics in syllables, pauses, and noise; the same every time."""
    rng = np.random.default_rng(int(seconds * 1000))
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 120 + 40 * np.sin(2 * np.pi * 0.7 * time) + 15 * np.sin(2 * np.pi * 3.1 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    voice = sum(np.sin(k * phase) * (1 + np.sin(2 * np.pi * (0.3 + 0.17 * k) * time)) / k for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 2.3 * time) + 0.5 * np.sin(2 * np.pi * 0.4 * time), 0, 1)
    mixed = 0.12 * syllables * voice + 0.01 * rng.standard_normal(len(time))
    clip: Samples = mixed.astype(np.float32)
    return clip


class _Judge:
    """What recogniser and aligner have in common: features, encoder, logits."""

    def __init__(self, bundle: Bundle, checkpoint: Checkpoint) -> None:
        self.reference = Reference(checkpoint)
        spec = self._spec = bundle.spec
        self._prompts = PromptBuilder(open_tokenizer(bundle.folder, bundle.spec))
        self._encoder = Encoder(OrtEncoder(bundle.component("encoder")), spec.windows)
        graph = bundle.component("decoder")
        room = bundle.manifest.limits["positions"]
        self._session = OrtDecoder(graph, spec, slots=2, capacity=room)
        self._debug = OrtDecoder(with_logits(graph), spec, slots=1, capacity=room, weights=graph.parent)
        self._decoder = Decoder(self._session, spec.audio_pad, spec.hidden)
        self._mel = Check("mel", MEL_BOUND, "absolute")
        self._embeddings = Check("encoder embeddings", RELATIVE_BOUND, "relative to max")
        self._encoder_batch = Check("encoder: batch against single", RELATIVE_BOUND, "relative to max")
        self._logits = Check("decoder logits", RELATIVE_BOUND, "relative to max")
        self._logprobs = Check("log probabilities", LOGPROB_BOUND, "absolute")

    def _stages(self, name: str, samples: Samples) -> tuple[Mel, Embeddings]:
        """Compare mel and embeddings; returns the reference's mel and our embeddings."""
        mel, wanted = log_mel(samples), self.reference.mel(samples)
        self._mel.add(float(np.abs(mel - wanted).max()) if mel.shape == wanted.shape else float("inf"), name)
        (embeddings,) = self._encoder.encode([mel])
        self._embeddings.add(_relative(embeddings, self.reference.embeddings(wanted)), name)
        return wanted, embeddings

    def _compare_logits(self, name: str, prompt: Prompt, mel: Mel) -> None:
        everywhere = np.arange(len(prompt.ids))
        zero = np.zeros(1, np.int64)
        got = self._debug.logits(prompt.ids[None], prompt.audio, everywhere[None], range(1), zero)[0]
        wanted = self.reference.logits(prompt.ids, mel)
        self._logits.add(_relative(got, wanted), name)
        picked = self._decoder.prefill(prompt, everywhere, slot=0)
        highest = wanted.max(axis=-1, keepdims=True)
        best = -np.log(np.exp(wanted - highest).sum(axis=-1))
        self._logprobs.add(float(np.abs(picked.logprobs[0] - best).max()), name)

    def batch(self, clips: list[Samples]) -> None:
        """Clips encoded together against each by itself."""
        mels = [log_mel(samples) for samples in clips]
        for index, rows in enumerate(self._encoder.encode(mels)):
            self._encoder_batch.add(_relative(rows, self._encoder.encode([mels[index]])[0]), f"clip {index}")


class _AsrJudge(_Judge):
    def __init__(self, bundle: Bundle, checkpoint: Checkpoint) -> None:
        super().__init__(bundle, checkpoint)
        self._ids = Check("greedy token ids", 0, "differing ids")
        self._step_batch = Check("decoder: batch against single", 0, "differing ids")
        self.checks = [
            self._mel,
            self._embeddings,
            self._logits,
            self._logprobs,
            self._ids,
            self._encoder_batch,
            self._step_batch,
        ]

    def clip(self, name: str, samples: Samples) -> None:
        mel, embeddings = self._stages(name, samples)
        prompt = self._prompts.transcription(embeddings)
        text = np.random.default_rng(len(samples)).integers(0, self._spec.audio_pad, _FORCED)
        self._compare_logits(name, Prompt(np.concatenate([prompt.ids, text]), prompt.audio), mel)
        got = generate(self._decoder, prompt, eos=self._spec.eos, budget=_GREEDY).tokens
        wanted = [index for index in self.reference.greedy(prompt.ids, mel, _GREEDY) if index not in self._spec.eos]
        self._ids.add(_differing(got, wanted), name)

    def batch(self, clips: list[Samples]) -> None:
        super().batch(clips)
        shortest = sorted(clips, key=len)[:4]
        prompts = [self._prompts.transcription(rows) for rows in self._encoder.encode([log_mel(c) for c in shortest])]
        alone = [generate(self._decoder, p, eos=(), budget=_GREEDY, slot=1).tokens for p in prompts]
        for first in range(len(prompts)):
            second = (first + 1) % len(prompts)
            together = self._pair(prompts[first], prompts[second])
            for index, tokens in zip((first, second), together, strict=True):
                self._step_batch.add(_differing(tokens, alone[index]), f"clip {index}")

    def _pair(self, *prompts: Prompt) -> list[list[int]]:
        """Two requests of different lengths decoded in one batch."""
        picked = [
            self._decoder.prefill(prompt, np.array([len(prompt.ids) - 1]), slot) for slot, prompt in enumerate(prompts)
        ]
        tokens = [[int(p.tokens[0, 0])] for p in picked]
        no_audio = np.zeros((0, self._spec.hidden), np.float32)
        for _ in range(_GREEDY - 1):
            ids: Ids = np.array([[row[-1]] for row in tokens], np.int64)
            past: Ids = np.array([len(p.ids) + len(row) - 1 for p, row in zip(prompts, tokens, strict=True)], np.int64)
            step = self._session.run(ids, no_audio, np.zeros((2, 1), np.int64), range(2), past)
            for row, token in zip(tokens, step.tokens[:, 0], strict=True):
                row.append(int(token))
        return tokens


class _AlignerJudge(_Judge):
    def __init__(self, bundle: Bundle, checkpoint: Checkpoint) -> None:
        super().__init__(bundle, checkpoint)
        self._classes = Check("aligner classes", 0, "differing classes")
        self.checks = [self._mel, self._embeddings, self._logits, self._logprobs, self._classes, self._encoder_batch]

    def clip(self, name: str, samples: Samples) -> None:
        mel, embeddings = self._stages(name, samples)
        prompt, marks = self._prompts.alignment(embeddings, [f"w{n}" for n in range(_UNITS)])
        self._compare_logits(name, prompt, mel)
        got = self._decoder.prefill(prompt, marks, slot=0).tokens[0]
        wanted = self.reference.logits(prompt.ids, mel)[marks].argmax(-1)
        self._classes.add(_differing(got.tolist(), wanted.tolist()), name)


def with_logits(graph: Path) -> bytes:
    """The decoder's model with its inner ``logits`` made an output; its weights stay where they are."""
    model = onnx.load(graph, load_external_data=False)
    model.graph.output.append(onnx.helper.make_tensor_value_info("logits", FLOAT, ["batch", "taken", "classes"]))
    content: bytes = model.SerializeToString()
    return content


def _relative(got: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    if got.shape != wanted.shape:
        return float("inf")
    return float(np.abs(got - wanted).max() / max(float(np.abs(wanted).max()), 1e-9))


def _differing(got: Iterable[int], wanted: Iterable[int]) -> float:
    left, right = list(got), list(wanted)
    return float(sum(a != b for a, b in zip(left, right, strict=False)) + abs(len(left) - len(right)))
