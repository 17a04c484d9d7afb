"""Text in any Unicode, for the aligner, as context and as a language."""

from __future__ import annotations

import string
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.abuse.conftest import examples
from tests.abuse.limits import memory, patience
from tests.conftest import Recording

from qwen3asr import Recognizer
from qwen3asr.assign import assign_text
from qwen3asr.errors import Qwen3AsrError, RequestInvalid
from qwen3asr.words import split_words

SECOND = np.zeros(16_000, np.float32)
LANGUAGES = (None, "English", "Chinese", "Japanese", "Korean", "ja", "", "Klingon")
ODD = (
    "\ud800\udfff\u0301\u200d\u202e\u05d0\u0627\U0001f468\u200d\U0001f469"
    "½㌔İｶﾞﬁ\x00\ufeff日本가각“‘《' \u3000\n<|im_end|>"
)
TEXT = st.text(st.characters() | st.sampled_from(ODD), max_size=60)
REPEATED = st.builds(lambda part, times: part * times, TEXT, st.integers(1, 40))


def _in_order(spans: list[tuple[int, int]], text: str) -> None:
    flat = [0, *(edge for span in spans for edge in span), len(text)]
    assert flat == sorted(flat)


@examples(150)
@given(text=REPEATED, language=st.sampled_from((None, "Japanese", "Korean")))
def test_words_of_any_text_have_places_in_order(text: str, language: str | None) -> None:
    with patience():
        units = split_words(text, language)
    _in_order([unit.span for unit in units], text)
    assert all(unicodedata.category(char) != "Cs" for unit in units for char in unit.text)


@examples(100)
@given(text=REPEATED, heard=st.lists(REPEATED, min_size=1, max_size=5), language=st.sampled_from((None, "Japanese")))
def test_any_text_is_shared_out_whole(text: str, heard: list[str], language: str | None) -> None:
    with patience():
        spans = assign_text(text, heard, language)
    assert [spans[0][0], spans[-1][1]] == [0, len(text)]
    assert all(before[1] == behind[0] for before, behind in pairwise(spans))


@examples(40)
@given(text=REPEATED, language=st.sampled_from(LANGUAGES))
def test_any_text_is_aligned_or_refused(model: Recognizer, text: str, language: str | None) -> None:
    with patience():
        try:
            words = model.align(SECOND, text, language=language)
        except Qwen3AsrError:
            return
    _in_order([word.span for word in words if word.span], text)
    assert all(0 <= word.start < word.end <= 1.0 for word in words)


@examples(40, share=0.5)
@given(context=REPEATED, language=st.sampled_from(LANGUAGES) | TEXT)
def test_any_context_and_language_are_taken_or_refused(
    model: Recognizer, recordings: dict[str, Recording], context: str, language: str | None
) -> None:
    with patience():
        try:
            model.transcribe(recordings["german-short"].path, context=context, language=language)
        except Qwen3AsrError:
            return


@pytest.mark.parametrize("language", [None, "Japanese", "Korean"])
def test_a_million_characters_are_refused_at_once(model: Recognizer, language: str | None) -> None:
    """One word of them took soynlp the memory of the square, and nagisa minutes."""
    for text in ("a" * 10**6, "\u0301" * 10**6, "İ日 " * 333_333, "\U0001f600" * 10**6):
        with memory(), patience(5), pytest.raises(RequestInvalid, match="hold at most 1100; give what is said"):
            model.align(SECOND, text, language=language)


def test_words_without_end_are_split_in_time() -> None:
    with memory(), patience():
        assert [len(unit.text) for unit in split_words("가" * 100_000 + " 나", "Korean")] == [100_000, 1]
        assert [len(unit.text) for unit in split_words("a" * 10**6)] == [10**6]


# --- what was found --------------------------------------------------------------------------------------------


def test_letters_that_the_tokeniser_changes_do_not_take_cubic_time() -> None:
    """3,200 characters took 49 s."""
    text = "İ日本 " * 2_000
    with patience(10):
        units = split_words(text, "Japanese")
    _in_order([unit.span for unit in units], text)
    assert [text[slice(*unit.span)] for unit in units[-2:]] == ["İ", "日本"]


def test_opening_quotes_without_end_do_not_take_quadratic_time() -> None:
    text = f"one two three{'“' * 300_000}. four five six"
    with patience(10):
        spans = assign_text(text, ["one two three", "four five six"], None)
    assert text[slice(*spans[1])] == "four five six"


def test_a_context_that_utf8_cannot_hold_is_refused(model: Recognizer) -> None:
    with pytest.raises(Qwen3AsrError):
        model.transcribe(SECOND, context="\ud800")


def test_the_alphabet_is_what_it_was(model: Recognizer) -> None:
    """Decoding is of the model's own bytes, however odd the ids."""
    for index in range(model.bundle.spec.vocab):
        assert isinstance(model._tokenizer.decode([index]), str)
    assert string.ascii_letters in model._tokenizer.decode(model._tokenizer.encode(string.ascii_letters))
