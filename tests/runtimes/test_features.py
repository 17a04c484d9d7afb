"""Log-mel and token counts against transformers' extractor and the published table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3ASRFeatureExtractor
from transformers.models.qwen3_asr.modeling_qwen3_asr import _get_feat_extract_output_lengths

from qwen3asr.features import SAMPLE_RATE, WindowSpec, frame_count, log_mel, mel_filters, split_windows

SECONDS = (0.1, 0.5, 1.0, 1.01, 8.0, 8.01, 30.0, 120.0)


def _signals(seconds: float) -> dict[str, np.ndarray]:
    count = int(seconds * SAMPLE_RATE)
    rng = np.random.default_rng(count)
    time = np.arange(count) / SAMPLE_RATE
    noise = rng.normal(0, 0.1, count)
    return {
        "noise": noise,
        "tone": np.sin(2 * np.pi * 250 * time),
        "sweep": np.sin(2 * np.pi * (50 + 400 * time % 3000) * time) * (np.sin(3 * time) > 0),
        "quiet": noise * 1e-4,
        "silence": np.zeros(count),
    }


@pytest.mark.parametrize("seconds", SECONDS)
def test_log_mel_equals_the_pytorch_extractor_clip_by_clip(seconds: float) -> None:
    extractor = Qwen3ASRFeatureExtractor()
    for name, signal in _signals(seconds).items():
        samples = signal.astype(np.float32)
        wanted = extractor(samples, sampling_rate=SAMPLE_RATE, padding="longest", return_tensors="np", n_window=0)
        got = log_mel(samples)
        assert got.shape == wanted["input_features"][0].shape, name
        np.testing.assert_allclose(got, wanted["input_features"][0], atol=1e-4, rtol=0, err_msg=name)


def test_silence_is_a_constant() -> None:
    np.testing.assert_allclose(log_mel(np.zeros(16_000, np.float32)), -1.5, atol=1e-6)


def test_a_clip_is_padded_to_half_a_second_and_the_padding_counts() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 1_600).astype(np.float32)
    assert log_mel(samples).shape == (128, 50)
    np.testing.assert_array_equal(log_mel(samples), log_mel(np.pad(samples, (0, 6_400))))


def test_the_filter_bank_has_no_empty_band() -> None:
    assert mel_filters().shape == (201, 128)
    assert np.all(mel_filters().max(axis=0) > 0)


@pytest.mark.parametrize(
    ("frames", "tokens"),
    [
        (0, 0),
        (10, 2),
        (50, 7),
        (100, 13),
        (101, 14),
        (800, 104),
        (801, 105),
        (3000, 390),
        (12000, 1560),
        (120000, 15600),
    ],
)
def test_token_counts_are_the_published_ones(frames: int, tokens: int) -> None:
    assert WindowSpec().tokens(frames) == tokens


@given(st.integers(0, 200_000))
def test_token_counts_are_the_reference_s_for_any_length(frames: int) -> None:
    import torch

    assert WindowSpec().tokens(frames) == int(_get_feat_extract_output_lengths(torch.tensor(frames)))


@given(st.integers(1, 5_000), st.sampled_from([(100, 800), (100, 400), (104, 416)]))
def test_windows_cover_the_clip_and_their_tokens_add_up(frames: int, shape: tuple[int, int]) -> None:
    spec = WindowSpec(*shape)
    windows = split_windows(np.zeros((128, frames), np.float32), spec)
    assert sum(window.shape[1] for window in windows) == frames
    assert sum(spec.tokens(window.shape[1]) for window in windows) == spec.tokens(frames)
    assert all(window.shape[1] == spec.window_frames for window in windows[:-1])


def test_frames_are_whole_hops_of_at_least_half_a_second() -> None:
    assert [frame_count(n) for n in (0, 1, 8_000, 8_159, 8_160, 48_001)] == [50, 50, 50, 50, 51, 300]
