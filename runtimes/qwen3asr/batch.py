"""The requests on their way through one encoder and one decoder: what is planned is run, and its results committed.

No thread, and no waiting: that is the engine's business. Its lock is held by whoever calls, but for :meth:`Batch.run`,
which takes it when the device is done.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numpy as np

from qwen3asr.decoder import Decoder, not_finite
from qwen3asr.encoder import Encoder
from qwen3asr.errors import DeadlineExceeded, EngineFailed, RequestInvalid
from qwen3asr.generate import Generation
from qwen3asr.jobs import Job, Prefix, Task
from qwen3asr.metrics import Metrics
from qwen3asr.prompt import Frame
from qwen3asr.scheduler import Encode, Plan, Policy, Prefill, Row, Scheduler, Step
from qwen3asr.sessions.base import Embeddings, Picked

T = TypeVar("T")


class Batch:
    """Tasks, their rows in the scheduler, and the prefixes of streams.

    Args:
        encoder: encodes windows; those of different requests share its batches.
        decoder: its session owns the KV cache; a request works in one slot.
        eos: ids that end a text.
        policy: how new requests and running ones share the device.
        metrics: counts.
        clock: seconds, monotonic.
        lock: held while anything here changes.
        ended: called for each task that has ended.

    Attributes:
        tasks: on their way, by their number in the scheduler.
        prefixes: open ones, by their number.
        settled: futures and what they are to be given, once the lock is free: see :func:`settle`.
    """

    def __init__(
        self, encoder: Encoder, decoder: Decoder, eos: Collection[int], policy: Policy, metrics: Metrics,
        clock: Callable[[], float], lock: AbstractContextManager[Any], ended: Callable[[], None],
    ) -> None:  # fmt: skip
        self._encoder, self._decoder, self._eos = encoder, decoder, frozenset(eos)
        self._policy, self.metrics, self._clock, self._lock, self._ended = policy, metrics, clock, lock, ended
        self.tasks: dict[int, Task] = {}
        self.prefixes: dict[int, Prefix] = {}
        self.settled: list[tuple[Future[Generation], Generation | Exception]] = []
        self._scheduler, self._numbers = self._new_scheduler(), itertools.count()

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return self._scheduler.waiting

    @property
    def overdue(self) -> int:
        """Requests that must wait for others to end."""
        return self._scheduler.overdue

    # --- requests --------------------------------------------------------------------------------------------

    def add(self, job: Job, arrived: float) -> Task:
        """Let a job wait for its turn.

        Raises:
            RequestInvalid: it has no audio, does not fit the cache, or its prefix is at work.
        """
        prefix, frame, kept = job.prefix, job.frame, list[Embeddings]()
        if prefix is not None:
            self._check_prefix(prefix)
            if job.keep > len(prefix.windows):
                raise RequestInvalid(f"the prefix keeps {len(prefix.windows)} windows, not {job.keep}")
            frame, kept = prefix.frame, prefix.windows[: job.keep]
        audio = sum(map(len, kept)) + sum(self._encoder.tokens(mel.shape[1]) for mel in job.windows)
        if not audio:
            raise RequestInvalid("there is no audio in this request; give at least one window with frames")
        pads, draft = np.full(audio, self._decoder.audio_pad, np.int64), np.array(job.draft, np.int64)
        ids = np.concatenate([frame.head, pads, frame.tail, draft])
        room = self._decoder.capacity - len(ids) + len(draft)
        if job.budget < 1 or room < max(job.budget, len(draft)):
            raise RequestInvalid(
                f"a budget of {job.budget} tokens and a draft of {len(draft)} do not fit the KV cache, which has room "
                f"for {max(room, 0)} behind this prompt; load the model with a larger capacity="
            )
        task = Task.of(next(self._numbers), job, arrived, ids, len(frame.head), kept)
        if prefix is not None:
            prefix.busy, prefix.windows = True, list(kept)
            self._scheduler.trim_lease(prefix.number, prefix.tokens())
        self.tasks[task.number] = task
        lease = None if prefix is None else prefix.number
        self._scheduler.add(Row(task.number, len(job.windows), len(ids), job.live, lease, tuple(frame.head.tolist())))
        return task

    def end(self, task: Task, outcome: Generation | Exception | None) -> None:
        """A task is over; ``None``: its future has its result already, or needs none."""
        del self.tasks[task.number]
        prefix, keep = task.job.prefix, 0
        if prefix is not None:
            keep, prefix.busy = prefix.tokens(), False
        self._scheduler.end(task.number, keep, failed=isinstance(outcome, Exception))
        if isinstance(outcome, Exception):
            self.metrics.failed(type(outcome).__name__)
        if outcome is not None:
            self.settled.append((task.future, outcome))
        self._ended()

    def sweep(self) -> None:
        """Let go of jobs that nobody waits for any more."""
        now = self._clock()
        for task in list(self.tasks.values()):
            if task.future.cancelled():
                self.end(task, None)
                task.future.set_running_or_notify_cancel()  # those in concurrent.futures.wait() hear of it only so
                self.metrics.finished("cancelled")
            elif now >= task.deadline:
                self.end(task, DeadlineExceeded(task.job.timeout or 0.0))

    def reject(self, error: Exception) -> None:
        """End all tasks with an error."""
        for task in list(self.tasks.values()):
            self.end(task, error)

    def start_anew(self, error: BaseException) -> None:
        """What failed is no job's own: tell every waiter, and be as new; prefixes lose what the cache held of them."""
        for task in self.tasks.values():
            self.settled.append((task.future, EngineFailed(error)))
            self.metrics.failed(EngineFailed.__name__)
        self.tasks.clear()
        self._scheduler = self._new_scheduler()
        for prefix in self.prefixes.values():
            prefix.busy = False
            self._scheduler.open_lease(prefix.number)
        self._ended()

    def _new_scheduler(self) -> Scheduler:
        return Scheduler(self._decoder.slots, self._encoder.batch_windows, self._policy)

    # --- prefixes --------------------------------------------------------------------------------------------

    def open(self, frame: Frame) -> Prefix:
        """A new prefix."""
        prefix = Prefix(next(self._numbers), frame)
        self.prefixes[prefix.number] = prefix
        self._scheduler.open_lease(prefix.number)
        return prefix

    def restart(self, prefix: Prefix, frame: Frame) -> None:
        """Forget what a prefix kept, and go on with another frame.

        Raises:
            RequestInvalid: the prefix was released, or is at work.
        """
        self._check_prefix(prefix)
        prefix.frame, prefix.windows = frame, []
        self._scheduler.trim_lease(prefix.number, 0)

    def release(self, prefix: Prefix) -> None:
        """Forget a prefix, now or when its job ends; harmless when done twice."""
        if self.prefixes.pop(prefix.number, None) is not None:
            self._scheduler.close_lease(prefix.number)

    def _check_prefix(self, prefix: Prefix) -> None:
        if prefix.number not in self.prefixes:
            raise RequestInvalid("this prefix was released; open another")
        if prefix.busy:
            raise RequestInvalid("a prefix takes one job after the other")

    # --- turns -----------------------------------------------------------------------------------------------

    def plan(self) -> Plan | None:
        """What the device does next; ``None``: nothing is to be done."""
        plan, scheduler = self._scheduler.plan(), self._scheduler
        self.metrics.state(scheduler.waiting, len(scheduler.running), scheduler.tokens)
        return plan

    def run(self, plan: Plan) -> None:
        """Do what was planned, and commit what came of it. The lock is held for the latter only."""
        if isinstance(plan, Encode):
            self._encode(plan)
        elif isinstance(plan, Prefill):
            self._prefill(plan)
        else:
            self._step(plan)

    def _encode(self, plan: Encode) -> None:
        tasks = [self.tasks[number] for number, _ in plan.windows]
        for task in tasks:
            self._begun(task)
        shares = [task.next_windows(count) for task, (_, count) in zip(tasks, plan.windows, strict=True)]

        def encode(members: Sequence[int]) -> list[list[Embeddings]]:
            rows = iter(self._encoder.encode([mel for index in members for mel in shares[index]]))
            return [list(itertools.islice(rows, len(shares[index]))) for index in members]

        def take(task: Task, rows: list[Embeddings]) -> None:
            task.encoded(rows)
            self._scheduler.encoded(task.number, len(rows))
            prefix = task.job.prefix
            if prefix is not None:
                prefix.windows = task.rows[: task.job.keep + task.job.complete]
            self.metrics.encoded(len(rows))

        self._each(tasks, encode, take)

    def _prefill(self, plan: Prefill) -> None:
        task = self.tasks[plan.number]
        self._begun(task)
        ids = task.ids[plan.start : plan.stop]
        wanted = np.arange(max(task.asked, plan.start), plan.stop) - plan.start

        def feed(_: Sequence[int]) -> list[Picked]:
            return [self._decoder.feed(ids, task.audio_rows(plan.start, plan.stop), wanted, plan.slot, plan.start)]

        def take(task: Task, picked: Picked) -> None:
            task.answers += zip(picked.tokens[0].tolist(), picked.logprobs[0].tolist(), strict=True)
            self.metrics.prefilled(len(ids))
            self._scheduler.prefilled(task.number, plan.stop)
            if plan.stop == len(task.ids):
                task.prefilled()
                self._begin(task)

        self._each([task], feed, take)

    def _begin(self, task: Task) -> None:
        """The prompt is fed: take what the draft had right, and the first answer that it had not."""
        draft = task.job.draft
        for index, (token, logprob) in enumerate(task.answers):
            if self._write(task, token, logprob, drafted=index > 0):
                return
            if index == len(draft) or token != draft[index]:
                self._scheduler.start(task.number, task.asked + 1 + index)
                return

    def _step(self, plan: Step) -> None:
        for swap in plan.swaps:
            self._decoder.swap(*swap)
        tasks = [self.tasks[number] for number in plan.numbers]
        tokens, past = [task.tokens[-1] for task in tasks], [self._scheduler.row(n).fed for n in plan.numbers]

        def step(members: Sequence[int]) -> list[tuple[int, float]]:
            fed, held = [tokens[index] for index in members], [past[index] for index in members]
            picked = self._decoder.step_rows(fed, held, first=members[0])
            return list(zip(picked.tokens[:, 0].tolist(), picked.logprobs[:, 0].tolist(), strict=True))

        def take(task: Task, answer: tuple[int, float]) -> None:
            token, logprob = answer
            row = self._scheduler.row(task.number)
            self._scheduler.stepped(task.number)
            if not math.isfinite(logprob):
                raise not_finite(row.slot or 0, row.fed)
            self._write(task, token, logprob)

        self._each(tasks, step, take)
        self.metrics.stepped(len(tasks))

    def _each(
        self, tasks: Sequence[Task], run: Callable[[Sequence[int]], Sequence[T]], take: Callable[[Task, T], None]
    ) -> None:
        """Run once for all, and take what each has got; should that fail, once for each. Who fails alone is rejected.

        Args:
            tasks: who takes part.
            run: results of those of them with these indices.
            take: commits a task's result.
        """
        outcomes: list[T | Exception] = []
        try:
            outcomes += run(range(len(tasks)))
        except Exception as error:  # noqa: BLE001 (whatever a backend raises belongs to the job it was run for)
            outcomes = [error] if len(tasks) == 1 else [_alone(run, index) for index in range(len(tasks))]
        for task, outcome in zip(tasks, outcomes, strict=True):
            with self._lock:
                try:
                    if isinstance(outcome, Exception):
                        raise outcome
                    take(task, outcome)
                except Exception as error:
                    if task.number not in self.tasks:  # it had ended: this is none of its errors
                        raise
                    self.end(task, error)

    def _write(self, task: Task, token: int, logprob: float, *, drafted: bool = False) -> bool:
        """Take an answer; ``True`` if the text ends with it. Those of a draft come at once, with no time between."""
        reason = task.write(token, logprob, self._eos)
        if not drafted:
            self._count(task)
        if reason is None:
            return False
        self.end(task, task.generation(reason))
        wall = self._clock() - task.submitted
        self.metrics.finished(reason, tokens=len(task.tokens), audio_seconds=task.audio_seconds, seconds=wall)
        return True

    def _count(self, task: Task) -> None:
        now = self._clock()
        if task.last is None:
            self.metrics.first_token(now - task.submitted)
        else:
            self.metrics.next_token(now - task.last)
        task.last = now

    def _begun(self, task: Task) -> None:
        if not task.begun:
            task.begun = True
            self.metrics.admitted(self._clock() - task.submitted)


def settle(settled: list[tuple[Future[Generation], Generation | Exception]]) -> None:
    """Give futures their outcomes; outside of the lock, since callbacks may ask for more."""
    for future, outcome in settled:
        try:
            if isinstance(outcome, Generation):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
        except InvalidStateError:  # cancelled in this very moment
            future.set_running_or_notify_cancel()


def _alone(run: Callable[[Sequence[int]], Sequence[T]], index: int) -> T | Exception:
    """What one task gets by itself."""
    try:
        (outcome,) = run([index])
    except Exception as error:  # noqa: BLE001 (as where all were run together)
        return error
    return outcome
