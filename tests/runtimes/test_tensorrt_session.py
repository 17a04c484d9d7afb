"""TensorRT sessions against a stand-in for the GPU: the same answers, no misuse, nothing left behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import TINY
from tests.conftest import Recording
from tests.trt_folder import write_folder
from tests.trt_standin import Machine, Misused

import qwen3asr
from qwen3asr import cli
from qwen3asr.audio import read_audio
from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.engines import open_engines
from qwen3asr.errors import BackendFailed, EngineClosed, EnginesInvalid, GpuMemoryShort, KvMemoryShort
from qwen3asr.features import log_mel
from qwen3asr.generate import generate
from qwen3asr.prompt import PromptBuilder
from qwen3asr.sessions import tensorrt
from qwen3asr.sessions.onnxruntime import OrtDecoder, OrtEncoder
from qwen3asr.sessions.tensorrt import TrtDecoder, TrtEncoder
from qwen3asr.sessions.trt_steps import step_sizes
from qwen3asr.tokenizer import open_tokenizer
from qwen3asr_export import export
from qwen3asr_export.tensorrt import Settings

SMALL = Settings(capacity=256, slots=6, chunk=48, draft=4, windows=3)
SPOKEN = ("english", "german", "spanish", "chinese", "english-long", "german-short")


def _bundle(kind: str, folders: pytest.TempPathFactory, settings: Settings) -> Bundle:
    target = folders.mktemp("standard") / kind
    bundle = export(TINY / kind, target, precision="fp32", dialect="standard", check=False)
    write_folder(bundle, settings)
    return open_bundle(target)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return _bundle("asr", tmp_path_factory, SMALL)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """For whole recordings; prompts are cut in chunks of 100 tokens all the same."""
    return _bundle("asr", tmp_path_factory, Settings(capacity=1024, slots=5, chunk=200, draft=40, windows=2))


@pytest.fixture(scope="module")
def aligner(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return _bundle("aligner", tmp_path_factory, Settings(capacity=1024, chunk=100, windows=1))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    made.install(monkeypatch)
    return made


def _open(bundle: Bundle, slots: int = 6, **options: Any) -> tuple[TrtEncoder, TrtDecoder]:
    import tensorrt as module

    folder = bundle.folder / "tensorrt" / "h100-trt11.4.0"
    return tensorrt.open_sessions(
        module, folder, open_engines(folder, bundle.hashes), bundle.spec, slots=slots, **options
    )


@pytest.fixture
def decoder(machine: Machine, bundle: Bundle) -> Iterator[TrtDecoder]:
    _, made = _open(bundle)
    machine.runs.clear()
    yield made
    made.close()


@pytest.fixture
def oracle(bundle: Bundle) -> OrtDecoder:
    return OrtDecoder(bundle.component("decoder"), bundle.spec, slots=6, capacity=256, threads=1)


def _ids(bundle: Bundle, length: int, seed: int, rows: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, bundle.spec.audio_pad, (rows, length))


def _feed(session: Any, ids: np.ndarray, slot: int, past: int = 0, take: list[int] | None = None) -> list[Any]:
    taken = np.array([[ids.shape[1] - 1] if take is None else take], np.int64)
    picked = session.run(ids, np.zeros((0, 64), np.float32), taken, range(slot, slot + 1), np.array([past]))
    return [*picked.tokens[0].tolist(), *picked.logprobs[0].round(4).tolist()]


def _step(session: Any, tokens: list[int], past: list[int], first: int = 0) -> list[tuple[int, float]]:
    rows, no_audio = len(tokens), np.zeros((0, 64), np.float32)
    take, slots = np.zeros((rows, 1), np.int64), range(first, first + rows)
    picked = session.run(np.array(tokens)[:, None], no_audio, take, slots, np.array(past))
    return list(zip(picked.tokens[:, 0].tolist(), picked.logprobs[:, 0].round(4).tolist(), strict=True))


# --- whole recognisers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(large: Bundle, aligner: Bundle) -> Iterator[tuple[qwen3asr.Recognizer, qwen3asr.Recognizer, Machine]]:
    """On the CPU and on the stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        made = Machine()
        made.install(patch)
        with (
            qwen3asr.load(large.folder, aligner=aligner.folder, device="cpu") as there,
            qwen3asr.load(large.folder, aligner=aligner.folder) as here,
        ):
            yield there, here, made


