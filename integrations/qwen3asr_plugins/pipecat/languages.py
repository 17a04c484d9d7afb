"""Pipecat's names of languages, and the model's."""

from __future__ import annotations

from pipecat.transcriptions.language import Language

from qwen3asr import LANGUAGES

_NAMES = {code: name for name, code in LANGUAGES.items()} | {"tl": "Filipino", "zh-HK": "Cantonese"}


def model_language(language: Language) -> str | None:
    """The model's name of a language (``"German"`` of ``de-AT``); ``None`` if it knows none."""
    return _NAMES.get(language.value) or _NAMES.get(language.value.split("-")[0])


def pipecat_language(name: str | None) -> Language | None:
    """Pipecat's name of one of the model's languages; all thirty have one."""
    return None if name is None else Language(LANGUAGES[name])
