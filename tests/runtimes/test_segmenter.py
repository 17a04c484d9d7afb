"""Segments begin and end where speech does; pauses that end them grow shorter, and none is longer than allowed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr.errors import RequestInvalid
from qwen3asr.features import SAMPLE_RATE
from qwen3asr.segmenter import Begin, Border, End, Segmenter, Split, StreamSettings, quietest
from qwen3asr.vad import FRAME

steady = settings(deadline=None, derandomize=True, database=None)
DEFAULT = StreamSettings()


def frames(seconds: float) -> int:
    return math.ceil(seconds * SAMPLE_RATE / FRAME)


def feed(segmenter: Segmenter, probability: float, count: int) -> list[Border]:
    """Borders that so many frames bring."""
    return [border for _ in range(count) if (border := segmenter.feed(probability)) is not None]


def speaking(seconds: float, wanted: StreamSettings = DEFAULT) -> Segmenter:
    """A segmenter whose open segment is just as long as said, all of it speech and heard."""
    segmenter = Segmenter(wanted)
    feed(segmenter, 0.0, frames(wanted.pre_roll))
    while segmenter.start is None or segmenter.now - segmenter.start < seconds * SAMPLE_RATE:
        assert not isinstance(segmenter.feed(1.0), End)
    segmenter.heard()
    return segmenter


def pause_that_ends(segmenter: Segmenter) -> float:
    """Seconds of silence until the segment ends; checks that it ends in the middle of them."""
    voice = segmenter.now
    while (border := segmenter.feed(0.0)) is None:
        if segmenter.due:
            segmenter.heard()
    assert border == End((voice + segmenter.now) // 2)
    return (segmenter.now - voice) / SAMPLE_RATE


# --- beginning -------------------------------------------------------------------------------------------------


def test_a_segment_begins_half_a_second_before_the_third_loud_frame_in_a_row() -> None:
    segmenter = Segmenter(DEFAULT)
    feed(segmenter, 0.0, 100)
    assert feed(segmenter, 0.5, 2) == []
    assert segmenter.start is None
    assert segmenter.feed(0.5) == Begin(100 * FRAME - 8_000)
    assert segmenter.start == 100 * FRAME - 8_000
    assert segmenter.memory == 8_000 + 3 * FRAME == segmenter.now - segmenter.start


def test_clicks_are_no_speech() -> None:
    segmenter = Segmenter(DEFAULT)
    for _ in range(50):
        assert feed(segmenter, 1.0, 2) + feed(segmenter, 0.49, 1) == []
    assert not segmenter.due


def test_the_pre_roll_reaches_neither_before_the_stream_nor_into_the_segment_before() -> None:
    segmenter = Segmenter(DEFAULT)
    assert feed(segmenter, 1.0, 3) == [Begin(0)]
    (end,) = feed(segmenter, 0.0, frames(0.8))
    assert isinstance(end, End)
    assert feed(segmenter, 1.0, 3) == [Begin(end.at)]


def test_the_count_of_loud_frames_starts_anew_after_a_segment() -> None:
    segmenter = speaking(2)
    pause_that_ends(segmenter)
    assert segmenter.feed(1.0) is None


def test_speech_goes_on_a_little_below_the_threshold() -> None:
    segmenter = Segmenter(DEFAULT)
    feed(segmenter, 1.0, 3)
    assert feed(segmenter, 0.36, frames(5)) == []
    assert len(feed(segmenter, 0.34, frames(5))) == 1


# --- ending ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "sentence", "pause"),
    [
        (5, True, 0.8),
        (14, True, 0.8),
        (15, True, 0.3),
        (20, False, 0.8),
        (23, True, 0.3),
        (24, False, 0.15),
        (29, True, 0.15),
    ],
)
def test_the_longer_a_segment_the_shorter_the_pause_that_ends_it(seconds: float, sentence: bool, pause: float) -> None:
    segmenter = speaking(seconds)
    segmenter.sentence_ended = sentence
    assert pause_that_ends(segmenter) == frames(pause) * FRAME / SAMPLE_RATE


def test_a_full_stop_counts_only_if_all_that_was_said_is_heard() -> None:
    """The stop of an old hypothesis ended segments in the middle of the next sentence."""
    segmenter = speaking(18)
    segmenter.sentence_ended = True
    feed(segmenter, 1.0, 5)
    assert feed(segmenter, 0.0, frames(0.3)) == []
    assert segmenter.due  # so that the text up to the pause is known
    segmenter.heard()
    assert not segmenter.sentence_ended
    assert segmenter.feed(0.0) is None
    segmenter.sentence_ended = True
    assert isinstance(segmenter.feed(0.0), End)


def test_a_short_end_silence_is_never_made_longer() -> None:
    segmenter = speaking(18, StreamSettings(end_silence=0.2))
    segmenter.sentence_ended = True
    assert pause_that_ends(segmenter) == frames(0.2) * FRAME / SAMPLE_RATE


# --- splitting -------------------------------------------------------------------------------------------------


def until_split(segmenter: Segmenter) -> Split:
    while True:
        border = segmenter.feed(1.0)
        assert not isinstance(border, End)
        if isinstance(border, Split):
            return border


def test_speech_without_a_pause_is_split_behind_what_may_be_committed() -> None:
    """Two steps may agree on all that the first of them heard."""
    segmenter = speaking(28)
    first = segmenter.now
    feed(segmenter, 1.0, frames(1))
    segmenter.heard()
    assert until_split(segmenter) == Split(first)
    assert segmenter.start is not None
    assert 30 * SAMPLE_RATE <= segmenter.now - segmenter.start < 30 * SAMPLE_RATE + FRAME


def test_without_steps_the_search_begins_where_any_pause_would_do() -> None:
    segmenter = Segmenter(DEFAULT)
    assert until_split(segmenter).earliest == segmenter.now - 6 * SAMPLE_RATE


def test_without_room_for_a_search_it_is_a_step_long() -> None:
    segmenter = Segmenter(StreamSettings(late_seconds=30))
    assert until_split(segmenter).earliest == segmenter.now - SAMPLE_RATE


def test_the_next_segment_begins_at_the_split_and_is_as_new() -> None:
    segmenter = speaking(29)
    until_split(segmenter)
    segmenter.split(segmenter.now - 5_000)
    assert segmenter.start == segmenter.now - 5_000
    assert not segmenter.due
    assert feed(segmenter, 1.0, frames(29)) == []


def test_silence_behind_a_split_is_no_segment() -> None:
    segmenter = speaking(29.5)
    until_split(segmenter)
    voice = segmenter.now
    segmenter.split(voice)
    assert segmenter.start is None
    feed(segmenter, 0.0, 2)
    assert feed(segmenter, 1.0, 3) == [Begin(voice)]


# --- steps -----------------------------------------------------------------------------------------------------


def test_a_step_is_due_after_a_second_of_new_audio_that_holds_speech() -> None:
    segmenter = Segmenter(DEFAULT)
    feed(segmenter, 1.0, 3)
    while not segmenter.due:
        segmenter.feed(1.0)
    assert segmenter.now == frames(1) * FRAME
    segmenter.heard()
    assert not segmenter.due
    feed(segmenter, 1.0, frames(1) - 1)
    assert not segmenter.due
    segmenter.feed(0.0)  # one loud frame would do
    assert segmenter.due


def test_silence_makes_no_step() -> None:
    segmenter = speaking(3, StreamSettings(end_silence=3.0))
    for _ in range(frames(3)):
        segmenter.feed(0.0)
        assert not segmenter.due
    feed(segmenter, 0.0, 1_000)
    assert not segmenter.due


@steady
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.4, 1.0]), st.integers(1, 200)), max_size=60),
    st.integers(0, 2**31),
    st.sampled_from([DEFAULT, StreamSettings(pre_roll=0.0, end_silence=0.15), StreamSettings(2.5, longest_seconds=24)]),
)
def test_segments_follow_one_another_and_keep_their_length(
    runs: list[tuple[float, int]], seed: int, wanted: StreamSettings
) -> None:
    rng = np.random.default_rng(seed)
    segmenter = Segmenter(wanted)
    edges = [0]
    for probability, count in runs:
        for _ in range(count):
            match segmenter.feed(probability):
                case Begin(at):
                    assert at == segmenter.start
                    edges.append(at)
                case End(at):
                    assert segmenter.start is None
                    edges.append(at)
                case Split(earliest):
                    assert segmenter.start is not None
                    assert segmenter.start <= earliest < segmenter.now
                    at = int(rng.integers(earliest + 1, segmenter.now + 1))
                    edges.append(at)
                    segmenter.split(at)
                    assert segmenter.start in (None, at)
            if segmenter.due:
                segmenter.heard()
                segmenter.sentence_ended = bool(rng.integers(2))
            if segmenter.start is not None:
                assert segmenter.now - segmenter.start < wanted.longest_seconds * SAMPLE_RATE + FRAME
    assert edges == sorted(edges)
    assert edges[-1] <= segmenter.now


# --- the quietest place ----------------------------------------------------------------------------------------


def test_the_quietest_place_is_the_middle_of_the_quietest_tenth_of_a_second() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    samples[9_000:10_600] *= 0.01
    samples[3_000:3_200] = 0  # quieter, but no gap between words
    assert quietest(samples) == 9_800


@pytest.mark.parametrize(("count", "place"), [(0, 0), (1, 0), (1_600, 800), (8_000, 800)])
def test_where_all_is_equal_the_first_place_is_taken(count: int, place: int) -> None:
    assert quietest(np.zeros(count, np.float32)) == place


# --- settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"step_seconds": 0.0},
        {"step_seconds": math.nan},
        {"threshold": 1.0},
        {"end_silence": 0.1},
        {"pre_roll": -0.1},
        {"longest_seconds": 121.0},
        {"hold_back": -1},
        {"carry_words": -1},
        {"soft_seconds": 25.0},
        {"soft_seconds": 0.0},
        {"soft_seconds": math.nan},
        {"late_seconds": 31.0},
        {"late_seconds": math.nan},
        {"step_seconds": 10.0, "pre_roll": 5.1},
        {"step_seconds": 10.0, "longest_seconds": 20.5, "soft_seconds": 9.0, "late_seconds": 9.0},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestInvalid, match=list(wrong)[-1] if "pre_roll" in wrong else "|".join(wrong)):
        StreamSettings(**wrong)


def test_settings_can_be_changed_one_by_one() -> None:
    assert replace(DEFAULT, step_seconds=0.5, carry_words=0).longest_seconds == 30.0
