"""A known text is shared out where its words were heard."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen3asr.assign import assign_text
from qwen3asr.errors import RequestInvalid
from qwen3asr.words import split_words

steady = settings(deadline=None, derandomize=True, database=None, max_examples=200)

TEXT = "Call me Ishmael. Some years ago — never mind how long precisely — having little or no money in my purse"


def shares(text: str, decoded: Sequence[str], language: str | None = None) -> list[str]:
    return [text[slice(*span)].strip() for span in assign_text(text, decoded, language)]


def misheard(words: Sequence[str], rate: float, dice: random.Random) -> list[str]:
    """Some words swapped for others, left out, or followed by one that is not there."""
    heard: list[str] = []
    for word in words:
        kind = dice.random()
        heard += [word] if kind > rate * 0.5 else []
        if kind < rate * 0.3 or rate * 0.5 < kind < rate * 0.7:
            heard.append(f"x{dice.randrange(300)}")
    return heard


def errors(words: Sequence[str], ends: Sequence[int], rate: float, seed: int) -> list[int]:
    """How many words each cut is off, with that rate of words misheard."""
    dice = random.Random(seed)
    decoded = [" ".join(misheard(words[a:b], rate, dice)) for a, b in pairwise([0, *ends, len(words)])]
    text = " ".join(words)
    spans = assign_text(text, decoded, "English")
    return [len(text[:stop].split()) - end for (_, stop), end in zip(spans, ends, strict=False)]


def prose(count: int, vocabulary: int, seed: int) -> list[str]:
    """Words as frequent as in a language (Zipf)."""
    dice = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(vocabulary)]
    return dice.choices([f"w{rank}" for rank in range(vocabulary)], weights, k=count)


# --- what holds for all texts ----------------------------------------------------------------------------------


@steady
@given(st.text("aB ,.“’今，", max_size=40), st.lists(st.text("aB ,.今", max_size=15), min_size=1, max_size=6))
@example("", ["a"])
@example("…", ["", "a"])
@example("a", ["", ""])
def test_spans_follow_one_another_cover_the_text_and_cut_no_word(text: str, decoded: list[str]) -> None:
    spans = assign_text(text, decoded, None)
    assert len(spans) == len(decoded)
    assert [spans[0][0], *(stop for _, stop in spans)] == [*(start for start, _ in spans), len(text)]
    assert all(start <= stop for start, stop in spans)
    words = [text[slice(*unit.span)] for unit in split_words(text)]
    assert [text[start:stop][slice(*u.span)] for start, stop in spans for u in split_words(text[start:stop])] == words


@steady
@given(st.lists(st.sampled_from(["one", "two", "Three,", "«four»", "five."]), max_size=60), st.data())
def test_the_true_split_is_found_exactly(words: list[str], data: st.DataObject) -> None:
    edges = sorted(data.draw(st.lists(st.integers(0, len(words)), max_size=5)))
    pieces = [" ".join(words[a:b]) for a, b in pairwise([0, *edges, len(words)])]
    if any(pieces):
        assert shares(" ".join(words), [piece.lower().strip(".") for piece in pieces]) == pieces


@steady
@given(st.text("今天气好一二三", max_size=40), st.lists(st.integers(0, 40), max_size=4))
def test_the_true_split_of_ideographs_is_found_exactly(text: str, edges: list[int]) -> None:
    pieces = [text[a:b] for a, b in pairwise([0, *sorted(min(edge, len(text)) for edge in edges), len(text)])]
    if text:
        assert shares(text, pieces, "Chinese") == pieces


@settings(steady, max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 20))
def test_with_a_fifth_of_the_words_wrong_cuts_are_off_by_few_words(seed: int, pieces: int) -> None:
    words = prose(1_500, 400, seed)
    ends = sorted(random.Random(seed).sample(range(20, 1_480), pieces - 1))
    off = errors(words, ends, 0.2, seed)
    assert max(map(abs, off)) <= 4


def test_most_cuts_are_exact_with_a_fifth_of_the_words_wrong() -> None:
    off = [n for seed in range(10) for n in errors(prose(1_000, 400, seed), range(50, 1_000, 50), 0.2, seed)]
    assert sum(n == 0 for n in off) / len(off) > 0.85


# --- long texts ------------------------------------------------------------------------------------------------


def test_three_hours_of_words_are_shared_out() -> None:
    """A table of all words against all would have 900 million cells."""
    off = errors(prose(30_000, 8_000, 1), range(500, 30_000, 500), 0.2, 1)
    assert max(map(abs, off)) <= 2


def test_dictated_digits_have_no_rare_words_but_rare_runs() -> None:
    dice = random.Random(0)
    words = [str(dice.randrange(10)) for _ in range(20_000)]
    assert max(map(abs, errors(words, range(400, 20_000, 400), 0.2, 1))) <= 3


def test_what_is_neither_heard_nor_short_is_shared_in_proportion() -> None:
    text = " ".join(["so"] * 9_000)
    decoded = [" ".join(["la"] * 1_000), " ".join(["la"] * 2_000)]
    assert [len(share.split()) for share in shares(text, decoded)] == [3_000, 6_000]


def test_a_preface_that_nobody_reads_does_not_shift_the_rest() -> None:
    words = prose(3_000, 500, 3)
    decoded = [" ".join(words[2_000:2_400]), " ".join(words[2_400:])]
    assert shares(" ".join(words), decoded) == [" ".join(words[:2_400]), " ".join(words[2_400:])]


# --- borders ---------------------------------------------------------------------------------------------------


def test_case_width_and_apostrophes_do_not_matter() -> None:
    text = "Don’t CALL it ＡＩ. STRASSE again"
    assert shares(text, ["don't call", "it AI straße", "again"]) == ["Don’t CALL", "it ＡＩ. STRASSE", "again"]
    rest = "one two three four"
    for head, heard in (("STOP Here", "stop here"), ("Don’t don’t", "don't don't"), ("ＯＫ ＡＩ", "OK AI")):
        assert shares(f"{head} {rest}", [heard, "mumble"]) == [head, rest]


def test_words_that_were_not_recognised_go_to_their_side_in_proportion() -> None:
    assert shares("a b X Y c d", ["a b p", "q c d"]) == ["a b X", "Y c d"]
    assert shares("a b X Y Z W c d", ["a b p", "q c d"]) == ["a b X Y", "Z W c d"]
    assert shares("a b X Y Z W c d", ["a b p q r", "s c d"]) == ["a b X Y Z", "W c d"]
    assert shares("a b X Y c d", ["a b", "c d"]) == ["a b X", "Y c d"]
    assert shares("a b X Y c d", ["a b p q", "c d"]) == ["a b X Y", "c d"]
    assert shares("a b X Y c d", ["a b", "p q c d"]) == ["a b", "X Y c d"]


def test_words_that_nobody_recognised_far_from_the_border_do_not_shift_it() -> None:
    assert shares("a b c d e f g h", ["a b", "c"]) == ["a b", "c d e f g h"]


def test_a_misheard_word_stands_for_one_word() -> None:
    assert shares("no no stop here", ["no", "go stop here"]) == ["no", "no stop here"]
    assert shares("c d b d d c d c", ["c b", "d d d c"]) == ["c d b", "d d c d c"]


def test_a_refrain_that_stands_twice_is_no_anchor() -> None:
    """Its second place was once taken for what was sung first."""
    text = "let it be verse of two let it be"
    assert shares(text, ["let it be", "nobody heard"]) == ["let it be", "verse of two let it be"]


def test_a_repeated_word_belongs_to_the_piece_whose_words_are_around_it() -> None:
    assert shares("yes yes no yes no no", ["yes yes", "no yes no no"]) == ["yes yes", "no yes no no"]


def test_punctuation_stays_with_its_word() -> None:
    assert shares("He said: “Go!” She (Ann) went.", ["he said go", "she ann went"]) == [
        "He said: “Go!”",
        "She (Ann) went.",
    ]
    assert shares("He said: “Go!”", ["he said", "go"]) == ["He said:", "“Go!”"]
    assert shares("他说：“走！”", ["他说", "走"], "Chinese") == ["他说：", "“走！”"]
    assert shares("  …one two… ", ["one", "two"]) == ["…one", "two…"]


def test_pieces_without_text_get_nothing() -> None:
    spans = assign_text(TEXT, ["", "call me ishmael", "", "some years ago", ""], "English")
    end = TEXT.index("Some")
    assert spans == [(0, 0), (0, end), (end, end), (end, len(TEXT)), (len(TEXT), len(TEXT))]


def test_where_nothing_was_heard_at_all_each_piece_gets_as_many_words() -> None:
    assert shares("a b c d e f", ["", "…", ""]) == ["a b", "c d", "e f"]


def test_japanese_is_cut_between_its_words() -> None:
    text = "今日はいい天気ですね。私は東京から来ました。"
    assert shares(text, ["今日はいい天気ですね", "私は東京から来ました"], "Japanese") == [
        "今日はいい天気ですね。",
        "私は東京から来ました。",
    ]


def test_no_pieces_cannot_cover_a_text() -> None:
    with pytest.raises(RequestInvalid, match="no pieces"):
        assign_text("a", [], None)