Models = tuple[qwen3asr.Recognizer, qwen3asr.Recognizer, Machine]


def test_engines_in_the_bundle_are_chosen_and_fill_their_slots(models: Models) -> None:
    assert isinstance(models[1].engine._decoder._session, TrtDecoder)
    assert (models[1].kv_cache.slots, models[1].kv_cache.capacity) == (5, 1023)


def test_recordings_give_the_text_and_the_word_times_of_onnx_runtime(
    models: Models, recordings: dict[str, Recording]
) -> None:
    there, here, _ = models
    for name in (*SPOKEN, "silence"):
        wanted, got = (model.transcribe(recordings[name].path, timestamps="word") for model in (there, here))
        assert (got.text, got.language, got.words and [(w.text, w.start, w.end) for w in got.words]) == (
            recordings[name].text, wanted.language, wanted.words and [(w.text, w.start, w.end) for w in wanted.words],
        )  # fmt: skip


def test_a_batch_of_mixed_lengths_beside_streams(models: Models, recordings: dict[str, Recording]) -> None:
    """Slots are swapped, prefixes leased, drafts verified, and steps run at every number of rows."""
    there, here, machine = models
    clip = read_audio(recordings["english-long"].path).samples
    chunks = np.array_split(clip, 12)

    def listen(model: qwen3asr.Recognizer) -> list[Any]:
        with model.stream() as stream:
            return list(stream.run(chunks))

    paths = [recordings[name].path for name in (*SPOKEN, "silence", *SPOKEN)]
    wanted = listen(there)
    machine.launches.clear()
    with ThreadPoolExecutor(3) as pool:
        streams = [pool.submit(listen, here) for _ in range(2)]
        results = pool.submit(lambda: here.transcribe_batch(paths))
        for stream in streams:
            assert [(e.text, e.start, e.end) for e in stream.result()] == [(e.text, e.start, e.end) for e in wanted]
        truth = [recordings[name].text for name in (*SPOKEN, "silence", *SPOKEN)]
        assert [result.text for result in results.result()] == truth
    assert len(machine.launches) > 1  # graphs of several numbers of rows


