"""Many requests over one model: each result must be what the one-row loop gives, whatever the others do."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cached import AUDIO_PAD, END, HIDDEN, CachedDecoder, SumEncoder, alone, window

from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.engine import Engine
from qwen3asr.errors import (
    BackendFailed,
    DeadlineExceeded,
    EngineBusy,
    EngineClosed,
    EngineFailed,
    OutputNotFinite,
    RequestInvalid,
)
from qwen3asr.features import WindowSpec
from qwen3asr.generate import Generation
from qwen3asr.jobs import Job, Prefix
from qwen3asr.prompt import Frame
from qwen3asr.scheduler import Policy

FRAME = Frame(np.array([1, 2, 3]), np.array([4, 5]))
WAIT = 30.0  # seconds after which a test has failed, never one that it needs


def _engine(session: CachedDecoder, encoder: SumEncoder | None = None, **settings: object) -> Engine:
    audio = Encoder(encoder or SumEncoder(), WindowSpec())
    return Engine(audio, Decoder(session, AUDIO_PAD, HIDDEN), {END}, **settings)  # type: ignore[arg-type]


def _job(value: float, seconds: float = 1.0, budget: int = 40, **more: object) -> Job:
    return Job(FRAME, [window(seconds, value)], budget, **more)  # type: ignore[arg-type]


def _wanted(job: Job) -> Generation:
    return alone(job.windows, job.frame, job.budget)


class _Held:
    """Holds the device until it is let go, so that what happens meanwhile is certain."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self, _: object = None) -> None:
        self.reached.set()
        assert self.go.wait(WAIT)


# --- the same as alone -----------------------------------------------------------------------------------------

_LENGTHS = st.sampled_from([0.1, 0.3, 0.5, 1.0, 1.01, 3.0, 7.99, 8.0])
_HEADS = st.sampled_from([(1, 2, 3), (1, 2, 3, 6, 6), (1, 2, 8), (9,)])
_REQUESTS = st.lists(
    st.tuples(_HEADS, st.lists(_LENGTHS, min_size=1, max_size=3), st.integers(1, 30)), min_size=1, max_size=9
)
_POLICIES = st.builds(Policy, st.integers(3, 200), st.integers(1, 60), st.integers(1, 3), st.integers(1, 20))


@settings(max_examples=150, deadline=None)
@given(_REQUESTS, st.integers(1, 4), st.integers(1, 5), _POLICIES, st.data())
def test_requests_that_join_leave_and_are_cancelled_at_any_moment_harm_nobody(
    requests: list[tuple[tuple[int, ...], list[float], int]],
    slots: int,
    batch: int,
    policy: Policy,
    data: st.DataObject,
) -> None:
    jobs = []
    for number, (head, lengths, budget) in enumerate(requests):
        windows = [window(length, number + at / 10) for at, length in enumerate(lengths)]
        jobs.append(Job(Frame(np.array(head), FRAME.tail), windows, budget))
    joins = {number: data.draw(st.integers(0, 40), label="joins at run") for number in range(len(jobs))}
    leaves = {
        number: data.draw(st.integers(0, 60), label="cancelled at run")
        for number in data.draw(st.sets(st.integers(0, len(jobs) - 1), max_size=3), label="cancelled")
    }
    futures: dict[int, Future[Generation]] = {}
    runs = 0

    def on_run(_: object = None) -> None:
        nonlocal runs
        for number, job in enumerate(jobs):
            if joins[number] <= runs and number not in futures:
                futures[number] = engine.submit(job)
            if leaves.get(number, 1000) == runs and number in futures:
                futures[number].cancel()
        runs += 1

    session = CachedDecoder(slots, on_run=on_run)
    engine = _engine(session, SumEncoder(batch, on_run), policy=policy)
    futures[0] = engine.submit(jobs[0])
    while len(futures) < len(jobs):  # those that join after all the others have ended
        for future in list(futures.values()):
            _settled(future)
        on_run()
    for number, job in enumerate(jobs):
        result = _settled(futures[number])
        assert result == _wanted(job) or (number in leaves and result is None)
    engine.close(drain=True)
    assert engine.metrics.snapshot().queue_depth == engine.metrics.snapshot().active_rows == 0


