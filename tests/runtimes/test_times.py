"""Word times run forward as the reference repairs them, and every word gets a length."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_asr import processing_qwen3_asr as reference

from qwen3asr.times import SHORTEST_WORD, longest_nondecreasing, moved_words, repair_times, spread_times

steady = settings(deadline=None, derandomize=True, database=None, max_examples=300)


# --- repair of times -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "repaired"),
    [
        ([0, 160, 80, 240], [0, 160, 160, 240]),
        ([0, 500, 400, 300, 200, 100, 600], [0, 500, 520, 540, 560, 580, 600]),
        ([240, 160, 80, 0], [240, 240, 240, 240]),
        ([0, 80, 900, 800, 160, 240], [0, 80, 80, 160, 160, 240]),  # a pair becomes left, right
        ([80.9, 160.9], [80, 160]),
        ([80], [80]),
        ([], []),
    ],
)
def test_known_repairs(raw: list[float], repaired: list[int]) -> None:
    assert repair_times(raw) == repaired


def test_the_reference_has_no_answer_for_no_times() -> None:
    with pytest.raises(ValueError, match="empty"):
        reference._fix_timestamps(np.array([], dtype=np.float32))


def test_times_may_come_as_an_array_and_leave_as_ints() -> None:
    repaired = repair_times(np.array([0, 900, 80, 80, 160], dtype=np.float32))
    assert repaired == [0, 0, 80, 80, 160]
    assert {type(time) for time in repaired} == {int}


def test_repairing_leaves_the_callers_times_alone() -> None:
    raw = [240, 0, 80]
    repair_times(raw)
    assert raw == [240, 0, 80]


def test_an_earlier_end_and_an_earlier_predecessor_win() -> None:
    assert longest_nondecreasing([3, 2, 1]) == [0]
    assert longest_nondecreasing([2, 1, 3]) == [0, 2]
    assert longest_nondecreasing([5, 1, 3]) == [1, 2]
    assert longest_nondecreasing([1, 3, 2, 2]) == [0, 2, 3]
    assert longest_nondecreasing([]) == []


def nearly_sorted(draw: st.DrawFn) -> list[int]:
    times = sorted(draw(st.lists(st.integers(0, 5_000), min_size=2, max_size=60)))
    for _ in range(draw(st.integers(1, 8))):
        times[draw(st.integers(0, len(times) - 1))] = draw(st.integers(0, 5_000))
    return times


classes = st.one_of(
    st.lists(st.integers(0, 4_999), min_size=1, max_size=60),
    st.lists(st.integers(0, 6), min_size=1, max_size=60),  # ties
    st.composite(nearly_sorted)(),
)


@settings(steady, max_examples=1_000)
@given(classes)
def test_any_classes_are_repaired_as_in_transformers(steps: list[int]) -> None:
    raw = [80 * step for step in steps]
    assert repair_times(raw) == reference._fix_timestamps(np.array(raw, dtype=np.float32))


@steady
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40))
def test_any_fractions_are_repaired_as_in_transformers(raw: list[float]) -> None:
    assert repair_times(raw) == reference._fix_timestamps(np.array(raw))


@steady
@given(st.one_of(classes, st.lists(st.floats(-1e6, 1e6), max_size=40)))
def test_repaired_times_never_fall_and_repairing_again_changes_nothing(raw: list[float]) -> None:
    repaired = repair_times(raw)
    assert len(repaired) == len(raw)
    assert all(earlier <= later for earlier, later in pairwise(repaired))
    assert repair_times(repaired) == repaired


def test_twenty_thousand_times_are_repaired() -> None:
    rng = np.random.default_rng(0)
    raw = np.arange(20_000) * 40 + rng.integers(-400, 400, 20_000)
    repaired = repair_times(raw.tolist())
    assert len(repaired) == 20_000
    assert repaired == sorted(repaired)
    assert repair_times(list(range(20_000, 0, -1))) == [20_000] * 20_000


# --- lengths for words without one -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "spread"),
    [
        ([], []),
        ([1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 2.0, 3.0]),  # words that touch
        ([1.0, 1.0], [1.0, 1.08]),
        ([1.0, 1.0, 1.0, 1.0, 3.0, 4.0], [1.0, 1.08, 1.08, 1.16, 3.0, 4.0]),
        ([1.0, 1.0, 1.0, 1.0, 1.08, 2.0], [1.0, 1.04, 1.04, 1.08, 1.08, 2.0]),  # to the next word, not into it
        ([1.0, 1.0, 1.0, 2.0], [1.0, 1.08, 1.08, 2.0]),  # a word that has a length gives some of it
        ([1.0, 1.0, 1.0, 1.08], [1.0, 1.04, 1.04, 1.08]),
        ([0.0, 1.0, 1.0, 1.0, 1.0, 2.0], [0.0, 1.0, 1.0, 1.08, 1.08, 2.0]),  # between two that touch
        ([0.0, 0.0], [0.0, 0.08]),
        ([5.0, 5.0], [4.92, 5.0]),  # at the end of the audio it can only go back
        ([1.0, 2.0, 5.0, 5.0, 5.0, 5.0], [1.0, 2.0, 4.84, 4.92, 4.92, 5.0]),
        ([1.0, 5.0, 5.0, 5.0], [1.0, 4.92, 4.92, 5.0]),
        ([4.92, 4.92, 5.0, 5.0], [4.92, 4.96, 4.96, 5.0]),  # forward and back share one gap
        ([4.88, 4.88, 4.88, 5.0, 5.0, 5.0], [4.88, 4.92, 4.92, 4.96, 4.96, 5.0]),  # with the word between them
        ([4.9, 4.9], [4.9, 4.98]),
        ([4.96, 4.96], [4.96, 5.0]),
    ],
)
def test_words_without_length_get_one_from_the_room_around_them(times: list[float], spread: list[float]) -> None:
    assert spread_times(times, 5.0) == pytest.approx(spread)


def test_one_instant_of_audio_is_shared_by_all_words() -> None:
    assert spread_times([0.03] * 6, 0.03) == pytest.approx([0.0, 0.01, 0.01, 0.02, 0.02, 0.03])


@steady
@given(st.lists(st.integers(0, 40), max_size=24).map(lambda times: times[: len(times) // 2 * 2]), st.integers(1, 3_300))
def test_any_times_end_up_in_order_within_the_audio_and_longer_than_zero(steps: list[int], duration: int) -> None:
    end = duration / 1000
    times = [min(step * 0.08, end) for step in sorted(steps)]
    spread = spread_times(times, end)
    assert spread == sorted(spread)
    assert all(0 <= time <= end for time in spread)
    words, said = list(zip(spread[::2], spread[1::2], strict=True)), list(zip(times[::2], times[1::2], strict=True))
    for (start, stop), (was, until), moved in zip(words, said, moved_words(times, spread), strict=True):
        assert stop > start
        if was == until:
            assert moved
            assert stop - start <= SHORTEST_WORD + 1e-9
        else:  # it may lose the ends that it shares with words that have no length
            assert was <= start < stop <= until
            shared = [edge for word in said if word[0] == word[1] for edge in word]
            assert start == was or was in shared
            assert stop == until or until in shared
        assert moved == ((start, stop) != (was, until))
    if all(was < until for was, until in said):
        assert spread == times


def test_moved_words_are_those_whose_times_the_repair_changed() -> None:
    said = [0.0, 500.0, 400.0, 300.0, 600.0, 700.0]
    assert moved_words(said, repair_times(said)) == [False, True, False]
    assert moved_words([0.0, 160.0, 80.0, 240.0], [0, 160, 160, 240]) == [False, True]
    assert moved_words([], []) == []