@pytest.mark.parametrize(("engine", "on_gpu"), [("tensorrt", True), ("onnxruntime", False)])
def test_the_command_line_names_the_engine(
    machine: Machine, large: Bundle, aligner: Bundle, recordings: dict[str, Recording],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, engine: str, on_gpu: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("signal.signal", lambda *_: None)
    spoken, free = recordings["english"], machine.free
    for command in (["transcribe", large.folder], ["align", aligner.folder, "--text", spoken.text]):
        machine.runs.clear()
        with pytest.raises(SystemExit) as end:
            cli.main([*map(str, command), str(spoken.path), "--engine", engine])
        assert not end.value.code
        said = [line.split("\t")[-1] for line in capsys.readouterr().out.splitlines()]
        assert " ".join(said) == spoken.text
        assert bool(machine.runs) is on_gpu
    assert (machine.held, machine.free) == (0, free)


def test_alignment_of_a_known_text(models: Models, recordings: dict[str, Recording]) -> None:
    there, here, _ = models
    clip = recordings["german"]
    assert here.align(clip.path, clip.text) == there.align(clip.path, clip.text)


def test_tokens_are_those_of_the_one_row_oracle(
    machine: Machine, large: Bundle, recordings: dict[str, Recording]
) -> None:
    """Both sessions from the audio on."""
    spec, prompts = large.spec, PromptBuilder(open_tokenizer(large.folder, large.spec))
    ort = (
        OrtEncoder(large.component("encoder"), threads=1),
        OrtDecoder(large.component("decoder"), spec, slots=1, capacity=1024, threads=1),
    )
    texts = []
    for encoder, decoder in (ort, _open(large, slots=1)):
        (audio,) = Encoder(encoder, spec.windows).encode([log_mel(read_audio(recordings["english"].path).samples)])
        loop = Decoder(decoder, spec.audio_pad, spec.hidden)
        texts.append(generate(loop, prompts.transcription(audio), eos=spec.eos, budget=60))
    assert texts[0].tokens == texts[1].tokens
    assert len(texts[0].tokens) > 4
    np.testing.assert_allclose(texts[0].logprobs, texts[1].logprobs, atol=1e-4)


# --- slots ---------------------------------------------------------------------------------------------------------


def test_rows_of_different_lengths_step_as_on_the_cpu(decoder: TrtDecoder, oracle: OrtDecoder, bundle: Bundle) -> None:
    lengths = [5, 40, 17, 3, 60, 200]
    for session in (decoder, oracle):
        for slot, length in enumerate(lengths):
            _feed(session, _ids(bundle, length, slot), slot)
    for rows in (1, 2, 3, 4, 5, 6):
        step = [11 + at for at in range(rows)], lengths[:rows]
        assert _step(decoder, *step) == _step(oracle, *step)


def test_rows_too_many_in_a_graph_leave_every_slot_as_it_was(decoder: TrtDecoder, bundle: Bundle) -> None:
    """Slots 3 to 5 hold prefixes, or prompts on their way; one is full to its last token."""
    full = decoder.capacity
    for slot, length in enumerate((9, 9, 9, 30, full - 1, 70)):
        _feed(decoder, _ids(bundle, length, slot), slot)
    before = [_feed(decoder, np.array([[5]]), slot, length) for slot, length in ((3, 30), (4, full - 1), (5, 70))]
    for at in range(5):
        _step(decoder, [1, 2, 3], [9 + at] * 3)  # in a graph of four rows
        _step(decoder, [1, 2, 3, 4, 5], [9 + at, 9 + at, 9 + at, 31, full - 1])  # in one of six
    assert [_feed(decoder, np.array([[5]]), slot, length) for slot, length in ((3, 30), (5, 70))] == before[::2]
    assert _feed(decoder, np.array([[5]]), 4, full - 1) == before[1]


def test_a_retry_of_a_single_row_touches_its_own_slot_only(
    decoder: TrtDecoder, oracle: OrtDecoder, bundle: Bundle
) -> None:
    for session in (decoder, oracle):
        for slot in range(6):
            _feed(session, _ids(bundle, 20 + slot, slot), slot)
    assert _step(decoder, [7], [24], first=4) == _step(oracle, [7], [24], first=4)
    assert _step(decoder, [7, 8], [23, 24], first=3) == _step(oracle, [7, 8], [23, 24], first=3)
    assert _step(decoder, [1] * 6, list(range(20, 26))) == _step(oracle, [1] * 6, list(range(20, 26)))


def test_swapped_slots_answer_in_each_others_place(decoder: TrtDecoder, bundle: Bundle) -> None:
    for slot, length in ((0, 31), (4, 12), (2, 25)):
        _feed(decoder, _ids(bundle, length, slot), slot)
    before = [_feed(decoder, np.array([[3]]), slot, length) for slot, length in ((0, 31), (4, 12), (2, 25))]
    decoder.swap(0, 4, 32)
    decoder.swap(2, 2, 25)
    after = [_feed(decoder, np.array([[3]]), slot, length) for slot, length in ((4, 31), (0, 12), (2, 25))]
    assert after == before


def test_tokens_past_the_capacity_never_reach_the_device(decoder: TrtDecoder, machine: Machine, bundle: Bundle) -> None:
    assert decoder.capacity == 255
    with pytest.raises(ValueError, match="12 tokens behind 250"):
        _feed(decoder, _ids(bundle, 12, 0), 0, 250)
    with pytest.raises(ValueError, match="slots"):
        _feed(decoder, _ids(bundle, 2, 0), 6)
    assert machine.runs == []
    decoder._capacity = 300
    with pytest.raises(Misused, match="end of the cache"):  # the stand-in would know
        _feed(decoder, _ids(bundle, 12, 0), 0, 250)


def test_slot_bytes_are_what_is_allocated(machine: Machine, bundle: Bundle) -> None:
    frees = []
    for slots in (2, 5):
        _, decoder = _open(bundle, slots=slots, cuda_graphs=False)
        frees.append(machine.free)
        assert decoder.slot_bytes == 2 * bundle.spec.layers * bundle.spec.kv_heads * 256 * bundle.spec.head_dim * 4
        row = decoder.slot_bytes
        decoder.close()
    assert 3 * row <= frees[0] - frees[1] < 3 * row + 1000  # steps of more rows take a few bytes


# --- calls larger than a profile -----------------------------------------------------------------------------------


def test_long_calls_are_cut_as_the_engine_asks(
    decoder: TrtDecoder, oracle: OrtDecoder, bundle: Bundle, machine: Machine
) -> None:
    ids, rng = _ids(bundle, 130, 1), np.random.default_rng(2)
    ids[0, 20:100] = bundle.spec.audio_pad
    audio, take = rng.normal(0, 1, (80, bundle.spec.hidden)).astype(np.float32), np.array([[129, 3, 50, 50, 49]])
    six = np.arange(50, 56)[None]  # one more than a run answers
    for asked in (take, np.arange(130)[None], six, np.zeros((1, 0), np.int64), np.array([[129]])):
        got, wanted = (session.run(ids, audio, asked, range(2, 3), np.array([0])) for session in (decoder, oracle))
        np.testing.assert_array_equal(got.tokens, wanted.tokens)
        np.testing.assert_allclose(got.logprobs, wanted.logprobs, atol=1e-4)
        assert got.tokens.dtype == np.int64
        assert got.logprobs.dtype == np.float32
    assert max(run["ids"][1] for run in machine.runs) == 48
    assert max(run["take"][1] for run in machine.runs) == 5
    assert min(run["take"][1] for run in machine.runs) == 1


def test_several_rows_of_several_tokens(decoder: TrtDecoder, oracle: OrtDecoder, bundle: Bundle) -> None:
    ids = _ids(bundle, 9, 4, rows=3)
    ids[:, 2:5] = bundle.spec.audio_pad
    audio = np.random.default_rng(5).normal(0, 1, (9, bundle.spec.hidden)).astype(np.float32)
    take, past = np.array([[0, 8], [8, 1], [4, 4]]), np.zeros(3, np.int64)
    got, wanted = (session.run(ids, audio, take, range(1, 4), past) for session in (decoder, oracle))
    np.testing.assert_array_equal(got.tokens, wanted.tokens)
    np.testing.assert_allclose(got.logprobs, wanted.logprobs, atol=1e-4)


def test_a_single_audio_row_is_no_step(decoder: TrtDecoder, oracle: OrtDecoder, bundle: Bundle) -> None:
    """The last row of a prompt, by itself behind a chunk's end."""
    audio = np.full((1, bundle.spec.hidden), 0.3, np.float32)
    pad, first = np.array([[bundle.spec.audio_pad]]), np.zeros((1, 1), np.int64)
    got, wanted = (session.run(pad, audio, first, range(1), np.zeros(1, int)) for session in (decoder, oracle))
    assert (got.tokens, got.logprobs.round(4)) == (wanted.tokens, wanted.logprobs.round(4))


@pytest.mark.parametrize(("tokens", "profile"), [(1, (1, 1)), (48, (1, 48))])
def test_no_shape_is_padded(decoder: TrtDecoder, machine: Machine, bundle: Bundle, tokens: int, profile: Any) -> None:
    _feed(decoder, _ids(bundle, tokens, 0), 1)
    assert machine.runs[-1]["ids"] == profile


def test_windows_are_encoded_in_the_profile_that_fits(machine: Machine, bundle: Bundle) -> None:
    encoder, _ = _open(bundle)
    ort, rng = OrtEncoder(bundle.component("encoder"), threads=1), np.random.default_rng(3)
    for windows, frames in ((1, 100), (3, 800), (2, 300), (1, 800)):
        mel, valid = rng.normal(0, 1, (windows, 128, frames)).astype(np.float32), np.full(windows, frames - 7)
        np.testing.assert_allclose(encoder.run(mel, valid), ort.run(mel, valid), atol=1e-5)
    assert encoder.batch_windows == 3
    with pytest.raises(EnginesInvalid, match=r"encoder.engine takes no .*\(4, 128, 100\)"):
        encoder.run(np.zeros((4, 128, 100), np.float32), np.full(4, 100))


# --- graphs --------------------------------------------------------------------------------------------------------


def test_graphs_are_for_powers_of_two_then_each_16_and_all() -> None:
    assert [step_sizes(slots) for slots in (1, 2, 3, 6, 8)] == [(1,), (1, 2), (1, 2, 3), (1, 2, 4, 6), (1, 2, 4, 8)]
    assert step_sizes(16) == (1, 2, 4, 8, 16)
    assert step_sizes(40) == (1, 2, 4, 8, 16, 32, 40)
    assert min(size for size in step_sizes(128) if size >= 65) == 80


def test_a_step_is_one_launch_one_wait_and_the_smallest_graph(decoder: TrtDecoder, machine: Machine) -> None:
    for rows, size in ((1, 1), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6)):
        for log in (machine.runs, machine.launches, machine.done):
            log.clear()
        _step(decoder, [1] * rows, [3] * rows)
        assert [run["ids"] for run in machine.runs] == [(size, 1)]
        assert sum(machine.launches.values()) == 1
        assert machine.done == {"synchronize": 1}  # copies are the graph's own


