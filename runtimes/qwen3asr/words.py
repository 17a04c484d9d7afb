"""Words as the forced aligner is fed them, and their place in the transcript.

Splitting gives what ``transformers.models.qwen3_asr.processing_qwen3_asr.split_words_for_alignment`` gives: the aligner
was trained on such words. New here are the spans, which lead from a cleaned word back to the text as written.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.util import find_spec
from itertools import pairwise
from typing import TypeAlias

from qwen3asr.errors import ExtraMissing

# Han and its extensions A to E, compatibility ideographs and their supplement.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)

_LONGEST_WORD = 100  # characters: soynlp makes every prefix of a word, and leaves it whole
_STRETCH = 200  # characters that are compared at a time: difflib's time grows with the cube of them

_Place: TypeAlias = tuple[int, int]
_Surface: TypeAlias = list[tuple[str, _Place]]  # kept characters, each with where it is written


@dataclass(frozen=True, slots=True)
class Unit:
    """What gets one start and one end time.

    Attributes:
        text: the word as the aligner is fed it: letters, numbers and ``'`` only.
        span: ``(first, last + 1)`` character offsets in the transcript, from the first to the last character kept:
            punctuation inside the word is in the span, punctuation around it is not. Empty where an earlier unit
            has taken the same characters (nagisa makes two units of ``½``).
    """

    text: str
    span: tuple[int, int]


# --- splitting -------------------------------------------------------------------------------------------------


def split_words(text: str, language: str | None = None) -> list[Unit]:
    """Cut a transcript into alignment units.

    Whitespace separates words and each ideograph stands alone; other characters are deleted, not split on
    (``3.14`` becomes ``314``), combining marks too. Japanese is cut by nagisa, which also normalises to NFKC.
    Korean is cut by soynlp without its dictionary, as transformers does, which leaves words whole; the original
    package loads the dictionary and cuts prefixes off.

    Args:
        text: the transcript.
        language: full name in any case (:func:`qwen3asr.languages.resolve` gives it); only Japanese and Korean
            differ from the rest.

    Returns:
        The units in order, with spans that neither overlap nor run backwards. Empty if nothing can be spoken.

    Raises:
        ExtraMissing: Japanese without nagisa, or Korean without soynlp.
    """
    match (language or "").strip().lower():
        case "japanese":
            return _locate(text, _japanese(text.strip()))
        case "korean":
            return _locate(text, _korean(text.strip()))
        case _:
            return list(_spaced(text))


def check_splitter(language: str | None) -> None:
    """Raise :class:`ExtraMissing` if text of that language could not be split here; cheap, nothing is loaded."""
    name = (language or "").lower()
    for wanted, module, extra in (("japanese", "nagisa", "ja"), ("korean", "soynlp", "ko")):
        if name == wanted and not _installed(module):
            raise ExtraMissing(f"aligning {wanted.capitalize()}", module, extra)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # sys.modules holds None for it
        return False


def _spaced(text: str) -> Iterator[Unit]:
    kept: list[int] = []
    for position, char in enumerate(text):
        alone = _is_ideograph(char)
        if kept and (alone or char.isspace()):
            yield _unit(text, kept)
            kept = []
        if alone:
            yield Unit(char, (position, position + 1))
        elif _is_kept(char):
            kept.append(position)
    if kept:
        yield _unit(text, kept)


def _unit(text: str, kept: list[int]) -> Unit:
    return Unit("".join(text[position] for position in kept), (kept[0], kept[-1] + 1))


def _japanese(text: str) -> list[str]:
    try:
        import nagisa  # noqa: PLC0415 - optional, and loads 40 MB
    except ImportError as error:
        raise ExtraMissing("aligning Japanese", "nagisa", "ja") from error
    return list(nagisa.wakati(text))


def _korean(text: str) -> list[str]:
    try:
        from soynlp.tokenizer import LTokenizer  # noqa: PLC0415 - optional, and imports scikit-learn
    except ImportError as error:
        raise ExtraMissing("aligning Korean", "soynlp", "ko") from error
    tokenizer = LTokenizer()
    tokens: list[str] = []
    for word in text.split():
        tokens += tokenizer.tokenize(word) if len(word) <= _LONGEST_WORD else [word]
    return tokens


def _is_ideograph(char: str) -> bool:
    return any(first <= ord(char) <= last for first, last in _IDEOGRAPHS)


def _is_kept(char: str) -> bool:
    return char == "'" or unicodedata.category(char)[0] in "LN" or _is_ideograph(char)


# --- finding tokens in the text as written ---------------------------------------------------------------------


def _locate(text: str, tokens: list[str]) -> list[Unit]:
    """Clean the tokens and find where each is written; a tokeniser tells no offsets."""
    words = [word for token in tokens if (word := "".join(filter(_is_kept, token)))]
    places = _places(text, "".join(words))
    units: list[Unit] = []
    at, end = 0, 0
    for word in words:
        start = max(places[at][0], end)
        at += len(word)
        end = max(places[at - 1][1], start)
        units.append(Unit(word, (start, end)))
    return units


def _places(text: str, spoken: str) -> list[_Place]:
    """Where each character of ``spoken``, the tokens in a row, is written in ``text``."""
    surface = _as_written(text)
    if _chars(surface) != spoken:
        surface = _normalised(text)
    if _chars(surface) != spoken:
        return _nearest_places(surface, spoken)
    return [place for _, place in surface]


def _nearest_places(surface: _Surface, spoken: str) -> list[_Place]:
    """As :func:`_places`, for tokens that the tokeniser has changed beyond NFKC (nagisa writes ``İ`` as ``I``)."""
    places: list[_Place] = []
    written = _chars(surface)
    at = 0
    while len(places) < len(spoken):
        here, there = written[at : at + _STRETCH], spoken[len(places) : len(places) + _STRETCH]
        codes = SequenceMatcher(None, here, there, autojunk=False).get_opcodes()
        whole = at + len(here) == len(written) and len(places) + len(there) == len(spoken)
        if not whole and len(codes) > 1:  # how its last part matches is only seen with what follows
            codes = codes[:-1]
        for _, first, last, begin, stop in codes:
            places += _matched(surface, at + first, at + last, stop - begin)
        at += codes[-1][2]
    return places


def _matched(surface: _Surface, first: int, last: int, count: int) -> list[_Place]:
    """Places of ``count`` characters that stand for those from ``first`` to ``last``."""
    stretch = [place for _, place in surface[first:last]]
    if len(stretch) == count:
        return stretch
    end = surface[last - 1][1][1] if last else 0
    return [(stretch[0][0] if stretch else end, end)] * count


def _chars(surface: _Surface) -> str:
    return "".join(char for char, _ in surface)


def _as_written(text: str) -> _Surface:
    return [(char, (position, position + 1)) for position, char in enumerate(text) if _is_kept(char)]


def _normalised(text: str) -> _Surface:
    """As :func:`_as_written`, in NFKC: two characters may make one (``か`` and U+3099), one several (``㌔``)."""
    starts = [i for i, char in enumerate(text) if not unicodedata.combining(unicodedata.normalize("NFKC", char)[0])]
    return [
        (char, (start, end))
        for start, end in pairwise([*starts, len(text)])
        for char in unicodedata.normalize("NFKC", text[start:end])
        if _is_kept(char)
    ]
