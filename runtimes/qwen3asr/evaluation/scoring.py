"""How far a text is from the truth: normalisation, word and character edits (by jiwer), loops."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from qwen3asr.errors import ExtraMissing

if TYPE_CHECKING:
    from jiwer import CharacterOutput, WordOutput

Unit: TypeAlias = Literal["words", "characters"]
"""What is counted in a language: words where spaces separate them, characters (code points) elsewhere."""

UNSPACED = ("Chinese", "Cantonese", "Japanese", "Thai")
"""Languages written without spaces: scored by characters."""

NORMALISATION = (
    "NFKC, case folded; punctuation and symbols (Unicode P, S) removed, but apostrophes inside words kept and dashes "
    "and slashes read as spaces; invisible format characters removed, combining marks kept; whitespace collapsed, for "
    "characters removed. Numbers stay as written."
)
"""What :func:`normalise` does, for reports."""

_APOSTROPHES = str.maketrans("‘’ʼ", "'''")
_UNSPACED_SCRIPT = re.compile(
    "[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"
)
_LOOP = re.compile(r"(?s)(.{1,20}?)\1{9,}")


def check_available() -> None:
    """Raise :class:`ExtraMissing` if jiwer is not installed."""
    try:
        import jiwer  # noqa: F401, PLC0415 (an optional dependency)
    except ImportError as error:
        raise ExtraMissing("eval", "jiwer", "eval") from error


# --- normalisation ---------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """A text without what the truth may spell either way; twice is the same as once.

    NFKC and case folding; format characters (Cf: zero-width joiners, soft hyphens) removed; apostrophes (``'``,
    ``’``, ``‘``, ``ʼ``) written ``'`` where both neighbours are letters, marks or numbers, and removed elsewhere;
    dashes (Pd) and slashes made spaces, so that ``and/or`` stays two words; all other punctuation and symbols
    (P, S) removed; combining marks (M) kept; whitespace collapsed. Nothing is done to numbers (``5`` and ``five``
    differ), to spelling, or to simplified and traditional characters.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    plain = "".join(char for char in folded if unicodedata.category(char) != "Cf").translate(_APOSTROPHES)
    neighbours = zip(f" {plain}", plain, f"{plain[1:]} ", strict=False)
    kept = "".join(_kept(before, char, after) for before, char, after in neighbours)
    return unicodedata.normalize("NFKC", " ".join(kept.split()))  # again: a mark may have a new neighbour


def _kept(before: str, char: str, after: str) -> str:
    category = unicodedata.category(char)
    if char == "'":
        return char if _in_word(before) and _in_word(after) else ""
    if category == "Pd" or char == "/":
        return " "
    return "" if category[0] in "PS" else char


def _in_word(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"


def unit_of(language: str | None, text: str) -> Unit:
    """What a clip is scored by.

    Args:
        language: the recogniser's name of it; ``None`` goes by the script of the text.
        text: the reference.

    Returns:
        ``"characters"`` for the languages of :data:`UNSPACED`, and without a language for a text of which half
        or more is Chinese, Japanese or Thai script; otherwise ``"words"``.
    """
    if language is not None:
        return "characters" if language in UNSPACED else "words"
    written = sum(unicodedata.category(char)[0] in "LMN" for char in text)
    return "characters" if written and 2 * len(_UNSPACED_SCRIPT.findall(text)) >= written else "words"


# --- edits -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Edits:
    """Counts of a minimal edit from reference to hypothesis; add them up, then take the rate.

    Attributes:
        substitutions: units replaced by another.
        deletions: units of the reference that the hypothesis lacks.
        insertions: units that only the hypothesis has.
        units: words or characters of the reference.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    units: int = 0

    def __add__(self, other: Edits) -> Edits:
        """The sums."""
        return Edits(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.units + other.units,
        )

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Errors a reference unit, 0 or more and perhaps past 1; ``None`` without reference units."""
        return self.errors / self.units if self.units else None


@dataclass(frozen=True, slots=True)
class Score:
    """One text against the truth, both normalised.

    Attributes:
        unit: what this clip is scored by.
        words: edits in words.
        characters: edits in characters, whitespace left out.
    """

    unit: Unit
    words: Edits
    characters: Edits

    @property
    def edits(self) -> Edits:
        """In the clip's own unit."""
        return self.words if self.unit == "words" else self.characters

    @property
    def exact(self) -> bool:
        """No edit in the clip's own unit."""
        return self.edits.errors == 0


def score(reference: str, hypothesis: str, language: str | None = None) -> Score:
    """Compare two texts, as they were written.

    Args:
        reference: the truth; where it is empty, every unit of the hypothesis is an insertion.
        hypothesis: what the model wrote.
        language: the recogniser's name of the reference's language, if known; see :func:`unit_of`.

    Raises:
        ExtraMissing: jiwer is not installed.
    """
    check_available()
    import jiwer  # noqa: PLC0415 (an optional dependency)

    truth, guess = normalise(reference), normalise(hypothesis)
    words = jiwer.process_words(truth, guess)
    characters = jiwer.process_characters(truth.replace(" ", ""), guess.replace(" ", ""))
    return Score(unit_of(language, truth or guess), _edits(words), _edits(characters))


def _edits(found: WordOutput | CharacterOutput) -> Edits:
    units = found.hits + found.substitutions + found.deletions
    return Edits(found.substitutions, found.deletions, found.insertions, units)


def has_loop(text: str) -> bool:
    """Does a unit of 1 to 20 characters stand ten times in a row or more? Case and kind of whitespace aside."""
    return _LOOP.search(" ".join(text.casefold().split()) + " ") is not None
