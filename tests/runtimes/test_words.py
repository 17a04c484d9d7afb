"""Alignment units equal the reference's, lie where they are written, and their times run forward."""

from __future__ import annotations

import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_asr import processing_qwen3_asr as reference

from qwen3asr.errors import ExtraMissing
from qwen3asr.words import Unit, split_words

steady = settings(deadline=None, derandomize=True, database=None, max_examples=300)

MIXED = "aZé9'’.,-·½²中㐀豈\U00020000\U0002ebef\U0002f800かカー한글กำहिe\u0301 \t\n\u3000\u00a0\u200b"
JAPANESE = "今日はいい天気カタｶﾞﾎﾟー。、「」㌔㈱½①İＡＢ１２ab12か\u3099'’ 　\n𠮷"
KOREAN = "안녕하세요저는한국사람ㅋㅎ漢字ab12.,'’ \n\u1112\u1161"


def reference_words(text: str, language: str | None = None) -> list[str]:
    words = reference.Qwen3ASRProcessor.split_words_for_alignment(None, text, language)
    assert isinstance(words, list)
    return words


def texts(units: list[Unit]) -> list[str]:
    return [unit.text for unit in units]


def written(text: str, language: str | None = None) -> list[str]:
    return [text[slice(*unit.span)] for unit in split_words(text, language)]


def assert_spans_in_order(units: list[Unit], text: str) -> None:
    edges = [edge for unit in units for edge in unit.span]
    assert edges == sorted(edges)
    assert all(0 <= edge <= len(text) for edge in edges)


# --- splitting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "units", "surfaces"),
    [
        ("3.14", ["314"], ["3.14"]),
        ("(U.S.A.)", ["USA"], ["U.S.A"]),
        ("«don’t»", ["dont"], ["don’t"]),
        ("don't", ["don't"], ["don't"]),
        ("well-known, - fact!", ["wellknown", "fact"], ["well-known", "fact"]),
        ("我爱AI，你呢？", ["我", "爱", "AI", "你", "呢"], ["我", "爱", "AI", "你", "呢"]),
        ("a，b", ["ab"], ["a，b"]),
        ("かな漢かな", ["かな", "漢", "かな"], ["かな", "漢", "かな"]),
        ("x\U0002f800y", ["x", "\U0002f800", "y"], ["x", "\U0002f800", "y"]),
        ("cafe\u0301 noir", ["cafe", "noir"], ["cafe", "noir"]),
        ("  ¡Hola!\n¿Qué?  ", ["Hola", "Qué"], ["Hola", "Qué"]),
    ],
)
def test_words_are_cleaned_but_their_spans_lead_to_what_is_written(
    text: str, units: list[str], surfaces: list[str]
) -> None:
    assert texts(split_words(text)) == units == reference_words(text)
    assert written(text) == surfaces


def test_spans_count_in_the_whole_text_with_its_leading_blanks() -> None:
    assert split_words("  “Hi,” 你") == [Unit("Hi", (3, 5)), Unit("你", (8, 9))]


@pytest.mark.parametrize("language", [None, "English", "Japanese", "Korean"])
@pytest.mark.parametrize("text", ["", "  \n", "…—!?", "。、"])
def test_text_without_anything_to_say_has_no_units(text: str, language: str | None) -> None:
    assert split_words(text, language) == []


@steady
@given(st.text(st.one_of(st.sampled_from(MIXED), st.characters()), max_size=40))
def test_any_text_splits_as_in_transformers_and_spans_fit(text: str) -> None:
    units = split_words(text, "English")
    assert texts(units) == reference_words(text, "English")
    assert_spans_in_order(units, text)
    for unit in units:
        surface = text[slice(*unit.span)]
        assert "".join(filter(reference._is_kept_char, surface)) == unit.text
        assert surface[0] == unit.text[0]
        assert surface[-1] == unit.text[-1]


