"""An evaluation on paper: a table of one bundle or of two side by side, and everything as plain dicts for JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from qwen3asr.evaluation.figures import Figure, Form, difference, sections
from qwen3asr.evaluation.run import Evaluation, Failure, Result
from qwen3asr.evaluation.scoring import NORMALISATION, UNSPACED, Edits
from qwen3asr.evaluation.summary import Summary, paired, summarise

DEFINITIONS = {
    "error rate": "(substitutions + deletions + insertions) / units of the reference, summed over the clips",
    "units": f"characters (code points) in {', '.join(UNSPACED)} and in text of these scripts whose language is not "
    "given, words elsewhere; a mixed error rate adds them up; overall figures hold the insertions of the clips "
    "without speech, those of a language do not",
    "normalisation": NORMALISATION,
    "time": "from the file to the text, reading it included, after a warm-up",
    "loop": "a text that was cut because the model repeated itself (loop), or has a unit of 1 to 20 characters ten "
    "times in a row or more, which the reference has not",
}
"""What the figures mean."""

_SHOWN = 5  # clips and confusions named in the text


@dataclass(frozen=True, slots=True)
class Side:
    """One bundle and what it did.

    Attributes:
        bundle: where it is.
        about: what it is, such as its source and precision.
        aligner: the same of its aligner, if it had one.
        evaluation: of all clips.
    """

    bundle: str
    about: str
    aligner: str | None
    evaluation: Evaluation


def as_text(sides: Sequence[Side]) -> str:
    """A table with a column for each side, the difference of two, and what else must be known; ends in a newline.

    Args:
        sides: one, or two of the same clips, which are then compared on those that both could do.
    """
    evaluations = _comparable(sides)
    summaries = [summarise(evaluation) for evaluation in evaluations]
    remarks = [_better(*evaluations)] if len(evaluations) == 2 else []
    for letter, side, summary in zip("AB", sides, summaries, strict=False):
        remarks += _remarks(f"{letter}, " if len(sides) > 1 else "", side, summary)
    meanings = [line for name, meaning in DEFINITIONS.items() for line in _wrapped(f"{name}: {meaning}")]
    lines = [*_head(sides, summaries[0]), "", *_table(summaries), *remarks, *([""] if remarks else []), *meanings]
    return "\n".join(lines) + "\n"


def as_dict(sides: Sequence[Side]) -> dict[str, Any]:
    """Everything for JSON: definitions, the table's figures, and for each side its summary and all its clips.

    Args:
        sides: as for :func:`as_text`.
    """
    summaries = [summarise(evaluation) for evaluation in _comparable(sides)]
    names = "AB"[: len(sides)]
    return {
        "definitions": DEFINITIONS,
        "figures": [
            {"label": row[0].label, "unit": row[0].form}
            | {name: _plain(figure.value) for name, figure in zip(names, row, strict=True)}
            | ({"difference": _plain(difference(row))} if len(row) == 2 else {})
            for section in sections(summaries)
            for row in section
        ],
        "models": [
            {"name": name, "bundle": side.bundle, "about": side.about, "aligner": side.aligner}
            | {"languages_forced": side.evaluation.forced, "summary": _plain(summary)}
            | {"clips": [_row(outcome) for outcome in side.evaluation.outcomes]}
            for name, side, summary in zip(names, sides, summaries, strict=True)
        ],
    }


def _comparable(sides: Sequence[Side]) -> Sequence[Evaluation]:
    one, *others = (side.evaluation for side in sides)
    return paired(one, others[0]) if others else (one,)


# --- text ------------------------------------------------------------------------------------------------------


def _head(sides: Sequence[Side], summary: Summary) -> Iterator[str]:
    for letter, side in zip("AB", sides, strict=False):
        aligner = f"; aligner {side.aligner}" if side.aligner else ""
        yield f"{f'{letter}  ' if len(sides) > 1 else ''}{side.bundle} ({side.about}){aligner}"
    failed = f"; {summary.failed} failed and are in no figure" if summary.failed else ""
    forced = "; languages forced" if sides[0].evaluation.forced else ""
    yield f"{summary.overall.clips} clips, {summary.speed.audio_seconds:.1f} s of audio{forced}{failed}"


def _table(summaries: Sequence[Summary]) -> Iterator[str]:
    blocks = [[(row[0].label, _cells(row)) for row in section] for section in sections(summaries)]
    if len(summaries) == 2:
        blocks[0].insert(0, ("", ["A", "B", "B - A"]))
    labels = max(len(label) for block in blocks for label, _ in block)
    width = max(len(cell) for block in blocks for _, cells in block for cell in cells)
    for block in blocks:
        for label, cells in block:
            yield f"{label:<{labels}}" + "".join(f"  {cell:>{width}}" for cell in cells)
        yield ""


def _cells(row: Sequence[Figure]) -> list[str]:
    cells = [_format(figure.value, figure.form) for figure in row]
    return [*cells, _format(difference(row), row[0].form, "+")] if len(row) == 2 else cells


def _format(value: float | None, form: Form, sign: Literal["", "+"] = "") -> str:
    if value is None:
        return "-"
    match form:
        case "share":
            return f"{100 * value:{sign}.2f} {'pp' if sign else '%'}"
        case "ms":
            return f"{value:{sign}.1f} ms"
        case "s":
            return f"{value:{sign}.3f} s"
        case "factor":
            return f"{value:{sign}.4f}"
        case "count":
            return f"{value:{sign}.0f}"


def _better(one: Evaluation, other: Evaluation) -> str:
    pairs = zip(one.results, other.results, strict=True)
    changes = [second.score.edits.errors - first.score.edits.errors for first, second in pairs]
    fewer, more = sum(change < 0 for change in changes), sum(change > 0 for change in changes)
    return f"B has fewer errors than A in {fewer} clips, more in {more}, as many in {len(changes) - fewer - more}"


def _remarks(prefix: str, side: Side, summary: Summary) -> Iterator[str]:
    yield from _named(f"{prefix}failed", [(f.clip.name, f.message) for f in side.evaluation.failures])
    if summary.identification:
        pairs = summary.identification.confusions
        yield from _named(f"{prefix}heard", [(f"{true} as {found or 'none'}", f"{n} x") for true, found, n in pairs])
    if summary.boundaries:
        yield from _named(f"{prefix}words not compared", summary.boundaries.left_out)


def _named(label: str, items: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield from (f"{label}: {name}: {text}" for name, text in items[:_SHOWN])
    if len(items) > _SHOWN:
        yield f"{label}: and {len(items) - _SHOWN} more; --format json has all"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 110, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


# --- plain values ----------------------------------------------------------------------------------------------


def _row(outcome: Result | Failure) -> dict[str, Any]:
    clip = outcome.clip
    row: dict[str, Any] = {"audio": clip.name, "reference": clip.text, "language": clip.language}
    if isinstance(outcome, Failure):
        return row | {"error": outcome.message}
    transcript = outcome.transcript
    return row | {
        "hypothesis": transcript.text,
        "detected_language": transcript.language,
        "unit": outcome.score.unit,
        "edits": _plain(outcome.score.edits),
        "character_edits": _plain(outcome.score.characters),
        "exact": outcome.score.exact,
        "finish_reason": transcript.finish_reason,
        "loop": outcome.loop,
        "duration": _plain(transcript.duration),
        "seconds": _plain(outcome.seconds),
        "alignment": _plain(outcome.alignment),
    }


def _plain(value: object) -> Any:
    """Dataclasses as dicts, edits with their rate, tuples as lists, floats to six digits."""
    if isinstance(value, float):
        return round(value, 6)
    if is_dataclass(value):
        rate = {"rate": _plain(value.rate)} if isinstance(value, Edits) else {}
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)} | rate
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
