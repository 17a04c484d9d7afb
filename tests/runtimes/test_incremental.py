"""Audio in pieces gives what the whole gives: the same samples, the same features, and no work twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr.audio import read_audio
from qwen3asr.errors import AudioFormatInvalid, AudioNotFinite
from qwen3asr.features import Samples, WindowSpec, log_mel, split_windows
from qwen3asr.incremental import IncrementalAudio, IncrementalMel, MelState

steady = settings(deadline=None, derandomize=True, database=None)
SPEC = WindowSpec(chunk_frames=100, window_frames=200)  # windows of 2 s: many in little audio
FULL = WindowSpec()


def assert_equals_the_whole(state: MelState, samples: Samples, spec: WindowSpec = SPEC) -> None:
    wanted = split_windows(log_mel(samples), spec)
    assert [window.shape for window in state.windows] == [window.shape for window in wanted]
    for window, reference in zip(state.windows, wanted, strict=True):
        np.testing.assert_allclose(window, reference, rtol=0, atol=1e-6)


def noise(seed: int, count: int, gain: float = 0.1) -> Samples:
    return np.random.default_rng(seed).normal(0, gain, count).astype(np.float32)


@st.composite
def growing(draw: st.DrawFn) -> list[Samples]:
    """Stretches from digital silence to full scale, which let the floor rise far and often; some end in a click."""
    seed = draw(st.integers(0, 2**31))
    pieces = []
    for index in range(draw(st.integers(1, 12))):
        count = draw(st.sampled_from([0, 1, 39, 40, 159, 160, 161, 512, 8_000, 16_000]) | st.integers(0, 20_000))
        gain = draw(st.sampled_from([0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.3]))
        piece = noise(seed + index, count, gain)
        if draw(st.booleans()):
            piece[-30:-29] = draw(st.sampled_from([0.01, 1.0]))
        pieces.append(piece)
    return pieces


@steady
@given(growing())
def test_each_state_equals_the_features_of_the_whole_and_keeps_all_that_did_not_change(pieces: list[Samples]) -> None:
    mel = IncrementalMel(SPEC)
    so_far = np.zeros(0, np.float32)
    complete: list[Samples] = []
    for piece in pieces:
        mel.push(piece)
        so_far = np.concatenate([so_far, piece])
        state = mel.state()
        assert_equals_the_whole(state, so_far)
        assert state.kept <= len(complete) <= state.complete
        for old, new in zip(complete[: state.kept], state.windows, strict=False):
            np.testing.assert_array_equal(new, old)
        if state.kept < len(complete):  # it was worth encoding again
            assert np.any(complete[state.kept] != state.windows[state.kept])
        complete = [window.copy() for window in state.windows[: state.complete]]


def test_a_louder_sound_changes_the_windows_that_reach_below_its_floor_and_only_those() -> None:
    quiet, silent, loud = noise(0, 33_000, 0.03), np.zeros(32_000, np.float32), noise(1, 16_000, 0.3)
    mel = IncrementalMel(SPEC)
    mel.push(np.concatenate([quiet, silent]))
    assert (mel.state().complete, mel.state().kept) == (2, 2)
    mel.push(loud)
    state = mel.state()  # the floor rises above the silence, and stays below the noise
    assert (state.complete, state.kept) == (2, 1)
    assert state.windows[1].min() > -1.5


def test_the_floor_falls_when_a_reflection_was_louder_than_what_follows() -> None:
    """Only a rising floor was looked for: silent windows kept the features of a sound that was never so loud."""
    burst = np.zeros(160 * 220, np.float32)
    burst[-360:] = np.cos(2 * np.pi * 50 / 16_000 * np.arange(-359, 1))  # its mirror image goes on in phase
    mel = IncrementalMel(SPEC)
    mel.push(burst)
    before = mel.state()
    mel.push(np.zeros(1_000, np.float32))
    after = mel.state()
    assert after.windows[0].min() < before.windows[0].min() - 1e-3
    assert (before.complete, after.complete, after.kept) == (1, 1, 0)
    assert_equals_the_whole(after, mel.samples)


def test_the_rounding_of_the_loudest_frame_changes_nothing() -> None:
    """Transformed again with others, the loudest frame had other last bits, and silent windows were encoded again."""
    silence, word = np.zeros(40_000, np.float32), noise(0, 4_000)
    mel = IncrementalMel(SPEC)
    mel.push(np.concatenate([silence, word, silence]))
    assert mel.state().complete == 2
    mel.push(np.concatenate([word * np.float32(1.0000005), silence]))  # again, on the same places of its frames
    state = mel.state()
    assert state.kept == 2
    assert_equals_the_whole(state, mel.samples)
    mel.push(np.concatenate([word * np.float32(1.00001), silence]))
    assert mel.state().kept == 0


@pytest.mark.parametrize(("extra", "complete"), [(0, 0), (39, 0), (40, 1), (160, 1)])
def test_a_window_is_complete_when_its_last_frame_needs_no_reflection(extra: int, complete: int) -> None:
    mel = IncrementalMel(FULL)
    mel.push(noise(0, 128_000 + extra))
    state = mel.state()
    assert state.complete == complete
    assert_equals_the_whole(state, mel.samples, FULL)
    last = state.windows[0][:, -1].copy()
    mel.push(noise(1, 160))
    changed = bool(np.any(mel.state().windows[0][:, -1] != last))
    assert changed == (complete == 0)


def test_less_than_half_a_second_is_padded_and_unpadded_again() -> None:
    mel = IncrementalMel(SPEC)
    assert_equals_the_whole(mel.state(), np.zeros(0, np.float32))
    for count in (100, 7_000, 899, 1, 1):  # over 8000, one sample at a time
        mel.push(noise(count, count))
        assert_equals_the_whole(mel.state(), mel.samples)


@steady
@given(growing(), st.floats(0, 1), growing())
def test_what_was_cut_off_leaves_no_trace(pieces: list[Samples], share: float, more: list[Samples]) -> None:
    mel = IncrementalMel(SPEC)
    for piece in pieces:
        mel.push(piece)
        mel.state()
    before = mel.state()
    mel.truncate(int(share * len(mel.samples)))
    so_far = mel.samples.copy()
    state = mel.state()
    assert_equals_the_whole(state, so_far)
    assert state.kept <= min(before.complete, state.complete)
    for old, new in zip(before.windows[: state.kept], state.windows, strict=False):
        np.testing.assert_array_equal(new, old)
    for piece in more:
        mel.push(piece)
        so_far = np.concatenate([so_far, piece])
    assert_equals_the_whole(mel.state(), so_far)


def test_cutting_at_or_behind_the_end_does_nothing() -> None:
    mel = IncrementalMel(SPEC)
    mel.push(noise(0, 40_000))
    before = mel.state()
    mel.truncate(40_000)
    mel.truncate(99_999)
    assert len(mel.samples) == 40_000
    assert mel.state().kept == before.complete == 1


def test_a_second_costs_a_second_however_much_came_before() -> None:
    mel = IncrementalMel(FULL)
    costs = []
    for second in range(100):
        before = mel.frames
        mel.push(noise(second, 16_000))
        mel.state()
        costs.append(mel.frames - before)
    assert max(costs) <= 101
    assert sum(costs) < 10_101


def test_asking_twice_costs_the_last_frame_only() -> None:
    mel = IncrementalMel(SPEC)
    mel.push(noise(0, 64_000))
    first = mel.state()
    before = mel.frames
    again = mel.state()
    assert mel.frames == before + 1  # it touches the end
    assert again.kept == first.complete == 1
    mel.push(noise(0, 40))
    mel.state()
    before = mel.frames
    assert mel.state().kept == 2
    assert mel.frames == before


def test_what_was_handed_out_is_not_written_to() -> None:
    mel = IncrementalMel(SPEC)
    mel.push(noise(0, 50_000, 1e-4))
    handed = mel.state().windows
    copies = [window.copy() for window in handed]
    mel.push(noise(1, 50_000, 0.5))
    mel.state()
    for window, copy in zip(handed, copies, strict=True):
        np.testing.assert_array_equal(window, copy)


# --- samples ---------------------------------------------------------------------------------------------------


def whole(audio: IncrementalAudio, chunks: list[Any]) -> Samples:
    pieces = [audio.convert(audio.check(chunk)) for chunk in chunks]
    return np.concatenate([*pieces, audio.convert(np.zeros(0, np.float32), last=True)])


@steady
@given(
    st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000]),
    st.sampled_from([np.int16, np.int32, np.float32, np.float64]),
    st.lists(st.integers(0, 30_000), max_size=8),
    st.integers(1, 3),
)
def test_chunks_give_the_samples_of_the_whole(rate: int, dtype: type, cuts: list[int], channels: int) -> None:
    sound = np.random.default_rng(rate).uniform(-0.3, 0.3, (30_000, channels))
    integer = np.issubdtype(dtype, np.integer)
    array: npt.NDArray[Any] = (sound * np.iinfo(dtype).max if integer else sound).astype(dtype)
    array = array[:, 0] if channels == 1 else array
    chunks = np.split(array, sorted(cuts))
    np.testing.assert_array_equal(whole(IncrementalAudio(rate), chunks), read_audio(array, rate).samples)


def test_a_chunk_is_copied_for_recorders_use_their_buffer_again() -> None:
    buffer = np.full(100, 0.5, np.float32)
    samples = IncrementalAudio(16_000).check(buffer)
    buffer[:] = 0
    assert samples.tolist() == [0.5] * 100


def test_two_channels_are_averaged_even_in_a_chunk_of_one_sample() -> None:
    """By its shape, one sample of two channels might be two samples of one."""
    assert IncrementalAudio(16_000).check(np.array([[0.5, 0.25]], np.float32)).tolist() == [0.375]


def test_what_exceeds_full_scale_is_clipped_and_nothing_else_is_scaled() -> None:
    audio = IncrementalAudio(16_000)
    assert audio.check(np.array([0.25, 3.0, -2.0, 1e38], np.float32)).tolist() == [0.25, 1.0, -1.0, 1.0]
    assert audio.check(np.array([0.25], np.float32)).tolist() == [0.25]
    loud = whole(IncrementalAudio(8_000), [np.full(4_000, 1.0, np.float32)])  # resampling overshoots at the edges
    assert float(np.abs(loud).max()) == 1.0


@pytest.mark.parametrize("chunk", [np.zeros(0, np.int16), np.zeros((0, 2), np.float32)])
def test_an_empty_chunk_is_no_error(chunk: Any) -> None:
    assert IncrementalAudio(48_000).check(chunk).shape == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_is_told_with_its_place_in_the_stream_and_the_chunk_is_not_taken(bad: float) -> None:
    audio = IncrementalAudio(8_000)
    audio.check(np.zeros(8_000, np.float32))
    broken = np.zeros((4_000, 2), np.float32)
    broken[2_000:2_003, 1] = bad
    with pytest.raises(AudioNotFinite, match=r"3 NaN or infinite samples, the first at 1\.250 s"):
        audio.check(broken)
    with pytest.raises(AudioNotFinite, match=r"the first at 1\.250 s"):
        audio.check(broken)


def test_what_float32_cannot_hold_is_not_finite() -> None:
    with pytest.raises(AudioNotFinite):
        IncrementalAudio(16_000).check(np.array([1e300]))


@pytest.mark.parametrize(
    ("chunk", "match"),
    [
        ([0.0, 0.1], "type list"),
        (b"\0\0", "type bytes"),
        (np.zeros(4, np.uint8), "type uint8"),
        (np.zeros(4, np.complex64), "type complex64"),
        (np.zeros(4, bool), "type bool"),
        (np.float32(0.5), "type float32"),
        (np.zeros((2, 16_000), np.float32), r"shape \(2, 16000\)"),
        (np.zeros((2, 2, 2), np.float32), r"shape \(2, 2, 2\)"),
        (np.zeros((2, 0), np.float32), r"shape \(2, 0\)"),
    ],
)
def test_what_is_no_chunk_is_refused(chunk: Any, match: str) -> None:
    with pytest.raises(AudioFormatInvalid, match=match) as caught:
        IncrementalAudio(16_000).check(chunk)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("rate", [0, -16_000, 999, 16_000.5, 768_001])
def test_impossible_rates_are_refused(rate: Any) -> None:
    with pytest.raises(AudioFormatInvalid, match=f"rate {rate}"):
        IncrementalAudio(rate)
