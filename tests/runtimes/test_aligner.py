"""From time classes to words, and from token probabilities to confidences, on scripted sessions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import TINY
from tests.scripted import ScriptedDecoder

from qwen3asr.aligner import Aligner, AlignerLimits
from qwen3asr.bundle import open_bundle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.errors import AudioTooLong
from qwen3asr.features import Mel, WindowSpec
from qwen3asr.prompt import PromptBuilder
from qwen3asr.recognizer import Recognizer
from qwen3asr.sessions.base import Embeddings, Ids
from qwen3asr.tokenizer import Tokenizer
from qwen3asr.types import Word

TOKENIZER = Tokenizer(TINY / "asr" / "tokenizer.json")
SECOND = np.zeros(16_000, np.float32)


class SilentEncoder:
    batch_windows = 1

    def run(self, mel: Mel, frames: Ids) -> Embeddings:
        return np.zeros((len(mel), mel.shape[2] // 100 * 13, 4), np.float32)


def _decoder(script: Sequence[int], logprobs: Sequence[float] = (), capacity: int = 4096) -> Decoder:
    session = ScriptedDecoder(script, audio_pad=TOKENIZER.id("<|audio_pad|>"), capacity=capacity)
    session.logprobs = list(logprobs)
    return Decoder(session, session.audio_pad, 4)


def _aligner(classes: Sequence[int], capacity: int = 4096) -> Aligner:
    encoder = Encoder(SilentEncoder(), WindowSpec())
    return Aligner(encoder, _decoder(classes, capacity=capacity), PromptBuilder(TOKENIZER), AlignerLimits(100, 80.0))


def test_classes_become_seconds_in_steps_of_80_ms() -> None:
    words = _aligner([1, 3, 4, 9]).align(SECOND, "Hello, world!", language="en")
    assert words == (Word("Hello", 0.08, 0.24, (0, 5)), Word("world", 0.32, 0.72, (7, 12)))


def test_times_never_run_past_the_audio_or_backwards() -> None:
    words = _aligner([2, 1, 9, 40, 13, 90]).align(SECOND, "one two three")
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert max(times) == 1.0


def test_audio_and_text_that_together_do_not_fit_are_refused() -> None:
    with pytest.raises(AudioTooLong, match=r"forced aligner, which takes 0\.\d s; cut the audio"):
        _aligner([], capacity=20).align(SECOND, "one two three four")
    with pytest.raises(AudioTooLong, match=r"takes 8\.0 s"):
        _aligner([]).align(np.zeros(9 * 16_000, np.float32), "one")


class KnownWords:
    """Stands in for the aligner: the words of the text, at made-up times."""

    def check_duration(self, seconds: float) -> None:
        pass

    def align_samples(self, samples: Any, text: str, language: str | None) -> tuple[Word, ...]:
        starts = [0, *(index + 1 for index, char in enumerate(text) if char == " ")]
        pairs = zip(starts, text.split(), strict=True)
        return tuple(Word(word, n / 10, n / 10 + 0.1, (at, at + len(word))) for n, (at, word) in enumerate(pairs))


@pytest.mark.parametrize("forced", [None, "German"])
def test_confidence_is_that_of_the_tokens_that_wrote_the_word(asr_bundle: Path, forced: str | None) -> None:
    """The header's tokens, which are nearly certain, once flattered the transcript; and with them every word's
    tokens were looked up a few places off."""
    header = [] if forced else TOKENIZER.encode("language German<asr_text>")
    text = TOKENIZER.encode("drei ✓ sieben")  # the sign is written by three tokens and a space
    logprobs = [-0.001] * len(header) + [-0.1 * (n + 1) for n in range(len(text))]
    script = [*header, *text, TOKENIZER.id("<|im_end|>")]
    encoder = Encoder(SilentEncoder(), WindowSpec())
    words: Any = KnownWords()
    model = Recognizer(open_bundle(asr_bundle), TOKENIZER, encoder, _decoder(script, logprobs), words)
    result = model.transcribe(SECOND, language=forced, timestamps="word")
    assert (result.text, result.language) == ("drei ✓ sieben", "German")
    got = {word.text: word.confidence for word in result.words}
    assert got["drei"] == pytest.approx(math.exp(-0.1))
    assert got["sieben"] == pytest.approx(math.exp(-0.1 * len(text)))
    assert result.confidence == pytest.approx(math.exp(float(np.mean(logprobs[len(header) :]))))
