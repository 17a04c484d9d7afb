"""Continuous batching: many requests share one model; they join and leave at any step.

Each turn: the scheduler plans in plain ints, the model runs, the answers are committed. One thread does that while
there is work; ``submit`` may be called from any thread and gives a future, ``generate`` is its asyncio face. A row's
answers never depend on its neighbours: they are those of :func:`qwen3asr.generate.generate`.

What fails, fails alone: a request whose own call raises is rejected with that error, the others go on. Should the
engine itself fail, every waiter is told, and it starts anew for the next request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass

from qwen3asr.batch import Batch, settle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.errors import DeadlineExceeded, EngineBusy, EngineClosed, EngineFailed, RequestInvalid
from qwen3asr.generate import Generation
from qwen3asr.jobs import Job, Prefix, Task
from qwen3asr.metrics import Metrics
from qwen3asr.prompt import Frame
from qwen3asr.scheduler import Policy

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
        self._encoder, self._decoder, self.queue, self._clock = encoder, decoder, queue, clock
        self.metrics = Metrics(decoder.slots * decoder.capacity, clock)
        self._abandoned: deque[Prefix] = deque()  # their streams were forgotten; no lock is needed to append
        self._change = threading.Condition()  # guards all that follows
        self._batch = Batch(
            encoder, decoder, eos, policy or Policy(), self.metrics, clock, self._change, self._change.notify_all
        )
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
            while not job.live and self._batch.overdue >= self.queue and not self._life.closing:
                if not wait:
                    self.metrics.refused()
                    raise EngineBusy(f"{self._batch.overdue} requests are waiting", self.retry_after())
                left = None if job.timeout is None else job.timeout - (self._clock() - arrived)
                if left is not None and left <= 0:
                    raise DeadlineExceeded(job.timeout or 0.0)
                self._change.wait(left)
            self._check_open()
            task = self._batch.add(job, arrived)
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
            if len(self._batch.prefixes) >= self.slots + self.queue:
                raise EngineBusy(f"{len(self._batch.prefixes)} streams are open", self.retry_after())
            return self._batch.open(frame)

    def restart(self, prefix: Prefix, frame: Frame) -> None:
        """Forget what a prefix kept, and go on with another frame; its place among the streams stays.

        Raises:
            RequestInvalid: the prefix was released, or is at work.
        """
        with self._change:
            self._batch.restart(prefix, frame)

    def abandon(self, prefix: Prefix) -> None:
        """Release a prefix soon. Takes no lock, and so may be called wherever a garbage collector runs."""
        self._abandoned.append(prefix)

    def release(self, prefix: Prefix) -> None:
        """Forget a prefix, now or when its job ends; harmless when done twice."""
        with self._change:
            self._batch.release(prefix)

    def close(self, *, drain: bool = False) -> None:
        """End the engine's thread. Jobs on their way are finished first (``drain``), or rejected with EngineClosed."""
        with self._change:
            self._life.draining = drain
        _stop(self._change, self._life)

    def _start_thread(self, task: Task) -> None:
        thread = threading.Thread(target=self._serve, name="qwen3asr-engine", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._batch.end(task, None)
            self.metrics.failed(EngineFailed.__name__)
            raise EngineFailed(error) from error
        self._life.thread = thread

    def _release_abandoned(self) -> None:
        while self._abandoned:
            self._batch.release(self._abandoned.popleft())

    def _check_open(self) -> None:
        if self._life.closing:
            raise EngineClosed

    def retry_after(self) -> float:
        """Seconds until a full queue should have room again: what a request takes, times its place in the queue."""
        return self.metrics.mean_service_seconds() * (self._batch.waiting + 1) / self.slots

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
                self._batch.reject(EngineClosed())
            self._release_abandoned()
            self._batch.sweep()
            plan = self._batch.plan()
            idle = plan is None and not self._batch.settled
            if idle and not self._life.closing and self._change.wait(IDLE_SECONDS):
                return True
            if idle and not self._batch.tasks:  # none that came as the waiting ended
                self._life.thread = None
                return False
        if plan is not None:
            self._batch.run(plan)
        self._settle()
        return True

    def _settle(self) -> None:
        with self._change:
            settled, self._batch.settled = self._batch.settled, []
        settle(settled)

    def _start_anew(self, error: BaseException) -> None:
        with self._change:
            self._batch.start_anew(error)
            self._life.thread = None
        self._settle()


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
