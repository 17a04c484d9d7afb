"""Loops end early and what people say does not; text on silence and echoes of the context are found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import Recording

from qwen3asr.audio import read_audio
from qwen3asr.features import SAMPLE_RATE, Samples
from qwen3asr.guards import EchoGuard, Guards, LoopGuard, LoopWatch, SpeechGate
from qwen3asr.vad import FRAME

RECORDINGS = Path(__file__).parents[2] / "examples" / "recordings"
steady = settings(deadline=None, derandomize=True, database=None, max_examples=200)


class Words:
    """A vocabulary that grows: an id for each piece of text."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def ids(self, pieces: Sequence[str]) -> list[int]:
        for piece in pieces:
            if piece not in self.pieces:
                self.pieces.append(piece)
        return [self.pieces.index(piece) for piece in pieces]

    def text(self, token: int) -> str:
        return self.pieces[token]


def pushed(watch: LoopWatch, tokens: Sequence[int]) -> tuple[int, int] | None:
    """After how many tokens the watch ends the text, and how many it keeps."""
    for index, token in enumerate(tokens, 1):
        kept = watch.push(token)
        if kept is not None:
            return index, kept
    return None


def looped(pieces: Sequence[str], seconds: float) -> tuple[int, int] | None:
    words = Words()
    tokens = words.ids(pieces)
    return pushed(LoopGuard().watch(seconds, words.text), tokens)


# --- what people say -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "seconds"),
    [
        (["ha", *[" ha"] * 3], 1),
        (["no", *[", ", "no"] * 4], 1.5),
        (["哈"] * 30, 6),
        ([" la"] * 32, 8),
        (["na", " na", " hey", " jude", ", "] * 18, 120),
        (["very", " "] * 20, 6),
        (["thank", " you", ". "] * 6, 4),
        (["one", " two", " three", " four", ", "] * 16, 40),
        (["0"] * 40, 5),
        (["0", " "] * 40, 5),
        (["0", ", "] * 50, 7),
        (["zero", ", "] * 40, 20),
        (["零"] * 40, 5),
        (["1", "2", "3", " "] * 60, 30),
        (["5"] * 400, 60),
        ([*"+49 30 555 555 55 55"], 3),
        ([*"1,000,000,000,000"], 1.5),
        (["٣", " "] * 40, 5),
        ([str(number) for number in range(1, 200)], 60),
    ],
    ids=lambda value: "".join(value[:8]) if isinstance(value, list) else f"{value}s",
)
def test_what_people_say_stays(pieces: list[str], seconds: float) -> None:
    assert looped(pieces, seconds) is None


@steady
@given(st.lists(st.integers(0, 9), min_size=1, max_size=45), st.integers(1, 3), st.floats(0, 60))
def test_what_is_said_three_times_always_stays(unit: list[int], copies: int, seconds: float) -> None:
    words = Words()
    words.pieces = [f" word{number}" for number in range(10)]
    tokens = unit * copies
    fired = pushed(LoopGuard().watch(seconds, words.text), tokens)
    if fired is not None:  # the unit itself repeats something
        period = next(n for n in range(1, 41) if _copies(tokens[: fired[0]], n) >= 4)
        assert period < len(unit)


def _copies(tokens: Sequence[int], period: int) -> int:
    matches = 0
    while matches + period < len(tokens) and tokens[-1 - matches] == tokens[-1 - matches - period]:
        matches += 1
    return (matches + period) // period


@steady
@given(st.text("0123456789", min_size=1, max_size=300), st.integers(0, 20))
def test_digits_that_the_audio_can_hold_always_stay(digits: str, repeats: int) -> None:
    pieces = [*(digits * (repeats + 1))]
    assert looped(pieces, len(pieces) / 8) is None


def test_a_text_without_repetition_stays_however_long() -> None:
    rng = np.random.default_rng(0)
    assert pushed(LoopGuard().watch(10), rng.integers(0, 50, 4_000).tolist()) is None


# --- loops -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "seconds", "copies"),
    [
        ([" the"], 60, 60),  # copies / sqrt(tokens): nobody says that
        (["thank", " you", "."], 60, 35),
        ([f" w{n}" for n in range(16)], 600, 15),
        ([f" w{n}" for n in range(40)], 600, 10),
        ([" the"], 2, 25),  # 3 letters, 8 a second at most: three seconds hold 24
        (["please", " subscribe"], 3, 7),  # 15 letters, 25 a second: four seconds hold 6
        (["谢谢", "大家"], 4, 11),  # four ideographs, 8 a second: five seconds hold 10
        ([f" w{n}" for n in range(41)], 1, None),  # longer than any unit
        (["0"], 5, 49),  # digits: only what the audio holds
        (["0", " "], 60, 489),
        (["1", "2", ","], 5, 25),
        ([" number", " 5"], 60, 43),  # not a number alone
        ([","], 60, 60),
        ([","], 1, 17),
    ],
)
def test_a_loop_ends_at_the_copy_that_nobody_can_have_said(unit: list[str], seconds: float, copies: int | None) -> None:
    ended = looped(["so", *unit * 500], seconds)
    if copies is None:
        assert ended is None
    else:
        assert ended == (1 + copies * len(unit), 1 + len(unit))


