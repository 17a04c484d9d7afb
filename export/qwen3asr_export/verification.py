"""Does the bundle do what the checkpoint does in PyTorch? Stage by stage, then one table and one verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen3asr.bundle import Bundle, amend_manifest
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.errors import OutputNotFinite, RequestInvalid, VerificationFailed
from qwen3asr.features import Samples, log_mel
from qwen3asr.generate import generate
from qwen3asr.prompt import Prompt
from qwen3asr.sessions.base import Ids
from qwen3asr.sessions.onnxruntime import OrtDecoder, OrtEncoder
from qwen3asr.tokenizer import open_tokenizer
from qwen3asr_export.card import update_card
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.emulation import checkable
from qwen3asr_export.expectation import CLIP_SECONDS, GREEDY, Expectation, Expectations, expect, synthetic
from qwen3asr_export.precision import PRECISIONS, Precision

MEL_BOUND = 1e-4
_BATCH = 4  # windows encoded together
_PAIRS = 4  # clips decoded two at a time


@dataclass(slots=True)
class Check:
    """One comparison: the worst figure of all clips, against its bound."""

    name: str
    bound: float | None
    unit: str
    worst: float = 0.0
    where: str = "-"
    count: int = 0

    @property
    def passed(self) -> bool:
        """Within the bound, where there is one, and run at all."""
        return self.count > 0 and (self.bound is None or self.worst <= self.bound)

    def add(self, value: float, where: str, count: int = 1) -> None:
        """Take in one figure, made of ``count`` comparisons; NaN counts as infinite."""
        self.count += count
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
            {
                "check": c.name, "worst": c.worst if math.isfinite(c.worst) else None,  # JSON has no infinity
                "bound": c.bound, "unit": c.unit, "comparisons": c.count,
            }
            for c in self.checks
        ]  # fmt: skip
        return {"reference": self.reference, "passed": self.passed, "checks": rows}

    def table(self) -> str:
        """One line a check."""
        lines = [f"{'check':<34}{'worst':>12}{'bound':>10}  {'unit':<18}{'count':>6}  verdict"]
        for c in self.checks:
            bound = "-" if c.bound is None else f"{c.bound:.3g}"
            verdict = f"FAILED at {c.where}" if not c.passed else "not judged" if c.bound is None else "ok"
            lines.append(f"{c.name:<34}{c.worst:>12.3g}{bound:>10}  {c.unit:<18}{c.count:>6}  {verdict}")
        return "\n".join(lines)


def verify(
    bundle: Bundle,
    checkpoint: Checkpoint,
    *,
    seconds: tuple[float, ...] = CLIP_SECONDS,
    recordings: Mapping[str, Samples] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Compare a bundle with its checkpoint run by transformers in float32.

    The reference runs first and is gone before the bundle is loaded, so memory holds one of them at a time. Integer
    weights are judged twice: the graphs against the reference with the weights that they store, and the stored
    weights ("damage") against the checkpoint's own; see :class:`qwen3asr_export.precision.Bounds`.
    Half-precision graphs are run as :mod:`qwen3asr_export.emulation` says.

    Args:
        bundle: what was exported.
        checkpoint: what it was exported from.
        seconds: lengths of the synthetic clips.
        recordings: more clips by name, float32 at 16 kHz.
        progress: told how many clips are done, by the reference and by the bundle.

    The figures are recorded in the bundle and its model card, good or bad.

    Raises:
        RequestInvalid: the bundle was made from another checkpoint.
        VerificationFailed: some figure is past its bound; the message holds the whole table.
    """
    if bundle.spec != checkpoint.spec or bundle.manifest.source["weights_sha256"] != checkpoint.weights_sha256:
        raise RequestInvalid(
            f"{bundle.folder} was not exported from {checkpoint.folder}, but from a checkpoint called "
            f"{bundle.manifest.source['name']} with other weights; give that one"
        )
    clips = {f"{length:g} s": synthetic(length) for length in seconds} | dict(recordings or {})
    precision = PRECISIONS[bundle.manifest.precision]
    steps = _Steps((3 if precision.quantised else 2) * len(clips), progress)
    expected = expect(checkpoint, open_tokenizer(bundle.folder, bundle.spec), precision, clips, steps.next)
    judge = _Judge(bundle, precision, expected, damage_counts=not checkpoint.random)
    judge.encoder()
    judge.decoder(steps.next)
    report = Report(expected.reference, judge.checks)
    update_card(amend_manifest(bundle, report.to_dict()))
    if not report.passed:
        raise VerificationFailed(f"{bundle.manifest.source['name']} and its export differ:\n{report.table()}")
    return report


