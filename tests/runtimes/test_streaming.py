"""Streams: what is heard is what was spoken, what is committed stays, and a step costs the same at minute 30."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scripted_ear import FLICKER, GAP, TONE, WORDS, LoudDetector, ScriptedEar, speak, spoken

from qwen3asr.errors import (
    AudioFormatInvalid,
    AudioNotFinite,
    OutputNotFinite,
    RequestInvalid,
    StepCancelled,
    StreamBehind,
    StreamEnded,
)
from qwen3asr.events import Event, Final, Partial
from qwen3asr.features import SAMPLE_RATE, Mel, Samples, WindowSpec, log_mel
from qwen3asr.generate import Generation
from qwen3asr.listener import Listener
from qwen3asr.segmenter import StreamSettings
from qwen3asr.streaming import AsyncStream, Stream
from qwen3asr.types import Word

steady = settings(deadline=None, derandomize=True, database=None)
Script = list[int | float]

words = st.integers(0, len(WORDS) - 1)
phrases = st.lists(words, min_size=1, max_size=15)
scripts = st.lists(st.one_of(phrases, st.sampled_from([[0.05], [0.2], [0.4], [1.0], [2.5]])), max_size=12).map(
    lambda parts: [item for part in parts for item in part]
)


def stream(ear: ScriptedEar, **options: Any) -> Stream:
    return Stream(ear, LoudDetector(), **options)


def chunks(samples: Samples, sizes: Iterable[int]) -> list[Samples]:
    cuts = np.cumsum(list(sizes), dtype=int)
    return np.split(samples, cuts[cuts < len(samples)])


def heard(events: Iterable[Event]) -> str:
    return " ".join(event.text for event in events if isinstance(event, Final) and event.text)


def finals(events: Iterable[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


def run(script: Script, **options: Any) -> list[Event]:
    return list(stream(ScriptedEar(), **options).run([speak(script)]))


def assert_committed_never_changes(events: Iterable[Event]) -> None:
    committed, end = "", 0.0
    for event in events:
        assert event.text.startswith(committed)
        assert event.end >= end
        if isinstance(event, Partial):
            assert event.text.startswith(event.committed)
            assert event.committed.startswith(committed)
            committed, end = event.committed, event.start
        else:
            committed, end = "", event.end


# --- what is heard ---------------------------------------------------------------------------------------------


def test_a_stream_grows_commits_and_closes() -> None:
    events = run([1.0, 0, 1, 2, 3, 4, 5, 1.0])
    assert events == [
        Partial("alpha", "", "English", 0.492, 1.504),
        Partial("alpha bravo charlie delta", "alpha", "English", 0.492, 2.528),
        Partial("alpha bravo charlie delta echo foxtrot", "alpha bravo charlie delta", "English", 0.492, 3.552),
        Final("alpha bravo charlie delta echo foxtrot", "English", 0.492, 3.728, "stop", (), 0.06),
    ]


@settings(steady, max_examples=1_000)
@given(scripts, st.booleans(), st.lists(st.integers(1, 40_000), max_size=60))
def test_all_that_was_spoken_is_heard_once_in_chunks_of_any_size(
    script: Script, flicker: bool, sizes: list[int]
) -> None:
    samples = speak(script)
    at_once = list(stream(ScriptedEar(flicker=flicker)).run([samples]))
    assert heard(at_once) == spoken(script)
    assert_committed_never_changes(at_once)
    assert list(stream(ScriptedEar(flicker=flicker)).run(chunks(samples, sizes))) == at_once


def test_single_samples_make_the_same_events() -> None:
    script: Script = [0.6, 3, 4, 5, 6, 1.0]
    samples = speak(script)
    assert list(stream(ScriptedEar()).run(samples[at : at + 1] for at in range(len(samples)))) == run(script)


@settings(steady, max_examples=40)
@given(scripts, st.integers(0, 2**31))
def test_each_step_hears_exactly_the_features_of_the_segment_so_far(script: Script, seed: int) -> None:
    """Louder words later on raise the floor of all features before."""
    rng = np.random.default_rng(seed)
    samples = speak(script)
    gain = np.repeat(10.0 ** rng.uniform(-1.0, 0.0, len(samples) // 20_000 + 1), 20_000)[: len(samples)]
    samples = (samples * gain + rng.normal(0, 1e-5, len(samples))).astype(np.float32)
    count = iter(range(10_000))
    ear = ScriptedEar(changes=lambda tokens: (*tokens, FLICKER + next(count)), remember=True)  # each step shows
    events = stream(ear).push(samples)
    assert len(events) == len(ear.mels)
    for event, mel in zip(events, ear.mels, strict=True):
        first, last = round(event.start * SAMPLE_RATE), round(event.end * SAMPLE_RATE)
        wanted = log_mel(samples[first:last])
        assert mel.shape == wanted.shape
        np.testing.assert_allclose(mel, wanted, rtol=0, atol=1e-6)


@settings(steady, max_examples=1_000)
@given(scripts, st.lists(st.lists(words, max_size=6).map(tuple), max_size=40), st.integers(0, 2))
def test_whatever_the_model_writes_committed_text_stays(
    script: Script, texts: list[tuple[int, ...]], hold_back: int
) -> None:
    answers = iter(texts)
    ear = ScriptedEar(changes=lambda tokens: next(answers, tokens))
    assert_committed_never_changes(stream(ear, settings=StreamSettings(hold_back=hold_back)).run([speak(script)]))


def test_speech_without_pauses_is_split_between_words() -> None:
    rng = np.random.default_rng(0)
    script: Script = [int(word) for word in rng.integers(0, 8, 400)]  # 160 s
    events = run(script)
    assert heard(events) == spoken(script)
    closed = finals(events)
    assert len(closed) == 6
    assert all(28 < final.end - final.start <= 30.1 for final in closed[:-1])
    assert all(first.end == second.start for first, second in pairwise(closed))


def test_a_long_segment_ends_behind_a_full_stop() -> None:
    body: Script = [0, 1, 2, 3] * 10
    plain = finals(run([*body, 4, 0.25, *body[:8]]))
    stopped = finals(run([*body, 8, 0.25, *body[:8]]))
    assert [len(plain), len(stopped)] == [1, 2]
    assert stopped[0].text.endswith("stop.")


def test_words_that_were_committed_ahead_of_their_sound_are_not_said_twice_at_a_split() -> None:
    """A model that guesses the next word commits it; its sound belongs to the next segment."""
    script: Script = [item % 8 for item in range(100)]  # 40 s
    ear = ScriptedEar(changes=lambda tokens: (*tokens, (tokens[-1] + 1) % 8) if tokens else tokens)
    guessing = ear._changes

    class Sobered(ScriptedEar):
        """Guesses, but not at the end of a segment."""

        def hear(self, *, keep: int, windows: Sequence[Mel], complete: int, draft: Sequence[int]) -> Future[Generation]:
            shrunk = sum(window.shape[1] for window in [*self.held[:keep], *windows]) < self.longest
            self.longest = sum(window.shape[1] for window in [*self.held[:keep], *windows])
            self._changes = None if shrunk else guessing
            return super().hear(keep=keep, windows=windows, complete=complete, draft=draft)

        longest = 0

    listener = stream(Sobered(), settings=StreamSettings(step_seconds=0.3))
    events = listener.push(speak(script)) + listener.abort()
    closed = finals(events)
    assert heard(closed[:1]).split() + closed[1].text.split() == spoken(script).split()[: len(heard(closed).split())]


def test_times_count_from_the_start_of_the_stream_at_any_rate() -> None:
    script: Script = [5.0, 0, 1, 2, 3, 1.0]
    samples = speak(script)
    wanted = finals(run(script))[0]
    for rate in (8_000, 48_000):
        array = soxr.resample(samples, SAMPLE_RATE, rate)
        (final,) = finals(stream(ScriptedEar(), sample_rate=rate).run(chunks(array, [rate // 50] * 1_000)))
        assert final.text == wanted.text if rate > 8_000 else final.text.split()[:4] == wanted.text.split()
        assert final.start == pytest.approx(wanted.start, abs=0.04)
        assert final.end == pytest.approx(wanted.end, abs=0.04)


def test_integers_are_divided_by_their_full_scale() -> None:
    script: Script = [1.0, 0, 1, 2, 1.0]
    pcm = np.round(speak(script) * 32_768).astype(np.int16)
    stereo = np.stack([pcm, pcm], axis=1)
    assert list(stream(ScriptedEar()).run([pcm])) == list(stream(ScriptedEar()).run([stereo])) == run(script)


# --- what it costs ---------------------------------------------------------------------------------------------


def test_a_step_costs_the_same_at_minute_30_as_at_minute_1() -> None:
    rng = np.random.default_rng(1)
    script: Script = [1.0]
    for count, pause in ((3, 1.2), (90, 0.5), (12, 0.9), (28, 0.0)):
        script += [*(int(word) for word in rng.integers(0, 9, count)), pause]
    minute = np.zeros(60 * SAMPLE_RATE, np.float32)  # a whole number of the detector's frames
    minute[: len(speak(script))] = speak(script)
    listener = stream(ScriptedEar(flicker=True))
    costs = []
    for _ in range(30):
        before = listener.work
        assert len(finals(listener.push(minute))) == 4
        now = listener.work
        costs.append((now.steps - before.steps, now.windows - before.windows, now.frames - before.frames))
    assert set(costs) == {costs[0]}
    steps, windows, frames = costs[0]
    assert 50 <= steps <= 65
    assert windows < 2 * steps  # though a segment is up to four windows long
    assert frames < 6_000 + 2 * steps  # each frame once, and the last one again
    assert listener.work.seconds == 1_800


def test_kept_windows_are_not_given_again() -> None:
    ear = ScriptedEar()
    stream(ear).push(speak([int(word) for word in np.random.default_rng(0).integers(0, 8, 70)]))  # 28 s
    assert len(ear.given) == 27
    assert ear.given.count(1) >= 24  # two when a window is complete
    assert max(ear.given) == 2


def test_silence_costs_nothing() -> None:
    ear = ScriptedEar()
    listener = stream(ear)
    assert listener.push(np.zeros(10 * 60 * SAMPLE_RATE, np.float32)) == []
    assert (listener.work.steps, listener.work.frames, ear.contexts) == (0, 0, [])
    listener.push(speak([0, 1, 2]))
    assert heard(listener.push(np.zeros(10 * SAMPLE_RATE, np.float32))) == spoken([0, 1, 2])
    steps = listener.work.steps
    assert listener.push(np.zeros(60 * SAMPLE_RATE, np.float32)) == listener.finish() == []
    assert listener.work.steps == steps == len(ear.given)


def test_trailing_silence_makes_the_closing_step_only() -> None:
    listener = stream(ScriptedEar(), settings=StreamSettings(end_silence=5.0))
    listener.push(speak([0, 1, 2, 3, 4, 5, 6, 7]))
    listener.push(np.zeros(2 * SAMPLE_RATE, np.float32))
    steps = listener.work.steps
    assert listener.push(np.zeros(2 * SAMPLE_RATE, np.float32)) == []
    assert listener.work.steps == steps
    assert len(listener.push(np.zeros(2 * SAMPLE_RATE, np.float32))) == 1
    assert listener.work.steps == steps + 1


def test_memory_does_not_grow_with_the_stream() -> None:
    listener = stream(ScriptedEar())
    rng = np.random.default_rng(2)
    minute = speak([int(word) for word in rng.integers(0, 8, 150)])
    listener.push(minute)
    tracemalloc.start()
    try:
        listener.push(minute)
        before, _ = tracemalloc.get_traced_memory()
        listener.push(np.tile(minute, 10))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 8_000_000  # a segment; ten minutes are 38 MB


def test_the_hypothesis_before_is_the_draft_of_each_step() -> None:
    ear = ScriptedEar(flicker=True)
    stream(ear).push(speak([1.0, 0, 1, 2, 3, 4, 5, 1.0, 6, 7]))  # the ear checks each draft
    assert ear.drafts[0] == ()
    assert ear.drafts[1] != ()


# --- context ---------------------------------------------------------------------------------------------------


def test_the_last_words_are_context_for_the_next_segment() -> None:
    ear = ScriptedEar()
    script: Script = [0, 1, 2, 3, 1.0, 4, 5, 1.0, 6, 1.0]
    list(stream(ear, context="names", settings=StreamSettings(carry_words=3)).run([speak(script)]))
    assert ear.contexts == ["names", "names\nbravo charlie delta", "names\necho foxtrot"]
    ear = ScriptedEar()
    list(stream(ear, settings=StreamSettings(carry_words=0)).run([speak(script)]))
    assert ear.contexts == ["", "", ""]


def test_noise_is_a_segment_without_text_and_leaves_the_context_alone() -> None:
    ear = ScriptedEar()
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE // 2).astype(np.float32)
    listener = stream(ear)
    listener.push(speak([0, 1, 2, 3, 1.0]))
    ear._changes = lambda tokens: ()
    events = listener.push(np.concatenate([noise, np.zeros(SAMPLE_RATE, np.float32)]))
    assert [(event.text, event.finish_reason) for event in finals(events)] == [("", "no_speech")]
    assert len(events) == 1
    listener.push(speak([4, 5, 6, 7]))
    assert ear.contexts[-1] == "alpha bravo charlie delta"


def test_a_loop_is_shown_but_neither_committed_nor_carried_on() -> None:
    ear = ScriptedEar()
    ear.reason = "loop"
    events = list(stream(ear).run([speak([0, 1, 2, 3, 4, 5, 6, 7, 1.0, 0, 1])]))
    partials = [event for event in events if isinstance(event, Partial)]
    assert len(partials) >= 3
    assert {event.committed for event in partials} == {""}
    assert finals(events)[0].finish_reason == "loop"
    assert finals(events)[0].text == spoken(range(8))
    assert ear.contexts == ["", ""]


# --- word times ------------------------------------------------------------------------------------------------


def assert_times(found: Sequence[Word], text: str, first: float) -> None:
    assert [word.text for word in found] == text.split()
    for index, word in enumerate(found):
        start = first + index * (TONE + GAP) / SAMPLE_RATE
        assert word.start == pytest.approx(start, abs=0.02)
        assert word.end == pytest.approx(start + TONE / SAMPLE_RATE, abs=0.02)
        assert text[slice(*word.span)] == word.text


def test_finals_have_word_times_of_the_stream_if_asked() -> None:
    script: Script = [1.0, 0, 1, 2, 1.5, 3, 4, 1.0]
    first, second = finals(run(script, timestamps="word"))
    assert_times(first.words, "alpha bravo charlie", 1.0)
    assert_times(second.words, "delta echo", 1.0 + 3 * 0.4 + 1.5)
    assert [final.words for final in finals(run(script))] == [(), ()]


def test_partials_have_times_of_committed_words_that_may_lag() -> None:
    ear = ScriptedEar()
    script: Script = [1.0, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]
    events = stream(ear, timestamps="word", settings=StreamSettings(partial_words=True)).push(speak(script))
    partials = [event for event in events if isinstance(event, Partial)]
    assert len(partials[-1].words) >= 5
    for before, after in pairwise(partials):
        assert len(after.words) == len(before.committed.split())
        assert_times(after.words, before.committed, 1.0)
    assert ear.aligned == [event.committed for event in partials if event.committed]


def test_a_text_is_aligned_once_on_partials_and_never_without_being_asked() -> None:
    ear = ScriptedEar(changes=lambda tokens: tokens[:2])
    stream(ear, timestamps="word", settings=StreamSettings(partial_words=True)).push(
        speak([0, 1, 2, 3, 4, 5, 6, 7] * 2)
    )
    assert ear.aligned == ["alpha bravo"]
    ear = ScriptedEar()
    stream(ear, timestamps="word").push(speak([0, 1, 2, 3, 4, 5, 6, 7]))
    stream(ear, settings=StreamSettings(partial_words=True)).push(speak([0, 1, 2, 3, 4, 5, 6, 7]))
    assert ear.aligned == []


# --- ends and errors -------------------------------------------------------------------------------------------


def test_a_stream_that_is_finished_takes_no_more() -> None:
    ear = ScriptedEar()
    listener = stream(ear)
    listener.push(speak([0, 1]))
    assert heard(listener.finish()) == "alpha bravo"
    assert ear.closed == 1
    assert listener.finish() == listener.abort() == []
    listener.close()
    assert ear.closed == 1
    with pytest.raises(StreamEnded, match="open a new one") as caught:
        listener.push(np.zeros(1, np.float32))
    assert isinstance(caught.value, ValueError)


def test_the_end_of_the_audio_is_heard_to_its_last_sample() -> None:
    samples = speak([1.0, 0, 1])[: -GAP + 100]  # no whole frame, and no silence behind
    (final,) = finals(stream(ScriptedEar()).run([samples]))
    assert (final.text, final.end) == ("alpha bravo", len(samples) / SAMPLE_RATE)


def test_the_resampler_is_emptied_at_the_end() -> None:
    samples = soxr.resample(speak([1.0, 0, 1]), SAMPLE_RATE, 48_000)[: -3 * GAP]
    (final,) = finals(stream(ScriptedEar(), sample_rate=48_000).run([samples]))
    assert final.end == pytest.approx(len(samples) / 48_000, abs=1e-3)


def test_a_stream_of_nothing_has_no_events() -> None:
    assert run([]) == run([0.01]) == []


def test_aborting_keeps_what_is_committed() -> None:
    ear = ScriptedEar()
    listener = stream(ear)
    partial = listener.push(speak([1.0, 0, 1, 2, 3, 4, 5]))[-1]
    assert isinstance(partial, Partial)
    assert listener.abort() == [Final(partial.committed, "English", partial.start, 3.392, "cancelled")]
    assert ear.closed == 1
    assert listener.abort() == listener.finish() == []
    with pytest.raises(StreamEnded):
        listener.push(np.zeros(1, np.float32))


def test_aborting_before_anything_was_heard_tells_nothing() -> None:
    listener = stream(ScriptedEar())
    listener.push(speak([0]))
    assert listener.abort() == []


def test_leaving_the_block_or_the_iteration_lets_go_of_the_ear() -> None:
    ear = ScriptedEar()
    with stream(ear) as listener:
        listener.push(speak([0]))
    events = stream(other := ScriptedEar()).run([speak([0, 1, 2, 3, 4, 5])] * 3)
    assert next(events).text
    assert other.closed == 0
    events.close()  # type: ignore[attr-defined]
    assert (ear.closed, other.closed) == (1, 1)


def test_a_failed_step_ends_the_stream_and_loses_no_event() -> None:
    class Failing(ScriptedEar):
        def answer(self, generation: Generation) -> Future[Generation]:
            if len(self.contexts) == 2 and len(self.drafts) >= 6:
                self.error = OutputNotFinite("broken")
            return super().answer(generation)

    ear = Failing()
    script: Script = [0, 1, 2, 3, 4, 1.0, *([5, 6, 7] * 5)]
    listener = stream(ear)
    with pytest.raises(OutputNotFinite, match="broken"):
        listener.push(speak(script))
    assert ear.closed == 1
    with pytest.raises(StreamEnded):
        listener.push(np.zeros(1, np.float32))
    events = listener.abort()
    partial = events[-2]
    assert isinstance(partial, Partial)
    assert [final.text for final in finals(events)] == [spoken(range(5)), partial.committed]
    assert [final.finish_reason for final in finals(events)] == ["stop", "cancelled"]
    assert ear.closed == 1


def test_nan_is_refused_and_the_stream_goes_on_as_if_it_had_not_come() -> None:
    script: Script = [1.0, 0, 1, 2, 3, 1.0]
    samples = speak(script)
    listener = stream(ScriptedEar())
    events = listener.push(samples[:20_000])
    broken = samples[:3_000].copy()
    broken[7] = np.nan
    with pytest.raises(AudioNotFinite, match=r"first at 1\.250 s"):
        listener.push(broken)
    with pytest.raises(AudioFormatInvalid):
        listener.push([0.0])  # type: ignore[arg-type]
    assert events + listener.push(samples[20_000:]) + listener.finish() == run(script)


def test_a_detector_may_have_heard_another_stream_before() -> None:
    detector = LoudDetector()
    for _ in range(2):
        with Stream(ScriptedEar(), detector) as listener:
            listener.push(np.zeros(SAMPLE_RATE, np.float32))
        assert detector.frames == SAMPLE_RATE // 512


def test_unknown_timestamps_are_refused() -> None:
    with pytest.raises(RequestInvalid, match="'segment'"):
        stream(ScriptedEar(), timestamps="segment")


# --- asynchronous ----------------------------------------------------------------------------------------------


class SlowEar(ScriptedEar):
    """Answers when it is told to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked: asyncio.Queue[tuple[Future[Generation], Generation]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def answer(self, generation: Generation) -> Future[Generation]:
        future: Future[Generation] = Future()
        self._loop.call_soon_threadsafe(self.asked.put_nowait, (future, generation))
        return future

    async def release(self) -> None:
        future, generation = await self.asked.get()
        future.set_result(generation)


def go(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


async def gather(source: AsyncStream) -> list[Event]:
    return [event async for event in source]


@settings(steady, max_examples=30)
@given(scripts, st.lists(st.integers(1, 40_000), max_size=30))
def test_many_streams_hear_all_that_was_spoken(script: Script, sizes: list[int]) -> None:
    samples = speak(script)

    async def one(flicker: bool) -> list[Event]:
        async with AsyncStream(ScriptedEar(flicker=flicker), LoudDetector()) as source:
            reader = asyncio.create_task(gather(source))
            for chunk in chunks(samples, sizes):
                await source.push(chunk)
            await source.finish()
            return await reader

    async def work() -> None:
        for events in await asyncio.gather(*(one(bool(number % 2)) for number in range(4))):
            assert heard(events) == spoken(script)
            assert_committed_never_changes(events)

    go(work)


def test_a_stream_that_is_kept_up_with_has_the_events_of_the_other_kind() -> None:
    script: Script = [1.0, 0, 1, 2, 3, 4, 5, 6, 7, 1.0, 2, 3, 4]

    async def work() -> None:
        async with AsyncStream(ScriptedEar(), LoudDetector()) as source:
            for chunk in np.split(speak(script), range(1_600, 1_000_000, 1_600)):
                await source.push(chunk)
                await source.drain()
            await source.finish()
            events = await gather(source)
        assert heard(events) == spoken(script)
        assert len(events) >= 6

    go(work)


def test_a_stream_that_falls_behind_makes_one_larger_step() -> None:
    async def work() -> None:
        ear = SlowEar()
        source = AsyncStream(ear, LoudDetector())
        await source.push(speak([0, 1, 2]))
        future, generation = await ear.asked.get()
        for _ in range(5):
            await source.push(speak([3, 4, 5]))  # six seconds, and none of these waits
        assert len(ear.given) == 1
        future.set_result(generation)
        assert (await anext(source)).text == spoken([0, 1, 2])
        await ear.release()
        assert (await anext(source)).text == spoken([0, 1, 2] + [3, 4, 5] * 5)
        assert source.work.steps == 2
        await source.aclose()
        assert ear.closed == 1

    go(work)


def test_waiting_for_an_event_or_the_end_can_be_given_up_at_any_time() -> None:
    async def work() -> None:
        ear = SlowEar()
        source = AsyncStream(ear, LoudDetector())
        await source.push(speak([0, 1, 2]))
        for waiting in (anext(source), source.finish(), anext(source)):
            task = asyncio.ensure_future(waiting)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        await ear.release()
        await ear.release()  # the closing step
        assert [event.text for event in await gather(source)] == [spoken([0, 1, 2])] * 2

    go(work)


def test_a_cancelled_push_has_taken_nothing() -> None:
    async def work() -> None:
        source = AsyncStream(ear := ScriptedEar(), LoudDetector())
        task = asyncio.create_task(source.push(speak([0, 1, 2])))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await source.finish()
        assert await gather(source) == []
        assert ear.closed == 1

    go(work)


def test_aborting_gives_the_committed_text_and_does_not_wait_for_the_model() -> None:
    async def work() -> None:
        ear = SlowEar()
        source = AsyncStream(ear, LoudDetector())
        for _ in range(2):
            await source.push(speak([0, 1, 2]))
            await ear.release()
            await anext(source)
        await source.push(speak([0, 1, 2]))
        future, _ = await ear.asked.get()  # never answered
        await source.abort()
        assert future.cancelled()
        (final,) = finals(await gather(source))
        assert (final.text, final.finish_reason) == (spoken([0, 1, 2]), "cancelled")
        await source.abort()
        await source.aclose()
        await source.finish()
        assert ear.closed == 1
        with pytest.raises(StreamEnded):
            await source.push(np.zeros(1, np.float32))

    go(work)


def test_the_error_of_a_step_is_raised_to_all_who_wait() -> None:
    async def work() -> None:
        ear = ScriptedEar()
        source = AsyncStream(ear, LoudDetector())
        await source.push(speak([0, 1, 2, 3]))
        assert (await anext(source)).text.startswith("alpha")
        ear.error = OutputNotFinite("broken")
        await source.push(speak([4, 5, 6, 7]))
        with pytest.raises(OutputNotFinite, match="broken"):
            await source.finish()
        for _ in range(2):
            with pytest.raises(OutputNotFinite, match="broken"):
                await gather(source)
        with pytest.raises(StreamEnded) as caught:
            await source.push(np.zeros(1, np.float32))
        assert isinstance(caught.value.__cause__, OutputNotFinite)
        await source.drain()
        assert ear.closed == 1

    go(work)


def test_a_step_that_the_engine_cancels_is_an_error_too() -> None:
    async def work() -> None:
        ear = SlowEar()
        source = AsyncStream(ear, LoudDetector())
        await source.push(speak([0, 1, 2]))
        (await ear.asked.get())[0].cancel()
        with pytest.raises(StepCancelled):
            await anext(source)

    go(work)


def test_a_minute_of_audio_may_wait_and_no_more() -> None:
    async def work() -> None:
        ear = SlowEar()
        source = AsyncStream(ear, LoudDetector())
        await source.push(speak([0, 1, 2]))
        await ear.asked.get()
        await source.push(np.zeros(61 * SAMPLE_RATE, np.float32))  # one chunk may be of any length
        with pytest.raises(StreamBehind, match="61 s") as caught:
            await source.push(np.zeros(1, np.float32))
        assert isinstance(caught.value, BufferError)
        await source.aclose()
        assert await gather(source) == []

    go(work)


def test_audio_that_a_slow_model_leaves_behind_counts_too() -> None:
    """Each answer let one segment through, and what waited behind it was neither counted nor refused."""

    async def work() -> None:
        ear = SlowEar()
        source = AsyncStream(ear, LoudDetector())
        utterances = speak([0, 1.0] * 10)  # over ten seconds, and ten segments
        await source.push(utterances)
        with pytest.raises(StreamBehind):
            for _ in range(20):
                await ear.release()
                await source.push(utterances)
        await source.aclose()

    go(work)


def test_draining_waits_until_all_is_in_a_step() -> None:
    async def work() -> None:
        ear = SlowEar()
        source = AsyncStream(ear, LoudDetector())
        await source.push(speak([0, 1.0, 1, 1.0, 2, 1.0]))
        drained = asyncio.create_task(source.drain())
        for _ in range(2):
            await ear.release()
            assert not drained.done()
        await ear.release()
        await drained
        await source.aclose()

    go(work)


def test_bad_chunks_leave_the_stream_usable_be_they_short_or_long() -> None:
    async def work() -> None:
        async with AsyncStream(ScriptedEar(), LoudDetector()) as source:
            for count in (10, 100_000):
                with pytest.raises(AudioNotFinite):
                    await source.push(np.full(count, np.nan, np.float32))
            with pytest.raises(AudioFormatInvalid):
                await source.push("audio")  # type: ignore[arg-type]
            await source.push(speak([0, 1]))
            await source.finish()
            assert heard(await gather(source)) == "alpha bravo"

    go(work)


def test_the_resampler_is_emptied_at_the_end_of_an_asynchronous_stream_too() -> None:
    samples = soxr.resample(speak([1.0, 0, 1]), SAMPLE_RATE, 48_000)[: -3 * GAP]

    async def work() -> None:
        async with AsyncStream(ScriptedEar(), LoudDetector(), sample_rate=48_000) as source:
            await source.push(samples)
            await source.finish()
            (final,) = finals(await gather(source))
            assert final.end == pytest.approx(len(samples) / 48_000, abs=1e-3)

    go(work)


def test_a_stream_that_was_given_nothing_ends_at_once() -> None:
    async def work() -> None:
        for end in (AsyncStream.finish, AsyncStream.abort, AsyncStream.aclose):
            ear = ScriptedEar()
            source = AsyncStream(ear, LoudDetector())
            ending: Awaitable[None] = end(source)
            await ending
            assert await gather(source) == []
            assert ear.closed == 1

    go(work)


# --- text that nobody said -------------------------------------------------------------------------------------


def test_what_nobody_said_is_dropped_unless_it_was_committed() -> None:
    ear = ScriptedEar()
    ear.made_up = True
    events = list(stream(ear, settings=StreamSettings(step_seconds=10.0)).run([speak([0, 1, 2.0])]))
    assert [(event.text, event.finish_reason) for event in finals(events)] == [("", "no_speech")]
    assert len(ear.doubted) == 1
    ear = ScriptedEar()
    ear.made_up = True
    events = list(stream(ear).run([speak([0, 1, 2, 3, 4, 5, 6, 7, 2.0])]))
    assert heard(events) == spoken([0, 1, 2, 3, 4, 5, 6, 7])
    assert ear.doubted == []


def test_what_was_dropped_is_no_context() -> None:
    ear = ScriptedEar()
    ear.made_up = True
    list(stream(ear, context="names", settings=StreamSettings(step_seconds=10.0)).run([speak([0, 1, 2.0, 2, 3, 2.0])]))
    assert ear.contexts == ["names", "names"]


def test_a_closed_stream_begins_nothing_with_what_it_still_holds() -> None:
    """A thread that waited for its turn went on with the audio after the close, and nobody released its ear."""
    ear = ScriptedEar()
    listener = Listener(ear, LoudDetector(), StreamSettings(), "", False, WindowSpec())
    listener.take(speak([0.5, 0, 1, 2, 3, 4, 5, 1.0]))
    listener.close()
    assert listener.advance(last=True) is None
    assert (listener.work.steps, listener.collect()) == (0, [])
