"""Speech is found in recordings at any gain, and in no steady noise, hum or silence, from the first frame on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import Recording

from qwen3asr.audio import read_audio
from qwen3asr.errors import RequestInvalid
from qwen3asr.features import SAMPLE_RATE, Samples
from qwen3asr.vad import FRAME, SILENCE_DB, EnergyDetector, SpeechDetector, frame_levels, speech_seconds

RECORDINGS = Path(__file__).parents[2] / "examples" / "recordings"
SLOPES = {"white": 0.0, "pink": -0.5, "brown": -1.0, "blue": 0.5}  # of the amplitude over frequency


def noise(seconds: float, decibels: float, slope: float = 0.0) -> Samples:
    """Stationary noise of that level in dBFS, whole frames of it."""
    count = int(seconds * SAMPLE_RATE) // FRAME * FRAME
    spectrum = np.fft.rfft(np.random.default_rng(1).normal(size=count))
    hertz = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    samples = np.fft.irfft(spectrum * np.maximum(hertz, 20.0) ** slope, count)
    return np.asarray(samples / samples.std() * 10 ** (decibels / 20), np.float32)


def hum(seconds: float, decibels: float, hertz: float, harmonics: int = 6) -> Samples:
    time = np.arange(int(seconds * SAMPLE_RATE) // FRAME * FRAME) / SAMPLE_RATE
    wave = np.sum([np.sin(2 * np.pi * hertz * n * time + n) / n for n in range(1, harmonics + 1)], axis=0)
    return np.asarray(wave / wave.std() * 10 ** (decibels / 20), np.float32)


def silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLE_RATE) // FRAME * FRAME, np.float32)


def clip(name: str) -> Samples:
    samples = read_audio(RECORDINGS / f"{name}.flac").samples
    return samples[: len(samples) // FRAME * FRAME]


def speech(samples: Samples) -> list[bool]:
    return [bool(probability > 0.5) for probability in EnergyDetector().probabilities(samples)]


def spoken(recording: Recording, frames: int) -> list[bool]:
    """Frames of which words fill more than half."""
    filled = np.zeros(frames)
    starts = np.arange(frames) * FRAME / SAMPLE_RATE
    for word in recording.words:
        start, end = float(str(word["start"])), float(str(word["end"]))
        filled += np.clip(np.minimum(starts + FRAME / SAMPLE_RATE, end) - np.maximum(starts, start), 0, None)
    return [bool(seconds > FRAME / SAMPLE_RATE / 2) for seconds in filled]


# --- speech ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("peak_db", "least_recall"), [(-1, 0.97), (-20, 0.97), (-40, 0.95), (-50, 0.85)])
def test_words_are_found_and_little_else_from_loud_to_very_quiet(
    recordings: dict[str, Recording], peak_db: float, least_recall: float
) -> None:
    found: list[bool] = []
    true: list[bool] = []
    for name, recording in recordings.items():
        samples = clip(name)
        scaled = samples / np.abs(samples).max() * 10 ** (peak_db / 20)
        found += speech((np.round(scaled * 32768) / 32768).astype(np.float32))  # as a 16-bit file has it
        true += spoken(recording, len(samples) // FRAME)
    both = sum(a and b for a, b in zip(found, true, strict=True))
    assert both / sum(true) >= least_recall
    assert both / sum(found) >= 0.96


@pytest.mark.parametrize(("snr_db", "least_recall"), [(20, 0.83), (10, 0.68)])
def test_words_are_found_in_white_noise(recordings: dict[str, Recording], snr_db: float, least_recall: float) -> None:
    found: list[bool] = []
    true: list[bool] = []
    for name in ("english", "german", "chinese", "english-long"):
        samples = clip(name)
        level = 10 * np.log10(np.mean(samples[samples != 0] ** 2)) - snr_db
        found += speech(samples + noise(len(samples) / SAMPLE_RATE, float(level)))
        true += spoken(recordings[name], len(samples) // FRAME)
    both = sum(a and b for a, b in zip(found, true, strict=True))
    assert both / sum(true) >= least_recall
    assert both / sum(found) >= 0.97


def test_gain_changes_nothing() -> None:
    samples = clip("spanish") + noise(len(clip("spanish")) / SAMPLE_RATE, -60)
    plain = EnergyDetector().probabilities(samples)
    for gain in (0.2, 0.5, 5):
        scaled = EnergyDetector().probabilities(samples * np.float32(gain))
        np.testing.assert_allclose(scaled, plain, atol=1e-3)


def test_the_probability_rises_with_the_level_above_the_noise() -> None:
    bursts = [np.concatenate([noise(1, -60), noise(0.1, -60 + above)]) for above in range(0, 24, 2)]
    peaks = [float(EnergyDetector().probabilities(samples)[-2:].min()) for samples in bursts]
    assert all(lower < higher for lower, higher in pairwise(peaks))
    assert peaks[0] < 0.1
    assert peaks[-1] > 0.99
    assert all(0 <= peak <= 1 for peak in peaks)


def test_quiet_gaps_do_not_make_fades_speech() -> None:
    """In loud recordings with digital silence between the words, echoes 60 dB below them were called speech."""
    samples = np.concatenate([silence(0.5), noise(0.3, -10), noise(0.3, -70), silence(0.3)])
    found = speech(samples)
    frames = [len(silence(0.5)) // FRAME, len(noise(0.3, 0)) // FRAME]
    assert all(found[frames[0] : sum(frames)])
    assert not any(found[sum(frames) :])


# --- no speech -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decibels", [-60, -40, -20])
@pytest.mark.parametrize("colour", SLOPES)
def test_stationary_noise_is_no_speech_from_the_first_frame(colour: str, decibels: float) -> None:
    assert EnergyDetector().probabilities(noise(30, decibels, SLOPES[colour])).max() < 0.4


@pytest.mark.parametrize("decibels", [-60, -40, -20])
@pytest.mark.parametrize("hertz", [50, 60, 100, 120, 400, 1000])
@pytest.mark.parametrize("harmonics", [1, 6])
def test_hum_is_no_speech(hertz: float, decibels: float, harmonics: int) -> None:
    assert EnergyDetector().probabilities(hum(10, decibels, hertz, harmonics)).max() < 0.4


def test_digital_silence_and_its_dither_are_no_speech() -> None:
    dither = np.random.default_rng(0).integers(-1, 2, 5 * SAMPLE_RATE // FRAME * FRAME) / 32768
    assert EnergyDetector().probabilities(silence(20)).max() < 0.1
    assert not any(speech(np.concatenate([silence(1), dither.astype(np.float32), silence(1)])))


def test_the_recording_of_a_room_is_no_speech() -> None:
    assert not any(speech(clip("silence")))


def test_louder_noise_is_recognised_after_half_a_second() -> None:
    found = speech(np.concatenate([silence(2), noise(8, -30), noise(8, -15)]))
    first, second = len(silence(2)) // FRAME, len(silence(2)) // FRAME + len(noise(8, 0)) // FRAME
    assert sum(found[:second]) <= 20
    assert not any(found[first + 20 : second])
    assert sum(found[second:]) <= 20
    assert not any(found[second + 20 :])


def test_louder_noise_that_throbs_is_recognised_after_three_seconds() -> None:
    """Too uneven to be called flat: only the minimum of the last seconds tells."""
    throbbing = noise(8, -40) * (1 + 0.25 * np.sign(np.sin(np.arange(len(noise(8, 0))) / 1500)))
    found = speech(np.concatenate([noise(4, -70), throbbing.astype(np.float32)]))
    change = len(noise(4, 0)) // FRAME
    assert sum(found[change : change + 90]) > 80
    assert sum(found[change + 94 :]) < 15


def test_speech_is_heard_again_at_once_when_the_noise_ends() -> None:
    word = clip("german-short")
    found = speech(np.concatenate([noise(5, -20), noise(1, -70), word]))
    assert sum(found[-(len(word) // FRAME) :]) >= sum(speech(word))


# --- streams ---------------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, database=None, max_examples=30)
@given(st.lists(st.integers(0, 90), max_size=12))
def test_it_does_not_matter_how_a_stream_is_cut(cuts: list[int]) -> None:
    samples = clip("english") + noise(len(clip("english")) / SAMPLE_RATE, -55)
    detector = EnergyDetector()
    parts = np.split(samples, sorted(cut * FRAME for cut in cuts))
    pieces = [detector.probabilities(part.astype(np.float32)) for part in parts]
    np.testing.assert_allclose(np.concatenate(pieces), EnergyDetector().probabilities(samples), atol=1e-4)


def test_more_frames_than_one_block_are_as_their_halves() -> None:
    samples = np.tile(clip("english"), 12)
    detector = EnergyDetector()
    halves = [detector.probabilities(half) for half in np.split(samples, [700 * FRAME])]
    np.testing.assert_allclose(np.concatenate(halves), EnergyDetector().probabilities(samples), atol=1e-4)


def test_reset_starts_anew() -> None:
    detector = EnergyDetector()
    detector.probabilities(noise(4, -10))
    detector.reset()
    np.testing.assert_array_equal(
        detector.probabilities(clip("english")), EnergyDetector().probabilities(clip("english"))
    )


def test_no_samples_give_no_probabilities_and_change_nothing() -> None:
    detector = EnergyDetector()
    assert detector.probabilities(np.zeros(0, np.float32)).shape == (0,)
    np.testing.assert_array_equal(
        detector.probabilities(clip("german")), EnergyDetector().probabilities(clip("german"))
    )


def test_probabilities_are_float32_one_a_frame_and_the_samples_stay() -> None:
    samples = clip("english")
    before = samples.copy()
    found = EnergyDetector().probabilities(samples)
    assert found.dtype == np.float32
    assert found.shape == (len(samples) // FRAME,)
    np.testing.assert_array_equal(samples, before)


@pytest.mark.parametrize("shape", [(FRAME - 1,), (FRAME + 1,), (1, FRAME), (FRAME, 1)])
def test_what_is_no_whole_number_of_frames_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestInvalid, match="whole frames of 512"):
        EnergyDetector().probabilities(np.zeros(shape, np.float32))


# --- helpers ---------------------------------------------------------------------------------------------------


def test_levels_are_root_mean_squares_in_dbfs() -> None:
    square = np.tile(np.array([1, -1], np.float32), FRAME // 2)
    sine = np.sin(2 * np.pi * np.arange(FRAME) / 64).astype(np.float32)
    levels = frame_levels(np.concatenate([square, sine, 0.1 * sine, np.zeros(FRAME, np.float32)]))
    np.testing.assert_allclose(levels, [0, -3.0103, -23.0103, SILENCE_DB], atol=1e-3)
    assert levels.dtype == np.float32


def test_an_offset_is_no_sound() -> None:
    assert frame_levels(np.full(3 * FRAME, 0.25, np.float32)).tolist() == [SILENCE_DB] * 3


@pytest.mark.parametrize(("count", "frames"), [(0, 0), (1, 1), (FRAME, 1), (FRAME + 2, 2), (2 * FRAME, 2)])
def test_a_last_frame_that_is_not_full_has_a_level_of_its_own(count: int, frames: int) -> None:
    levels = frame_levels(np.tile(np.array([0.5, -0.5], np.float32), count)[:count])
    np.testing.assert_allclose(levels, ([-6.0206] * frames) if count != 1 else [SILENCE_DB], atol=1e-3)


class Counting:
    """Calls every other frame speech, from the first one after a reset on."""

    def __init__(self) -> None:
        self.heard = 1

    def probabilities(self, samples: Samples) -> Samples:
        frames = np.arange(self.heard, self.heard + len(samples) // FRAME)
        self.heard += len(frames)
        return np.where(frames % 2 == 0, 0.6, 0.1).astype(np.float32)

    def reset(self) -> None:
        self.heard = 0


def test_seconds_of_speech_count_whole_frames_from_a_fresh_start() -> None:
    detector: SpeechDetector = Counting()
    samples = np.zeros(5 * FRAME + 100, np.float32)
    assert speech_seconds(samples, detector) == 3 * FRAME / SAMPLE_RATE
    assert speech_seconds(samples, detector) == 3 * FRAME / SAMPLE_RATE
    assert speech_seconds(samples, detector, threshold=0.6) == pytest.approx(3 * FRAME / SAMPLE_RATE)
    assert speech_seconds(samples, detector, threshold=0.7) == 0
    assert speech_seconds(samples[:100], detector) == 0
