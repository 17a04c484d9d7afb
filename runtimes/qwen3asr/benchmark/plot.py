"""Throughput and first tokens against concurrency, as a picture (``pip install 'qwen3asr[bench]'``)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from qwen3asr.benchmark.run import Report
from qwen3asr.benchmark.spread import Spread
from qwen3asr.errors import ExtraMissing

FORMATS = (".png", ".svg", ".pdf")
"""Endings of files that a picture can be written to."""


def check_available() -> None:
    """Raise now what :func:`plot` would raise after the measurements.

    Raises:
        ExtraMissing: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ExtraMissing("drawing a benchmark", "matplotlib", "bench")


def plot(report: Report, target: Path) -> None:
    """Draw medians with the least and the most; the file appears when it is whole.

    Args:
        report: whose levels are drawn.
        target: a file with one of the endings in :data:`FORMATS`.

    Raises:
        ExtraMissing: matplotlib is not installed.
    """
    check_available()
    from matplotlib.figure import Figure  # noqa: PLC0415 (an optional dependency, and slow to load)

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    levels = [level.concurrency for level in report.levels]
    throughputs = [level.throughput for level in report.levels]
    firsts = [level.first_token.scaled(1000) for level in report.levels]
    for axes, spreads, label in (
        (left, throughputs, "audio seconds a second"),
        (right, firsts, "time to first token, ms"),
    ):
        axes.errorbar(
            levels, [s.p50 for s in spreads], yerr=_bars(spreads), marker="o", capsize=4, label="measured"
        )  # fmt: skip
        axes.set(xlabel="clips at a time", ylabel=label)
        axes.set_xticks(levels)
        axes.grid(alpha=0.3)
    bounds = [level.bounds for level in report.levels if level.bounds is not None]
    if len(bounds) == len(levels):
        left.plot(levels, [bound.throughput for bound in bounds], "k:", label="roofline")
        left.legend()
    for axes in (left, right):  # when all is drawn: it ends the fitting of the limits
        axes.set_ylim(bottom=0)
    settings, about = report.settings, report.about
    figure.suptitle(
        f"{about.source}, {about.precision}: {settings.seconds:g} s clips, {settings.tokens} tokens\n{report.machine}",
        fontsize=9,
    )
    draft = target.with_name(target.name + ".part")
    try:
        figure.savefig(draft, format=target.suffix.removeprefix("."), dpi=150)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _bars(spreads: list[Spread]) -> list[list[float]]:
    """Lengths below and above each median."""
    return [[s.p50 - s.least for s in spreads], [s.most - s.p50 for s in spreads]]
