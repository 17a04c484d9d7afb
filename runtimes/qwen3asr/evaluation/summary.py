"""From clips to figures: sums over a corpus, never means of a clip's rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qwen3asr.evaluation.run import Alignment, Evaluation, Failure, LeftOut, Result
from qwen3asr.evaluation.scoring import Edits, Unit, normalise
from qwen3asr.types import FinishReason

_ENDINGS: tuple[FinishReason, ...] = ("stop", "length", "loop", "no_speech")  # nobody cancels a clip here


@dataclass(frozen=True, slots=True)
class Group:
    """The texts of some clips.

    Attributes:
        language: its name; ``None`` for clips of which the manifest gives none.
        unit: what ``edits`` count; ``"mixed"`` where the references have words in some clips, characters in others.
        clips: how many.
        exact: how many without an edit.
        edits: each clip in its own unit.
        characters: all clips in characters.
    """

    language: str | None
    unit: Unit | Literal["mixed"]
    clips: int
    exact: int
    edits: Edits
    characters: Edits


@dataclass(frozen=True, slots=True)
class NoSpeech:
    """Clips whose truth is empty.

    Attributes:
        clips: how many.
        invented: how many got a text.
        edits: all insertions.
    """

    clips: int
    invented: int
    edits: Edits


@dataclass(frozen=True, slots=True)
class Identification:
    """Detected languages, over the clips with speech whose language the manifest gives.

    Attributes:
        clips: how many.
        right: how many were detected as the manifest's.
        confusions: true language, detected language (``None`` for none) and how often, the most frequent first.
    """

    clips: int
    right: int
    confusions: tuple[tuple[str, str | None, int], ...]


@dataclass(frozen=True, slots=True)
class Boundaries:
    """The aligner against the manifest's word times.

    Attributes:
        clips: how many were compared.
        words: in them.
        start_ms: mean absolute difference of the starts, milliseconds; ``None`` without words, as the next.
        end_ms: of the ends.
        shift_ms: of all boundaries: the accumulated average shift (AAS) of the Qwen3-ASR technical report.
        within_80_ms: share of the boundaries that differ by 80 ms or less.
        real_time_factor: seconds of aligning a second of audio.
        left_out: names of the clips that could not be compared, each with the reason.
    """

    clips: int
    words: int
    start_ms: float | None
    end_ms: float | None
    shift_ms: float | None
    within_80_ms: float | None
    real_time_factor: float | None
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Speed:
    """Time from a file to its text, reading it included.

    Attributes:
        audio_seconds: of all clips.
        processing_seconds: for all clips.
        real_time_factor: seconds of work a second of audio; ``None`` without clips, as the next.
        median_seconds: for a clip.
        p95_seconds: within which 95 % of the clips were done.
    """

    audio_seconds: float
    processing_seconds: float
    real_time_factor: float | None
    median_seconds: float | None
    p95_seconds: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a bundle did on a manifest.

    Attributes:
        overall: all clips; the insertions of the clips without speech count.
        languages: the clips with speech, by language.
        no_speech: those without.
        identification: ``None`` where languages were forced.
        boundaries: ``None`` where nothing was aligned.
        speed: of transcribing.
        finish: how many clips ended in which way; ``"length"`` and ``"loop"`` are texts that were cut.
        loops: clips whose text was cut for repeating itself, or has a repetition that the truth has not.
        failed: clips that could not be transcribed; they are in no other figure.
    """

    overall: Group
    languages: tuple[Group, ...]
    no_speech: NoSpeech
    identification: Identification | None
    boundaries: Boundaries | None
    speed: Speed
    finish: dict[FinishReason, int]
    loops: int
    failed: int


def summarise(evaluation: Evaluation) -> Summary:
    """The figures of one evaluation."""
    results = evaluation.results
    finish = Counter(result.transcript.finish_reason for result in results)
    speech = [result for result in results if normalise(result.clip.text)]
    return Summary(
        overall=_group(None, results),
        languages=_languages(speech),
        no_speech=_no_speech([result for result in results if not normalise(result.clip.text)]),
        identification=None if evaluation.forced else _identification(speech),
        boundaries=_boundaries(results),
        speed=_speed(results),
        finish={reason: finish[reason] for reason in _ENDINGS},
        loops=sum(result.loop for result in results),
        failed=len(evaluation.failures),
    )