def _settled(future: Future[Generation]) -> Generation | None:
    try:
        return future.result(WAIT)
    except CancelledError:
        return None


def test_a_short_clip_beside_five_minutes() -> None:
    """The short one once waited for the long one's 38 windows and 4,000 tokens."""
    session, held = CachedDecoder(slots=2, capacity=6000, ending=10_000), _Held()
    encoder = SumEncoder(1, on_run=held)
    engine = _engine(session, encoder)
    long = Job(FRAME, [window(8.0, at) for at in range(37)] + [window(4.0, 37)], 300)
    short = _job(0.5, 0.3, budget=5)
    done: list[int] = []
    first, second = engine.submit(long), engine.submit(short)
    second.add_done_callback(lambda _: done.append(len(encoder.batches)))
    held.go.set()
    assert second.result(WAIT) == alone(short.windows, FRAME, 5, ending=10_000)
    assert first.result(WAIT) == alone(long.windows, FRAME, 300, ending=10_000)
    assert done[0] < 20


def test_rows_step_together_and_windows_of_several_requests_share_a_batch() -> None:
    session, encoder, held = CachedDecoder(slots=4, ending=10_000), SumEncoder(8), _Held()
    encoder.on_run = held
    engine = _engine(session, encoder)
    futures = [engine.submit(_job(value, budget=20)) for value in range(4)]
    held.go.set()
    assert [future.result(WAIT) for future in futures] == [
        alone([window(1.0, value)], FRAME, 20, ending=10_000) for value in range(4)
    ]
    assert encoder.batches in ([4], [1, 3], [2, 2], [3, 1])
    assert sum(rows == 4 for rows, _ in session.runs) >= 10


def test_a_prompt_that_begins_as_the_last_one_is_fed_from_where_it_differs() -> None:
    session = CachedDecoder(slots=1)
    engine = _engine(session)
    heads = [(1, 2, 3, 8), (1, 2, 3, 8), (1, 2, 6), (1, 2, 3, 8)]
    jobs = [Job(Frame(np.array(head), FRAME.tail), [window(1.0, at)], 3) for at, head in enumerate(heads)]
    assert [engine.submit(job).result(WAIT) for job in jobs] == [_wanted(job) for job in jobs]
    behind = 13 + len(FRAME.tail)
    assert [size for _, size in session.runs if size > 1] == [4 + behind, behind, 1 + behind, 2 + behind]
    assert engine.metrics.snapshot().prompt_tokens == 7 + 4 * behind


def test_keys_that_went_wrong_unseen_fail_one_request_only() -> None:
    """The answers of a prompt's first chunk are wanted by nobody: that they were NaN shows at its end."""
    session, calls = CachedDecoder(slots=1), []

    def on_run(_: range) -> None:
        calls.append(None)
        if len(calls) == 2:
            session.poisoned, session.cache[0][0] = {666}, 666

    session.on_run = on_run
    engine = _engine(session, policy=Policy(chunk=2))
    with pytest.raises(OutputNotFinite):
        engine.submit(_job(1.0)).result(WAIT)
    assert engine.submit(_job(2.0)).result(WAIT) == _wanted(_job(2.0))


# --- drafts and prefixes ---------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 30), st.integers(0, 29), st.integers(1, 30), st.integers(1, 50))
def test_a_draft_changes_nothing_but_the_number_of_steps(right: int, wrong: int, budget: int, chunk: int) -> None:
    wanted = alone([window(2.0, 0.25)], FRAME, budget)
    draft = [*wanted.tokens[:right], *range(900, 900 + wrong)]
    session = CachedDecoder()
    engine = _engine(session, policy=Policy(chunk=chunk))
    assert engine.submit(_job(0.25, 2.0, budget, draft=draft)).result(WAIT) == wanted
    engine.close()
    steps = len(session.runs) - math.ceil((len(FRAME.head) + 26 + len(FRAME.tail) + len(draft)) / chunk)
    assert steps <= len(wanted.tokens) - min(right, len(wanted.tokens))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.data())
