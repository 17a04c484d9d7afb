"""From the decoder's text to language and transcript.

The model writes ``language English<asr_text>Hello.``, and ``language None<asr_text>`` where it hears no speech.
"""

from __future__ import annotations

import re

from qwen3asr.errors import RequestInvalid

TAG = "<asr_text>"
_HEADER = re.compile(rf"\Alanguage +[^\s<][^\n<]*{TAG}", re.IGNORECASE)
_NO_LANGUAGE = "language none"
_LANGUAGE = "language "
_LONGEST_UNIT = 20  # characters


def parse_output(raw: str, forced: str | None = None, *, repair: bool = True) -> tuple[str | None, str]:
    """Split what the model wrote into language and transcript.

    As the original ``qwen_asr.parse_asr_output`` but for three things: no language is ``None``, not ``""``; if the
    language was forced, a header that the model writes all the same is removed, where the original returns it as part
    of the transcript; and ``<asr_text>`` behind the header becomes a space: nobody can say it.

    Args:
        raw: the decoded text, special tokens and all but the end token.
        forced: the language that the prompt forced, if any.
        repair: collapse loops as the original does, see :func:`fix_repetitions`. Not where loops were cut while
            decoding: what :class:`qwen3asr.guards.LoopGuard` lets pass was said.

    Returns:
        Language and transcript. The language is ``forced``, or the name that the model wrote (first letter upper
        case, rest lower case, not checked), or ``None`` if it wrote none.
    """
    text = fix_repetitions(raw.strip()) if repair else raw.strip()
    if forced:
        return forced, _untagged(_HEADER.sub("", text))
    header, tag, rest = text.partition(TAG)
    if not tag:
        return None, text.strip()
    return _language(header), _untagged(rest)


def _untagged(text: str) -> str:
    return " ".join(filter(None, map(str.strip, text.split(TAG))))


def _language(header: str) -> str | None:
    header = header.strip()
    if not header or _NO_LANGUAGE in header.lower():
        return None
    line = header.splitlines()[0]
    if not line.lower().startswith(_LANGUAGE):
        return None
    return line[len(_LANGUAGE) :].strip().capitalize() or None


def fix_repetitions(text: str, threshold: int = 20) -> str:
    """Collapse what a decoder caught in a loop writes over and over.

    First a character more than ``threshold`` times in a row becomes one. Then, from left to right, the shortest
    unit of 1 to 20 characters that stands ``threshold`` times in a row or more becomes one, unless fewer than
    ``2 * threshold`` characters are left there: so twenty ``a`` alone stay, and collapse within longer text.
    Genuine long runs are lost too, as with the reference (``_detect_and_fix_repetitions`` of transformers).

    Args:
        text: any text.
        threshold: repetitions that make a loop, at least 1.

    Returns:
        The text without the loops.

    Raises:
        RequestInvalid: ``threshold`` is below 1.
    """
    if threshold < 1:
        raise RequestInvalid(f"threshold must be at least 1, not {threshold}; the model's own is 20")
    text = re.sub(rf"(?s)(.)\1{{{threshold},}}", r"\1", text)
    # A lazy group tries the shortest unit first, and sub goes on after the last copy: the reference's recursion.
    loop = rf"(?s)(?=.{{{2 * threshold}}})(.{{1,{_LONGEST_UNIT}}}?)\1{{{threshold - 1},}}"
    return re.sub(loop, r"\1", text)
