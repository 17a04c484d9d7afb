"""Prompts token for token as transformers' processor makes them; which characters a token wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3ASRProcessor

from qwen3asr.errors import BundleFileDamaged, ContextInvalid
from qwen3asr.features import WindowSpec, frame_count
from qwen3asr.prompt import PromptBuilder
from qwen3asr.tokenizer import Tokenizer, _character_index

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny"
TOKENIZER = Tokenizer(TINY / "asr" / "tokenizer.json")
PROMPTS = PromptBuilder(TOKENIZER)


def _audio(samples: int) -> np.ndarray:
    return np.zeros((WindowSpec().tokens(frame_count(samples)), 4), np.float32)


@pytest.mark.parametrize("samples", [1_000, 16_000, 16_160, 130_000])
@pytest.mark.parametrize("language", [None, "German", "Chinese"])
@pytest.mark.parametrize("context", ["", "Tongyi, Qwen", "straße\n二 ✓"])
def test_prompt_equals_the_processor_s(samples: int, language: str | None, context: str) -> None:
    processor = Qwen3ASRProcessor.from_pretrained(TINY / "asr")
    wanted = processor.apply_transcription_request(
        np.zeros(samples, np.float32), language=language, prompt=context or None, sampling_rate=16_000
    )
    got = PROMPTS.transcription(_audio(samples), context, language)
    assert got.ids.tolist() == wanted["input_ids"][0].tolist()


def test_aligner_input_equals_the_processor_s() -> None:
    processor = Qwen3ASRProcessor.from_pretrained(TINY / "aligner")
    wanted, words = processor.prepare_forced_aligner_inputs(
        np.zeros(20_000, np.float32), "one, two three!", "English", sampling_rate=16_000
    )
    prompt, marks = PROMPTS.alignment(_audio(20_000), words[0])
    assert prompt.ids.tolist() == wanted["input_ids"][0].tolist()
    assert len(marks) == 6
    assert set(prompt.ids[marks]) == {TOKENIZER.id("<timestamp>")}


@pytest.mark.parametrize("token", ["<|im_end|>", "<|audio_pad|>", "<asr_text>"])
def test_a_context_with_a_special_token_is_refused(token: str) -> None:
    with pytest.raises(ContextInvalid, match="remove it"):
        PROMPTS.transcription(_audio(16_000), f"names {token}")


@given(st.text(max_size=40))
def test_join_gives_back_the_text_and_spans_cover_it_in_order(text: str) -> None:
    import unicodedata

    ids = TOKENIZER.encode(text)
    if any(token in text for token in TOKENIZER.added):
        return
    joined, spans = TOKENIZER.join(ids)
    assert joined == unicodedata.normalize("NFC", text)
    covered = sorted({position for start, end in spans for position in range(start, end)})
    assert covered == list(range(len(joined)))
    assert spans == sorted(spans)


def test_a_character_split_over_tokens_belongs_to_each_of_them() -> None:
    ids = TOKENIZER.encode("✓")
    assert len(ids) == 3  # bytes of a character that the vocabulary does not have
    assert TOKENIZER.join(ids) == ("✓", [(0, 1), (0, 1), (0, 1)])


@pytest.mark.parametrize(
    ("raw", "index"),
    [
        (b"", [0]),
        ("aé✓😀b".encode(), [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 5]),
        (b"\xffabc", [0, 1, 2, 3, 4]),  # once 0, 0, 1, 2, 4: what follows an invalid byte was a character early
        (b"a\xe4\xe5b", [0, 1, 2, 3, 4]),
        (b"\xf0\x90a", [0, 0, 1, 2]),  # two bytes of one character that never ends
        (b"\xe0\x80", [0, 1, 2]),
        (b"a\xf0\x9f", [0, 1, 1, 2]),
        (b"\xed\xadb", [0, 1, 2, 3]),  # once 0, 0, 2, 3: half of a surrogate pair was one character until it ended
        (b"b\xed\xa0\x80", [0, 1, 2, 3, 4]),
    ],
)
def test_each_byte_belongs_to_the_character_that_it_is_decoded_to(raw: bytes, index: list[int]) -> None:
    assert _character_index(raw) == index


BYTES = sorted("aé中😀".encode() + b"\xed\xa0\xff")  # of characters of every length, and of what is none


@given(st.binary(max_size=40) | st.lists(st.sampled_from(BYTES), max_size=12).map(bytes))
def test_bytes_and_characters_agree_whatever_is_invalid(raw: bytes) -> None:
    index, text = _character_index(raw), raw.decode("utf-8", "replace")
    assert (len(index), index[-1]) == (len(raw) + 1, len(text))
    parts = [raw[index.index(number) : len(raw) - index[-2::-1].index(number)] for number in range(len(text))]
    assert [part.decode("utf-8", "replace") for part in parts] == list(text)


def test_decode_keeps_the_language_tag_and_drops_special_tokens() -> None:
    assert (
        TOKENIZER.decode(TOKENIZER.encode("language German<asr_text>drei<|im_end|>")) == "language German<asr_text>drei"
    )


def test_ids_past_the_vocabulary_are_written_as_nothing() -> None:
    assert TOKENIZER.decode([100_000, *TOKENIZER.encode("drei")]) == "drei"


def test_a_tokenizer_without_the_special_tokens_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Raw
    from tokenizers import models

    path = tmp_path / "tokenizer.json"
    Raw(models.BPE()).save(str(path))
    with pytest.raises(BundleFileDamaged, match="no token"):
        Tokenizer(path)
    path.write_text("{}")
    with pytest.raises(BundleFileDamaged, match="not a tokenizer"):
        Tokenizer(path)