def test_streams_that_share_slots_get_what_decoding_from_scratch_gives(slots: int, data: st.DataObject) -> None:
    """A stream whose slot another one took must not find the other's tokens in it."""
    session, encoder = CachedDecoder(slots), SumEncoder()
    engine = _engine(session, encoder)
    frames = [Frame(np.array([1, 2, 3, 10 + stream]), np.array([4, 5])) for stream in range(3)]
    prefixes: list[Prefix] = [engine.open(frame) for frame in frames]
    kept: list[list[float]] = [[] for _ in frames]
    files = []
    for turn in range(data.draw(st.integers(1, 12))):
        stream = data.draw(st.integers(0, 2))
        keep = data.draw(st.integers(0, len(kept[stream])))
        complete = data.draw(st.integers(0, 2))
        values = [*kept[stream][:keep], *(turn + at / 8 for at in range(complete))]
        new = [window(8.0, value) for value in values[keep:]]
        opened = window(data.draw(_LENGTHS), turn + 0.9)
        draft = data.draw(st.lists(st.integers(100, 150), max_size=5))
        job = Job(
            frames[stream], [*new, opened], 10, draft=draft, live=True,
            prefix=prefixes[stream], keep=keep, complete=complete,
        )  # fmt: skip
        if data.draw(st.booleans()):
            files.append((turn, engine.submit(_job(turn + 0.5, budget=15))))
        wanted = alone([*(window(8.0, value) for value in values), opened], frames[stream], 10)
        assert engine.submit(job).result(WAIT) == wanted
        kept[stream] = values
    for turn, future in files:
        assert future.result(WAIT) == alone([window(1.0, turn + 0.5)], FRAME, 15)
    engine.close()


def test_kept_windows_are_neither_encoded_nor_fed_again() -> None:
    session, encoder = CachedDecoder(), SumEncoder()
    engine = _engine(session, encoder)
    prefix = engine.open(FRAME)
    first = Job(FRAME, [window(8.0, 1), window(8.0, 2), window(1.0, 3)], 1, prefix=prefix, complete=2)
    engine.submit(first).result(WAIT)
    fed, encoded = sum(tokens for _, tokens in session.runs), sum(encoder.batches)
    again = Job(FRAME, [window(2.0, 4)], 1, prefix=prefix, keep=2)
    assert engine.submit(again).result(WAIT) == alone([window(8.0, 1), window(8.0, 2), window(2.0, 4)], FRAME, 1)
    assert sum(encoder.batches) - encoded == 1
    assert sum(tokens for _, tokens in session.runs) - fed == 26 + len(FRAME.tail)
    engine.release(prefix)
    engine.release(prefix)
    with pytest.raises(RequestInvalid, match="released"):
        engine.submit(again)


def test_a_prefix_takes_one_job_at_a_time() -> None:
    held = _Held()
    engine = _engine(CachedDecoder(), SumEncoder(on_run=held))
    prefix = engine.open(FRAME)
    first = engine.submit(_job(1.0, prefix=prefix, complete=1))
    with pytest.raises(RequestInvalid, match="one job after the other"):
        engine.submit(_job(1.0, prefix=prefix))
    held.go.set()
    first.result(WAIT)
    with pytest.raises(RequestInvalid, match="keeps 1 windows, not 2"):
        engine.submit(_job(1.0, prefix=prefix, keep=2))


# --- failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [BackendFailed("It", MemoryError("no memory")), RuntimeError("device lost")])
def test_a_request_whose_call_fails_is_rejected_and_its_neighbours_go_on(error: Exception) -> None:
    """One row that made the whole step fail once took everybody with it."""
    bad = alone([window(1.0, 2)], FRAME, 5, ending=10_000).tokens[1]

    class Failing(CachedDecoder):
        def run(self, ids, audio, take, slots, past):  # type: ignore[no-untyped-def]
            if ids.shape[1] == 1 and bad in ids:
                raise error
            return super().run(ids, audio, take, slots, past)

    engine = _engine(Failing(slots=3, ending=10_000))
    futures = [engine.submit(_job(value, budget=30)) for value in (1, 2, 3)]
    with pytest.raises(type(error)):
        futures[1].result(WAIT)
    for value, future in ((1, futures[0]), (3, futures[2])):
        assert future.result(WAIT) == alone([window(1.0, value)], FRAME, 30, ending=10_000)
    assert engine.submit(_job(5, budget=3)).result(WAIT).tokens  # and the next one finds it well


