"""The languages that the models know, and the ways of naming one.

The prompt takes full English names; users also write ISO codes, locales and any case. Names and codes are
those of the model card and of transformers; the 22 Chinese dialects have no names of their own.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from qwen3asr.errors import LanguageUnknown

LANGUAGES: dict[str, str] = {
    "Chinese": "zh",
    "English": "en",
    "Cantonese": "yue",
    "Arabic": "ar",
    "German": "de",
    "French": "fr",
    "Spanish": "es",
    "Portuguese": "pt",
    "Indonesian": "id",
    "Italian": "it",
    "Korean": "ko",
    "Russian": "ru",
    "Thai": "th",
    "Vietnamese": "vi",
    "Japanese": "ja",
    "Turkish": "tr",
    "Hindi": "hi",
    "Malay": "ms",
    "Dutch": "nl",
    "Swedish": "sv",
    "Danish": "da",
    "Finnish": "fi",
    "Polish": "pl",
    "Czech": "cs",
    "Filipino": "fil",
    "Persian": "fa",
    "Greek": "el",
    "Romanian": "ro",
    "Hungarian": "hu",
    "Macedonian": "mk",
}
"""Name as the prompt spells it, to ISO 639 code. The order is the model card's."""

ALIGNER_LANGUAGES: tuple[str, ...] = (
    "Chinese",
    "English",
    "Cantonese",
    "French",
    "German",
    "Italian",
    "Japanese",
    "Korean",
    "Portuguese",
    "Russian",
    "Spanish",
)
"""Names of the languages that the forced aligner was trained on."""

_BY_NAME = {name.casefold(): name for name in LANGUAGES}
_BY_CODE = {code: name for name, code in LANGUAGES.items()} | {"tl": "Filipino"}  # Tagalog, its former code
_CANTONESE_SUBTAGS = {"yue", "hk"}
_LOCALE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8})*")


def resolve(language: str | None) -> str | None:
    """The recogniser's name of a language.

    Args:
        language: a name in any case (``"cHINese"``), an ISO code (``"zh"``) or a locale (``"en-US"``, ``"zh_HK"``,
            which is Cantonese). ``None`` or blank asks the model to detect the language.

    Returns:
        A key of :data:`LANGUAGES`, or ``None`` to detect.

    Raises:
        LanguageUnknown: it names none of the 30 languages.
    """
    return _resolve(language, LANGUAGES, "the recogniser")


def resolve_for_aligner(language: str | None) -> str | None:
    """The forced aligner's name of a language; as :func:`resolve`, of fewer languages.

    Args:
        language: as for :func:`resolve`; ``None`` or blank is no particular language.

    Returns:
        One of :data:`ALIGNER_LANGUAGES`, or ``None``.

    Raises:
        LanguageUnknown: it names none of the 11 languages, though perhaps one of the recogniser's.
    """
    return _resolve(language, ALIGNER_LANGUAGES, "the forced aligner")


def _resolve(language: str | None, known: Collection[str], what: str) -> str | None:
    if language is None or not language.strip():
        return None
    name = _find(language.strip().casefold())
    if name not in known:
        raise LanguageUnknown(language, known, what)
    return name


def _find(language: str) -> str | None:
    if language in _BY_NAME:
        return _BY_NAME[language]
    tag = language.replace("_", "-")
    if not _LOCALE.fullmatch(tag):
        return None
    code, *subtags = tag.split("-")
    if code == "zh" and not _CANTONESE_SUBTAGS.isdisjoint(subtags):
        return "Cantonese"
    return _BY_CODE.get(code)
