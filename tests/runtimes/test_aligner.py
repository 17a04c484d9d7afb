"""From time classes to words, and from token probabilities to confidences, on scripted sessions."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import TINY
from tests.scripted import ScriptedDecoder

import qwen3asr
from qwen3asr.aligner import RELIABLE_SECONDS, Aligner, AlignerLimits
from qwen3asr.bundle import open_bundle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.engine import Engine
from qwen3asr.errors import AudioTooLong, ConfigInvalid
from qwen3asr.features import Mel, WindowSpec
from qwen3asr.generate import Generation
from qwen3asr.guards import Guards
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

    def close(self) -> None:
        """Holds nothing."""


def _decoder(script: Sequence[int], logprobs: Sequence[float] = (), capacity: int = 4096) -> Decoder:
    session = ScriptedDecoder(script, audio_pad=TOKENIZER.id("<|audio_pad|>"), capacity=capacity)
    session.logprobs = list(logprobs)
    return Decoder(session, session.audio_pad, 4)


def _aligner(script: Sequence[int], capacity: int = 4096, classes: int = 100) -> Aligner:
    encoder, limits = Encoder(SilentEncoder(), WindowSpec()), AlignerLimits(classes, 80.0)
    return Aligner(encoder, _decoder(script, capacity=capacity), PromptBuilder(TOKENIZER), limits)


def test_classes_become_seconds_in_steps_of_80_ms() -> None:
    words = _aligner([1, 3, 4, 9]).align(SECOND, "Hello, world!", language="en")
    assert words == (Word("Hello", 0.08, 0.24, (0, 5)), Word("world", 0.32, 0.72, (7, 12)))


def test_times_never_run_past_the_audio_or_backwards() -> None:
    words = _aligner([2, 1, 9, 40, 13, 90]).align(SECOND, "one two three")
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert max(times) == 1.0
    assert all(word.start < word.end for word in words)


def test_words_whose_times_are_not_the_models_say_so() -> None:
    words = _aligner([1, 3, 3, 3, 4, 2, 6, 20]).align(SECOND, "as swift ran on")
    assert [(w.text, w.start, w.end, w.repaired) for w in words] == [
        ("as", 0.08, 0.24, False),
        ("swift", 0.24, pytest.approx(0.32), True),  # had no length
        ("ran", pytest.approx(0.32), pytest.approx(0.4), True),  # ran backwards
        ("on", 0.48, 1.0, False),  # the end of the audio is no repair
    ]


def test_audio_and_text_that_together_do_not_fit_are_refused() -> None:
    with pytest.raises(AudioTooLong, match=r"forced aligner, which takes 0\.\d s; .* or cut the audio at a silence"):
        _aligner([], capacity=20).align(SECOND, "one two three four")
    with pytest.raises(AudioTooLong, match=r"takes 8\.0 s"):
        _aligner([]).align(np.zeros(9 * 16_000, np.float32), "one")


def test_audio_past_what_is_reliable_is_refused_with_the_way_to_align_it() -> None:
    """The head points up to 400 s, but no time past 270 s was right."""
    aligner = _aligner([1, 2], classes=5_000)
    assert aligner.longest == RELIABLE_SECONDS == 240.0
    aligner.check_duration(240.0)
    with pytest.raises(AudioTooLong, match=r"takes 240\.0 s; .*qwen3asr\.load\(\.\.\., aligner=\.\.\.\)") as caught:
        aligner.align(np.zeros(241 * 16_000, np.float32), "one")
    assert isinstance(caught.value, ValueError)
    assert _aligner([]).longest == 8.0


class KnownWords:
    """Stands in for the aligner: the words of the text, at made-up times."""

    def align_samples(self, samples: Any, text: str, language: str | None) -> tuple[Word, ...]:
        starts = [0, *(index + 1 for index, char in enumerate(text) if char == " ")]
        pairs = zip(starts, text.split(), strict=True)
        return tuple(Word(word, n / 10, n / 10 + 0.1, (at, at + len(word))) for n, (at, word) in enumerate(pairs))

    def close(self) -> None:
        """Holds nothing."""


@pytest.mark.parametrize("forced", [None, "German"])
def test_confidence_is_that_of_the_tokens_that_wrote_the_word(asr_bundle: Path, forced: str | None) -> None:
    """The header's tokens, which are nearly certain, once flattered the transcript; and with them every word's
    tokens were looked up a few places off."""
    header = [] if forced else TOKENIZER.encode("language German<asr_text>")
    text = TOKENIZER.encode("drei ✓ sieben")  # the sign is written by three tokens and a space
    logprobs = [-0.001] * len(header) + [-0.1 * (n + 1) for n in range(len(text))]
    script = [*header, *text, TOKENIZER.id("<|im_end|>")]
    bundle, words = open_bundle(asr_bundle), KnownWords()
    engine = Engine(Encoder(SilentEncoder(), WindowSpec()), _decoder(script, logprobs), bundle.spec.eos)
    with Recognizer(bundle, TOKENIZER, engine, words, Guards.off()) as model:  # type: ignore[arg-type]
        result = model.transcribe(SECOND, language=forced, timestamps="word")
    assert (result.text, result.language) == ("drei ✓ sieben", "German")
    got = {word.text: word.confidence for word in result.words}
    assert got["drei"] == pytest.approx(math.exp(-0.1))
    assert got["sieben"] == pytest.approx(math.exp(-0.1 * len(text)))
    assert result.confidence == pytest.approx(math.exp(float(np.mean(logprobs[len(header) :]))))


@pytest.mark.parametrize("forced", [None, "English"])
def test_words_of_a_part_have_the_confidence_of_their_own_place(asr_bundle: Path, forced: str | None) -> None:
    """The first words of a text may be said again in it, and a language's name stands in the header, too."""
    header = [] if forced else TOKENIZER.encode("language English<asr_text>")
    text = TOKENIZER.encode("English two English two three")
    generation = Generation((*header, *text), tuple(-0.1 * n for n in range(len(header) + len(text))), "stop")
    bundle = open_bundle(asr_bundle)
    engine = Engine(Encoder(SilentEncoder(), WindowSpec()), _decoder([0], [0.0]), bundle.spec.eos)
    with Recognizer(bundle, TOKENIZER, engine, None, Guards.off()) as model:
        scored = model._transcriber.scored
    words = KnownWords().align_samples(None, "English two", None)
    last = KnownWords().align_samples(None, "English two three", None)
    first = [word.confidence for word in scored(words, "English two", generation)]
    again = [word.confidence for word in scored(last, "English two three", generation)]
    assert first[0] == pytest.approx(math.exp(-0.1 * len(header)), rel=0.2)
    assert None not in (*first, *again)
    assert max(again) < min(first)  # type: ignore[type-var]
    assert scored(words, "three four", generation) == words


@pytest.mark.parametrize("value", ["eighty", 0, -80, float("nan"), [80]])
def test_a_class_that_is_no_time_is_refused(aligner_bundle: Path, tmp_path: Path, value: object) -> None:
    folder = shutil.copytree(aligner_bundle, tmp_path / "bundle")
    config = json.loads((folder / "processor_config.json").read_text("utf-8")) | {"timestamp_segment_time": value}
    (folder / "processor_config.json").write_text(json.dumps(config), "utf-8")
    manifest = json.loads((folder / "bundle.json").read_text("utf-8"))
    content = (folder / "processor_config.json").read_bytes()
    manifest["files"]["processor_config.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "bundle.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ConfigInvalid, match="timestamp_segment_time"):
        qwen3asr.load_aligner(folder)