def test_a_window_that_cannot_be_encoded_rejects_its_own_request_only() -> None:
    class Failing(SumEncoder):
        def run(self, mel, frames):  # type: ignore[no-untyped-def]
            if (mel == 2.0).any():
                raise BackendFailed("It", ValueError("bad window"))
            return super().run(mel, frames)

    held = _Held()
    engine = _engine(CachedDecoder(slots=3), Failing(on_run=held))
    futures = [engine.submit(_job(value)) for value in (1.0, 2.0, 3.0)]
    held.go.set()
    with pytest.raises(BackendFailed, match="bad window"):
        futures[1].result(WAIT)
    assert futures[0].result(WAIT) == _wanted(_job(1.0))
    assert futures[2].result(WAIT) == _wanted(_job(3.0))


def test_answers_that_are_not_finite_reject_their_row_and_name_slot_and_position() -> None:
    session = CachedDecoder(slots=2, ending=10_000)
    session.poisoned = {alone([window(1.0, 2)], FRAME, 5, ending=10_000).tokens[2]}
    engine = _engine(session)
    futures = [engine.submit(_job(value, budget=10)) for value in (1, 2)]
    with pytest.raises(OutputNotFinite, match=r"slot \d by position 21"):
        futures[1].result(WAIT)
    assert futures[0].result(WAIT) == alone([window(1.0, 1)], FRAME, 10, ending=10_000)


def test_should_the_engine_itself_fail_every_waiter_is_told_and_the_next_request_is_served() -> None:
    class Failing(CachedDecoder):
        def swap(self, first: int, second: int, tokens: int) -> None:
            raise MemoryError("no memory to move a row")

    engine = _engine(Failing(slots=2, ending=10_000))
    prefix = engine.open(FRAME)
    engine.submit(_job(9, budget=1, prefix=prefix, complete=1)).result(WAIT)
    first, second = engine.submit(_job(1, budget=3)), engine.submit(_job(2, budget=50, live=True))
    failures = [future.exception(WAIT) for future in (first, second)]
    assert any(isinstance(failure, EngineFailed) for failure in failures)
    assert engine.submit(_job(5, budget=1)).result(WAIT) == alone([window(1.0, 5)], FRAME, 1, ending=10_000)
    again = Job(FRAME, [window(2.0, 6)], 1, prefix=prefix, keep=1)
    assert engine.submit(again).result(WAIT) == alone([window(1.0, 9), window(2.0, 6)], FRAME, 1, ending=10_000)


def test_a_dying_thread_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying(CachedDecoder):
        dead = False

        def run(self, ids, audio, take, slots, past):  # type: ignore[no-untyped-def]
            if ids.shape[1] == 1 and not self.dead:
                self.dead = True
                raise SystemExit(1)
            return super().run(ids, audio, take, slots, past)

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    held = _Held()
    engine = _engine(Dying(slots=1, ending=10_000), SumEncoder(on_run=held))
    futures = [engine.submit(_job(value, budget=3)) for value in (1, 2)]
    held.go.set()
    assert all(isinstance(future.exception(WAIT), EngineFailed) for future in futures)
    assert engine.submit(_job(5, budget=1)).result(WAIT) == alone([window(1.0, 5)], FRAME, 1, ending=10_000)