def test_even_what_is_impossible_needs_four_copies() -> None:
    sentence = [f" incomprehensibilities{number}" for number in range(10)]
    assert looped(sentence * 9, 0.5) == (40, 10)


def test_one_copy_is_kept_with_what_stands_before_it() -> None:
    before = [f" b{number}" for number in range(300)]
    assert looped([*before, *[" and", " so", " on"] * 100], 200) == (300 + 35 * 3, 303)


def test_the_shortest_unit_is_kept() -> None:
    assert looped([" a", " b", " a", " b"] * 100, 600) == (43 * 2, 2)


def test_a_loop_that_starts_within_a_unit_keeps_one_unit_from_there() -> None:
    assert looped([" c", *[" a", " b", " c"] * 100], 600) == (35 * 3, 3)


def test_a_changed_token_starts_the_count_anew() -> None:
    assert looped([*[" a"] * 59, " b", *[" a"] * 59, " b", *[" a"] * 60], 600) == (59 + 1 + 59 + 1 + 60, 121)


def test_a_run_of_numbers_does_not_excuse_a_later_one_of_words() -> None:
    pieces = [*["1"] * 100, *[" the"] * 100]
    assert looped(pieces, 60) == (160, 101)


def test_without_texts_numbers_are_no_exception() -> None:
    assert pushed(LoopGuard().watch(60), [7] * 100) == (60, 1)


def test_the_marks_can_be_set() -> None:
    guard = LoopGuard(copies=10, fewest=2, longest=2)
    assert pushed(guard.watch(60), [1] * 100) == (10, 1)
    assert pushed(guard.watch(60), [1, 2] * 100) == (16, 2)  # ceil(10 / sqrt(2)) = 8 copies
    assert pushed(guard.watch(60), [1, 2, 3] * 100) is None


@steady
@given(
    st.lists(st.integers(0, 99), max_size=30),
    st.lists(st.integers(100, 199), min_size=1, max_size=40),
    st.floats(0.1, 1200),
)
def test_every_endless_loop_ends_in_time(before: list[int], unit: list[int], seconds: float) -> None:
    ended = pushed(LoopGuard().watch(seconds), [*before, *unit * 80])
    assert ended is not None
    written, kept = ended
    assert kept <= len(before) + len(unit)
    assert written <= len(before) + len(unit) * math.ceil(60 / math.sqrt(len(unit)))


def test_texts_are_asked_for_only_where_something_repeats() -> None:
    asked: list[int] = []

    def text(token: int) -> str:
        asked.append(token)
        return "0"

    watch = LoopGuard().watch(600, text)
    assert pushed(watch, list(range(3_000))) is None
    assert asked == []
    assert pushed(watch, [5] * 1_000) is None
    assert len(asked) < 1_000  # once a period, not once a token


# --- silence ---------------------------------------------------------------------------------------------------


def noise(seconds: float, decibels: float) -> Samples:
    samples = np.random.default_rng(0).normal(size=int(seconds * SAMPLE_RATE)) * 10 ** (decibels / 20)
    return np.clip(samples, -1, 1).astype(np.float32)


def hum(seconds: float, decibels: float) -> Samples:
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (math.sqrt(2) * np.sin(2 * np.pi * 100 * time) * 10 ** (decibels / 20)).astype(np.float32)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(0, np.float32),
        np.zeros(100, np.float32),
        np.zeros(19 * SAMPLE_RATE, np.float32),
        np.full(SAMPLE_RATE, 0.1, np.float32),  # an offset only
        noise(5, -83),
        hum(5, -83),
    ],
    ids=["none", "short", "digital", "offset", "noise", "hum"],
)
def test_silence_is_not_worth_decoding(samples: Samples) -> None:
    assert SpeechGate().silent(samples)


@pytest.mark.parametrize("name", ["english", "german", "spanish", "chinese", "english-long", "german-short", "silence"])
def test_recordings_are_decoded_however_quiet(name: str) -> None:
    samples = read_audio(RECORDINGS / f"{name}.flac").samples
    for peak_db in (0, -40, -60):
        assert not SpeechGate().silent(samples / np.abs(samples).max() * np.float32(10 ** (peak_db / 20)))


