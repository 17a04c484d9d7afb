"""Pieces hold every sample once, none is too long, and they are cut where nobody speaks."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr.errors import RequestInvalid
from qwen3asr.features import Samples
from qwen3asr.longform import LEAST_SECONDS, Piece, pieces, split_point
from qwen3asr.vad import FRAME

steady = settings(deadline=None, derandomize=True, database=None, max_examples=100)

RATE = 16_000


def noise(seconds: float, level: float = 0.3, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).normal(0, level, round(seconds * RATE)).astype(np.float32)


def with_gaps(samples: Samples, *gaps: tuple[float, float], level: float = 0.0) -> Samples:
    """The samples with other noise, or silence, from one second to another."""
    samples = samples.copy()
    for start, end in gaps:
        samples[round(start * RATE) : round(end * RATE)] = noise(end - start, level, seed=1)
    return samples


def cut_of(samples: Samples, longest: float) -> float:
    """Second of the first cut."""
    return next(pieces([samples], longest=longest)).end


class ScriptedDetector:
    """Holds what the script says for silent; counts its resets."""

    def __init__(self, *silent: tuple[float, float], offset: float = 0.0) -> None:
        self.silent, self.offset, self.resets = silent, offset, 0

    def probabilities(self, samples: Samples) -> Samples:
        assert len(samples) % FRAME == 0
        times = self.offset + (np.arange(len(samples) // FRAME) + 0.5) * FRAME / RATE
        quiet = [any(start <= time < end for start, end in self.silent) for time in times]
        return np.where(quiet, 0.1, 0.9).astype(np.float32)

    def reset(self) -> None:
        self.resets += 1


@st.composite
def audio(draw: st.DrawFn) -> Samples:
    samples = noise(draw(st.floats(0.0, 6.0)), seed=draw(st.integers(0, 9)))
    for start in draw(st.lists(st.integers(0, 6 * RATE), max_size=6)):
        samples[start : start + draw(st.integers(0, RATE))] *= draw(st.sampled_from([0.0, 0.01, 0.5]))
    return samples


def blocks_of(samples: Samples, edges: list[int]) -> list[Samples]:
    return [samples[a:b] for a, b in pairwise([0, *sorted(min(edge, len(samples)) for edge in edges), len(samples)])]


# --- what holds for all audio ----------------------------------------------------------------------------------


@steady
@given(audio(), st.floats(1.0, 2.5), st.lists(st.integers(0, 6 * RATE), max_size=8))
def test_pieces_are_the_audio_and_neither_too_long_nor_too_short(
    samples: Samples, longest: float, edges: list[int]
) -> None:
    found = list(pieces(blocks_of(samples, edges), longest=longest))
    assert sum(len(piece.samples) for piece in found) == len(samples)
    if len(samples):
        np.testing.assert_array_equal(np.concatenate([piece.samples for piece in found]), samples)
    assert [piece.offset for piece in found[1:]] == [piece.offset + len(piece.samples) for piece in found[:-1]]
    limit = int(longest * RATE)
    assert all(len(piece.samples) <= limit for piece in found)
    if len(samples) > limit:
        assert min(len(piece.samples) for piece in found) >= limit // 3
    else:
        assert len(found) == bool(len(samples))


@steady
@given(audio(), st.floats(1.0, 2.5), st.lists(st.integers(0, 6 * RATE), max_size=8))
def test_how_the_audio_comes_in_blocks_does_not_matter(samples: Samples, longest: float, edges: list[int]) -> None:
    whole = [piece.offset for piece in pieces([samples], longest=longest)]
    assert [piece.offset for piece in pieces(blocks_of(samples, edges), longest=longest)] == whole


def test_a_piece_is_given_as_soon_as_its_cut_is_known() -> None:
    read = 0

    def source() -> Iterator[Samples]:
        nonlocal read
        for _ in range(1_000):
            read += 1
            yield noise(0.1)

    found = pieces(source(), longest=3.0)
    assert read == 0
    next(found)
    assert read <= 41  # the piece, a third of it, and a block


def test_hours_in_one_block_or_in_small_ones_take_a_pieces_memory() -> None:
    hour = np.zeros(3_600 * RATE, np.float32)
    for blocks in ([hour], (hour[at : at + 1_000] for at in range(0, len(hour), 1_000))):
        tracemalloc.start()
        seconds = [piece.end - piece.start for piece in pieces(blocks, longest=60.0)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(seconds) == pytest.approx(3_600)
        assert peak < 40_000_000  # 60 s with their levels; the hour is 230 MB


@pytest.mark.parametrize("longest", [0.0, -1.0, 0.999, float("nan"), float("inf")])
def test_a_limit_that_holds_no_word_is_refused_at_once(longest: float) -> None:
    with pytest.raises(RequestInvalid, match="give at least 1"):
        pieces([noise(1.0)], longest=longest)


def test_a_piece_knows_its_seconds() -> None:
    piece = Piece(24_000, np.zeros(8_000, np.float32))
    assert (piece.start, piece.end) == (1.5, 2.0)
    assert LEAST_SECONDS == 1.0


# --- where it is cut -------------------------------------------------------------------------------------------


def test_audio_that_just_fits_is_one_piece_and_a_sample_more_makes_two_halves() -> None:
    assert len(list(pieces([noise(3.0)], longest=3.0))) == 1
    first, second = pieces([noise(3.0), noise(0.001)], longest=3.0)
    assert min(len(first.samples), len(second.samples)) >= RATE


def test_the_last_two_pieces_share_what_is_left() -> None:
    """A sentence once ended in a piece of its own last word."""
    samples = with_gaps(noise(32.0), (15.5, 16.1), (28.0, 29.0))
    assert [round(piece.end, 1) for piece in pieces([samples], longest=30.0)] == [15.8, 32.0]


def test_the_last_pause_of_half_a_second_is_taken() -> None:
    assert cut_of(with_gaps(noise(60.0), (20.5, 23.0), (25.0, 25.6), (28.0, 28.2)), 30.0) == pytest.approx(
        25.3, abs=0.01
    )


def test_without_such_a_pause_the_longest_is_taken() -> None:
    assert cut_of(with_gaps(noise(60.0), (22.0, 22.4), (25.0, 25.2)), 30.0) == pytest.approx(22.2, abs=0.01)


def test_a_pause_before_the_range_does_not_count() -> None:
    assert cut_of(with_gaps(noise(60.0), (15.0, 18.0), (24.0, 24.2)), 30.0) == pytest.approx(24.1, abs=0.01)
    long = with_gaps(noise(260.0), (140.0, 148.0), (153.0, 153.4))
    assert cut_of(long, 180.0) == pytest.approx(153.2, abs=0.01)  # the last 30 s, not the last third


def test_digital_silence_is_cut_in_its_middle() -> None:
    assert cut_of(with_gaps(noise(60.0), (24.0, 26.0)), 30.0) == pytest.approx(25.0, abs=0.001)
    assert cut_of(np.zeros(60 * RATE, np.float32), 30.0) == 25.0


@pytest.mark.parametrize("level", [0.003, 0.03, 0.1, 0.2])
def test_a_pause_is_found_in_noise(level: float) -> None:
    samples = with_gaps(noise(60.0), (22.0, 22.7), (26.0, 26.3), level=level)
    assert cut_of(samples, 30.0) == pytest.approx(22.35, abs=0.15)


def test_speech_that_hardly_stands_out_of_the_noise_is_no_pause() -> None:
    samples = with_gaps(noise(60.0, 0.15), (27.0, 29.0), level=0.12)
    samples = with_gaps(samples, (24.0, 24.7), level=0.08)
    assert cut_of(samples, 30.0) == pytest.approx(24.35, abs=0.1)


def test_a_moment_of_digital_silence_does_not_hide_the_pauses() -> None:
    """A drop-out of the recorder was once the only thing quiet enough to be a pause."""
    samples = with_gaps(with_gaps(noise(60.0), (21.0, 21.15)), (25.0, 25.7), level=0.0005)
    assert cut_of(samples, 30.0) == pytest.approx(25.35, abs=0.05)


def test_a_quiet_speaker_is_no_pause() -> None:
    """At 20 dB below the others he once was cut in the middle of a word."""
    samples = with_gaps(with_gaps(noise(60.0), (23.0, 28.0), level=0.03), (21.0, 21.2))
    assert cut_of(samples, 30.0) == pytest.approx(21.1, abs=0.01)


def test_the_cut_is_at_the_quietest_sample_in_the_middle_of_the_pause() -> None:
    samples = with_gaps(noise(60.0), (24.0, 26.0), level=0.001)
    samples[24 * RATE : 26 * RATE] += 0.01
    samples[round(25.03 * RATE)] = 0.0
    samples[round(24.5 * RATE)] = 0.0  # as quiet, but near the words
    assert cut_of(samples, 30.0) == 25.03


# --- with a detector -------------------------------------------------------------------------------------------


def test_a_detectors_longest_silence_is_taken_whatever_the_level() -> None:
    samples = with_gaps(noise(60.0), (27.0, 28.0))
    detector = ScriptedDetector((20.5, 21.1), (22.0, 24.0), (25.0, 26.0), offset=17.0)  # 3 s before the range
    assert next(pieces([samples], longest=30.0, detector=detector)).end == pytest.approx(23.0, abs=0.06)
    assert detector.resets == 1


def test_what_a_detector_says_while_it_warms_up_does_not_count() -> None:
    detector = ScriptedDetector((17.0, 20.2), (24.0, 24.5), offset=17.0)
    assert next(pieces([noise(60.0)], longest=30.0, detector=detector)).end == pytest.approx(24.25, abs=0.06)


def test_a_detector_that_finds_no_silence_leaves_it_to_the_level() -> None:
    samples = with_gaps(noise(60.0), (27.0, 28.0))
    for silent in ((), ((17.0, 19.0),)):
        detector = ScriptedDetector(*silent, offset=17.0)
        assert next(pieces([samples], longest=30.0, detector=detector)).end == pytest.approx(27.5, abs=0.001)


def test_a_detector_is_reset_for_each_cut() -> None:
    detector = ScriptedDetector()
    assert len(list(pieces([noise(9.0)], longest=3.0, detector=detector))) == detector.resets + 1


# --- one piece in two ------------------------------------------------------------------------------------------


def test_a_piece_is_split_in_the_long_pause_nearest_to_its_middle() -> None:
    samples = with_gaps(noise(20.0), (5.5, 7.0), (9.0, 9.6), (13.0, 15.0))
    assert split_point(samples) == pytest.approx(9.3 * RATE, abs=100)
    assert split_point(with_gaps(noise(20.0), (1.0, 4.0), (12.0, 12.2), (16.0, 19.0))) == pytest.approx(
        12.1 * RATE, abs=100
    )


@steady
@given(st.integers(2, 3_000), st.integers(0, 3))
def test_both_halves_are_at_least_a_quarter(count: int, seed: int) -> None:
    at = split_point(np.random.default_rng(seed).normal(0, 0.1, count).astype(np.float32))
    assert max(1, count // 4) <= at <= max(1, count * 3 // 4)
    assert at < count


@pytest.mark.parametrize("count", [0, 1])
def test_one_sample_cannot_be_split(count: int) -> None:
    with pytest.raises(RequestInvalid, match="cannot be cut in two"):
        split_point(np.zeros(count, np.float32))
