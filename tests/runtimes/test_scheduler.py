"""The scheduler's plans, in plain ints."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr.scheduler import Encode, Policy, Prefill, Row, Scheduler, Step


def _drive(scheduler: Scheduler, lengths: dict[int, int], turns: int = 10_000) -> list[object]:
    """Run to the end: a row writes as many tokens as ``lengths`` says, the first with its prompt."""
    plans: list[object] = []
    written = dict.fromkeys(lengths, 0)
    for _ in range(turns):
        plan = scheduler.plan()
        if plan is None:
            return plans
        plans.append(plan)
        if isinstance(plan, Encode):
            for number, count in plan.windows:
                scheduler.encoded(number, count)
        elif isinstance(plan, Prefill):
            scheduler.prefilled(plan.number, plan.stop)
            if plan.stop == scheduler.row(plan.number).prompt:
                written[plan.number] = 1
                if lengths[plan.number] == 1:
                    scheduler.end(plan.number)
                else:
                    scheduler.start(plan.number, plan.stop)
        elif isinstance(plan, Step):
            assert [scheduler.row(number).slot for number in plan.numbers] == list(range(len(plan.numbers)))
            for number in plan.numbers:
                scheduler.stepped(number)
                written[number] += 1
                if written[number] == lengths[number]:
                    scheduler.end(number)
    raise AssertionError("it does not come to an end")


def test_one_request_is_encoded_then_fed_in_chunks_then_stepped() -> None:
    scheduler = Scheduler(slots=2, batch_windows=2, policy=Policy(chunk=100))
    scheduler.add(Row(0, windows=3, prompt=250))
    assert _drive(scheduler, {0: 3}) == [
        Encode(((0, 2),)), Encode(((0, 1),)),
        Prefill(0, 0, 0, 100), Prefill(0, 0, 100, 200), Prefill(0, 0, 200, 250),
        Step((0,)), Step((0,)),
    ]  # fmt: skip


def test_windows_of_several_requests_share_a_batch() -> None:
    scheduler = Scheduler(slots=3, batch_windows=4)
    for number in range(3):
        scheduler.add(Row(number, windows=2, prompt=10))
    assert scheduler.plan() == Encode(((0, 2), (1, 2)))


def test_running_rows_wait_for_one_unit_of_admission_at_a_time() -> None:
    """A long prompt once held up everybody's tokens until it was through."""
    scheduler = Scheduler(slots=2, policy=Policy(chunk=100, busy_chunk=30, units_per_step=1))
    scheduler.add(Row(0, windows=0, prompt=10))
    scheduler.plan()
    scheduler.prefilled(0, 10)
    scheduler.start(0, 10)
    scheduler.add(Row(1, windows=1, prompt=100))
    kinds = [type(plan).__name__ for plan in _drive(scheduler, {0: 50, 1: 2})[:9]]
    assert kinds[:2] in (["Step", "Encode"], ["Encode", "Step"])
    assert all(one != other for one, other in pairwise(kinds)), kinds


@pytest.mark.parametrize(("prompt", "stops"), [(30, [30]), (37, [37]), (38, [30, 38]), (75, [30, 60, 75])])
def test_a_short_rest_of_a_prompt_is_fed_with_what_comes_before_it(prompt: int, stops: list[int]) -> None:
    scheduler = Scheduler(slots=2, policy=Policy(chunk=100, busy_chunk=30, units_per_step=10))
    scheduler.add(Row(0, windows=0, prompt=10))
    scheduler.plan()
    scheduler.prefilled(0, 10)
    scheduler.start(0, 10)
    scheduler.add(Row(1, windows=0, prompt=prompt))
    fed = []
    while not fed or fed[-1] < prompt:
        plan = scheduler.plan()
        if isinstance(plan, Prefill):
            fed.append(plan.stop)
            scheduler.prefilled(1, plan.stop)
    assert fed == stops


@pytest.mark.parametrize(("prompt", "stop"), [(100, 100), (101, 100)])
def test_no_prefill_is_longer_than_the_chunk_that_bounds_its_memory(prompt: int, stop: int) -> None:
    scheduler = Scheduler(slots=1, policy=Policy(chunk=100))
    scheduler.add(Row(0, windows=0, prompt=prompt))
    assert scheduler.plan() == Prefill(0, 0, 0, stop)


def test_live_requests_go_first_and_files_leave_them_a_slot() -> None:
    scheduler = Scheduler(slots=2)
    scheduler.open_lease(100)
    for number in range(3):
        scheduler.add(Row(number, windows=0, prompt=5))
    scheduler.add(Row(3, windows=0, prompt=5, live=True, lease=100))
    first = scheduler.plan()
    assert isinstance(first, Prefill)
    assert first.number == 3
    assert scheduler.waiting == 2  # one file has the other slot


