"""Make examples/recordings: spoken words of held-out voices as FLAC, and manifest.json with what is said and when.

python examples/tiny/record.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from qwen3asr.features import SAMPLE_RATE
from speech import HELD_OUT, Lexicon, SpokenWord, Utterance, compose

HERE = Path(__file__).resolve().parent.parent / "recordings"
WANTED = {  # file name -> language, number of words, seed
    "english": ("English", 5, 1),
    "german": ("German", 6, 1),
    "spanish": ("Spanish", 4, 1),
    "chinese": ("Chinese", 6, 1),
    "english-long": ("English", 18, 1),
    "german-short": ("German", 1, 1),
}


def record(lexicon: Lexicon, language: str, words: int, seed: int) -> Utterance:
    """The first utterance in ``language`` that the seed leads to; without context."""
    rng = np.random.default_rng((41, seed, words))
    while (utterance := compose(lexicon, rng, words)).language != language:
        pass
    return utterance


def main() -> None:
    """Write the recordings and their manifest."""
    HERE.mkdir(exist_ok=True)
    lexicon = Lexicon(HELD_OUT, 2, seed=12)
    entries = []
    for name, (language, words, seed) in WANTED.items():
        utterance = record(lexicon, language, words, seed)
        soundfile.write(HERE / f"{name}.flac", utterance.samples, SAMPLE_RATE)
        entries.append(
            {"audio": f"{name}.flac", "language": language, "text": utterance.text, "words": _times(utterance.words)}
        )
    noise = compose(lexicon, np.random.default_rng(43), 0)
    soundfile.write(HERE / "silence.flac", noise.samples, SAMPLE_RATE)
    entries.append({"audio": "silence.flac", "language": None, "text": "", "words": []})
    (HERE / "manifest.json").write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n", "utf-8")


def _times(words: list[SpokenWord]) -> list[dict[str, str | float]]:
    return [{"text": word.text, "start": round(word.start, 3), "end": round(word.end, 3)} for word in words]


if __name__ == "__main__":
    main()
