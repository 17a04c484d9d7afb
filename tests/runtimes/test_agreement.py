"""What is committed never changes, and hypotheses that contradict it neither repeat nor lose words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr.agreement import Agreement, ends_sentence, last_units, strip_overlap

steady = settings(deadline=None, derandomize=True, database=None, max_examples=300)

VOCABULARY = [
    "a",
    "B",
    "c",
    "no",
    "No,",
    "don't",
    "3.14",
    "—",
    "“so",
    "end.",
    "你",
    "好，",
    "がっ",
    "กำ",
    "हिन्दी",
    "(",
    "…",
]


def committed(*hypotheses: str, hold_back: int = 0) -> str:
    agreement = Agreement(hold_back)
    for hypothesis in hypotheses:
        agreement.update(hypothesis)
    return agreement.committed


# --- committing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hypotheses", "wanted"),
    [
        (["so we"], ""),
        (["so we", "so we went"], "so we"),
        (["so we", "so he went", "so he went home"], "so he went"),
        (["so we", "", "so we"], ""),
        (["one two", "one three", "one two"], "one"),
        (["one two three four", "one two five four"], "one two"),  # agreement ends at the first difference
        (["one two", "one two three", "one two three four"], "one two three"),
        (["我们", "我们去", "我们去了"], "我们去"),
        (["我想去 New", "我想去 New York"], "我想去 New"),
        (["สวัส", "สวัสดี"], "สวัส"),
        (["안녕하세", "안녕하세요 저"], ""),  # Korean words are between blanks
        (["नमस्ते दुनिया", "नमस्ते दुनिया है"], "नमस्ते दुनिया"),  # the last sign is a mark, not a letter
    ],
)
def test_what_two_successive_hypotheses_agree_on_is_committed(hypotheses: list[str], wanted: str) -> None:
    assert committed(*hypotheses) == wanted


def test_a_mark_stays_with_its_character() -> None:
    """A vowel sign of its own would be committed after its consonant had been read without it."""
    assert committed("กำ ดี", "กำ ด") == "กำ"
    assert committed("か\u3099", "か") == ""


def test_case_and_punctuation_may_differ_and_the_newer_spelling_is_taken() -> None:
    assert committed("hello how are", "Hello, how are you") == "Hello, how are"
    assert committed("its 314", "It's 3.14 or so") == "It's 3.14"


def test_punctuation_is_committed_only_with_the_word_behind_it() -> None:
    """ "hello." was committed, and the sentence went on: "hello, how"."""
    agreement = Agreement()
    agreement.update("Well, hello.")
    assert agreement.update("Well, hello.") == ("Well, hello", "Well, hello.")
    assert agreement.update("Well, hello, how") == ("Well, hello", "Well, hello, how")
    assert agreement.update("Well, hello, how are")[0] == "Well, hello, how"


def test_what_opens_a_word_is_committed_with_it() -> None:
    assert committed("¿Qué “tal”?", "¿Qué “tal” vas?") == "¿Qué “tal"
    assert committed("- so -", "- so - it") == "- so"


def test_words_at_the_end_can_be_held_back() -> None:
    hypotheses = ["one two three", "one two three four", "one two three four five"]
    assert committed(*hypotheses[:2], hold_back=2) == "one two"
    assert committed(*hypotheses, hold_back=2) == "one two three"
    assert committed(*hypotheses, hold_back=9) == ""


@pytest.mark.parametrize(
    ("before", "hypothesis", "wanted"),
    [
        ("a b c", "a b c d", "a b c d"),
        ("a b c", "a x c d", "a b c d"),  # a word replaced
        ("a b c", "a c d e", "a b c d e"),  # left out
        ("a b c", "a b x c d", "a b c d"),  # put in
        ("a b c", "x y c d", "a b c d"),
        ("a b c", "a b x", "a b c"),  # the last one replaced: it is not said again
        ("a b c", "a b", "a b c"),
        ("a b c", "", "a b c"),
        ("a b c", "…", "a b c"),
        ("no no", "no no no", "no no no"),
        ("a b c", "A, b; C: d!", "a b c: d!"),
        ("你好", "您好吗", "你好吗"),
    ],
)
def test_a_hypothesis_that_contradicts_is_followed_from_where_the_committed_text_ends(
    before: str, hypothesis: str, wanted: str
) -> None:
    agreement = Agreement()
    agreement.update(before)
    agreement.update(before)
    assert agreement.committed == before
    assert agreement.preview(hypothesis) == wanted
    assert agreement.update(hypothesis) == (before, wanted)


def test_tails_agree_even_while_both_hypotheses_contradict_what_is_committed() -> None:
    agreement = Agreement()
    for hypothesis in ("one two", "one two", "one to three", "won two three four"):
        agreement.update(hypothesis)
    assert agreement.committed == "one two three"


def test_a_preview_changes_nothing() -> None:
    agreement = Agreement()
    agreement.update("one two")
    assert agreement.preview("one two three") == "one two three"
    agreement.update("one two three")
    assert agreement.committed == "one two"


texts = st.lists(st.sampled_from(VOCABULARY), max_size=8).map(" ".join) | st.text(
    st.sampled_from("ab.,’ \u3099你กำ\n–A1"), max_size=12
)


@steady
@given(st.lists(texts, max_size=8), texts, st.integers(0, 2))
def test_committed_text_only_grows_whatever_the_hypotheses(hypotheses: list[str], last: str, hold_back: int) -> None:
    agreement = Agreement(hold_back)
    before = ""
    for hypothesis in hypotheses:
        now, text = agreement.update(hypothesis)
        assert now.startswith(before)
        assert text.startswith(now)
        before = now
    final = agreement.finish(last)
    assert final.startswith(before)
    assert agreement.committed == final
    assert before.endswith(agreement.surplus)


@steady
@given(st.lists(st.sampled_from(["a", "b", "c,", "d.", "你", "好"]), min_size=1, max_size=12), st.data())
def test_growing_hypotheses_are_given_back_as_they_are(words: list[str], data: st.DataObject) -> None:
    agreement = Agreement()
    count = 0
    while count < len(words):
        count = data.draw(st.integers(count, len(words)))
        hypothesis = " ".join(words[:count])
        assert agreement.update(hypothesis)[1] == hypothesis
        count += 1
    assert agreement.finish(" ".join(words)) == " ".join(words)
    assert agreement.surplus == ""


@steady
@given(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=2, max_size=8), st.data())
def test_one_wrong_word_within_the_committed_text_costs_no_word_behind_it(
    words: list[str], data: st.DataObject
) -> None:
    certain = data.draw(st.integers(1, len(words) - 1))
    agreement = Agreement()
    for _ in range(2):
        agreement.update(" ".join(words[:certain]))
    wrong = list(words)
    wrong[data.draw(st.integers(0, certain - 1))] = "x"
    assert agreement.update(" ".join(wrong))[1] == " ".join(words)


# --- the end of a segment --------------------------------------------------------------------------------------


def test_the_last_hypothesis_is_committed_whole() -> None:
    agreement = Agreement(hold_back=3)
    agreement.update("one two")
    assert agreement.finish("one two three. ") == "one two three. "
    assert agreement.surplus == ""


@pytest.mark.parametrize(
    ("last", "final", "surplus"),
    [
        ("one two three", "one two three", ""),
        ("one two.", "one two three.", "three"),
        ("one.", "one two three.", "two three"),
        ("one too.", "one two three.", "three"),
        ("", "one two three", "one two three"),
        ("one four three", "one two three", ""),
    ],
)
def test_words_that_the_last_hypothesis_lost_are_kept_and_told(last: str, final: str, surplus: str) -> None:
    agreement = Agreement()
    for _ in range(2):
        agreement.update("one two three")
    assert agreement.finish(last) == final
    assert agreement.surplus == surplus


@pytest.mark.parametrize(
    ("surplus", "text", "wanted"),
    [
        ("three", "Three, four", "four"),
        ("three", "four three", "four three"),
        ("", "three", "three"),
        ("two three", "two three four", "four"),
        ("two three", "three four", "four"),
        ("two three", "two", ""),  # the rest is not heard yet
        ("two three", "two four", "four"),
        ("three", "three three", "three"),
        ("three", "three “four” five", "“four” five"),
        ("三", "三，四", "四"),
        ("three", "", ""),
        ("three", "…", "…"),
    ],
)
def test_what_the_segment_before_has_committed_is_not_said_again(surplus: str, text: str, wanted: str) -> None:
    assert strip_overlap(surplus, text) == wanted


@steady
@given(texts, texts)
def test_stripping_leaves_an_end_of_the_text(surplus: str, text: str) -> None:
    assert text.endswith(strip_overlap(surplus, text))
    assert strip_overlap("", text) == text


@pytest.mark.parametrize(
    ("text", "count", "wanted"),
    [
        ("one, two three.", 2, "two three."),
        ("one, “two” three.", 2, "“two” three."),
        ("one two", 9, "one two"),
        ("“one” two", 2, "“one” two"),
        ("one two", 0, ""),
        ("我们去了。", 2, "去了。"),
        ("", 3, ""),
        ("…", 3, ""),
    ],
)
def test_the_last_units_come_with_their_punctuation(text: str, count: int, wanted: str) -> None:
    assert last_units(text, count) == wanted


@pytest.mark.parametrize(
    ("text", "ends"),
    [("So.", True), ("“So?”", True), ("去了。", True), ("so", False), ("so,", False), ("", False), ("3.14", False)],
)
def test_sentences_end_with_a_stop(text: str, ends: bool) -> None:
    assert ends_sentence(text) is ends
