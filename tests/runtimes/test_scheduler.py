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


def _with_one_running(scheduler: Scheduler, *, live: bool) -> Scheduler:
    scheduler.add(Row(0, windows=0, prompt=10, live=live))
    scheduler.plan()
    scheduler.prefilled(0, 10)
    scheduler.start(0, 10)
    return scheduler


def _kinds(plans: list[object]) -> str:
    return "".join(type(plan).__name__[0] for plan in plans)


def test_live_rows_wait_for_one_unit_of_admission_at_a_time() -> None:
    """A long prompt once held up everybody's tokens until it was through."""
    scheduler = Scheduler(slots=2, policy=Policy(chunk=100, busy_chunk=30, units_per_step=1))
    _with_one_running(scheduler, live=True).add(Row(1, windows=1, prompt=100))
    kinds = _kinds(_drive(scheduler, {0: 50, 1: 2})[:9])
    assert kinds[:2] == "SE"
    assert all(one != other for one, other in pairwise(kinds)), kinds


def test_a_step_waits_for_those_that_can_join_it_soon() -> None:
    """Row by row, they once took part in their neighbours' last steps only."""
    scheduler = Scheduler(slots=4, policy=Policy(chunk=100, joining_units=12))
    for number in range(4):
        scheduler.add(Row(number, windows=2, prompt=100))
    plans = _drive(scheduler, dict.fromkeys(range(4), 6))
    assert _kinds(plans) == "EEP" * 4 + "S" * 5
    assert plans[-1] == Step((0, 1, 2, 3))


def test_a_step_waits_no_longer_than_that() -> None:
    scheduler = Scheduler(slots=4, policy=Policy(chunk=100, joining_units=11))
    for number in range(4):
        scheduler.add(Row(number, windows=2, prompt=100))
    assert _kinds(_drive(scheduler, dict.fromkeys(range(4), 6))) == "EEP" * 3 + "S" + "EEP" + "SSSSS"


def test_a_long_request_gets_one_unit_a_step_and_is_not_waited_for() -> None:
    """A short clip was to wait until three minutes of audio were encoded."""
    scheduler = Scheduler(slots=2, policy=Policy(chunk=100, joining_units=4))
    _with_one_running(scheduler, live=False).add(Row(1, windows=6, prompt=200))
    kinds = _kinds(_drive(scheduler, {0: 9, 1: 2}))
    assert kinds == "SESESESES" + "EEPP" + "SSSS"  # four units are not long


@pytest.mark.parametrize(("prompt", "stops"), [(30, [30]), (37, [37]), (38, [30, 38]), (75, [30, 60, 75])])
def test_a_short_rest_of_a_prompt_is_fed_with_what_comes_before_it(prompt: int, stops: list[int]) -> None:
    scheduler = Scheduler(slots=2, policy=Policy(chunk=100, busy_chunk=30, units_per_step=10))
    _with_one_running(scheduler, live=True).add(Row(1, windows=0, prompt=prompt))
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


def _pass(scheduler: Scheduler, number: int, head: tuple[int, ...], *, lease: int | None = None) -> int:
    """Feed a request of twenty tokens, and end it; where it began."""
    scheduler.add(Row(number, windows=0, prompt=20, lease=lease, head=head))
    plan = scheduler.plan()
    assert isinstance(plan, Prefill)
    scheduler.prefilled(number, plan.stop)
    scheduler.end(number)
    return plan.start


def test_what_the_last_prompt_in_a_slot_began_with_is_not_fed_again() -> None:
    scheduler = Scheduler(slots=1)
    heads = [(1, 2, 3), (1, 2, 3), (1, 2, 4, 5), (1, 2, 4), (9,), (1, 2, 4)]
    assert [_pass(scheduler, number, head) for number, head in enumerate(heads)] == [0, 3, 2, 3, 0, 0]


def test_a_request_gets_the_free_slot_that_holds_most_of_its_prompt() -> None:
    scheduler = Scheduler(slots=3)
    for number, head in enumerate([(1, 2, 3), (1, 2, 4), (5,)]):
        scheduler.add(Row(number, windows=0, prompt=20, head=head))
    for _ in range(3):
        plan = scheduler.plan()
        assert isinstance(plan, Prefill)
        scheduler.prefilled(plan.number, plan.stop)
        scheduler.start(plan.number, plan.stop)
    for number in range(3):
        scheduler.end(number)
    scheduler.add(Row(3, windows=0, prompt=20, head=(1, 2, 4, 7)))
    assert scheduler.plan() == Prefill(3, 1, 3, 20)