def test_prefills_copy_no_more_than_they_must(decoder: TrtDecoder, machine: Machine, bundle: Bundle) -> None:
    machine.done.clear()
    _feed(decoder, _ids(bundle, 30, 0), 3)
    assert machine.done == {"cudaMemcpyHostToDevice": 4, "cudaMemcpyDeviceToHost": 2, "synchronize": 1}


def test_prefills_between_steps_leave_the_graphs_good(decoder: TrtDecoder, oracle: OrtDecoder, bundle: Bundle) -> None:
    for slot in (0, 1, 2, 3):
        for session in (decoder, oracle):
            _feed(session, _ids(bundle, 20 * slot + 5, slot), slot)
        rows = [5, 25, 45, 65][: slot + 1]
        assert _step(decoder, [4] * len(rows), rows) == _step(oracle, [4] * len(rows), rows)


def test_answers_stay_when_the_next_call_is_made(decoder: TrtDecoder, bundle: Bundle) -> None:
    no_audio, first = np.zeros((0, bundle.spec.hidden), np.float32), np.zeros((1, 1), np.int64)
    for length in (1, 30):
        calls = [(_ids(bundle, length, seed), no_audio, first, range(1), np.zeros(1, np.int64)) for seed in (1, 2)]
        picked = decoder.run(*calls[0])
        before = picked.logprobs.copy()
        assert decoder.run(*calls[1]).logprobs != before
        assert picked.logprobs == before