def test_one_audible_frame_is_enough_to_decode() -> None:
    samples = np.zeros(10 * SAMPLE_RATE, np.float32)
    samples[7 * FRAME : 8 * FRAME] = noise(1, -75)[:FRAME]
    assert not SpeechGate().silent(samples)
    assert SpeechGate(silence_db=-70).silent(samples)


@pytest.mark.parametrize("make", [noise, hum])
@pytest.mark.parametrize("decibels", [-60, -40, -20])
def test_unsure_text_on_steady_noise_is_invented(make: Callable[[float, float], Samples], decibels: float) -> None:
    samples = make(6, decibels)
    assert SpeechGate().invented(samples, "Thank you.", 0.6)
    assert not SpeechGate().invented(samples, "Thank you.", 0.95)
    assert not SpeechGate().invented(samples, "Thank you.", None)
    assert not SpeechGate().invented(samples, " ", 0.1)


def test_unsure_text_on_speech_stays(recordings: dict[str, Recording]) -> None:
    for name, recording in recordings.items():
        samples = read_audio(recording.path).samples
        assert SpeechGate().invented(samples, "words", 0.1) == (name == "silence")


def test_a_word_cut_off_at_its_start_is_speech_all_the_same() -> None:
    """It only decays: forwards there is nothing quieter before it."""
    fade = np.exp(-np.arange(SAMPLE_RATE) / 2_000).astype(np.float32)
    assert not SpeechGate().invented(noise(1, -20) * fade, "ja", 0.3)


def test_a_click_in_the_noise_is_no_speech() -> None:
    samples = noise(5, -50)
    samples[20_000:20_100] += 0.5
    assert SpeechGate().invented(samples, "Thank you.", 0.6)


class Deaf:
    def __init__(self) -> None:
        self.frames = 0

    def probabilities(self, samples: Samples) -> Samples:
        return np.zeros(len(samples) // FRAME, np.float32)

    def reset(self) -> None:
        self.frames = 0


def test_the_detector_can_be_chosen() -> None:
    speech = read_audio(RECORDINGS / "english.flac").samples
    assert SpeechGate(detector=Deaf).invented(speech, "hello", 0.5)


# --- hot words -------------------------------------------------------------------------------------------------

CONTEXT = "Tongyi Qianwen, Qwen; 通义千问、阿里云\nDr. Müller. The meeting is about O'Brien."


@pytest.mark.parametrize(
    "text",
    [
        "Qwen",
        " qwen. ",
        "Tongyi Qianwen",
        "TONGYI QIANWEN, Qwen!",
        "Qwen Qwen Qwen",
        "通义千问。",
        "阿里云",
        "müller",
        "Tongyi Qianwen, Qwen; 通义千问、阿里云",
        "the meeting is about o'brien",
    ],
)
def test_texts_made_of_the_contexts_words_are_suspicious(text: str) -> None:
    assert EchoGuard().suspicious(text, CONTEXT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "…",
        "Tongyi",  # not a whole entry
        "Qianwen Tongyi",
        "the meeting",
        "Qwen is a model",  # words of its own
        "Ask Qwen",
        "通义",
        "Qwendolyn",
    ],
)
def test_other_texts_are_not(text: str) -> None:
    assert not EchoGuard().suspicious(text, CONTEXT)


@pytest.mark.parametrize("context", ["", " ", ", ;"])
def test_nothing_echoes_no_context(context: str) -> None:
    assert not EchoGuard().suspicious("Qwen", context)
    assert not EchoGuard().suspicious("", context)


def test_an_entry_with_a_point_inside_is_one_entry() -> None:
    assert EchoGuard().suspicious("U.S.A.", "U.S.A., 3.14")
    assert EchoGuard().suspicious("3.14", "U.S.A., 3.14")
    assert not EchoGuard().suspicious("14", "U.S.A., 3.14")


@pytest.mark.parametrize(("heard", "echo"), [("", True), (" … ", True), ("When", False), ("Qwen", False)])
def test_only_what_vanishes_without_the_context_was_an_echo(heard: str, echo: bool) -> None:
    assert EchoGuard().echo(heard) is echo


# --- all -------------------------------------------------------------------------------------------------------


def test_all_guards_are_on_until_they_are_turned_off() -> None:
    guards = Guards()
    assert (guards.loop, guards.speech, guards.echo) == (LoopGuard(), SpeechGate(), EchoGuard())
    assert Guards.off() == Guards(None, None, None)
    assert dataclasses.replace(guards, loop=None).speech == SpeechGate()