def test_files_leave_a_slot_free_as_long_as_a_stream_is_open() -> None:
    scheduler = Scheduler(slots=3)
    scheduler.open_lease(100)
    for number in range(4):
        scheduler.add(Row(number, windows=0, prompt=5))
    scheduler.plan()
    assert scheduler.waiting == 2
    scheduler.close_lease(100)
    scheduler.plan()
    assert scheduler.waiting == 1


def test_of_a_request_that_ends_early_only_what_was_fed_stays() -> None:
    """Cancelled in the midst of its prompt, it once left its lease with tokens that were never computed."""
    scheduler = Scheduler(slots=1, policy=Policy(chunk=10))
    scheduler.open_lease(9)
    scheduler.add(Row(0, windows=0, prompt=20, live=True, lease=9))
    scheduler.plan()
    scheduler.prefilled(0, 10)
    scheduler.end(0, keep=15)
    scheduler.add(Row(1, windows=0, prompt=20, live=True, lease=9))
    assert scheduler.plan() == Prefill(1, 0, 10, 20)


def test_a_lease_keeps_its_slot_and_its_tokens_between_requests() -> None:
    scheduler = Scheduler(slots=2)
    scheduler.open_lease(9)
    scheduler.add(Row(0, windows=0, prompt=20, live=True, lease=9))
    assert scheduler.plan() == Prefill(0, 0, 0, 20)
    scheduler.prefilled(0, 20)
    scheduler.end(0, keep=15)
    scheduler.add(Row(1, windows=0, prompt=30, live=True, lease=9))
    assert scheduler.plan() == Prefill(1, 0, 15, 30)


def test_the_lease_unused_longest_gives_way_and_starts_again_from_nothing() -> None:
    scheduler = Scheduler(slots=2)
    for lease in (10, 11, 12):
        scheduler.open_lease(lease)
    for number, lease in enumerate((10, 11, 12)):
        scheduler.add(Row(number, windows=0, prompt=8, live=True, lease=lease))
        plan = scheduler.plan()
        assert isinstance(plan, Prefill)
        scheduler.prefilled(number, 8)
        scheduler.end(number, keep=8)
    scheduler.add(Row(3, windows=0, prompt=9, live=True, lease=11))
    assert scheduler.plan() == Prefill(3, 1, 8, 9)  # 10 gave way to 12
    scheduler.end(3, keep=8)
    scheduler.add(Row(4, windows=0, prompt=9, live=True, lease=10))
    assert scheduler.plan() == Prefill(4, 0, 0, 9)  # and 12 to 10


def test_what_a_draft_had_wrong_is_not_counted_as_fed() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.add(Row(0, windows=0, prompt=20))
    scheduler.plan()
    scheduler.prefilled(0, 20)
    scheduler.start(0, 14)
    assert scheduler.plan() == Step((0,))
    assert scheduler.row(0).fed == 14


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=12),
    st.builds(Policy, st.integers(1, 40), st.integers(1, 20), st.integers(1, 3)),
)
def test_every_request_is_served_once_in_one_slot_and_steps_leave_no_hole(
    slots: int, batch: int, requests: list[tuple[int, int, int]], policy: Policy
) -> None:
    scheduler = Scheduler(slots, batch, policy)
    for number, (windows, prompt, _) in enumerate(requests):
        scheduler.add(Row(number, windows, prompt))
    lengths = {number: length for number, (_, _, length) in enumerate(requests)}
    plans = _drive(scheduler, lengths)
    for number, (windows, prompt, length) in enumerate(requests):
        encoded = sum(
            count for plan in plans if isinstance(plan, Encode) for who, count in plan.windows if who == number
        )
        fed = [(plan.start, plan.stop) for plan in plans if isinstance(plan, Prefill) and plan.number == number]
        stepped = sum(number in plan.numbers for plan in plans if isinstance(plan, Step))
        assert encoded == windows
        assert [stop for _, stop in fed[:-1]] == [start for start, _ in fed[1:]]
        assert (fed[0][0], fed[-1][1]) == (0, prompt)
        assert stepped == length - 1
    for plan in plans:
        if isinstance(plan, Encode):
            assert 1 <= sum(count for _, count in plan.windows) <= batch
        if isinstance(plan, Step):
            assert 1 <= len(plan.numbers) <= slots
    assert (scheduler.waiting, scheduler.running, scheduler.tokens) == (0, [], 0)
