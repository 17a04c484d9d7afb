"""What the command line shows beside its results: progress, warnings and errors, all on standard error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_screen = Console(stderr=True, highlight=False, soft_wrap=True)


def error(message: str) -> None:
    """Show an error."""
    _screen.print(f"error: {message}", style="red", markup=False)


def warn(message: str) -> None:
    """Show a warning."""
    _screen.print(f"warning: {message}", style="yellow", markup=False)


class Warnings(logging.Handler):
    """Shows what the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """See :class:`logging.Handler`."""
        warn(record.getMessage())


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # redirect_stdout: results go where the caller sends them, not where the bar is drawn
    return Progress(*columns, console=_screen, disable=not _screen.is_terminal, transient=True, redirect_stdout=False)


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """One progress bar; yields what moves it by one. Nothing is drawn where nobody looks."""
    with _progress() as bars:
        task = bars.add_task(label, total=total)
        yield lambda: bars.advance(task)


@contextmanager
def seconds(label: str) -> Iterator[Callable[[float, float | None], None]]:
    """A progress bar in seconds; yields what takes those done, and of how many if that is known."""
    with _progress() as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(
            task, completed=int(done), total=None if total is None else max(int(total), int(done))
        )


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each stage of an export; without a terminal, a line when a stage begins."""
    with _progress() as bars:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            unit, scale = (" MB", 1_000_000) if total > 1_000_000 else ("", 1)
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage + unit)
                if not _screen.is_terminal:
                    _screen.print(f"{stage}: {total // scale}{unit}", markup=False)
            bars.update(tasks[stage], completed=done // scale, total=total // scale)

        yield progress
