"""The ONNX Runtime session: caches in place, rows that do not disturb each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.encoder import Encoder
from qwen3asr.errors import BackendFailed
from qwen3asr.features import log_mel
from qwen3asr.sessions.onnxruntime import OrtDecoder, OrtEncoder

NOTHING = np.zeros((1, 0), np.int64)
FIRST = np.zeros((1, 1), np.int64)
ZERO = np.zeros(1, np.int64)


@pytest.fixture(scope="module")
def bundle(asr_bundle: Path) -> Bundle:
    return open_bundle(asr_bundle)


def _decoder(bundle: Bundle, slots: int = 3, capacity: int = 256) -> OrtDecoder:
    return OrtDecoder(bundle.component("decoder"), bundle.spec, slots=slots, capacity=capacity)


def _row(bundle: Bundle, length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, bundle.spec.audio_pad, (1, length))


def _feed(session: OrtDecoder, bundle: Bundle, ids: np.ndarray, slot: int, past: int = 0) -> tuple[int, float]:
    no_audio = np.zeros((0, bundle.spec.hidden), np.float32)
    take = np.array([[ids.shape[1] - 1]])
    picked = session.run(ids, no_audio, take, range(slot, slot + 1), np.array([past]))
    return int(picked.tokens[0, 0]), float(picked.logprobs[0, 0])


def test_rows_of_different_lengths_step_together_as_they_do_alone(bundle: Bundle) -> None:
    """The same tokens; log probabilities but for last bits: some processors multiply one row by a kernel of its own."""
    lengths = (5, 40, 17)
    alone = []
    for slot, length in enumerate(lengths):
        session = _decoder(bundle)
        _feed(session, bundle, _row(bundle, length, slot), slot)
        alone.append(_feed(session, bundle, np.array([[11 + slot]]), slot, length))
    session = _decoder(bundle)
    for slot, length in enumerate(lengths):
        _feed(session, bundle, _row(bundle, length, slot), slot)
    no_audio = np.zeros((0, bundle.spec.hidden), np.float32)
    together = session.run(
        np.array([[11], [12], [13]]), no_audio, np.zeros((3, 1), np.int64), range(3), np.array(lengths)
    )
    assert together.tokens[:, 0].tolist() == [token for token, _ in alone]
    assert together.logprobs[:, 0].tolist() == pytest.approx([logprob for _, logprob in alone], abs=1e-6)


def test_a_prefill_in_one_slot_leaves_the_neighbours_untouched(bundle: Bundle) -> None:
    session = _decoder(bundle)
    _feed(session, bundle, _row(bundle, 20, 1), 1)
    before = _feed(session, bundle, np.array([[9]]), 1, 20)
    for slot in (0, 2):
        _feed(session, bundle, _row(bundle, 200, slot), slot)
    assert _feed(session, bundle, np.array([[9]]), 1, 20) == before


def test_a_slot_that_is_used_again_forgets_what_it_held(bundle: Bundle) -> None:
    fresh = _feed(_decoder(bundle), bundle, _row(bundle, 12, 3), 0)
    session = _decoder(bundle)
    _feed(session, bundle, _row(bundle, 200, 4), 0)
    assert _feed(session, bundle, _row(bundle, 12, 3), 0) == fresh


def test_a_prompt_in_chunks_gives_what_one_pass_gives(bundle: Bundle) -> None:
    ids = _row(bundle, 150, 5)
    whole = _feed(_decoder(bundle), bundle, ids, 0)
    session = _decoder(bundle)
    for start in range(0, 150, 40):
        chunk = _feed(session, bundle, ids[:, start : start + 40], 0, start)
    assert chunk[0] == whole[0]
    assert chunk[1] == pytest.approx(whole[1], abs=1e-5)


def test_a_run_that_fails_is_our_error_and_the_next_one_works(bundle: Bundle) -> None:
    session = _decoder(bundle)
    before = _feed(session, bundle, _row(bundle, 10, 7), 0)
    with pytest.raises(BackendFailed, match="ONNX Runtime failed"):
        _feed(session, bundle, np.full((1, 10), bundle.spec.vocab + 5), 0)
    with pytest.raises(BackendFailed):
        OrtEncoder(bundle.component("encoder")).run(np.zeros((1, 128, 150), np.float32), np.array([150]))
    assert _feed(session, bundle, _row(bundle, 10, 7), 0) == before


def test_positions_that_nobody_asked_for_cost_no_head(bundle: Bundle) -> None:
    no_audio = np.zeros((0, bundle.spec.hidden), np.float32)
    picked = _decoder(bundle).run(_row(bundle, 30, 6), no_audio, NOTHING, range(1), ZERO)
    assert picked.tokens.shape == picked.logprobs.shape == (1, 0)


def test_audio_rows_replace_the_pads_in_order(bundle: Bundle) -> None:
    rows = np.random.default_rng(7).normal(0, 1, (4, bundle.spec.hidden)).astype(np.float32)
    pad = bundle.spec.audio_pad
    session = _decoder(bundle)
    taken = np.array([[5]])

    def run(audio: np.ndarray) -> float:
        return float(session.run(np.array([[1, pad, pad, 2, pad, pad]]), audio, taken, range(1), ZERO).logprobs[0, 0])

    assert run(rows) == run(rows)
    assert run(rows) != run(rows[::-1].copy())


def test_clips_encoded_together_equal_each_alone(bundle: Bundle) -> None:
    """Mixed lengths: padding of a shorter neighbour must never reach a clip's last token."""
    session = OrtEncoder(bundle.component("encoder"))
    session.batch_windows = 4
    encoder = Encoder(session, bundle.spec.windows)
    rng = np.random.default_rng(8)
    mels = [log_mel(rng.normal(0, 0.1, int(s * 16_000)).astype(np.float32)) for s in (0.3, 9.7, 1.0, 8.0, 0.7, 24.01)]
    for alone, together in zip([encoder.encode([mel])[0] for mel in mels], encoder.encode(mels), strict=True):
        np.testing.assert_array_equal(alone, together)


def test_whatever_lies_behind_the_valid_frames_is_ignored(bundle: Bundle) -> None:
    session, frames = OrtEncoder(bundle.component("encoder")), np.array([137])
    mel = np.zeros((1, 128, 200), np.float32)
    mel[:, :, :137] = np.random.default_rng(9).normal(0, 1, (1, 128, 137))
    dirty = mel.copy()
    dirty[:, :, 137:] = 1e6
    count = bundle.spec.windows.tokens(137)
    np.testing.assert_array_equal(session.run(mel, frames)[:, :count], session.run(dirty, frames)[:, :count])


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's memory figures")
def test_a_long_cache_takes_memory_only_where_it_is_written(bundle: Bundle) -> None:
    """In small pages: a huge one would be taken whole for each head's first token."""

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024

    before = resident()
    session = _decoder(bundle, slots=64, capacity=8192)
    _feed(session, bundle, _row(bundle, 10, 0), 0)
    spec = bundle.spec
    reserved = 64 * 8192 * 2 * spec.layers * spec.kv_heads * spec.head_dim * 4
    assert resident() - before < reserved / 20


def test_weights_left_in_the_mapped_file_answer_as_copied_ones(bundle: Bundle) -> None:
    copied, shared = (
        _decoder(bundle),
        OrtDecoder(bundle.component("decoder"), bundle.spec, slots=3, capacity=256, mapped=True),
    )
    row = _row(bundle, 30, 1)
    assert _feed(copied, bundle, row, 0)[0] == _feed(shared, bundle, row, 0)[0]