def test_the_timeout_of_a_job_counts_while_it_waits_for_room() -> None:
    held = _Held()
    engine = _engine(CachedDecoder(slots=1), SumEncoder(on_run=held), queue=1)
    first = engine.submit(_job(0))
    assert held.reached.wait(WAIT)
    second = engine.submit(_job(1))
    with pytest.raises(DeadlineExceeded):
        engine.submit(_job(2, timeout=0.01), wait=True)
    held.go.set()
    assert [first.result(WAIT), second.result(WAIT)] == [_wanted(_job(0)), _wanted(_job(1))]


# --- asking ----------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again() -> None:
    held, looks = _Held(), list[float]()

    def clock() -> float:
        looks.append(time.monotonic())
        return looks[-1]

    engine = _engine(CachedDecoder(slots=1), SumEncoder(on_run=held), queue=2, clock=clock)
    engine.submit(_job(0))
    assert held.reached.wait(WAIT)
    futures = [engine.submit(_job(value)) for value in (1, 2)]
    with pytest.raises(EngineBusy, match="2 requests are waiting") as refusal:
        engine.submit(_job(3))
    assert refusal.value.retry_after > 0
    waiting: list[Future[Generation]] = []
    patient = threading.Thread(target=lambda: waiting.append(engine.submit(_job(4, timeout=WAIT), wait=True)))
    looks.clear()
    patient.start()
    while len(looks) < 2:  # it has looked at the clock in the queue, and so it waits
        held.reached.wait(0.001)
    held.go.set()
    patient.join(WAIT)
    assert [f.result(WAIT) for f in [*futures, *waiting]] == [_wanted(_job(value)) for value in (1, 2, 4)]
    assert engine.metrics.snapshot().refused == 1


def test_a_deadline_ends_a_request_that_waits_and_one_that_runs() -> None:
    now, held = [0.0], _Held()
    session = CachedDecoder(slots=1, ending=10_000)
    engine = _engine(session, SumEncoder(on_run=held), clock=lambda: now[0])
    steps = 0

    def on_run(_: range) -> None:
        nonlocal steps
        steps += 1
        now[0] += 1.0

    session.on_run = on_run
    running = engine.submit(_job(1, budget=1000, timeout=20.0))
    waiting = engine.submit(_job(2, budget=3, timeout=10.0))
    last = engine.submit(_job(3, budget=3))
    held.go.set()  # no step, and so no second, before all three are there
    for future, seconds in ((running, 20), (waiting, 10)):
        with pytest.raises(DeadlineExceeded, match=f"{seconds}.0 s"):
            future.result(WAIT)
    assert last.result(WAIT) == alone([window(1.0, 3)], FRAME, 3, ending=10_000)
    assert steps < 30


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (_job(1, budget=90), "room for 84 behind this prompt"),
        (_job(1, seconds=8.0, budget=1), "room for 0"),
        (_job(1, budget=0), "a budget of 0"),
    ],
)
def test_a_job_that_does_not_fit_is_refused_before_it_waits(job: Job, message: str) -> None:
    engine = _engine(CachedDecoder(capacity=102))
    with pytest.raises(RequestInvalid, match=message):
        engine.submit(job)


def test_live_jobs_wait_behind_a_full_queue_and_streams_are_bounded() -> None:
    """A queue full of files once ended a stream in the middle of a sentence."""
    held = _Held()
    engine = _engine(CachedDecoder(slots=1), SumEncoder(on_run=held), queue=1)
    prefix = engine.open(FRAME)
    files = [engine.submit(_job(0))]
    assert held.reached.wait(WAIT)
    files.append(engine.submit(_job(1)))
    live = engine.submit(_job(2, live=True, prefix=prefix, complete=1))
    with pytest.raises(EngineBusy, match="2 streams are open"):
        [engine.open(FRAME) for _ in range(2)]
    held.go.set()
    assert [future.result(WAIT) for future in [*files, live]] == [_wanted(_job(value)) for value in (0, 1, 2)]