def test_without_graphs_steps_are_the_same(machine: Machine, bundle: Bundle, oracle: OrtDecoder) -> None:
    _, decoder = _open(bundle, cuda_graphs=False)
    for session in (decoder, oracle):
        _feed(session, _ids(bundle, 20, 0), 0)
        _feed(session, _ids(bundle, 10, 1), 1)
    assert _step(decoder, [4, 5], [20, 10]) == _step(oracle, [4, 5], [20, 10])
    assert not machine.graphs


def test_what_cannot_be_captured_runs_without_and_says_so(
    machine: Machine, bundle: Bundle, oracle: OrtDecoder, caplog: pytest.LogCaptureFixture
) -> None:
    machine.captures = False
    _, decoder = _open(bundle)
    assert "steps of 4 rows run without a CUDA graph" in caplog.text
    assert _step(decoder, [4, 5, 6], [0, 0, 0]) == _step(oracle, [4, 5, 6], [0, 0, 0])


# --- threads, failures, memory -------------------------------------------------------------------------------------


def test_the_second_gpu_is_used_from_any_thread(machine: Machine, bundle: Bundle) -> None:
    """CUDA's current GPU is a thread's own; the engine's loop is another thread than that which loaded it."""
    machine.gpus = 2
    encoder, decoder = _open(bundle, index=1)
    machine.thread.index = 0
    answers = []

    def work() -> None:
        answers.append(_feed(decoder, _ids(bundle, 20, 0), 0))
        answers.append(_step(decoder, [1], [20]))
        encoder.run(np.zeros((1, 128, 100), np.float32), np.array([100]))
        decoder.swap(0, 1, 20)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(answers) == 2
    assert machine.streams
    decoder.close()
    assert machine.held == 0
    assert machine.thread.index == 0  # whoever runs the garbage collector keeps the GPU that it had


def test_a_failed_call_leaves_the_next_one_good(decoder: TrtDecoder, machine: Machine, bundle: Bundle) -> None:
    before = _feed(decoder, _ids(bundle, 20, 0), 0)
    context = decoder._contexts[1]._context
    good, type(context).execute_async_v3 = type(context).execute_async_v3, lambda self, stream: self._no("a fault")
    try:
        with pytest.raises(BackendFailed, match="TensorRT failed: a fault"):
            _feed(decoder, _ids(bundle, 33, 1), 0)
    finally:
        type(context).execute_async_v3 = good
    assert not next(iter(machine.streams.values())).queue  # nothing of it is left to run
    assert _feed(decoder, _ids(bundle, 20, 0), 0) == before


