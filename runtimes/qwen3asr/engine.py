"""Continuous batching: many requests share one model; they join and leave at any step.

Each turn: the scheduler plans in plain ints, the model runs, the answers are committed. One thread does that while
there is work; ``submit`` may be called from any thread and gives a future, ``generate`` is its asyncio face. A row's
answers never depend on its neighbours: they are those of :func:`qwen3asr.generate.generate`.

What fails, fails alone: a request whose own call raises is rejected with that error, the others go on. Should the
engine itself fail, every waiter is told, and it starts anew for the next request.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from qwen3asr.decoder import Decoder, not_finite
from qwen3asr.encoder import Encoder
from qwen3asr.errors import DeadlineExceeded, EngineBusy, EngineClosed, EngineFailed, Qwen3AsrError, RequestInvalid
from qwen3asr.generate import Generation
from qwen3asr.jobs import Job, Prefix, Task
from qwen3asr.metrics import Metrics
from qwen3asr.prompt import Frame
from qwen3asr.scheduler import Encode, Plan, Policy, Prefill, Row, Scheduler, Step
from qwen3asr.sessions.base import Embeddings, Picked

T = TypeVar("T")

_log = logging.getLogger("qwen3asr")

IDLE_SECONDS = 2.0
"""After this long without work the thread ends; the next request starts another."""


class Engine:
    """Runs jobs over one encoder and one decoder.

    Args:
        encoder: encodes windows; those of different requests share its batches.
        decoder: its session owns the KV cache; a request works in one slot.
        eos: ids that end a text.
        queue: requests that may wait for a slot; one more is refused at once.
        policy: how new requests and running ones share the device.
        clock: seconds, monotonic.
    """

    def __init__(
        self, encoder: Encoder, decoder: Decoder, eos: Collection[int], *, queue: int = 256,
        policy: Policy | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        if queue < 1:
            raise RequestInvalid(f"queue={queue} lets nothing wait; give at least 1")
        self._encoder, self._decoder, self._eos = encoder, decoder, frozenset(eos)
        self.queue, self._policy, self._clock = queue, policy or Policy(), clock
        self.metrics = Metrics(decoder.slots * decoder.capacity, clock)
        self._tasks: dict[int, Task] = {}
        self._settled: list[tuple[Future[Generation], Generation | Exception]] = []
        self._prefixes: dict[int, Prefix] = {}
        self._abandoned: deque[Prefix] = deque()  # their streams were forgotten; no lock is needed to append
        self._scheduler = self._new_scheduler()
        self._numbers = itertools.count()
        self._change = threading.Condition()  # guards all of the above, but while the device runs
        self._life = _Life()
        weakref.finalize(self, _stop, self._change, self._life)

    @property
    def encoder(self) -> Encoder:
        """What encodes; for measurements, while no job is on its way."""
        return self._encoder

    @property
    def decoder(self) -> Decoder:
        """What decodes; likewise."""
        return self._decoder

    @property
    def slots(self) -> int:
        """Requests that are decoded at a time."""
        return self._decoder.slots

    @property
    def capacity(self) -> int:
        """Tokens of one request, prompt and text."""
        return self._decoder.capacity

    @property
    def kv_bytes(self) -> int:
        """Memory of the KV cache when all slots are full."""
        return self._decoder.slots * self._decoder.slot_bytes

    @property
    def closing(self) -> bool:
        """It was closed, though what runs may still be on its way."""
        return self._life.closing

    # --- asking ----------------------------------------------------------------------------------------------

    def submit(self, job: Job, *, wait: bool = False) -> Future[Generation]:
        """Let a job wait for its turn; live ones, which a stream has one at a time of, also where the queue is full.

        Cancel it with the future's ``cancel()``, at any time before its result is there.

        Args:
            job: the request.
            wait: where the queue is full, wait for room.

        Returns:
            A future: the generation, or the error that only this job has; ``DeadlineExceeded`` after its timeout.

        Raises:
            EngineBusy: the queue is full, and ``wait`` is not set; ``retry_after`` says when to come again.
            EngineClosed: the engine was closed.
            EngineFailed: the system gives no thread to work in.
            DeadlineExceeded: the job's timeout went by while it waited for room.
            RequestInvalid: the job does not fit the cache, or its prefix is at work.
        """
        arrived = self._clock()
        with self._change:
            while not job.live and self._scheduler.overdue >= self.queue and not self._life.closing:
                if not wait:
                    self.metrics.refused()
                    raise EngineBusy(f"{self._scheduler.overdue} requests are waiting", self.retry_after())
                left = None if job.timeout is None else job.timeout - (self._clock() - arrived)
                if left is not None and left <= 0:
                    raise DeadlineExceeded(job.timeout or 0.0)
                self._change.wait(left)
            task = self._add(job, arrived)
            self.metrics.submitted()
            if self._life.thread is None:
                self._start_thread(task)
            self._change.notify_all()
            return task.future

    async def generate(self, job: Job) -> Generation:
        """As :meth:`submit`, for asyncio: cancelling the task cancels the job."""
        return await asyncio.wrap_future(self.submit(job))

    def open(self, frame: Frame) -> Prefix:
        """A prefix for a stream: what its jobs have in common is computed once.

        Raises:
            EngineBusy: as many streams are open as requests may run and wait.
            EngineClosed: the engine was closed.
        """
        with self._change:
            self._check_open()
            self._release_abandoned()
            if len(self._prefixes) >= self.slots + self.queue:
                raise EngineBusy(f"{len(self._prefixes)} streams are open", self.retry_after())
            prefix = Prefix(next(self._numbers), frame)
            self._prefixes[prefix.number] = prefix
            self._scheduler.open_lease(prefix.number)
            return prefix

    def restart(self, prefix: Prefix, frame: Frame) -> None:
        """Forget what a prefix kept, and go on with another frame; its place among the streams stays.

        Raises:
            RequestInvalid: the prefix was released, or is at work.
        """
        with self._change:
            self._check_prefix(prefix)
            prefix.frame, prefix.windows = frame, []
            self._scheduler.trim_lease(prefix.number, 0)

    def abandon(self, prefix: Prefix) -> None:
        """Release a prefix soon. Takes no lock, and so may be called wherever a garbage collector runs."""
        self._abandoned.append(prefix)

    def release(self, prefix: Prefix) -> None:
        """Forget a prefix, now or when its job ends; harmless when done twice."""
        with self._change:
            if self._prefixes.pop(prefix.number, None) is not None:
                self._scheduler.close_lease(prefix.number)

    def close(self, *, drain: bool = False) -> None:
        """End the engine's thread. Jobs on their way are finished first (``drain``), or rejected with EngineClosed."""
        with self._change:
            self._life.draining = drain
        _stop(self._change, self._life)

    def _add(self, job: Job, arrived: float) -> Task:
        self._check_open()
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
        room = self.capacity - len(ids) + len(draft)
        if job.budget < 1 or room < max(job.budget, len(draft)):
            raise RequestInvalid(
                f"a budget of {job.budget} tokens and a draft of {len(draft)} do not fit the KV cache, which has room "
                f"for {max(room, 0)} behind this prompt; load the model with a larger capacity="
            )
        task = Task.of(next(self._numbers), job, arrived, ids, len(frame.head), kept)
        if prefix is not None:
            prefix.busy, prefix.windows = True, list(kept)
            self._scheduler.trim_lease(prefix.number, prefix.tokens())
        self._tasks[task.number] = task
        lease = None if prefix is None else prefix.number
        self._scheduler.add(Row(task.number, len(job.windows), len(ids), job.live, lease))
        return task

    def _start_thread(self, task: Task) -> None:
        thread = threading.Thread(target=self._serve, name="qwen3asr-engine", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._end(task, None)
            self.metrics.failed(EngineFailed.__name__)
            raise EngineFailed(error) from error
        self._life.thread = thread

    def _check_prefix(self, prefix: Prefix) -> None:
        if prefix.number not in self._prefixes:
            raise RequestInvalid("this prefix was released; open another")
        if prefix.busy:
            raise RequestInvalid("a prefix takes one job after the other")

    def _release_abandoned(self) -> None:
        while self._abandoned:
            self.release(self._abandoned.popleft())

    def _check_open(self) -> None:
        if self._life.closing:
            raise EngineClosed

    def retry_after(self) -> float:
        """Seconds until a full queue should have room again: what a request takes, times its place in the queue."""
        return self.metrics.mean_service_seconds() * (self._scheduler.waiting + 1) / self.slots

    # --- the thread ------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            _log.exception("the engine failed, and starts anew with the next request")
            self._start_anew(error)
            if not isinstance(error, Exception):
                raise

    def _turn(self) -> bool:
        """One piece of work; ``False`` when the thread is to end."""
        with self._change:
            if self._life.closing and not self._life.draining:
                self._reject_all(EngineClosed())
            self._release_abandoned()
            self._sweep()
            plan = self._scheduler.plan()
            self.metrics.state(self._scheduler.waiting, len(self._scheduler.running), self._scheduler.tokens)
            idle = plan is None and not self._settled
            if idle and not self._life.closing and self._change.wait(IDLE_SECONDS):
                return True
            if idle and not self._tasks:  # none that came as the waiting ended
                self._life.thread = None
                return False
        if plan is not None:
            self._run(plan)
        self._settle()
        return True

    def _settle(self) -> None:
        """Give out results, outside of the lock: their callbacks may ask for more."""
        with self._change:
            settled, self._settled = self._settled, []
        for future, outcome in settled:
            try:
                if isinstance(outcome, Generation):
                    future.set_result(outcome)
                else:
                    future.set_exception(outcome)
            except InvalidStateError:  # cancelled in this very moment
                future.set_running_or_notify_cancel()

    def _sweep(self) -> None:
        """Let go of jobs that nobody waits for any more."""
        now = self._clock()
        for task in list(self._tasks.values()):
            if task.future.cancelled():
                self._end(task, None)
                task.future.set_running_or_notify_cancel()  # those in concurrent.futures.wait() hear of it only so
                self.metrics.finished("cancelled")
            elif now >= task.deadline:
                self._end(task, DeadlineExceeded(task.job.timeout or 0.0))

    def _start_anew(self, error: BaseException) -> None:
        """What failed is no job's own: tell every waiter, and leave an engine that the next request can use."""
        with self._change:
            for task in self._tasks.values():
                self._settled.append((task.future, EngineFailed(error)))
                self.metrics.failed(EngineFailed.__name__)
            self._tasks.clear()
            self._scheduler = self._new_scheduler()
            for prefix in self._prefixes.values():
                prefix.busy = False
                self._scheduler.open_lease(prefix.number)
            self._life.thread = None
            self._change.notify_all()
        self._settle()

    def _new_scheduler(self) -> Scheduler:
        return Scheduler(self._decoder.slots, self._encoder.batch_windows, self._policy)

    def _reject_all(self, error: Qwen3AsrError) -> None:
        for task in list(self._tasks.values()):
            self._end(task, error)

    def _end(self, task: Task, outcome: Generation | Exception | None) -> None:
        del self._tasks[task.number]
        prefix, keep = task.job.prefix, 0
        if prefix is not None:
            keep, prefix.busy = prefix.tokens(), False
        self._scheduler.end(task.number, keep)
        if isinstance(outcome, Exception):
            self.metrics.failed(type(outcome).__name__)
        if outcome is not None:
            self._settled.append((task.future, outcome))
        self._change.notify_all()  # there may be room in the queue

    # --- the device ------------------------------------------------------------------------------------------

    def _run(self, plan: Plan) -> None:
        if isinstance(plan, Encode):
            self._encode(plan)
        elif isinstance(plan, Prefill):
            self._prefill(plan)
        else:
            self._step(plan)

    def _encode(self, plan: Encode) -> None:
        tasks = [self._tasks[number] for number, _ in plan.windows]
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
        task = self._tasks[plan.number]
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
        tasks = [self._tasks[number] for number in plan.numbers]
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
            with self._change:
                try:
                    if isinstance(outcome, Exception):
                        raise outcome
                    take(task, outcome)
                except Exception as error:
                    if task.number not in self._tasks:  # it had ended: this is none of its errors
                        raise
                    self._end(task, error)

    def _write(self, task: Task, token: int, logprob: float, *, drafted: bool = False) -> bool:
        """Take an answer; ``True`` if the text ends with it. Those of a draft come at once, with no time between."""
        reason = task.write(token, logprob, self._eos)
        if not drafted:
            self._count(task)
        if reason is None:
            return False
        self._end(task, task.generation(reason))
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


def _alone(run: Callable[[Sequence[int]], Sequence[T]], index: int) -> T | Exception:
    """What one task gets by itself."""
    try:
        (outcome,) = run([index])
    except Exception as error:  # noqa: BLE001 (as where all were run together)
        return error
    return outcome


@dataclass(slots=True)
class _Life:
    """Whether there is a thread, and whether there is to be one."""

    thread: threading.Thread | None = None
    closing: bool = False
    draining: bool = False


def _stop(change: threading.Condition, life: _Life) -> None:
    """Tell the thread to end, and wait for it; also as the interpreter exits."""
    with change:
        life.closing, thread = True, life.thread
        change.notify_all()
    if thread is not None and thread is not threading.current_thread():
        thread.join()
