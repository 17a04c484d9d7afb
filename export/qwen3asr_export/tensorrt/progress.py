"""How far a build is, and stopping it: TensorRT's progress monitor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the stage, what is done and what there is to do."""

PARTS = 100


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0
    inner: float = 0.0  # of the step that is running


@dataclass(slots=True)
class Share:
    """What share of a build is done, from phases within phases; it never falls, though phases come again.

    Attributes:
        cancelled: the build is to stop at its next step.
        failure: what told of it raised; nothing may be raised through the builder.
    """

    cancelled: bool = False
    failure: BaseException | None = None
    best: float = 0.0
    _phases: dict[str, _Phase] = field(default_factory=dict)

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins, as a part of its parent's current step."""
        self._phases[name] = _Phase(parent, max(1, steps))

    def step(self, name: str, number: int) -> None:
        """A step of a phase is done."""
        phase = self._phases[name]
        phase.done, phase.inner = number + 1, 0.0
        self._pass_on(phase)

    def finish(self, name: str) -> None:
        """A phase ends, whether or not all its steps were told."""
        phase = self._phases.pop(name)
        phase.done, phase.inner = phase.steps, 0.0
        self._pass_on(phase)

    def _pass_on(self, phase: _Phase) -> None:
        share = min(1.0, (phase.done + phase.inner) / phase.steps)
        parent = self._phases.get(phase.parent) if phase.parent else None
        if parent is None:
            self.best = max(self.best, share)
            return
        parent.inner = max(parent.inner, min(share, 0.999))
        self._pass_on(parent)


def make_monitor(module: Any, share: Share, tell: Callable[[int], None]) -> Any:
    """An ``IProgressMonitor`` that keeps the share up to date.

    Args:
        module: TensorRT's.
        share: to be updated; setting its ``cancelled`` stops the build.
        tell: called with the whole parts of :data:`PARTS` that are done, from the thread that builds.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # the module has no types
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            share.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            share.step(phase_name, step)
            try:
                tell(int(share.best * PARTS))
            except BaseException as error:  # noqa: BLE001 (raised again when the builder has stopped)
                share.failure, share.cancelled = error, True
            return not share.cancelled

        def phase_finish(self, phase_name: str) -> None:
            share.finish(phase_name)

    return Monitor()
