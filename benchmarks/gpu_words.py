"""The tiny model's exact utterances through the public face, on voices that training never heard."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import soundfile
from gpu_contender import Contender
from gpu_models import TINY, Progress

from qwen3asr.features import SAMPLE_RATE

RECORDINGS = TINY.parent / "recordings"


@dataclass(frozen=True, slots=True)
class Spoken:
    """A clip and what is said in it."""

    audio: Path
    text: str
    language: str | None


def prepare(folder: Path, count: int) -> None:
    """Write utterances as files, for a machine without espeak-ng."""
    sys.path.insert(0, str(TINY))
    from scoring import test_set  # noqa: PLC0415 (beside the tiny models)
    from speech import HELD_OUT, Lexicon  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, utterance in enumerate(test_set(Lexicon(HELD_OUT, 2, seed=11), 21, count, 1, 9)):
        path = folder / f"{number:04}.flac"
        soundfile.write(path, utterance.samples, SAMPLE_RATE, subtype="PCM_16")
        language = None if utterance.language == "None" else utterance.language
        entries.append({"audio": path.name, "text": utterance.text, "language": language})
    (folder / "manifest.json").write_text(json.dumps(entries, indent=1), "utf-8")


def utterances(folder: Path) -> list[Spoken]:
    """What was prepared, or else the recordings that ship with the project."""
    place = folder if (folder / "manifest.json").is_file() else RECORDINGS
    entries = json.loads((place / "manifest.json").read_text("utf-8"))
    return [Spoken(place / entry["audio"], entry["text"], entry["language"]) for entry in entries]


def words(
    report: dict[str, Any], contenders: tuple[Contender, ...], spoken: list[Spoken], work: Path, progress: Progress
) -> None:
    """Share of utterances whose text and language are exactly right, for each contender; fills ``report``."""
    for contender in contenders:
        progress.row(report, contender.name, partial(_score, contender, spoken, work))


def _score(contender: Contender, spoken: list[Spoken], work: Path) -> dict[str, Any]:
    model, notes = contender.load("tiny-asr", work, 8)
    with model:
        results = model.transcribe_batch([one.audio for one in spoken])
    pairs = list(zip(results, spoken, strict=True))
    wrong = [one.audio.name for result, one in pairs if (result.text, result.language) != (one.text, one.language)]
    return {"utterances": len(pairs), "exact": 1 - len(wrong) / len(pairs), "wrong": wrong[:20], **notes}
