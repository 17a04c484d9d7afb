"""A benchmark on paper: readable tables, and everything as plain dicts for JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from qwen3asr.benchmark.alignment import AlignerReport
from qwen3asr.benchmark.levels import Bounds, Level
from qwen3asr.benchmark.machine import Memory
from qwen3asr.benchmark.parts import Part
from qwen3asr.benchmark.published import HARDWARE
from qwen3asr.benchmark.roofline import Roof
from qwen3asr.benchmark.run import SCHEMA, Report
from qwen3asr.benchmark.spread import Spread

NOTES = (
    "Figures are medians, and in brackets the least and the most of all rounds. Of first tokens and of gaps between "
    "tokens: mean / median / 95 % lie below.",
    "The floor is what this machine could do at best: weights and cache over its read bandwidth, or products over its "
    "rate of large ones, whichever takes longer. A first token's floor is that of a clip by itself.",
    "Real-time factor: from a clip's samples to its last token, over its duration; throughput: audio seconds a second.",
)


def as_dict(report: Report) -> dict[str, Any]:
    """Everything for JSON; ``schema`` says which version of this it is. Times are in seconds, sizes in bytes."""
    return {"schema": SCHEMA, **asdict(report)}


def as_tables(report: Report) -> Iterator[RenderableType]:
    """What a reader wants to see, one block after the other."""
    yield Text("\n".join(_head(report)))
    yield _parts(report)
    yield _levels(report)
    if any(level.published for level in report.levels):
        yield _beside(report)
    if report.aligner is not None:
        yield _aligner(report.aligner)
    notes = [*NOTES, *(note for note in (report.unlike, report.energy) if note)]
    yield Text("\n".join(notes), style="dim")


def _head(report: Report) -> Iterator[str]:
    about, settings = report.about, report.settings
    packages = ", ".join(f"{name} {found}" for name, found in report.machine.packages.items())
    yield f"{about.source}, {about.precision}, {about.dialect} dialect, {about.bytes / 1e6:.0f} MB"
    yield f"{report.machine}; {packages}, Python {report.machine.python}"
    yield (
        f"clips of {settings.seconds:g} s ({report.audio}), a prompt of {report.prompt_tokens} tokens, "
        f"{settings.tokens} tokens forced; {settings.rounds} rounds after {settings.warmup} that do not count"
    )
    if report.roof is not None:
        yield f"this machine: {_roof(report.roof)}"
    yield f"loaded in {_middle(report.load)} s; resident MB after it (peak): {_memory(report.loaded)}"


def _parts(report: Report) -> Table:
    table = _table("One part at a time", "part", "ms", "least - most", "floor", "x floor")
    for part in report.parts:
        floor = _floor(part, report.roof)
        cells = ("-", "-") if floor is None else (_ms(floor), f"{part.seconds.p50 / floor:.1f}")
        table.add_row(part.name, _ms(part.seconds.p50), _between(part.seconds, 1000), *cells)
    return table


def _levels(report: Report) -> Table:
    table = _table("From samples to the last token, clips at a time", "", *_concurrencies(report.levels))

    def row(label: str, cell: Callable[[Level], str], style: str | None = None) -> None:
        table.add_row(label, *map(cell, report.levels), style=style)

    def floor(label: str, cell: Callable[[Bounds], str]) -> None:
        if report.roof is not None:
            row(label, lambda level: "-" if level.bounds is None else cell(level.bounds), "dim")

    row("first token, ms", lambda level: _three(level.first_token))
    row("  least - most", lambda level: _between(level.first_token, 1000), "dim")
    floor("  floor", lambda bounds: _ms(bounds.first_token))
    row("between tokens, ms", lambda level: _three(level.inter_token))
    row("  least - most", lambda level: _between(level.inter_token, 1000), "dim")
    floor("  floor", lambda bounds: _ms(bounds.inter_token))
    row("clip, s", lambda level: _middle(level.clip))
    row("real-time factor", lambda level: _middle(level.real_time_factor))
    row("audio seconds a second", lambda level: _middle(level.throughput))
    floor("  at most", lambda bounds: _figure(bounds.throughput))
    row("rows a step", lambda level: f"{level.rows_per_step:.1f}")
    row("resident MB (peak)", lambda level: _memory(level.memory))
    if any(level.joules_per_audio_second for level in report.levels):
        row("J an audio second", lambda level: _middle(level.joules_per_audio_second))
    return table


def _concurrencies(levels: Sequence[Level]) -> list[str]:
    return [str(level.concurrency) for level in levels]


def _beside(report: Report) -> Table:
    title = f"Beside the Qwen3-ASR technical report, Table 2: {HARDWARE}"
    table = _table(title, "clips at a time", "", "first token, ms, mean", "real-time factor, mean", "throughput")
    for level in report.levels:
        theirs = level.published
        if theirs is not None:
            ours = (_ms(level.first_token.mean), _figure(level.real_time_factor.mean), _figure(level.throughput.p50))
            table.add_row(str(level.concurrency), "here", *ours)
            cells = (_ms(theirs.first_token), f"{theirs.real_time_factor:g}", f"{theirs.throughput:g}")
            table.add_row("", "report", *cells)
    return table


def _aligner(report: AlignerReport) -> Text:
    factor, theirs = report.real_time_factor, report.published
    beside = (
        f"\nthe technical report, Table 2: {theirs.real_time_factor:g}, {theirs.throughput:g}; {HARDWARE}"
        if theirs
        else ""
    )
    return Text(
        f"aligner ({report.about.source}, {report.about.precision}): loaded in {_middle(report.load)} s; "
        f"{report.words} words in {report.seconds:g} s: real-time factor {_middle(factor)}, "
        f"{_figure(1 / factor.p50)} audio seconds a second{beside}"
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    return table


def _floor(part: Part, roof: Roof | None) -> float | None:
    return None if part.work is None or roof is None else roof.seconds(part.work)


def _roof(roof: Roof) -> str:
    kind = "8-bit integers" if roof.integer else "float32"
    return f"reads {roof.read_bytes / 1e9:.1f} GB/s, multiplies {roof.flops / 1e9:.0f} GFLOP/s in {kind}"


def _figure(value: float) -> str:
    """Three figures, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ms(seconds: float) -> str:
    return _figure(seconds * 1000)


def _three(spread: Spread) -> str:
    return " / ".join(map(_ms, (spread.mean, spread.p50, spread.p95)))


def _between(spread: Spread, scale: float = 1) -> str:
    return f"{_figure(spread.least * scale)} - {_figure(spread.most * scale)}"


def _middle(spread: Spread | None) -> str:
    return "-" if spread is None else f"{_figure(spread.p50)} ({_between(spread)})"


def _memory(memory: Memory) -> str:
    if memory.resident is None or memory.peak is None:
        return "not known"
    return f"{memory.resident / 1e6:.0f} ({memory.peak / 1e6:.0f})"