def test_closing_rejects_who_waits_and_draining_serves_them() -> None:
    for drain in (False, True):
        held = _Held()
        engine = _engine(CachedDecoder(slots=1), SumEncoder(on_run=held))
        futures = [engine.submit(_job(value)) for value in (1, 2)]
        assert held.reached.wait(WAIT)
        closer = threading.Thread(target=engine.close, kwargs={"drain": drain})
        closer.start()
        while not engine.closing:
            held.reached.wait(0.001)
        with pytest.raises(EngineClosed):
            engine.submit(_job(3))
        held.go.set()
        closer.join(WAIT)
        if drain:
            assert [future.result(WAIT) for future in futures] == [_wanted(_job(1)), _wanted(_job(2))]
        else:
            assert all(isinstance(future.exception(WAIT), EngineClosed) for future in futures)
        engine.close()


def test_the_loop_watch_sees_every_token_and_cuts_the_text() -> None:
    class Watch:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def push(self, token: int) -> int | None:
            self.seen.append(token)
            return 4 if len(self.seen) == 6 else None

    whole = alone([window(1.0, 1)], FRAME, 30, ending=10_000)
    for draft in ((), whole.tokens[:10]):
        watch = Watch()
        engine = _engine(CachedDecoder(ending=10_000))
        result = engine.submit(_job(1, budget=30, watch=watch, draft=draft)).result(WAIT)
        assert (result.tokens, result.finish_reason) == (whole.tokens[:4], "loop")
        assert result == alone([window(1.0, 1)], FRAME, 30, ending=10_000, watch=Watch())
        assert tuple(watch.seen) == whole.tokens[:6]


def test_asyncio_waits_without_blocking_and_cancelling_the_task_frees_the_slot() -> None:
    held, session = _Held(), CachedDecoder(slots=1, ending=10_000)
    engine = _engine(session, SumEncoder(on_run=held))

    async def scene() -> list[Generation]:
        first = asyncio.create_task(engine.generate(_job(1, budget=1_000)))
        await asyncio.to_thread(held.reached.wait, WAIT)
        others = [asyncio.create_task(engine.generate(_job(value, budget=4))) for value in (2, 3)]
        first.cancel()
        await asyncio.wait([first])  # the loop passes it on to the engine
        held.go.set()
        return list(await asyncio.gather(*others))

    assert asyncio.run(scene()) == [alone([window(1.0, value)], FRAME, 4, ending=10_000) for value in (2, 3)]
    assert len(session.runs) == 8  # nothing of the cancelled one


def test_a_request_that_comes_as_the_idle_thread_ends_is_served() -> None:
    """Its thread had given up waiting, and the request saw that there was one: nobody served it."""
    engine = _engine(CachedDecoder())
    asked, idle = threading.Event(), threading.Event()

    class Late(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            if threading.current_thread().name != "qwen3asr-engine" or idle.is_set():
                return super().wait(timeout)
            idle.set()
            super().wait_for(asked.is_set, WAIT)
            return False  # as if the time had run out at that very moment

    engine._change = engine._batch._lock = Late()
    engine._batch._ended = engine._change.notify_all
    engine.submit(_job(1)).result(WAIT)
    assert idle.wait(WAIT)
    with engine._change:
        future = engine.submit(_job(2))
        asked.set()
        engine._change.notify_all()
    assert future.result(WAIT) == _wanted(_job(2))


@pytest.mark.parametrize("ends", ["cancelled", "timed out"])
def test_who_waits_for_room_gets_it_when_the_one_before_gives_up(ends: str) -> None:
    """Only requests that were admitted told those who waited."""
    now, held = [0.0], _Held()
    engine = _engine(CachedDecoder(slots=1), SumEncoder(on_run=held), queue=1, clock=lambda: now[0])
    first = engine.submit(_job(1))
    assert held.reached.wait(WAIT)
    second = engine.submit(_job(2, timeout=10.0))
    patient: Future[Generation] = Future()
    threading.Thread(
        target=lambda: patient.set_result(engine.submit(_job(3), wait=True).result(WAIT)), daemon=True
    ).start()
    while not engine._change._waiters:  # type: ignore[attr-defined]  # it waits for room
        held.reached.wait(0.001)
    if ends == "cancelled":
        second.cancel()
    else:
        now[0] = 11.0
    first.cancel()  # so that the queue empties without anybody being admitted
    held.go.set()
    assert patient.result(WAIT) == _wanted(_job(3))


def test_concurrent_futures_hear_of_a_cancelled_request() -> None:
    """``wait`` and ``as_completed`` slept on."""
    held = _Held()
    engine = _engine(CachedDecoder(slots=1), SumEncoder(on_run=held))
    futures = [engine.submit(_job(value)) for value in (1, 2, 3)]
    assert held.reached.wait(WAIT)
    futures[0].cancel()
    futures[1].cancel()
    held.go.set()
    assert wait(futures, WAIT).not_done == set()


def test_a_watch_that_fails_rejects_its_own_request_only() -> None:
    """It took the whole engine with it."""

    class Failing:
        def push(self, token: int) -> int | None:
            raise ZeroDivisionError("a defect of the watch")

    engine = _engine(CachedDecoder(slots=2, ending=10_000))
    futures = [engine.submit(_job(value, budget=9, watch=watch)) for value, watch in ((1, Failing()), (2, None))]
    with pytest.raises(ZeroDivisionError, match="a defect of the watch"):
        futures[0].result(WAIT)
    assert futures[1].result(WAIT) == alone([window(1.0, 2)], FRAME, 9, ending=10_000)


def test_a_request_without_audio_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="no audio in this request"):
        _engine(CachedDecoder()).submit(Job(FRAME, [], 3))


