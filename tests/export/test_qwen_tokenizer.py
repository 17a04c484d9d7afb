"""The released tokenizer itself: ids, round trips, and that the stand-in's prompts are its prompts."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.qwen_tokenizer import save_tokenizer, vocabulary

from qwen3asr.prompt import PromptBuilder
from qwen3asr.tokenizer import Tokenizer
from qwen3asr_export.standin_tokenizer import SPECIAL, save_processor

KNOWN = {"system": 8948, "user": 872, "assistant": 77091, "\n": 198, "language": 11528, " English": 6364,
         "!": 0, "Hello": 9707, ",": 11, " world": 1879}  # fmt: skip
BEFORE = [151644, 8948, 198, 151645, 198, 151644, 872, 198, 151669]
AFTER = [151670, 151645, 198, 151644, 77091, 198]
FORCED = [11528, 6364, 151704]

# characters that Python's and the tokenizer's tables of Unicode both know
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn"]))
SPEECH = st.sampled_from("Hello, world! | 你好，世界。 | Straße, naïve | ¿Mañana? | 안녕하세요 | こんにちは | नमस्ते | "
                         "สวัสดี | Здравствуйте | مرحبا | don't  stop\n\n3.14 | 👩‍👩‍👧 🇨🇳".split("|"))  # fmt: skip


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(save_tokenizer(tmp_path_factory.mktemp("qwen")))


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("standin")
    save_processor(folder, "asr")
    return Tokenizer(folder / "tokenizer.json")


def test_vocabulary_is_the_released_one(qwen: Tokenizer) -> None:
    vocab, _ = vocabulary()
    assert sorted(vocab.values()) == list(range(SPECIAL["<|endoftext|>"]))
    assert {text: qwen.encode(text) for text in KNOWN} == {text: [index] for text, index in KNOWN.items()}
    assert {text: qwen.encode(text) for text in SPECIAL} == {text: [index] for text, index in SPECIAL.items()}


def test_only_special_tokens_vanish(qwen: Tokenizer) -> None:
    everything = [index for text in ("language English", *SPECIAL, "Hello") for index in qwen.encode(text)]
    assert qwen.decode(everything) == "language English<asr_text><timestamp>Hello"


@given(text=TEXT | st.lists(SPEECH | TEXT).map("".join))
def test_text_survives(qwen: Tokenizer, text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    ids = qwen.encode(text)
    assert qwen.decode(ids) == composed
    spans = qwen.join(ids)[1]
    assert [min((start for start, _ in spans), default=0), max((end for _, end in spans), default=0)] == [
        0,
        len(composed),
    ]


@given(ids=st.lists(st.integers(0, 152_063)))
def test_any_ids_decode(qwen: Tokenizer, standin: Tokenizer, ids: list[int]) -> None:
    for tokenizer in (qwen, standin):
        text, spans = tokenizer.join(ids)
        assert all(0 <= start <= end <= len(text) for start, end in spans)
        assert len(spans) == len(ids)


@pytest.mark.parametrize("rows", [1, 13, 390])
def test_prompts_are_the_reference_s(qwen: Tokenizer, standin: Tokenizer, rows: int) -> None:
    audio = np.zeros((rows, 1), np.float32)
    for tokenizer in (qwen, standin):
        prompts = PromptBuilder(tokenizer)
        asked = BEFORE + [151676] * rows + AFTER
        assert prompts.transcription(audio).ids.tolist() == asked
        assert prompts.transcription(audio, language="English").ids.tolist() == asked + FORCED
        frame = prompts.frame(language="English")
        assert [*frame.head, *[151676] * rows, *frame.tail] == asked + FORCED


def test_context_sits_in_the_system_turn(qwen: Tokenizer) -> None:
    ids = PromptBuilder(qwen).transcription(np.zeros((1, 1), np.float32), "Hello, world!").ids.tolist()
    assert ids == [*BEFORE[:3], 9707, 11, 1879, 0, *BEFORE[3:], 151676, *AFTER]


def test_alignment_marks_every_unit(qwen: Tokenizer, standin: Tokenizer) -> None:
    for tokenizer in (qwen, standin):
        prompt, marks = PromptBuilder(tokenizer).alignment(np.zeros((2, 1), np.float32), ["user", "Straße"])
        pair = [151705, 151705]
        assert prompt.ids.tolist() == [151669, 151676, 151676, 151670, 872, *pair, *tokenizer.encode("Straße"), *pair]
        assert marks.tolist() == [5, 6, len(prompt.ids) - 2, len(prompt.ids) - 1]
