"""The rows of an evaluation's table: what each figure is called, in which order they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qwen3asr.evaluation.summary import Group, Summary

Form: TypeAlias = Literal["share", "ms", "s", "factor", "count"]
"""What a figure is: a share of one, milliseconds, seconds, a ratio of times, or a number of things."""

_RATES = {"words": "WER", "characters": "CER", "mixed": "mixed error rate"}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one summary; ``None`` where there is nothing to take it from."""

    label: str
    form: Form
    value: float | None


def sections(summaries: Sequence[Summary]) -> Iterator[list[tuple[Figure, ...]]]:
    """The rows of the table; the same labels whichever side they come from, and the aligner's only where it was."""
    makers = (_texts, _identified, _speeds, _endings, _shifts)
    for maker in makers:
        columns = [maker(summary) for summary in summaries]
        longest = max(columns, key=len)
        if longest:
            filled = [column or [Figure(f.label, f.form, None) for f in longest] for column in columns]
            yield list(zip(*filled, strict=True))


def difference(row: Sequence[Figure]) -> float | None:
    """Second less first of two figures, if both are there."""
    one, other = (figure.value for figure in row)
    return None if one is None or other is None else other - one


def _texts(summary: Summary) -> list[Figure]:
    overall, silent = summary.overall, summary.no_speech
    figures = [Figure(f"{_RATES[overall.unit]}, overall", "share", overall.edits.rate)]
    if overall.unit != "characters":
        figures.append(Figure("CER, overall", "share", overall.characters.rate))
    for group in summary.languages:
        figures += _language(group)
    figures.append(Figure("clips exactly right", "share", overall.exact / overall.clips if overall.clips else None))
    if silent.clips:
        figures.append(Figure(f"no-speech clips with invented text, of {silent.clips}", "count", silent.invented))
    return figures


def _language(group: Group) -> Iterator[Figure]:
    name = group.language or f"no language given, in {group.unit}"
    label = f"{name} ({group.clips} clip{'s' if group.clips != 1 else ''})"
    yield Figure(f"  {label}, {_RATES[group.unit]}", "share", group.edits.rate)
    if group.unit == "words":
        yield Figure(f"  {label}, CER", "share", group.characters.rate)


def _identified(summary: Summary) -> list[Figure]:
    found = summary.identification
    if found is None or not found.clips:
        return []
    return [Figure(f"language detected rightly, of {found.clips} clips", "share", found.right / found.clips)]


def _speeds(summary: Summary) -> list[Figure]:
    return [
        Figure("real-time factor (time / audio)", "factor", summary.speed.real_time_factor),
        Figure("median time of a clip", "s", summary.speed.median_seconds),
        Figure("95 % of the clips within", "s", summary.speed.p95_seconds),
    ]


def _endings(summary: Summary) -> list[Figure]:
    return [
        Figure("ended by the model (stop)", "count", summary.finish["stop"]),
        Figure("ended without speech (no_speech)", "count", summary.finish["no_speech"]),
        Figure("cut by the token budget (length)", "count", summary.finish["length"]),
        Figure("cut for repeating itself (loop)", "count", summary.finish["loop"]),
        Figure("texts with a loop", "count", summary.loops),
    ]


def _shifts(summary: Summary) -> list[Figure]:
    shifts = summary.boundaries
    if shifts is None:
        return []
    return [
        Figure("boundary shift (AAS)", "ms", shifts.shift_ms),
        Figure("  of the starts", "ms", shifts.start_ms),
        Figure("  of the ends", "ms", shifts.end_ms),
        Figure("boundaries within 80 ms", "share", shifts.within_80_ms),
        Figure("aligner's real-time factor", "factor", shifts.real_time_factor),
        Figure("words compared", "count", shifts.words),
        Figure("clips with words not compared", "count", len(shifts.left_out)),
    ]
