"""The manifest of an evaluation: recordings, and the truth about them.

One JSON object a line, or one JSON array of them; other keys than these are ignored::

    {"audio": "call.wav", "text": "Good morning.", "language": "en", "context": "",
     "words": [{"text": "Good", "start": 0.21, "end": 0.48}, {"text": "morning", "start": 0.48, "end": 0.93}]}

``audio`` is a path, relative to the manifest; ``text`` is ``""`` where nothing is said. The rest may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3asr.errors import LanguageUnknown, ManifestInvalid
from qwen3asr.languages import resolve

_LONGEST_WORD = 60.0  # seconds; times in milliseconds are past it
_LONGEST_AUDIO = 1e6  # seconds


@dataclass(frozen=True, slots=True)
class TrueWord:
    """A word and when it is spoken, in seconds from the start of the audio."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording.

    Attributes:
        audio: its file.
        text: what is said in it; empty for no speech.
        language: the recogniser's name of it, or ``None`` if the manifest gives none.
        context: as for :meth:`qwen3asr.Recognizer.transcribe`.
        words: the words of ``text`` with their times; empty if the manifest gives none.
        name: the audio as the manifest writes it.
    """

    audio: Path
    text: str
    language: str | None = None
    context: str = ""
    words: tuple[TrueWord, ...] = ()
    name: str = ""


class _Bad(ValueError):
    """What is wrong with one entry, and the cure."""


def read_clips(manifest: Path) -> tuple[Clip, ...]:
    """Read a manifest and check all of it: audio files exist, languages are known, words' times make sense.

    Raises:
        ManifestInvalid: anything is wrong; the message names every bad line (of an array, every bad entry).
    """
    try:
        content = manifest.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ManifestInvalid(manifest, [f"it cannot be read as UTF-8 text: {reason}"]) from error
    clips: list[Clip] = []
    problems: list[str] = []
    for place, entry in _entries(content):
        try:
            clips.append(_clip(entry, manifest.parent))
        except (_Bad, LanguageUnknown) as problem:
            problems.append(f"{place}: {problem}")
    if not clips and not problems:
        problems = ['it has no entries; write one object a line: {"audio": "a.wav", "text": "what is said"}']
    if problems:
        raise ManifestInvalid(manifest, problems)
    return tuple(clips)


def _entries(content: str) -> Iterator[tuple[str, object]]:
    """Where each entry is, and what it holds; ``_Bad`` for what is not JSON."""
    if not content.lstrip().startswith("["):
        lines = enumerate(content.split("\n"), start=1)  # not splitlines: U+2028 may stand inside a string
        yield from ((f"line {number}", _parsed(line)) for number, line in lines if line.strip())
        return
    array = _parsed(content)
    if isinstance(array, list):
        yield from ((f"entry {number}", entry) for number, entry in enumerate(array, start=1))
    else:
        yield "the array", array


def _parsed(content: str) -> object:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in content else ""
        return _Bad(f"{line}column {error.colno} is not JSON: {error.msg}; write one object a line, or one array")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets without end
        return _Bad(f"it cannot be read as JSON: {error}")


def _clip(entry: object, folder: Path) -> Clip:
    if isinstance(entry, _Bad):
        raise entry
    if not isinstance(entry, dict):
        raise _Bad('it is not an object; write {"audio": "a.wav", "text": "what is said"}')
    name, text = _string(entry, "audio"), _string(entry, "text", cure=', "" where nothing is said')
    language = resolve(_string(entry, "language", default=""))
    context = _string(entry, "context", default="")
    if not _is_file(folder / name):
        raise _Bad(f"there is no audio file {folder / name}; give its path relative to the manifest")
    return Clip(folder / name, text, language, context, _words(entry.get("words")), name)


def _string(entry: Mapping[str, Any], key: str, default: str | None = None, cure: str = "") -> str:
    value = entry.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        found = f"is {json.dumps(value)[:40]}" if key in entry else "is missing"
        raise _Bad(f'"{key}" {found}; give a string{cure}')
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise _Bad(f'"{key}" holds half a character (a lone surrogate); write it as UTF-8')
    return value


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long a name, or a folder that may not be entered
        return False


def _words(value: object) -> tuple[TrueWord, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _Bad('"words" is no list; give [{"text": "one", "start": 0.1, "end": 0.4}, ...], or leave it out')
    words: list[TrueWord] = []
    for number, entry in enumerate(value, start=1):
        try:
            words.append(_word(entry, words[-1].start if words else 0.0))
        except _Bad as problem:
            raise _Bad(f"word {number}: {problem}") from None
    return tuple(words)


def _word(entry: object, earliest: float) -> TrueWord:
    if not isinstance(entry, dict):
        raise _Bad('it is not an object; write {"text": "one", "start": 0.1, "end": 0.4}')
    text, start, end = _string(entry, "text"), _seconds(entry, "start"), _seconds(entry, "end")
    if end < start:
        raise _Bad(f"it ends at {end} s, before its start at {start} s; swap them")
    if start < earliest:
        raise _Bad(f"it starts at {start} s, before the word in front of it ({earliest} s); order the words by time")
    if end - start > _LONGEST_WORD:
        raise _Bad(f"it lasts {end - start:g} s; give the times in seconds, not in milliseconds")
    return TrueWord(text, start, end)


def _seconds(entry: Mapping[str, Any], key: str) -> float:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST_AUDIO:
        raise _Bad(f'"{key}" is {json.dumps(value)[:40]}; give seconds from the start of the audio')
    return float(value)
