"""Headers are parsed as the original does, loops collapse as in transformers, and forced text holds no tag."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_asr import processing_qwen3_asr as reference

from qwen3asr.errors import RequestInvalid
from qwen3asr.postprocess import fix_repetitions, parse_output

steady = settings(deadline=None, derandomize=True, database=None, max_examples=300)


# --- parsing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "parsed"),
    [
        ("language English<asr_text>Hello there.", ("English", "Hello there.")),
        (" \n language English <asr_text> Hello there. \n", ("English", "Hello there.")),
        ("language cHINese<asr_text>你好", ("Chinese", "你好")),
        ("LANGUAGE ENGLISH<asr_text>Hi", ("English", "Hi")),
        ("language Klingon<asr_text>nuqneH", ("Klingon", "nuqneH")),  # not checked
        ("\n\nlanguage German\nlanguage French<asr_text>Ja", ("German", "Ja")),
        ("language English<asr_text>one<asr_text> <asr_text>two", ("English", "one two")),
        ("language English<asr_text>", ("English", "")),
        ("language None<asr_text>", (None, "")),
        ("language None<asr_text><asr_text><asr_text>", (None, "")),  # as tiny models write on noise
        ("Language NONE <asr_text>words all the same", (None, "words all the same")),
        ("noise\nlanguage none<asr_text>words", (None, "words")),
        ("no tag at all", (None, "no tag at all")),
        ("language English, he said", (None, "language English, he said")),
        ("noise<asr_text>Hi", (None, "Hi")),
        ("noise\nlanguage English<asr_text>Hi", (None, "Hi")),  # only the first line counts
        ("<asr_text>Hi", (None, "Hi")),
        ("language <asr_text>Hi", (None, "Hi")),
        ("", (None, "")),
        (" \n", (None, "")),
    ],
)
def test_output_is_split_into_language_and_text(raw: str, parsed: tuple[str | None, str]) -> None:
    assert parse_output(raw) == parsed


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (" Hello there. ", "Hello there."),
        ("", ""),
        ("language English<asr_text>Hello there.", "Hello there."),
        ("\nLanguage english <asr_text> Hello there.", "Hello there."),
        ("language None<asr_text>", ""),
        ("language matters, she said", "language matters, she said"),
        ("She said: language English<asr_text>Hi", "She said: language English Hi"),
        ("language English\n<asr_text>Hi", "language English Hi"),
        ("Hello<asr_text> there.<asr_text>", "Hello there."),
    ],
)
def test_a_forced_language_is_returned_and_only_a_leading_header_is_removed(raw: str, text: str) -> None:
    assert parse_output(raw, "French") == ("French", text)


def test_a_blank_forced_language_forces_nothing() -> None:
    assert parse_output("language English<asr_text>Hi", "") == ("English", "Hi")


@pytest.mark.parametrize("forced", [None, "English"])
def test_loops_collapse_before_parsing(forced: str | None) -> None:
    assert parse_output("language English<asr_text>" + "no " * 30 + "way", forced) == ("English", "no way")
    assert parse_output("language English<asr_text>" + "A" * 21, forced) == ("English", "A")


@pytest.mark.parametrize("text", ["0" * 40, "no " * 30 + "way", "12 " * 25 + "!", "哈" * 30])
@pytest.mark.parametrize("forced", [None, "English"])
def test_without_repair_what_was_said_over_and_over_stays(text: str, forced: str | None) -> None:
    """Forty zeros that were read out became one."""
    assert parse_output(f"\n language English<asr_text>{text}", forced, repair=False) == ("English", text)
    assert parse_output(f"language English<asr_text>{text}", forced) != ("English", text)


@steady
@given(st.text(max_size=60).filter(lambda text: fix_repetitions(text.strip()) == text.strip()))
def test_without_loops_repair_changes_nothing(text: str) -> None:
    assert parse_output(text, repair=False) == parse_output(text)


@steady
@given(st.sampled_from(["English", "Chinese"]), st.text(max_size=60).filter(lambda text: "assistant\n" not in text))
def test_well_formed_output_parses_as_in_transformers(name: str, text: str) -> None:
    raw = f"language {name}<asr_text>{text}"
    theirs = reference._parse_single_output(raw)
    assert parse_output(raw) == (theirs["language"], theirs["transcription"])


# --- repetitions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("", ""),
        ("a" * 20, "a" * 20),  # alone it stays ...
        ("a" * 20 + "bcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz"),  # ... in longer text it collapses ...
        ("bcdefghijklmnopqrstuvwxyz" + "a" * 20, "bcdefghijklmnopqrstuvwxyz" + "a" * 20),  # ... but not at the end
        ("a" * 21, "a"),
        ("ab" * 19, "ab" * 19),
        ("ab" * 20, "ab"),
        ("ab" * 20 + "a", "aba"),
        ("x" + "ab" * 25 + "y" + "cd" * 25, "xabycd"),
        ("abcdefghijklmnopqrst" * 20, "abcdefghijklmnopqrst"),
        ("abcdefghijklmnopqrstu" * 20, "abcdefghijklmnopqrstu" * 20),  # 21 characters are no unit
        ("哈" * 50 + "好\n" * 20, "哈好\n"),
    ],
)
def test_known_loops(text: str, fixed: str) -> None:
    assert fix_repetitions(text) == fixed == reference._detect_and_fix_repetitions(text)


loops = st.lists(
    st.tuples(st.text("ab \n", min_size=1, max_size=22), st.one_of(st.integers(1, 3), st.integers(18, 24))), max_size=5
).map(lambda parts: "".join(unit * times for unit, times in parts))


@settings(steady, max_examples=500)
@given(loops)
@example("a" * 20 + "b" * 20)
@example("a" * 20 + "b" * 19)
@example("a" * 20 + "b" * 20 + "c")
def test_any_loops_collapse_as_in_transformers(text: str) -> None:
    assert fix_repetitions(text) == reference._detect_and_fix_repetitions(text)


@settings(steady, max_examples=1_000)
@given(st.text("abc", max_size=60), st.integers(1, 5))
def test_any_text_and_threshold_collapse_as_in_transformers(text: str, threshold: int) -> None:
    assert fix_repetitions(text, threshold) == reference._detect_and_fix_repetitions(text, threshold)


def test_ten_thousand_characters_without_loops_stay_as_they_are() -> None:
    text = "".join(random.Random(0).choices("abcdefgh ", k=10_000))
    assert fix_repetitions(text) == text


def test_two_thousand_loops_in_a_row_do_not_recurse() -> None:
    text = "".join(unit * 20 for unit in ("ab", "cd", "ef") * 700)
    assert fix_repetitions(text) == "abcdef" * 700


@pytest.mark.parametrize("threshold", [0, -1])
def test_a_threshold_that_every_text_exceeds_is_refused(threshold: int) -> None:
    with pytest.raises(RequestInvalid, match="at least 1"):
        fix_repetitions("text", threshold)