def test_tokens_of_a_draft_have_no_time_between_them() -> None:
    """They counted as tokens written within microseconds of each other, and hid what steps take."""
    whole = alone([window(1.0, 1)], FRAME, 20, ending=10_000)
    engine = _engine(CachedDecoder(ending=10_000))
    engine.submit(_job(1, budget=20, draft=whole.tokens[:12])).result(WAIT)
    counted = engine.metrics.snapshot()
    assert (counted.time_to_first_token.count, counted.inter_token.count, counted.tokens) == (1, 7, 20)


def test_a_prefix_that_was_abandoned_makes_room_for_another() -> None:
    engine = _engine(CachedDecoder(slots=1), queue=1)
    prefixes = [engine.open(FRAME) for _ in range(2)]
    with pytest.raises(EngineBusy):
        engine.open(FRAME)
    engine.abandon(prefixes.pop())
    engine.open(FRAME)


def test_a_prefix_starts_again_in_its_place() -> None:
    engine = _engine(CachedDecoder(slots=1, ending=10_000), queue=1)
    prefix, other = engine.open(FRAME), Frame(np.array([6, 6]), np.array([5]))
    engine.submit(_job(1, budget=2, prefix=prefix, complete=1)).result(WAIT)
    engine.restart(prefix, other)
    again = Job(FRAME, [window(1.0, 4)], 5, prefix=prefix)
    assert engine.submit(again).result(WAIT) == alone([window(1.0, 4)], other, 5, ending=10_000)
    with pytest.raises(RequestInvalid, match="keeps 0 windows, not 1"):
        engine.submit(Job(FRAME, [window(1.0, 4)], 5, prefix=prefix, keep=1))
    engine.release(prefix)
    with pytest.raises(RequestInvalid, match="was released"):
        engine.restart(prefix, FRAME)


@pytest.mark.parametrize("name", ["chunk", "busy_chunk", "units_per_step", "joining_units"])
def test_a_policy_that_starts_nothing_is_refused(name: str) -> None:
    with pytest.raises(RequestInvalid, match=f"{name}=0"):
        Policy(**{name: 0})


def test_an_idle_engine_keeps_no_thread_and_wakes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3asr.engine.IDLE_SECONDS", 0.0)
    engine = _engine(CachedDecoder())
    for value in (1, 2):
        assert engine.submit(_job(value)).result(WAIT) == _wanted(_job(value))
        threads: Callable[[], list[str]] = lambda: [thread.name for thread in threading.enumerate()]  # noqa: E731
        for thread in threading.enumerate():
            if thread.name == "qwen3asr-engine":
                thread.join(WAIT)
        assert "qwen3asr-engine" not in threads()