def paired(one: Evaluation, other: Evaluation) -> tuple[Evaluation, Evaluation]:
    """Two evaluations of the same clips, made comparable: a clip that failed in one counts as failed in both.

    Likewise a clip that one could not align is not compared in the other, unless only one aligned at all.
    """
    align = all(any(result.alignment for result in evaluation.results) for evaluation in (one, other))
    pairs = [_pair(*outcomes, align) for outcomes in zip(one.outcomes, other.outcomes, strict=True)]
    return (
        replace(one, outcomes=tuple(first for first, _ in pairs)),
        replace(other, outcomes=tuple(second for _, second in pairs)),
    )


def _pair(one: Result | Failure, other: Result | Failure, align: bool) -> tuple[Result | Failure, Result | Failure]:
    if isinstance(one, Failure) or isinstance(other, Failure):
        first = one if isinstance(one, Failure) else Failure(one.clip, "it failed with the other bundle")
        second = other if isinstance(other, Failure) else Failure(other.clip, "it failed with the other bundle")
        return first, second
    if align and isinstance(one.alignment, LeftOut):
        return one, replace(other, alignment=one.alignment)
    if align and isinstance(other.alignment, LeftOut):
        return replace(one, alignment=other.alignment), other
    return one, other


# --- parts -----------------------------------------------------------------------------------------------------


def _group(language: str | None, results: Sequence[Result]) -> Group:
    units = {result.score.unit for result in results if result.score.edits.units}
    return Group(
        language,
        "mixed" if len(units) > 1 else next(iter(units), "words"),
        len(results),
        sum(result.score.exact for result in results),
        sum((result.score.edits for result in results), Edits()),
        sum((result.score.characters for result in results), Edits()),
    )


def _languages(results: Sequence[Result]) -> tuple[Group, ...]:
    """One group a language; without a language one for each unit. Ordered by name, the nameless last."""
    groups: dict[tuple[bool, str, Unit], list[Result]] = {}
    for result in results:
        language = result.clip.language
        groups.setdefault((language is None, language or "", result.score.unit), []).append(result)
    return tuple(_group(name or None, groups[nameless, name, unit]) for nameless, name, unit in sorted(groups))


def _no_speech(results: Sequence[Result]) -> NoSpeech:
    edits = sum((result.score.edits for result in results), Edits())
    return NoSpeech(len(results), sum(not result.score.exact for result in results), edits)


def _identification(results: Iterable[Result]) -> Identification:
    pairs = Counter((r.clip.language, r.transcript.language) for r in results if r.clip.language is not None)
    confusions = [(true, found, count) for (true, found), count in pairs.most_common() if true and true != found]
    clips = pairs.total()
    return Identification(clips, clips - sum(count for *_, count in confusions), tuple(confusions))


def _boundaries(results: Sequence[Result]) -> Boundaries | None:
    aligned = [(result, result.alignment) for result in results if result.alignment is not None]
    if not aligned:
        return None
    good = [(result, alignment) for result, alignment in aligned if isinstance(alignment, Alignment)]
    starts = np.array([shift for _, alignment in good for shift in alignment.starts_ms])
    ends = np.array([shift for _, alignment in good for shift in alignment.ends_ms])
    both = np.concatenate([starts, ends])
    audio = sum(result.transcript.duration for result, _ in good)
    return Boundaries(
        clips=len(good),
        words=len(starts),
        start_ms=_mean(starts),
        end_ms=_mean(ends),
        shift_ms=_mean(both),
        within_80_ms=_mean(both <= 80.0 + 1e-6),  # times are whole milliseconds, but floats
        real_time_factor=sum(alignment.seconds for _, alignment in good) / audio if audio else None,
        left_out=tuple((r.clip.name, alignment.reason) for r, alignment in aligned if isinstance(alignment, LeftOut)),
    )


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _speed(results: Sequence[Result]) -> Speed:
    seconds = [result.seconds for result in results]
    audio = sum(result.transcript.duration for result in results)
    if not results:
        return Speed(0.0, 0.0, None, None, None)
    median, p95 = np.percentile(seconds, [50, 95])
    return Speed(audio, sum(seconds), sum(seconds) / audio, float(median), float(p95))