class _Steps:
    def __init__(self, total: int, progress: Callable[[int, int], None]) -> None:
        self._done, self._total, self._progress = 0, total, progress
        progress(0, total)

    def next(self) -> None:
        self._done += 1
        self._progress(self._done, self._total)


class _Judge:
    """Runs the bundle's graphs on what the reference expects; a graph is loaded when its turn comes."""

    def __init__(self, bundle: Bundle, precision: Precision, expected: Expectations, *, damage_counts: bool) -> None:
        self._bundle, self._spec, self._expected = bundle, bundle.spec, expected
        bounds, aligner = precision.bounds, bundle.manifest.kind == "aligner"
        self._exact = bounds.answers == 0
        what = "aligner classes" if aligner else "forced tokens"
        self._mel = Check("mel", MEL_BOUND, "absolute")
        self._embeddings = Check("encoder embeddings", bounds.embeddings, "relative to max")
        self._encoder_batch = Check("encoder: batch against single", bounds.batch, "relative to max")
        self._logits = Check("decoder logits", bounds.logits, "relative to max")
        self._logprobs = Check("log probabilities", bounds.logprob, "absolute")
        self._answers = Check(f"{what} that differ", bounds.answers, "share")
        self._finite = Check("NaN and infinite values", 0, "values")
        self._ids = Check("greedy token ids", 0, "differing ids")
        self._step_batch = Check("decoder: batch against single", bounds.logprob, "absolute")
        limits = (bounds.damage_embeddings, bounds.damage_answers) if damage_counts else (None, None)
        self._damage_embeddings = Check("damage: encoder embeddings", limits[0], "relative to max")
        self._damage_answers = Check(f"damage: {what} that differ", limits[1], "share")
        self._ours: dict[str, npt.NDArray[np.float32]] = {}
        self.checks = [self._mel, self._embeddings, self._encoder_batch, self._logits, self._logprobs, self._answers]
        self.checks += [self._finite] if aligner else [self._finite, self._step_batch]
        self.checks += [self._ids] if self._exact and not aligner else []
        self.checks += [self._damage_embeddings, self._damage_answers] if precision.quantised else []

    def encoder(self) -> None:
        """Mel and embeddings of each clip, and of all clips in one batch."""
        session = OrtEncoder(*self._graph("encoder"))
        encoder = Encoder(session, self._spec.windows)
        mels = []
        for name, wanted in self._expected.stored.items():
            mel = log_mel(wanted.samples)
            self._mel.add(_largest(mel, wanted.mel), name)
            mels.append(mel)
            (self._ours[name],) = encoder.encode([mel])
            self._embeddings.add(_relative(self._ours[name], wanted.embeddings), name)
            self._damage_embeddings.add(_relative(self._ours[name], self._expected.original[name].embeddings), name)
            self._count_infinite(self._ours[name], name)
        session.batch_windows = _BATCH  # more than a CPU wants, as a GPU does
        for name, rows in zip(self._expected.stored, encoder.encode(mels), strict=True):
            self._encoder_batch.add(_relative(rows, self._ours[name]), name)

    def decoder(self, clip_done: Callable[[], None]) -> None:
        """Logits from the reference's embeddings; then, of the shipped graph, what a user gets from our own."""
        debug = self._session(slots=1, logits=True)
        for name, wanted in self._expected.stored.items():
            keep = wanted.keep[None]
            logits = debug.logits(wanted.ids[None], wanted.embeddings, keep, range(1), np.zeros(1, np.int64))[0]
            self._logits.add(_relative(logits, wanted.logits), name)
            self._count_infinite(logits, name)
        del debug
        session = self._session(slots=2)
        decoder = Decoder(session, self._spec.audio_pad, self._spec.hidden)
        differing, damaged, positions = 0, 0, 0
        for name, wanted in self._expected.stored.items():
            answers = self._answer(decoder, name, wanted)
            differing += _differing(answers, wanted.logits.argmax(-1))
            damaged += _differing(answers, self._expected.original[name].logits.argmax(-1))
            positions += len(wanted.keep)
            clip_done()
        self._answers.add(differing / positions, "all clips", positions)
        self._damage_answers.add(damaged / positions, "all clips", positions)
        if self._spec.kind == "asr" and self._finite.passed:
            self._batch(session, decoder)

    def _answer(self, decoder: Decoder, name: str, wanted: Expectation) -> list[int]:
        """Our answers at the clip's forced positions; none where they are not numbers."""
        try:
            picked = decoder.prefill(Prompt(wanted.ids, self._ours[name]), wanted.keep, slot=0)
        except OutputNotFinite:
            self._finite.add(1, name)
            return []
        highest = wanted.logits.max(axis=-1, keepdims=True)
        best = -np.log(np.exp(wanted.logits - highest).sum(axis=-1))
        self._logprobs.add(_largest(picked.logprobs[0], best), name)
        if self._exact and self._spec.kind == "asr":
            prompt = Prompt(wanted.ids[: wanted.prompt], self._ours[name])
            tokens = generate(decoder, prompt, eos=self._spec.eos, budget=GREEDY).tokens
            self._ids.add(_differing(tokens, wanted.greedy), name)
        return [int(token) for token in picked.tokens[0]]

    def _batch(self, session: OrtDecoder, decoder: Decoder) -> None:
        """Two requests of different lengths stepped together, against each by itself in the same slot."""
        expected = self._expected.stored
        shortest = sorted(expected, key=lambda name: len(expected[name].ids))[:_PAIRS]
        for first, second in zip(shortest, shortest[1:] + shortest[:1], strict=True):
            pair = [expected[name] for name in (first, second)]
            ids: Ids = np.array([[wanted.ids[wanted.prompt]] for wanted in pair])
            past: Ids = np.array([wanted.prompt for wanted in pair])
            for slot, (name, wanted) in enumerate(zip((first, second), pair, strict=True)):
                prompt = Prompt(wanted.ids[: wanted.prompt], self._ours[name])
                decoder.prefill(prompt, np.array([wanted.prompt - 1]), slot)
            nothing = np.zeros((0, self._spec.hidden), np.float32)
            together = session.run(ids, nothing, np.zeros((2, 1), np.int64), range(2), past)
            for slot, name in enumerate((first, second)):  # the same step again, which overwrites the same position
                alone = decoder.step(int(ids[slot, 0]), slot, int(past[slot]))
                apart = abs(float(alone.logprobs[0, 0] - together.logprobs[slot, 0]))
                same = not self._exact or alone.tokens[0, 0] == together.tokens[slot, 0]
                self._step_batch.add(apart if same else float("inf"), f"{first} beside {second}: {name}")

    def _session(self, slots: int, *, logits: bool = False) -> OrtDecoder:
        longest = max(len(wanted.ids) for wanted in self._expected.stored.values())
        graph, weights = self._graph("decoder", logits=logits)
        return OrtDecoder(graph, self._spec, slots=slots, capacity=longest + GREEDY, weights=weights)

    def _graph(self, component: str, *, logits: bool = False) -> tuple[bytes, Path]:
        path = self._bundle.component(component)
        return checkable(path, logits=logits), path.parent

    def _count_infinite(self, array: npt.NDArray[np.float32], name: str) -> None:
        self._finite.add(int(np.count_nonzero(~np.isfinite(array))), name)


def _largest(got: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    return float(np.abs(got - wanted).max()) if got.shape == wanted.shape else float("inf")


def _relative(got: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    return _largest(got, wanted) / max(float(np.abs(wanted).max()), 1e-9)


def _differing(got: Iterable[int], wanted: Iterable[int]) -> int:
    left, right = list(got), list(wanted)
    return int(sum(a != b for a, b in zip(left, right, strict=False)) + abs(len(left) - len(right)))
