"""Running on NVIDIA GPUs. What needs none is run on the CPU: the same bindings, caches and copies in host memory."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tests.conftest import ROOT, Recording
from tests.trt_standin import Machine

import qwen3asr
from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.engine import Engine
from qwen3asr.errors import (
    BackendFailed,
    BundleInvalid,
    DeviceUnavailable,
    EngineClosed,
    ExtraMissing,
    GpuMemoryShort,
)
from qwen3asr.recognizer import Recognizer
from qwen3asr.sessions import opening, providers
from qwen3asr.sessions.base import Picked
from qwen3asr.sessions.caches import KvCaches
from qwen3asr.sessions.cuda_memory import check_gpu
from qwen3asr.sessions.device import DeviceDecoder
from qwen3asr.sessions.onnxruntime import OrtDecoder, OrtEncoder
from qwen3asr.sessions.pieces import Limits
from qwen3asr.sessions.providers import CPU, PROVIDERS, Provider
from qwen3asr.tokenizer import open_tokenizer
from qwen3asr_export import export

TINY = ROOT / "examples" / "tiny"
CUDA = PROVIDERS["cuda"](0, "fp32", Path())
CAPTURING = Provider(CPU.name, captures="gpu_graph_id")  # the CPU ignores the option: the numbers can be watched


@pytest.fixture(scope="module")
def bundle(asr_bundle: Path) -> Bundle:
    return open_bundle(asr_bundle)


def _device(bundle: Bundle, provider: Provider = CPU, slots: int = 3, capacity: int = 256) -> DeviceDecoder:
    return DeviceDecoder(bundle.component("decoder"), bundle.spec, provider, slots=slots, capacity=capacity)


def _host(bundle: Bundle, slots: int = 3, capacity: int = 256) -> OrtDecoder:
    return OrtDecoder(bundle.component("decoder"), bundle.spec, slots=slots, capacity=capacity)


def _run(session: Any, bundle: Bundle, ids: np.ndarray, first: int, past: list[int], wanted: int = 1) -> Picked:
    no_audio = np.zeros((0, bundle.spec.hidden), np.float32)
    take = np.tile(np.arange(ids.shape[1])[-wanted:], (len(ids), 1)) if wanted else np.zeros((len(ids), 0), np.int64)
    answer: Picked = session.run(ids, no_audio, take, range(first, first + len(ids)), np.array(past))
    return answer


def _ids(bundle: Bundle, length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, bundle.spec.audio_pad, (1, length))


# --- the device's path, in host memory ---------------------------------------------------------------------------


def test_bound_on_a_device_it_writes_what_it_writes_on_the_host(
    bundle: Bundle, recordings: dict[str, Recording]
) -> None:
    """Several at a time, so that rows join, leave and are swapped."""
    spec = bundle.spec
    encoder = Encoder(OrtEncoder(bundle.component("encoder"), batch_windows=4), spec.windows)
    decoder = Decoder(_device(bundle, slots=2, capacity=1024), spec.audio_pad, spec.hidden)
    engine = Engine(encoder, decoder, spec.eos)
    with Recognizer(bundle, open_tokenizer(bundle.folder, spec), engine) as model:
        wanted = [recordings[name] for name in ("english", "chinese", "german-short", "spanish", "german")]
        found = model.transcribe_batch([recording.path for recording in wanted])
    assert [(result.text, result.language) for result in found] == [(r.text, r.language) for r in wanted]


@pytest.mark.parametrize("provider", [CPU, CAPTURING], ids=["plain", "captured"])
def test_answers_equal_those_of_the_host_token_for_token(bundle: Bundle, provider: Provider) -> None:
    """Prefill in chunks, a draft, rows of different lengths, a swap, a slot used again."""
    sessions = (_host(bundle), _device(bundle, provider))
    heard = []
    for session in sessions:
        answers = [_run(session, bundle, _ids(bundle, 40, 1), 0, [0])]
        answers += [_run(session, bundle, _ids(bundle, 17, 2), 1, [0], wanted=0)]
        answers += [_run(session, bundle, _ids(bundle, 9, 3), 1, [17], wanted=4)]
        answers += [_run(session, bundle, np.array([[5 + at], [6 + at]]), 0, [40 + at, 26 + at]) for at in range(3)]
        session.swap(0, 1, 43)
        answers += [_run(session, bundle, np.array([[8], [9]]), 0, [29, 43])]
        answers += [_run(session, bundle, _ids(bundle, 12, 4), 0, [0])]
        answers += [_run(session, bundle, np.array([[3]]), 1, [44])]
        heard.append(answers)
    for host, device in zip(*heard, strict=True):
        np.testing.assert_array_equal(host.tokens, device.tokens)
        np.testing.assert_array_equal(host.logprobs, device.logprobs)


def test_the_standard_dialect_runs_bound_on_a_device_too(standard: Bundle) -> None:
    sessions = (_host(standard), _device(standard))
    found = [_run(session, standard, _ids(standard, 30, 1), 1, [0], wanted=5).tokens.tolist() for session in sessions]
    assert found[0] == found[1]


def test_audio_goes_to_the_device_and_a_shorter_clip_after_it(bundle: Bundle) -> None:
    pad, rows = bundle.spec.audio_pad, np.random.default_rng(7).normal(0, 1, (4, bundle.spec.hidden))
    take = np.array([[5]])
    for audio in (rows.astype(np.float32), rows[:2].astype(np.float32)):
        ids = np.array([[1, *[pad] * len(audio), *[2] * (5 - len(audio))]])
        host, device = (
            session.run(ids, audio, take, range(1), np.zeros(1, np.int64))
            for session in (_host(bundle), _device(bundle))
        )
        assert host.logprobs.tolist() == device.logprobs.tolist()


def test_where_nothing_is_wanted_no_tensor_on_the_device_is_empty(bundle: Bundle) -> None:
    session = _device(bundle)
    picked = _run(session, bundle, _ids(bundle, 20, 1), 0, [0], wanted=0)
    assert picked.tokens.shape == picked.logprobs.shape == (1, 0)
    assert all(0 not in value.shape() for value in session._binding(range(1), False)._values.values())


def test_what_was_given_and_answered_is_left_alone_by_the_next_run(bundle: Bundle) -> None:
    session = _device(bundle)
    _run(session, bundle, _ids(bundle, 20, 1), 0, [0])
    given = np.array([[4]])
    first = _run(session, bundle, given, 0, [20])
    kept = first.tokens.tolist(), first.logprobs.tolist()
    _run(session, bundle, np.array([[11]]), 0, [21])
    assert (first.tokens.tolist(), first.logprobs.tolist()) == kept
    assert given.tolist() == [[4]]


def test_a_swap_leaves_the_other_rows_alone(bundle: Bundle) -> None:
    session = _device(bundle)
    _run(session, bundle, _ids(bundle, 20, 5), 1, [0])
    before = _run(session, bundle, np.array([[9]]), 1, [20]).logprobs.tolist()
    for slot in (0, 2):
        _run(session, bundle, _ids(bundle, 100, slot), slot, [0])
    session.swap(0, 2, 100)
    assert _run(session, bundle, np.array([[9]]), 1, [20]).logprobs.tolist() == before


def test_a_run_that_fails_on_a_device_is_our_error_and_the_next_one_works(bundle: Bundle) -> None:
    session = _device(bundle)
    before = _run(session, bundle, _ids(bundle, 10, 7), 0, [0]).logprobs.tolist()
    with pytest.raises(BackendFailed, match="ONNX Runtime failed"):
        _run(session, bundle, np.full((1, 10), bundle.spec.vocab + 5), 0, [0])
    assert _run(session, bundle, _ids(bundle, 10, 7), 0, [0]).logprobs.tolist() == before


def test_a_16_bit_cache_is_half_as_large_and_answers_alike(bundle: Bundle, half: Bundle) -> None:
    """ONNX Runtime has 16-bit attention on the CPU; what else lacks kernels there it computes in 32 bits."""
    wide, narrow = _device(bundle), _device(half)
    assert narrow.slot_bytes * 2 == wide.slot_bytes == _host(bundle).slot_bytes
    ids = _ids(bundle, 30, 1)
    one, other = (_run(session, bundle, ids, 2, [0], wanted=8) for session in (wide, narrow))
    assert one.tokens.tolist() == other.tokens.tolist()
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=0.15)
    together = _run(narrow, half, np.array([[3], [4], [5]]), 0, [0, 0, 30])
    assert np.isfinite(together.logprobs).all()


def test_a_bfloat16_cache_is_bound_row_by_row_and_updated_in_place(tmp_path: Path) -> None:
    """A graph that writes one token at a place; numpy has no such type, so the bytes are looked at."""
    shape, kind = ["batch", 2, "capacity", 4], TensorProto.BFLOAT16
    one = helper.make_tensor("one", kind, [1, 2, 1, 4], [1.0] * 8)
    nodes = [helper.make_node("TensorScatter", ["past.0.key", "one", "past"], ["present.0.key"], axis=-2)]
    ends = [helper.make_tensor_value_info(f"{end}.0.key", kind, shape) for end in ("past", "present")]
    place = helper.make_tensor_value_info("past", TensorProto.INT64, ["batch"])
    graph = helper.make_graph(nodes, "scatter", [ends[0], place], [ends[1]], [one])
    path = tmp_path / "scatter.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=12), path)
    session = opening.open_session(path)
    caches = KvCaches(session, CPU, slots=3, capacity=5)
    assert (caches.element, caches.slot_bytes) == (kind, 2 * 5 * 4 * 2)
    io = session.io_binding()
    caches.bind(io, range(1, 2))
    io.bind_cpu_input("past", np.array([3]))
    session.run_with_iobinding(io)
    written = _content(caches, "0.key", 3).view(np.uint16).reshape(3, 2, 5, 4)
    assert {tuple(at) for at in np.argwhere(written)[:, [0, 2]].tolist()} == {(1, 3)}
    assert set(written[1, :, 3].ravel().tolist()) == {0x3F80}  # 1.0
    caches.swap(1, 2, 4)
    assert {tuple(at) for at in np.argwhere(written)[:, [0, 2]].tolist()} == {(2, 3)}


def test_a_cache_of_another_type_is_refused() -> None:
    value = SimpleNamespace(name="past.0.key", type="tensor(int8)", shape=["batch", 2, "capacity", 4])
    session = SimpleNamespace(get_inputs=lambda: [value])
    with pytest.raises(BundleInvalid, match=r"tensor\(int8\)"):
        KvCaches(session, CPU, slots=1, capacity=4)  # type: ignore[arg-type]


def test_a_new_cache_is_zero(bundle: Bundle) -> None:
    """A mask multiplies what lies past a row's end by 0, and garbage may be NaN."""
    caches = _device(bundle)._held[1]
    for name in caches._starts:
        assert not _content(caches, name, 3).any()


