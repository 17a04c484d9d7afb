"""The one-row loop and prefill, on a scripted decoder."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.scripted import ScriptedDecoder

from qwen3asr.decoder import PREFILL_CHUNK, Decoder
from qwen3asr.errors import OutputNotFinite, RequestInvalid
from qwen3asr.generate import generate
from qwen3asr.prompt import Prompt
from qwen3asr.sessions.base import Embeddings, Ids, Picked

END = 7


def _prompt(*ids: int) -> Prompt:
    return Prompt(np.array(ids, np.int64), np.zeros((ids.count(99), 4), np.float32))


def _decoder(session: ScriptedDecoder) -> Decoder:
    return Decoder(session, session.audio_pad, 4)


def test_the_end_token_ends_the_text_and_is_not_part_of_it() -> None:
    session = ScriptedDecoder([5, 6, END])
    result = generate(_decoder(session), _prompt(1, 99, 99, 2), eos={END, 8}, budget=10)
    assert result.tokens == (5, 6)
    assert result.logprobs == (-0.5, -0.5)
    assert result.finish_reason == "stop"


def test_each_token_is_fed_back_at_its_own_position_and_the_last_one_never() -> None:
    session = ScriptedDecoder([5, 6, END])
    generate(_decoder(session), _prompt(1, 99, 2), eos={END}, budget=10)
    assert session.calls == [([1, 99, 2], [2], 0), ([5], [0], 3), ([6], [0], 4)]


def test_a_spent_budget_is_reported_as_length_and_costs_no_further_step() -> None:
    session = ScriptedDecoder([5, 6, 5])
    result = generate(_decoder(session), _prompt(1), eos={END}, budget=2)
    assert (result.tokens, result.finish_reason) == ((5, 6), "length")
    assert len(session.calls) == 2


def test_an_immediate_end_gives_no_tokens() -> None:
    result = generate(_decoder(ScriptedDecoder([END])), _prompt(1), eos={END}, budget=1)
    assert (result.tokens, result.finish_reason) == ((), "stop")


@given(
    st.lists(st.sampled_from([1, 99]), min_size=1, max_size=3 * PREFILL_CHUNK),
    st.data(),
)
def test_long_prompts_go_in_chunks_and_every_taken_position_is_answered_once(
    ids: list[int], data: st.DataObject
) -> None:
    """A chunk border between audio pads once handed the second chunk the first one's rows."""
    take = sorted(data.draw(st.sets(st.integers(0, len(ids) - 1), max_size=20)))
    session = ScriptedDecoder(range(100, 100 + len(take)))
    rows = np.arange(ids.count(99), dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    picked = _decoder(session).prefill(Prompt(np.array(ids, np.int64), rows), np.array(take, np.int64), 0)
    assert session.heard == rows[:, 0].tolist()
    assert picked.tokens.tolist() == [list(range(100, 100 + len(take)))]
    assert [token for call in session.calls for token in call[0]] == ids
    assert [position + past for _, taken, past in session.calls for position in taken] == take
    assert all(len(call[0]) <= PREFILL_CHUNK for call in session.calls)


def test_a_prompt_longer_than_a_slot_is_refused_before_the_model_runs() -> None:
    session = ScriptedDecoder([1], capacity=3)
    with pytest.raises(RequestInvalid, match="4 tokens do not fit"):
        _decoder(session).prefill(_prompt(1, 2, 3, 4), np.array([3]), 0)
    assert session.calls == []


def test_audio_rows_that_do_not_match_the_pads_are_refused_before_the_model_runs() -> None:
    session = ScriptedDecoder([1])
    with pytest.raises(ValueError, match="1 audio pads for 0"):
        _decoder(session).prefill(Prompt(np.array([99]), np.zeros((0, 4), np.float32)), np.array([0]), 0)
    assert session.calls == []


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_nan_and_infinity_raise_with_slot_and_position(bad: float) -> None:
    """NaN logits once came out as a run of exclamation marks: token 0."""

    class Broken(ScriptedDecoder):
        def run(self, ids: Ids, audio: Embeddings, take: Ids, slots: range, past: Ids) -> Picked:
            picked = super().run(ids, audio, take, slots, past)
            return Picked(picked.tokens, np.full_like(picked.logprobs, bad)) if int(past[0]) else picked

    with pytest.raises(OutputNotFinite, match="slot 0 by position 4"):
        generate(_decoder(Broken([5, 6, END])), _prompt(1, 99, 2), eos={END}, budget=9)
