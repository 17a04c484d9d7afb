"""A model on all clips of a manifest, one after the other: texts, word times, and the time that took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np

from qwen3asr.audio import AudioInput
from qwen3asr.errors import Qwen3AsrError
from qwen3asr.evaluation.clips import Clip
from qwen3asr.evaluation.scoring import Score, check_available, has_loop, normalise, score
from qwen3asr.features import SAMPLE_RATE
from qwen3asr.languages import ALIGNER_LANGUAGES
from qwen3asr.transcript import Transcript
from qwen3asr.types import Word


class Model(Protocol):
    """What is evaluated; :class:`qwen3asr.Recognizer` is one."""

    def transcribe(self, audio: AudioInput, *, language: str | None = None, context: str = "") -> Transcript:
        """See :meth:`qwen3asr.Recognizer.transcribe`."""
        ...

    def align(self, audio: AudioInput, text: str, *, language: str | None = None) -> Sequence[Word]:
        """See :meth:`qwen3asr.Recognizer.align`."""
        ...


@dataclass(frozen=True, slots=True)
class Alignment:
    """How far the aligner's boundaries of a clip are from the true ones.

    Attributes:
        starts_ms: absolute difference of the start of each word, milliseconds.
        ends_ms: absolute difference of the end of each word, milliseconds.
        seconds: that aligning took.
    """

    starts_ms: tuple[float, ...]
    ends_ms: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why a clip with word times is not compared.

    Attributes:
        reason: in words.
        failed: the aligner refused the clip or broke, where otherwise clip and aligner do not fit together.
    """

    reason: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """One clip that was transcribed.

    Attributes:
        clip: the clip with its truth.
        transcript: what the model gave.
        score: the text's.
        seconds: from the file to the text, reading it included.
        loop: the loop breaker fired, or the text has a unit of 1 to 20 characters ten times in a row or more, where
            the truth has none.
        alignment: of the true text; ``None`` where no word times were asked for or known.
    """

    clip: Clip
    transcript: Transcript
    score: Score
    seconds: float
    loop: bool
    alignment: Alignment | LeftOut | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """One clip that could not be transcribed, and why."""

    clip: Clip
    message: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All clips, in the order of the manifest.

    Attributes:
        outcomes: one for each clip.
        forced: the manifest's languages were forced, so there is nothing to say about detecting them.
    """

    outcomes: tuple[Result | Failure, ...]
    forced: bool = False

    @property
    def results(self) -> tuple[Result, ...]:
        """The clips that were transcribed."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Result))

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The clips that were not."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Failure))


def evaluate(
    model: Model,
    clips: Sequence[Clip],
    *,
    align: bool = False,
    force: bool = False,
    done: Callable[[Result | Failure], None] = lambda _: None,
) -> Evaluation:
    """Run a model on clips, after one second of noise that warms it up. A clip that fails does not end the run.

    Args:
        model: with an aligner, if ``align``.
        clips: from :func:`qwen3asr.evaluation.read_clips`.
        align: align the true text of the clips that have word times.
        force: force the manifest's languages, where otherwise the model detects them.
        done: is called after each clip.

    Raises:
        ExtraMissing: jiwer is not installed.
        Qwen3AsrError: the model cannot even transcribe noise.
    """
    check_available()
    model.transcribe(np.random.default_rng(0).normal(0, 0.01, SAMPLE_RATE).astype(np.float32))
    outcomes: list[Result | Failure] = []
    for clip in clips:
        outcomes.append(_outcome(model, clip, align, force))
        done(outcomes[-1])
    return Evaluation(tuple(outcomes), force)


def _outcome(model: Model, clip: Clip, align: bool, force: bool) -> Result | Failure:
    begin = perf_counter()
    try:
        transcript = model.transcribe(clip.audio, language=clip.language if force else None, context=clip.context)
    except (Qwen3AsrError, OSError) as error:
        return Failure(clip, str(error))
    seconds = perf_counter() - begin
    loop = transcript.finish_reason == "loop" or (has_loop(transcript.text) and not has_loop(clip.text))
    alignment = _alignment(model, clip, transcript.duration) if align and clip.words else None
    return Result(clip, transcript, score(clip.text, transcript.text, clip.language), seconds, loop, alignment)


def _alignment(model: Model, clip: Clip, duration: float) -> Alignment | LeftOut:
    if clip.language is not None and clip.language not in ALIGNER_LANGUAGES:
        return LeftOut(f"the aligner does not know {clip.language}")
    last = max(word.end for word in clip.words)
    if last > duration + 1:
        return LeftOut(f"the manifest's words reach {last:g} s, the audio {duration:.1f} s; are they of another file?")
    begin = perf_counter()
    try:
        words = model.align(clip.audio, clip.text, language=clip.language)
    except (Qwen3AsrError, OSError) as error:
        return LeftOut(str(error), failed=True)
    seconds = perf_counter() - begin
    problem = _difference([word.text for word in clip.words], [word.text for word in words])
    if problem:
        return LeftOut(problem)
    pairs = list(zip(clip.words, words, strict=True))
    starts = tuple(abs(true.start - found.start) * 1000 for true, found in pairs)
    return Alignment(starts, tuple(abs(true.end - found.end) * 1000 for true, found in pairs), seconds)


def _difference(true: Sequence[str], found: Sequence[str]) -> str | None:
    """Why the boundaries of two lists of words cannot be compared; case and punctuation aside."""
    for number, (one, other) in enumerate(zip(true, found, strict=False), start=1):
        if normalise(one).replace(" ", "") != normalise(other).replace(" ", ""):
            return f"word {number} of the manifest is {one!r}, of the text as the aligner splits it {other!r}"
    if len(true) != len(found):
        return f"the manifest has {len(true)} words, the text as the aligner splits it {len(found)}"
    return None