def _content(caches: KvCaches, name: str, slots: int) -> np.ndarray:
    """The bytes themselves, in host memory."""
    size = slots * caches._row
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(caches._starts[name]))


def test_a_gpus_cache_is_memory_of_its_own_and_given_back(standard: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's arena would keep it until the process ends."""
    machine = Machine()
    machine.install(monkeypatch)
    free, there = machine.free, Provider("CUDAExecutionProvider", memory="cuda")
    session = opening.open_session(standard.component("decoder"))
    caches = KvCaches(session, there, slots=3, capacity=64)
    assert free - machine.free == 3 * caches.slot_bytes + caches._row
    assert not any(block.any() for address, block in machine.memory.items() if address != caches._spare)
    start = caches._starts["1.value"]
    machine.view(start, caches._row, device=True)[:] = 7
    caches.swap(0, 2, 64)
    assert not machine.view(start, caches._row, device=True).any()
    assert (machine.view(start + 2 * caches._row, caches._row, device=True) == 7).all()
    for _ in range(2):
        caches.close()
        assert (machine.held, machine.free) == (0, free)
    machine.free = 5 * caches._row
    with pytest.raises(GpuMemoryShort, match="MB for the KV cache do not fit"):
        KvCaches(session, there, slots=3, capacity=64)
    assert machine.held == 0


# --- providers that build engines -----------------------------------------------------------------------------------


@pytest.fixture
def building(standard: Bundle, monkeypatch: pytest.MonkeyPatch) -> Provider:
    """Takes 32 tokens of a row and 4 answers at a time, of 3 slots; the CPU reads no shapes."""
    monkeypatch.setattr("qwen3asr.sessions.device._CHUNK", 32)
    monkeypatch.setattr("qwen3asr.sessions.device._LOGITS_BYTES", 4 * 3 * 4 * standard.spec.classes)
    monkeypatch.setattr(Provider, "shaped", lambda provider, shapes: provider)
    return Provider(CPU.name, prefix="trt")


def test_calls_beyond_an_engines_shapes_are_cut_and_answered_alike(
    standard: Bundle, building: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, host = _device(standard, building), _host(standard)
    assert session.limits == Limits(32, 4)
    fed: list[tuple[int, int]] = []
    run = session._run

    def watched(ids: np.ndarray, audio: np.ndarray, take: np.ndarray, slots: range, past: np.ndarray) -> Picked:
        fed.append((ids.shape[1], take.shape[1]))
        return run(ids, audio, take, slots, past)

    monkeypatch.setattr(session, "_run", watched)
    ids, rng = _ids(standard, 90, 1), np.random.default_rng(2)
    ids[0, 20:60] = standard.spec.audio_pad
    audio = rng.normal(0, 1, (40, standard.spec.hidden)).astype(np.float32)
    for take in ([89], list(range(40, 60)), [89, 3, 50, 50, 49], []):
        asked = np.array([take], np.int64)
        got, wanted = (one.run(ids, audio, asked, range(1, 2), np.array([0])) for one in (session, host))
        np.testing.assert_array_equal(got.tokens, wanted.tokens)
        np.testing.assert_allclose(got.logprobs, wanted.logprobs, atol=1e-4)
    got, wanted = (_run(one, standard, _ids(standard, 20, 3), 2, [0], wanted=10) for one in (session, host))
    np.testing.assert_array_equal(got.tokens, wanted.tokens)
    assert max(tokens for tokens, _ in fed) == 32
    assert max(taken for _, taken in fed) == 4
    fed.clear()
    _run(session, standard, np.array([[5], [6], [7]]), 0, [1, 90, 3])
    assert fed == [(1, 1)]


def test_an_engines_caches_have_a_fixed_length_and_others_any(standard: Bundle, building: Provider) -> None:
    def length(provider: Provider) -> object:
        inputs = _device(standard, provider)._held[0].get_inputs()
        return next(value.shape[2] for value in inputs if value.name == "past.0.key")

    assert length(building) == 256
    assert length(CPU) == "capacity"


# --- closing -------------------------------------------------------------------------------------------------------


def test_a_closed_device_holds_nothing_and_refuses_to_run(bundle: Bundle) -> None:
    decoder = _device(bundle)
    _run(decoder, bundle, _ids(bundle, 20, 1), 0, [0])
    memory = decoder._held[1]._memory
    held, size = [weakref.ref(one) for one in (*decoder._held, *decoder._bindings.values())], decoder.slot_bytes
    for _ in range(2):
        decoder.close()
        assert [one() for one in held] == [None, None, None]
        assert not memory._blocks  # type: ignore[attr-defined]
    assert (decoder.slots, decoder.capacity, decoder.slot_bytes) == (3, 256, size)
    with pytest.raises(EngineClosed, match="load it again"):
        _run(decoder, bundle, _ids(bundle, 20, 1), 0, [0])
    with pytest.raises(EngineClosed):
        decoder.swap(0, 1, 5)


def test_a_closed_encoder_lets_go_of_a_device_and_keeps_what_lies_on_the_host(bundle: Bundle) -> None:
    mel, frames = np.zeros((1, 128, 100), np.float32), np.array([100])
    there = OrtEncoder(bundle.component("encoder"), provider=Provider(CPU.name, memory="cuda"))
    here = OrtEncoder(bundle.component("encoder"))
    before, held = there.run(mel, frames), weakref.ref(there._session)
    for _ in range(2):
        there.close()
        here.close()
    assert held() is None
    with pytest.raises(EngineClosed, match="load it again"):
        there.run(mel, frames)
    np.testing.assert_array_equal(here.run(mel, frames), before)


# --- CUDA graphs ---------------------------------------------------------------------------------------------------


def test_steps_are_numbered_by_rows_and_length_and_nothing_else_is_captured(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = _device(bundle, CAPTURING, capacity=4096)
    seen: list[tuple[str, int]] = []
    run = session._held[0].run_with_iobinding

    def watched(io: onnxruntime.IOBinding, options: onnxruntime.RunOptions) -> None:
        total = int(session._binding(slots, step)._host["total_length"])
        seen.append((options.get_run_config_entry("gpu_graph_id"), total))
        run(io, options)

    monkeypatch.setattr(session._held[0], "run_with_iobinding", watched)
    slots, step = range(1), False
    _run(session, bundle, _ids(bundle, 40, 1), 0, [0])
    step = True
    for past in (40, 41, 1023, 1024, 2047, 4095):
        _run(session, bundle, np.array([[5]]), 0, [past])
    slots = range(2)
    _run(session, bundle, np.array([[5], [6]]), 0, [3, 1500])
    graphs = [("-1", 40), ("1", 1024), ("1", 1024), ("1", 1024), ("2", 2048), ("2", 2048), ("3", 4096), ("4", 2048)]
    assert seen == graphs


def test_steps_of_a_graph_that_is_told_no_length_are_captured_once(
    standard: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = _device(standard, CAPTURING, capacity=4096)
    for past in (40, 1500, 4000):
        _run(session, standard, np.array([[5]]), 0, [past])
    assert len(session._numbers) == 1


def test_a_captured_step_reads_and_writes_the_same_addresses_whatever_runs_between(bundle: Bundle) -> None:
    session = _device(bundle, CAPTURING)
    names = ("ids", "past", "take", "audio", "token", "logprob")

    def addresses() -> list[int]:
        return [session._binding(range(1), True)._values[name].data_ptr() for name in names]

    _run(session, bundle, _ids(bundle, 40, 1), 0, [0])
    _run(session, bundle, np.array([[5]]), 0, [40])
    before = addresses()
    _run(session, bundle, _ids(bundle, 30, 2), 0, [0], wanted=3)
    _run(session, bundle, np.array([[5], [6]]), 0, [30, 3])
    _run(session, bundle, np.array([[6]]), 0, [31])
    assert addresses() == before


# --- on a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "dialect"), [("fp32", "standard"), ("bf16", "ort"), ("bf16", "standard")])
@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "captured"])
def test_a_gpu_hears_what_was_said(
    precision: str, dialect: str, graphs: bool, tmp_path: Path, recordings: dict[str, Recording]
) -> None:
    _need_gpu()
    made = export(TINY / "asr", tmp_path / "asr", precision=precision, dialect=dialect, check=False)
    with qwen3asr.load(made.folder, device="cuda", slots=3, cuda_graphs=graphs) as model:
        found = model.transcribe_batch([recording.path for recording in recordings.values()])
    assert [result.text for result in found] == [recording.text for recording in recordings.values()]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "captured"])
def test_a_gpu_hears_by_tensorrt_what_was_said(
    precision: str, graphs: bool, tmp_path: Path, recordings: dict[str, Recording]
) -> None:
    """Engines are built first, which takes TensorRT's own package on that GPU."""
    _need_gpu(lambda: check_gpu(0))
    pytest.importorskip("tensorrt", reason="TensorRT is not installed", exc_type=ImportError)
    made = export(TINY / "asr", tmp_path / "asr", precision=precision, dialect="standard", check=False)
    wishes: dict[str, Any] = {"engine": "tensorrt", "build_engines": True, "slots": 3, "cuda_graphs": graphs}
    with qwen3asr.load(made.folder, **wishes) as model:
        found = model.transcribe_batch([recording.path for recording in recordings.values()])
    assert [result.text for result in found] == [recording.text for recording in recordings.values()]


def _need_gpu(check: Callable[[], object] = lambda: providers.check_available(CUDA)) -> None:
    try:
        check()
    except (DeviceUnavailable, ExtraMissing) as error:
        pytest.skip(str(error))