def test_a_long_context_is_not_thrown_away_for_three_tokens() -> None:
    """All prompts begin alike: two contexts in turn once took the same slot from each other, and the rest lay idle."""
    one, other, none = (1, 2, 3, *range(10, 90)), (1, 2, 3, *range(110, 190)), (1, 2, 3, 9)
    scheduler, starts = Scheduler(slots=3), []
    for number, head in enumerate([one, other, none, one, other, none, other, none]):
        scheduler.add(Row(number, windows=0, prompt=100, head=head))
        plan = scheduler.plan()
        assert isinstance(plan, Prefill)
        scheduler.prefilled(number, 100)
        scheduler.end(number)
        starts.append(plan.start)
    assert starts == [0, 0, 0, 83, 83, 4, 83, 4]


def test_of_contexts_that_find_no_room_the_one_unused_longest_goes() -> None:
    contexts = [tuple(range(start, start + 10)) for start in (100, 200, 300)]
    scheduler = Scheduler(slots=2)
    starts = [_pass(scheduler, number, contexts[which]) for number, which in enumerate((0, 1, 0, 2, 0, 1))]
    assert starts == [0, 0, 10, 0, 10, 0]


def test_what_a_failed_request_left_is_used_by_nobody() -> None:
    """A chunk of which no answer is wanted may have gone wrong unseen."""
    scheduler = Scheduler(slots=1, policy=Policy(chunk=2))
    scheduler.add(Row(0, windows=0, prompt=20, head=(1, 2, 3)))
    scheduler.plan()
    scheduler.prefilled(0, 2)
    scheduler.end(0, failed=True)
    assert _pass(scheduler, 1, (1, 2, 3)) == 0


def test_of_a_prompt_that_was_not_fed_to_its_end_only_what_was_fed_is_used_again() -> None:
    scheduler = Scheduler(slots=1, policy=Policy(chunk=2))
    scheduler.add(Row(0, windows=0, prompt=20, head=(1, 2, 3, 4, 5)))
    scheduler.plan()
    scheduler.prefilled(0, 2)
    scheduler.plan()
    scheduler.end(0)  # cancelled in its second call
    assert _pass(scheduler, 1, (1, 2, 3, 4, 5)) == 2


def test_a_lease_that_begins_anew_keeps_what_its_prompts_have_in_common() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.open_lease(9)
    assert _pass(scheduler, 0, (1, 2, 3), lease=9) == 0
    scheduler.trim_lease(9, 0)
    assert _pass(scheduler, 1, (1, 2, 7), lease=9) == 2


_HEADS = [(), (1,), (1, 2, 3), (1, 2, 4), (1, 2, 4, 5), (6, 7)]


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from(_HEADS), st.integers(1, 9), st.booleans()), min_size=1, max_size=14),
    st.builds(Policy, st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 20)),
)
def test_a_slot_always_holds_what_its_request_is_not_fed(
    slots: int, requests: list[tuple[tuple[int, ...], int, bool]], policy: Policy
) -> None:
    """Slots are lists of ids here: whatever moves or stays, a row reads its own prompt and text only."""
    scheduler, held = Scheduler(slots, policy=policy), [[0] * 40 for _ in range(slots)]
    prompts = {n: [*head, *range(100 * n + 100, 100 * n + 107)] for n, (head, _, _) in enumerate(requests)}
    texts: dict[int, int] = {}
    for number, (head, _, live) in enumerate(requests):
        scheduler.add(Row(number, 0, len(prompts[number]), live, head=head))
    while (plan := scheduler.plan()) is not None:
        if isinstance(plan, Prefill):
            ids = prompts[plan.number]
            assert held[plan.slot][: plan.start] == ids[: plan.start]
            held[plan.slot][plan.start : plan.stop] = ids[plan.start : plan.stop]
            scheduler.prefilled(plan.number, plan.stop)
            if plan.stop == len(ids):
                scheduler.start(plan.number, plan.stop)
        elif isinstance(plan, Step):
            for one, other, tokens in plan.swaps:
                held[one][:tokens], held[other][:tokens] = held[other][:tokens], held[one][:tokens]
            for slot, number in enumerate(plan.numbers):
                fed = scheduler.row(number).fed
                assert held[slot][:fed] == prompts[number]
                held[slot][fed] = -number
                prompts[number].append(-number)
                texts[number] = texts.get(number, 0) + 1
                scheduler.stepped(number)
                if texts[number] == requests[number][1]:
                    scheduler.end(number)
    assert len(texts) == len(requests)


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
    st.builds(Policy, st.integers(1, 40), st.integers(1, 20), st.integers(1, 3), st.integers(1, 20)),
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
