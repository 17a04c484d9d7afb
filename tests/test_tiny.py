"""The tiny checkpoints: what their training feeds is what the runtime feeds, and their scores meet the bar."""

from __future__ import annotations

import json

import numpy as np
from tests.checkpoints import TINY
from tests.conftest import ROOT

from qwen3asr.features import log_mel
from qwen3asr.prompt import PromptBuilder
from qwen3asr.tokenizer import Tokenizer
from qwen3asr.words import split_words
from speech import LABELS, SpokenWord, Utterance
from tokens import build
from train import _tokens_at, batches, collate, example, learning_rate, token_times

TOKENIZER = build()


def _utterance(language: str = "German", context: str = "", words: tuple[str, ...] = ("drei", "straße")) -> Utterance:
    samples = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)
    times = [SpokenWord(word, 0.3 + n, 0.9 + n) for n, word in enumerate(words)]
    return Utterance(samples, language, times, context)


def test_scores_on_held_out_voices_meet_the_bar() -> None:
    scores = json.loads((TINY / "scores.json").read_text("utf-8"))
    assert scores["utterances"]["count"] >= 500
    assert scores["utterances"]["exact"] >= 0.95
    assert scores["utterances"]["boundary_mean_ms"] <= 40
    assert scores["utterances"]["boundary_within_80_ms"] >= 0.95


def test_the_readme_quotes_the_scores_as_they_are() -> None:
    scores = json.loads((TINY / "scores.json").read_text("utf-8"))["utterances"]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"{scores['exact']:.1%}".replace("%", " %") in readme
    assert f"{scores['boundary_mean_ms']:g} ms" in readme
    assert f"{scores['boundary_within_80_ms']:.1%}".replace("%", " %") in readme


def test_both_checkpoints_together_stay_under_five_megabytes() -> None:
    assert sum((TINY / kind / "model.safetensors").stat().st_size for kind in ("asr", "aligner")) < 5_000_000


def test_the_shipped_tokenizer_is_the_one_that_training_builds() -> None:
    assert json.loads((TINY / "asr" / "tokenizer.json").read_text("utf-8")) == json.loads(TOKENIZER.to_str())


def test_training_rows_are_what_the_runtime_feeds() -> None:
    prompts = PromptBuilder(Tokenizer(TINY / "asr" / "tokenizer.json"))
    for utterance in (_utterance(context="one, 二"), _utterance("Chinese", words=("三", "好"))):
        row = example(utterance, TOKENIZER)
        audio = np.zeros((len(row.frame_labels), 1), np.float32)
        assert row.prompt == prompts.transcription(audio, utterance.context).ids.tolist()
        units = [unit.text for unit in split_words(utterance.text, utterance.language)]
        assert row.align_ids == prompts.alignment(audio, units)[0].ids.tolist()
        written = TOKENIZER.decode(row.target, skip_special_tokens=False)
        assert written == f"language {utterance.language}<asr_text>{utterance.text}<|im_end|>"
        np.testing.assert_array_equal(row.mel, log_mel(utterance.samples).astype(np.float16))


def test_frame_labels_name_the_word_under_each_token() -> None:
    row = example(_utterance(), TOKENIZER)
    for token, seconds in enumerate(token_times(len(row.frame_labels)) + 0.02):
        word = 1 if 0.3 <= seconds < 0.9 else 2 if 1.3 <= seconds < 1.9 else 0
        assert row.ordinals[token] == word
        assert LABELS[row.frame_labels[token]] == ("", "drei", "straße")[word]
    begins = token_times(len(row.frame_labels))[_tokens_at(row)]
    assert np.all((np.array(row.align_times) - begins >= 0) & (np.array(row.align_times) - begins < 0.0801))


def test_a_batch_holds_its_rows_unchanged_but_for_padding() -> None:
    rows = [example(_utterance(words=words), TOKENIZER) for words in (("drei",), ("drei", "straße"))]
    batch = collate(rows, TOKENIZER.token_to_id("<|endoftext|>"), False, np.random.default_rng(0))
    for index, row in enumerate(rows):
        kept = batch["labels"][index] != -100
        assert batch["labels"][index][kept].tolist() == row.target
        numbers = batch["numbers"][index][kept].tolist()  # header, each word, and the end as one more
        assert numbers == [0, 0, 0, *range(1, len(row.align_times) // 2 + 2)]
    assert batches([rows] * 3, 9, 10, aligner=False)


def test_each_round_of_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, [100, 200]) for step in range(300)]
    assert max(rates) == rates[9] == 1.0
    assert max(rates[100:]) == 0.75
    assert rates[99] < 0.01 > rates[299]