def test_everything_is_freed_on_close_and_when_nobody_holds_it(machine: Machine, bundle: Bundle) -> None:
    free = machine.free
    encoder, decoder = _open(bundle)
    assert machine.held > 20
    decoder.close()
    encoder.close()
    gc.collect()
    assert (machine.held, machine.free) == (0, free)
    with pytest.raises(EngineClosed, match="load it again"):
        _feed(decoder, _ids(bundle, 20, 0), 0)
    with pytest.raises(EngineClosed, match="load it again"):
        _step(decoder, [1], [0])
    with pytest.raises(EngineClosed, match="load it again"):
        decoder.swap(0, 1, 2)
    with pytest.raises(EngineClosed, match="load it again"):
        encoder.run(np.zeros((1, 128, 100), np.float32), np.array([100]))
    sessions = _open(bundle)
    _step(sessions[1], [1], [0])
    del sessions
    gc.collect()
    assert (machine.held, machine.free) == (0, free)


def test_a_closed_recogniser_holds_nothing_on_the_gpu_nor_does_its_aligner(
    machine: Machine, large: Bundle, aligner: Bundle, recordings: dict[str, Recording]
) -> None:
    free, spoken = machine.free, recordings["english"]
    model = qwen3asr.load(large.folder, aligner=aligner.folder)
    assert model.transcribe(spoken.path, timestamps="word").text == spoken.text
    size = model.kv_cache
    for _ in range(2):
        model.close()
        assert (machine.held, machine.free) == (0, free)
    assert model.kv_cache == size
    with pytest.raises(EngineClosed, match="load it again"):
        model.transcribe(spoken.path)
    with pytest.raises(EngineClosed, match="load it again"):
        model.align(spoken.path, spoken.text)


@contextmanager
def _held_encoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Encoders wait; the first event tells that one does, the second lets them go on."""
    reached, go, run = threading.Event(), threading.Event(), TrtEncoder.run

    def held(session: TrtEncoder, mel: Any, frames: Any) -> Any:
        reached.set()
        assert go.wait(60)
        return run(session, mel, frames)

    monkeypatch.setattr(TrtEncoder, "run", held)
    try:
        yield reached, go
    finally:
        go.set()


def test_the_gpu_is_freed_when_the_request_on_its_way_is_done(
    machine: Machine, large: Bundle, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken, model = recordings["english"], qwen3asr.load(large.folder)
    with ThreadPoolExecutor(2) as threads, _held_encoder(monkeypatch) as (reached, go):
        text = threads.submit(model.transcribe, spoken.path)
        assert reached.wait(60)
        closed = threads.submit(model.close, drain=True)
        while not model._callers.closed:
            reached.wait(0.001)
        assert machine.held
        go.set()
        assert text.result(60).text == spoken.text
        closed.result(60)
    assert machine.held == 0


def test_an_aligner_is_freed_when_it_has_aligned(
    machine: Machine, aligner: Bundle, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken, model = recordings["english"], qwen3asr.load_aligner(aligner.folder)
    wanted = model.align(spoken.path, spoken.text)
    with ThreadPoolExecutor(2) as threads, _held_encoder(monkeypatch) as (reached, go):
        words = threads.submit(model.align, spoken.path, spoken.text)
        assert reached.wait(60)
        closed = threads.submit(model.close)
        assert machine.held
        go.set()
        assert words.result(60) == wanted
        closed.result(60)
    assert machine.held == 0
    with pytest.raises(EngineClosed, match="load it again"):
        model.align(spoken.path, spoken.text)


def test_slots_that_do_not_fit_are_refused_with_those_that_do(machine: Machine, bundle: Bundle) -> None:
    _, decoder = _open(bundle, slots=1)
    row = decoder.slot_bytes
    used = (8 << 30) - machine.free - row
    decoder.close()
    machine.free = used + 5 * row + 1_000 + tensorrt.SLACK_BYTES  # a thousand for inputs of more rows
    with pytest.raises(KvMemoryShort, match=r"slots=6 need .* 5 would fit"):
        _open(bundle, slots=6)
    _open(bundle, slots=5)[1].close()
    gc.collect()
    assert machine.held == 0
    machine.free = 1000
    with pytest.raises(GpuMemoryShort, match=r"0 MB for activations do not fit .* fewer slots=") as caught:
        _open(bundle)
    assert caught.value.__traceback__ is not None  # which holds the call's own objects
    assert not machine.memory
    assert not machine.streams
    machine.free = 8 << 30
    assert len(_step(_open(bundle)[1], [1], [0])) == 1
