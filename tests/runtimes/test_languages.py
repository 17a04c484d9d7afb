"""Every way of naming a language leads to the one name that the prompt needs."""

from __future__ import annotations

import pytest
from transformers.models.qwen3_asr import processing_qwen3_asr as reference

from qwen3asr.errors import LanguageUnknown, Qwen3AsrError
from qwen3asr.languages import ALIGNER_LANGUAGES, LANGUAGES, resolve, resolve_for_aligner

# fmt: off
MODEL_CARD = [
    "Chinese", "English", "Cantonese", "Arabic", "German", "French", "Spanish", "Portuguese", "Indonesian",
    "Italian", "Korean", "Russian", "Thai", "Vietnamese", "Japanese", "Turkish", "Hindi", "Malay", "Dutch",
    "Swedish", "Danish", "Finnish", "Polish", "Czech", "Filipino", "Persian", "Greek", "Romanian", "Hungarian",
    "Macedonian",
]
# fmt: on


def test_names_are_the_model_cards_in_its_order() -> None:
    assert list(LANGUAGES) == MODEL_CARD


def test_names_and_codes_are_those_of_transformers() -> None:
    assert {code: name for name, code in LANGUAGES.items()} == reference.LANGUAGE_CODE_TO_NAME
    assert set(ALIGNER_LANGUAGES) == reference.FORCED_ALIGNER_LANGUAGES
    assert len(ALIGNER_LANGUAGES) == 11


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_name_in_any_case_and_a_code_in_any_case_give_the_name(name: str) -> None:
    code = LANGUAGES[name]
    for spelling in (name, name.lower(), name.upper(), name.swapcase(), f" {name}\n", code, code.upper()):
        assert resolve(spelling) == name


@pytest.mark.parametrize(
    ("locale", "name"),
    [
        ("cHINese", "Chinese"),
        ("en-US", "English"),
        ("EN_gb", "English"),
        ("zh_CN", "Chinese"),
        ("zh-Hant-TW", "Chinese"),
        ("pt-BR", "Portuguese"),
        ("es-419", "Spanish"),
        ("zh-yue", "Cantonese"),
        ("zh-HK", "Cantonese"),
        ("zh_Hant_HK", "Cantonese"),
        ("yue-Hant-HK", "Cantonese"),
        ("tl", "Filipino"),
        ("tl-PH", "Filipino"),
        ("fil-PH", "Filipino"),
    ],
)
def test_locales_and_aliases_give_the_name(locale: str, name: str) -> None:
    assert resolve(locale) == name


def test_an_english_locale_of_hong_kong_is_not_cantonese() -> None:
    assert resolve("en-HK") == "English"


@pytest.mark.parametrize("blank", [None, "", "  ", "\t\n"])
def test_nothing_and_blank_ask_for_detection(blank: str | None) -> None:
    assert resolve(blank) is None
    assert resolve_for_aligner(blank) is None


@pytest.mark.parametrize(
    "junk", ["Klingon", "xx", "en-", "-en", "en--US", "English-US", "e", "eng lish", "None", "auto"]
)
def test_anything_else_is_refused_with_the_known_names(junk: str) -> None:
    with pytest.raises(LanguageUnknown) as caught:
        resolve(junk)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, Qwen3AsrError)
    assert repr(junk) in str(caught.value)
    assert ", ".join(MODEL_CARD) in str(caught.value)


def test_a_slip_of_the_pen_gets_a_hint() -> None:
    with pytest.raises(LanguageUnknown, match="did you mean 'Portuguese'"):
        resolve("Portugese")


@pytest.mark.parametrize("name", ALIGNER_LANGUAGES)
def test_the_aligner_takes_its_languages_by_name_and_code(name: str) -> None:
    assert resolve_for_aligner(name.upper()) == resolve_for_aligner(LANGUAGES[name]) == name


@pytest.mark.parametrize("outside", sorted(set(LANGUAGES) - set(ALIGNER_LANGUAGES)))
def test_the_aligner_refuses_a_language_that_only_the_recogniser_knows(outside: str) -> None:
    for spelling in (outside, LANGUAGES[outside]):
        with pytest.raises(LanguageUnknown) as caught:
            resolve_for_aligner(spelling)
        assert str(caught.value).startswith("the forced aligner does not know")
        assert str(caught.value).endswith("it knows " + ", ".join(ALIGNER_LANGUAGES))


def test_the_aligner_does_not_advise_languages_that_it_lacks() -> None:
    with pytest.raises(LanguageUnknown) as caught:
        resolve_for_aligner("Klingon")
    assert "Arabic" not in str(caught.value)