def test_the_language_may_be_named_in_any_case() -> None:
    text = "今日はいい天気ですね"
    assert split_words(text, " jApAnEsE ") == split_words(text, "Japanese") != split_words(text)


# --- Japanese and Korean ---------------------------------------------------------------------------------------


def test_japanese_words_are_nagisas_with_their_places() -> None:
    text = " 今日は、いい天気ですね。"
    assert texts(split_words(text, "Japanese")) == ["今日", "は", "いい", "天気", "です", "ね"]
    assert written(text, "Japanese") == ["今日", "は", "いい", "天気", "です", "ね"]


def test_characters_that_nagisa_normalises_keep_their_places() -> None:
    text = "ＡＢＣは、ｶﾞｽか\u3099３㌔"
    units = split_words(text, "Japanese")
    assert "".join(texts(units)) == "ABCはガスが3キロ"
    assert units[0] == Unit("ABC", (0, 3))
    assert "".join(written(text, "Japanese")) == text.replace("、", "")


def test_two_units_of_one_character_share_it_without_overlap() -> None:
    assert split_words("½", "Japanese") == [Unit("1", (0, 1)), Unit("2", (1, 1))]


def test_a_character_that_nagisa_replaces_is_counted_one_to_one() -> None:
    assert split_words("。İstanbul へ", "Japanese")[0] == Unit("Istanbul", (1, 9))


def test_tokens_that_cannot_be_found_take_the_unmatched_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    import nagisa

    monkeypatch.setattr(nagisa, "wakati", lambda text: ["前", "XY", "Z", "後"])
    assert split_words("前、甲乙、後", "Japanese") == [
        Unit("前", (0, 1)),
        Unit("XY", (2, 4)),
        Unit("Z", (4, 4)),
        Unit("後", (5, 6)),
    ]


def test_tokens_out_of_nowhere_have_empty_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    import nagisa

    monkeypatch.setattr(nagisa, "wakati", lambda text: ["X", "前", "Y"])
    assert split_words(" 前", "Japanese") == [Unit("X", (0, 0)), Unit("前", (1, 2)), Unit("Y", (2, 2))]


def test_korean_words_stay_whole_as_without_the_dictionary() -> None:
    text = "안녕하세요, 저는 한국 사람입니다."
    assert texts(split_words(text, "Korean")) == reference_words(text, "korean")
    assert written(text, "Korean") == ["안녕하세요", "저는", "한국", "사람입니다"]


@steady
@given(st.text(st.sampled_from(JAPANESE), max_size=25))
@example("ﾞか")
def test_any_japanese_splits_as_in_transformers_and_spans_fit(text: str) -> None:
    units = split_words(text, "Japanese")
    assert texts(units) == reference_words(text, "Japanese")
    assert_spans_in_order(units, text)


@steady
@given(st.text(st.sampled_from(KOREAN), max_size=30))
def test_any_korean_splits_as_in_transformers_and_spans_fit(text: str) -> None:
    units = split_words(text, "Korean")
    assert texts(units) == reference_words(text, "Korean")
    assert_spans_in_order(units, text)
    for unit in units:
        assert "".join(filter(reference._is_kept_char, text[slice(*unit.span)])) == unit.text


@pytest.mark.parametrize(
    ("language", "module", "package", "extra"),
    [("Japanese", "nagisa", "nagisa", "ja"), ("Korean", "soynlp.tokenizer", "soynlp", "ko")],
)
def test_a_missing_tokeniser_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, language: str, module: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ExtraMissing) as caught:
        split_words("말 言葉", language)
    assert isinstance(caught.value, ImportError)
    assert f"needs the package {package};" in str(caught.value)
    assert f"pip install 'qwen3asr[{extra}]'" in str(caught.value)


def test_other_languages_need_no_tokeniser(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("nagisa", "soynlp", "soynlp.tokenizer"):
        monkeypatch.setitem(sys.modules, package, None)
    assert texts(split_words("plain words", "English")) == ["plain", "words"]
