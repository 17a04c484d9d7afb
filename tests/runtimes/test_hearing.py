"""Streams over the real engine and the tiny trained model."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import Recording

import qwen3asr
from qwen3asr import Event, Final, Partial, Recognizer, StreamSettings, Word
from qwen3asr.bundle import open_bundle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.errors import AlignerMissing, ContextInvalid, EngineBusy, EngineClosed, RequestInvalid
from qwen3asr.features import Mel, Samples
from qwen3asr.generate import Generation, generate
from qwen3asr.hearing import EngineEar
from qwen3asr.prompt import Frame, PromptBuilder
from qwen3asr.sessions.onnxruntime import OrtDecoder, OrtEncoder
from qwen3asr.tokenizer import open_tokenizer

Oracle: TypeAlias = Callable[[Sequence[Mel]], Generation]

RATE = 16_000
SPOKEN = ("english", "german", "spanish", "chinese", "german-short")


def _samples(recording: Recording) -> Samples:
    return np.asarray(soundfile.read(recording.path, dtype="float32")[0])


def _said(events: Sequence[object]) -> str:
    return " ".join(event.text for event in events if isinstance(event, Final) and event.text)


def _chunks(samples: Samples, size: int = RATE // 2) -> Iterator[Samples]:
    return (samples[at : at + size] for at in range(0, len(samples), size))


@pytest.mark.parametrize("name", SPOKEN)
def test_the_finals_are_what_was_said(model: Recognizer, recordings: dict[str, Recording], name: str) -> None:
    wanted = recordings[name]
    with model.stream() as stream:
        events = list(stream.run(_chunks(_samples(wanted))))
    said = _said(events)
    assert said.replace(" ", "") == wanted.text.replace(" ", "")
    assert {event.language for event in events} == {wanted.language}


@pytest.fixture(scope="module")
def oracle(asr_bundle: Path) -> Oracle:
    """The one-row loop in a model of its own: encodes everything, starts from an empty cache, has no draft."""
    bundle = open_bundle(asr_bundle)
    spec, prompts = bundle.spec, PromptBuilder(open_tokenizer(bundle.folder, bundle.spec))
    encoder = Encoder(OrtEncoder(bundle.component("encoder")), spec.windows)
    session = OrtDecoder(bundle.component("decoder"), spec, slots=1, capacity=4096)
    decoder = Decoder(session, spec.audio_pad, spec.hidden)

    def decode(windows: Sequence[Mel]) -> Generation:
        (rows,) = encoder.encode([np.concatenate(windows, axis=1)])
        return generate(decoder, prompts.transcription(rows), eos=spec.eos, budget=500)

    return decode


class _Spy(EngineEar):
    """Records each step's audio windows and hypothesis."""

    heard: list[tuple[list[Mel], Future[Generation], int]]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.windows: list[Mel] = []
        self.heard = []

    def hear(self, *, keep: int, windows: Sequence[Mel], complete: int, draft: Sequence[int]) -> Future[Generation]:
        self.windows = [*self.windows[:keep], *windows]
        future = super().hear(keep=keep, windows=windows, complete=complete, draft=draft)
        self.heard.append((list(self.windows), future, len(draft)))
        return future


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([0.3, 0.5, 1.0, 2.0]), st.permutations(["english", "english-long", "spanish"]), st.data())
def test_every_hypothesis_is_what_decoding_from_scratch_gives(
    model: Recognizer,
    oracle: Oracle,
    recordings: dict[str, Recording],
    step: float,
    names: list[str],
    data: st.DataObject,
) -> None:
    ears: list[_Spy] = []

    def ear(*arguments: Any) -> _Spy:
        ears.append(_Spy(*arguments))
        return ears[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qwen3asr.recognizer.EngineEar", ear)
        stream = model.stream(settings=StreamSettings(step_seconds=step, end_silence=5.0, longest_seconds=60))
    audio = np.concatenate([_samples(recordings[name]) for name in names])
    with stream:
        list(stream.run(_chunks(audio, data.draw(st.integers(500, 40_000)))))
    (spy,) = ears
    assert len(spy.heard) >= 5
    assert max(len(windows) for windows, _, _ in spy.heard) >= 2
    assert any(draft for _, _, draft in spy.heard)
    for windows, future, _ in spy.heard:
        got, wanted = future.result(), oracle(windows)
        assert (got.tokens, got.finish_reason) == (wanted.tokens, wanted.finish_reason)
        np.testing.assert_allclose(got.logprobs, wanted.logprobs, atol=1e-3)


def test_committed_text_never_changes_and_words_get_times(
    model: Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    def align_now(ear: EngineEar, *arguments: Any) -> Future[tuple[Word, ...]]:
        future: Future[tuple[Word, ...]] = Future()
        future.set_result(ear._align(*arguments))
        return future

    monkeypatch.setattr(EngineEar, "align", align_now)  # partials do not wait for their words
    wanted = recordings["english"]
    with model.stream(timestamps="word", settings=StreamSettings(partial_words=True)) as stream:
        events = list(stream.run(_chunks(_samples(wanted), 3_000)))
    committed = ""
    for event in events:
        assert event.text.startswith(committed)
        committed = event.committed if isinstance(event, Partial) else ""
    final = events[-1]
    assert isinstance(final, Final)
    assert [word.text for word in final.words] == wanted.text.split()
    got = np.array([word.start for word in final.words])
    true = np.array([float(str(word["start"])) for word in wanted.words])
    assert np.abs(got - true).mean() < 0.1
    assert any(event.words for event in events[:-1])
    assert all(word.confidence is not None for event in events for word in event.words)


def test_confidences_are_those_of_the_file(model: Recognizer, recordings: dict[str, Recording]) -> None:
    samples = _samples(recordings["english"])
    with model.stream(timestamps="word") as stream:
        events = list(stream.run(_chunks(samples)))
    (final,) = (event for event in events if isinstance(event, Final))
    piece = samples[round(final.start * RATE) : round(final.end * RATE)]
    whole = model.transcribe(piece, timestamps="word")
    assert (final.text, final.confidence) == (whole.text, pytest.approx(whole.confidence, abs=1e-3))
    assert [word.confidence for word in final.words] == pytest.approx(
        [word.confidence for word in whole.words], abs=1e-3
    )
    assert min(word.confidence or 0.0 for word in final.words) > 0.5


def test_silence_costs_nothing(model: Recognizer, recordings: dict[str, Recording]) -> None:
    before = model.metrics.snapshot().submitted
    rng = np.random.default_rng(0)
    for quiet in (np.zeros(60 * RATE, np.float32), rng.normal(0, 1e-3, 60 * RATE).astype(np.float32)):
        with model.stream() as stream:
            assert list(stream.run(_chunks(quiet))) == []
            assert stream.work.steps == 0
    assert model.metrics.snapshot().submitted == before


def test_a_pause_ends_a_segment_and_the_stream_goes_on(model: Recognizer, recordings: dict[str, Recording]) -> None:
    names = ["spanish", "chinese", "english"]
    gap = np.zeros(2 * RATE, np.float32)
    audio = np.concatenate([part for name in names for part in (_samples(recordings[name]), gap)])
    with model.stream(settings=StreamSettings(end_silence=1.2)) as stream:
        finals = [event for event in stream.run(_chunks(audio)) if isinstance(event, Final)]
    assert [event.text for event in finals] == [recordings[name].text for name in names]
    assert [event.language for event in finals] == ["Spanish", "Chinese", "English"]
    assert all(one.end <= two.start for one, two in pairwise(finals))


def test_any_rate_and_type(model: Recognizer, recordings: dict[str, Recording]) -> None:
    samples = _samples(recordings["english"])
    with model.stream(sample_rate=RATE) as stream:
        whole = [*stream.push((samples * 32767).astype(np.int16)), *stream.finish()]
    assert _said(whole) == recordings["english"].text
    import soxr

    with model.stream(sample_rate=48_000) as stream:
        assert _said(list(stream.run(_chunks(soxr.resample(samples, RATE, 48_000), 960)))) == recordings["english"].text


def test_streams_and_files_share_the_model(model: Recognizer, recordings: dict[str, Recording]) -> None:
    async def listen(name: str) -> str:
        async with model.stream_async() as stream:
            for chunk in _chunks(_samples(recordings[name]), 4_000):
                await stream.push(chunk)
                await asyncio.sleep(0)
            await stream.finish()
            return _said([event async for event in stream])

    async def scene() -> list[str]:
        files = [model.transcribe_async(recordings[name].path) for name in SPOKEN]
        return [*await asyncio.gather(*map(listen, SPOKEN * 3)), *map(str, await asyncio.gather(*files))]

    wanted = [recordings[name].text.replace(" ", "") for name in SPOKEN * 4]
    assert [text.replace(" ", "") for text in asyncio.run(scene())] == wanted


def test_more_streams_than_slots(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    """Each takes the others' slots away; what it kept of the audio is fed again."""
    with qwen3asr.load(asr_bundle, slots=2) as small:
        streams = [small.stream() for _ in SPOKEN]
        events: list[list[Event]] = [[] for _ in SPOKEN]
        audio = [_samples(recordings[name]) for name in SPOKEN]
        for at in range(0, max(map(len, audio)), 8_000):
            for stream, samples, into in zip(streams, audio, events, strict=True):
                if at < len(samples):
                    into.extend(stream.push(samples[at : at + 8_000]))
        for stream, into in zip(streams, events, strict=True):
            into.extend(stream.finish())
        assert [_said(into).replace(" ", "") for into in events] == [
            recordings[name].text.replace(" ", "") for name in SPOKEN
        ]


def test_a_stream_that_has_spoken_keeps_its_place(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    """Each segment asked for a place anew, and a crowd ended a stream in the middle of a conversation."""
    twice = np.concatenate([_samples(recordings["german-short"]), np.zeros(2 * RATE, np.float32)] * 2)
    with qwen3asr.load(asr_bundle, slots=1, queue=1) as small, small.stream() as stream:
        events = stream.push(twice[: len(twice) // 2])
        held = [small.engine.open(Frame(np.array([1]), np.array([2])))]
        with pytest.raises(EngineBusy):
            small.engine.open(held[0].frame)
        events += [*stream.push(twice[len(twice) // 2 :]), *stream.finish()]
        assert _said(events) == " ".join(2 * [recordings["german-short"].text])


def test_a_stream_that_was_forgotten_gives_its_place_back(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    """Nobody had closed it, and its place was lost for good."""
    with qwen3asr.load(asr_bundle, slots=1, queue=1) as small:
        for _ in range(4):
            assert small.stream().push(_samples(recordings["german"]))
            gc.collect()


def test_a_second_of_audio_is_counted_once(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    """Each step counted all of its open window again."""
    samples = _samples(recordings["english-long"])
    with qwen3asr.load(asr_bundle) as own:
        with own.stream() as stream:
            list(stream.run(_chunks(samples)))
        assert own.metrics.snapshot().audio_seconds == pytest.approx(len(samples) / RATE, abs=2.0)


def test_the_model_s_work_is_the_same_at_minute_30_as_at_minute_2(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    """Windows, prompt tokens and steps of every minute; the first one has no words before it as context."""
    minute = np.zeros(60 * RATE, np.float32)  # a whole number of the detector's frames
    for name, at in (("english-long", 1), ("spanish", 20), ("german", 35), ("english", 45)):
        spoken = _samples(recordings[name])
        minute[at * RATE : at * RATE + len(spoken)] = spoken
    costs = []
    with model.stream(settings=StreamSettings(step_seconds=4.0)) as stream:
        for _ in range(30):
            before = model.metrics.snapshot()
            stream.push(minute)
            now = model.metrics.snapshot()
            costs.append(
                (now.windows - before.windows, now.prompt_tokens - before.prompt_tokens, now.steps - before.steps)
            )
    assert len(set(costs[1:])) == 1
    windows, tokens, _ = costs[1]
    assert windows <= 20
    assert tokens <= costs[0][1] + 100


def test_requests_that_make_no_sense_are_refused_when_the_stream_is_opened(asr_bundle: Path) -> None:
    bare = qwen3asr.load(asr_bundle, capacity=500)
    with pytest.raises(AlignerMissing):
        bare.stream(timestamps="word")
    with pytest.raises(ContextInvalid):
        bare.stream(context="<|im_end|>")
    with pytest.raises(RequestInvalid, match="a KV cache of 500 tokens takes"):
        bare.stream(settings=StreamSettings(longest_seconds=60))
    bare.close()
    with pytest.raises(EngineClosed):
        bare.stream(settings=StreamSettings(longest_seconds=24)).push(_noise_burst())


def _noise_burst() -> Samples:
    """Something a detector takes for speech: bursts over silence."""
    rng = np.random.default_rng(0)
    audio = rng.normal(0, 1e-4, 4 * RATE)
    for at in range(RATE, 3 * RATE, RATE // 2):
        audio[at : at + RATE // 4] += rng.normal(0, 0.2, RATE // 4)
    return audio.astype(np.float32)
