"""Frames reach Silero VAD with their context and state, however a stream is cut; other files are refused."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qwen3asr.audio import read_audio
from qwen3asr.errors import BackendFailed, DetectorInvalid, DetectorMissing, Qwen3AsrError, RequestInvalid
from qwen3asr.features import Samples
from qwen3asr.sessions import silero
from qwen3asr.sessions.silero import SileroDetector, find_model
from qwen3asr.vad import FRAME, SpeechDetector

RECORDINGS = Path(__file__).parents[2] / "examples" / "recordings"
GAIN, CONTEXT_GAIN, KEPT = 0.5, 0.25, 0.125
GRAPHS = ("step", "without-rate", "sequence")


def _graph(kind: str, folder: Path) -> Path:
    """A stand-in with Silero's interface: GAIN * mean of the frame + CONTEXT_GAIN * mean of the context + state.

    The state is what it was before, times KEPT, and the sum of the means; of the rate only a thousandth of a thousandth
    counts, so that one which is not 16000 is seen.
    """
    many = kind == "sequence"
    weights = np.r_[np.full(64, CONTEXT_GAIN / 64), np.full(FRAME, GAIN / FRAME)].astype(np.float32)[:, None]
    value, tensor = helper.make_tensor_value_info, TensorProto.FLOAT
    state, shape = ("h", [1, 1, 128]) if many else ("state", [2, 1, 128])
    inputs = [value("input", tensor, [None, 576]), value(state, tensor, shape)]
    inputs += [value("c", tensor, shape)] if many else []
    inputs += [value("sr", TensorProto.INT64, [])] if kind == "step" else []
    nodes = [
        helper.make_node("MatMul", ["input", "weights"], ["means"]),
        helper.make_node("ReduceMax", [state], ["old"], keepdims=0),
        helper.make_node("Mul", ["old", "kept"], ["faded"]),
        helper.make_node("Add", ["means", "faded"], ["heard"]),
    ]
    if kind == "step":
        nodes += [
            helper.make_node("Cast", ["sr"], ["rate"], to=tensor),
            helper.make_node("Div", ["rate", "rate16k"], ["right"]),
            helper.make_node("Mul", ["heard", "right"], ["speech"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["heard"], ["speech"]))
    nodes += [
        helper.make_node("ReduceSum", ["means"], ["sum"], keepdims=0),
        helper.make_node("Add", ["faded", "sum"], ["new"]),
        helper.make_node("Expand", ["new", "shape"], ["stateN"]),
    ]
    outputs = [value("speech", tensor, [None, 1]), value("stateN", tensor, shape)]
    if many:
        nodes.append(helper.make_node("Identity", ["c"], ["cN"]))
        outputs.append(value("cN", tensor, shape))
    constants = {"weights": weights, "kept": np.float32(KEPT), "rate16k": np.float32(16_000), "shape": np.array(shape)}
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, kind, inputs, outputs, initializers)
    path = folder / f"{kind}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def _expected(samples: Samples, calls: list[int]) -> list[float]:
    """What the stand-in answers; ``calls`` are the frames of each of its runs."""
    frames = samples.reshape(-1, FRAME)
    contexts = np.concatenate([np.zeros((1, 64)), frames[:-1, -64:]])
    means = GAIN * frames.mean(1) + CONTEXT_GAIN * contexts.mean(1)
    answers: list[float] = []
    state = 0.0
    for part in np.split(means, np.cumsum(calls)[:-1]):
        answers += (part + KEPT * state).tolist()
        state = KEPT * state + part.sum()
    return answers


@pytest.fixture(scope="module", params=GRAPHS)
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _graph(request.param, tmp_path_factory.mktemp("silero"))


def _samples(frames: int) -> Samples:
    return np.random.default_rng(0).uniform(0, 1, frames * FRAME).astype(np.float32)


def test_every_frame_comes_with_the_64_samples_before_it_and_the_state(graph: Path) -> None:
    detector: SpeechDetector = SileroDetector(graph)
    found = detector.probabilities(_samples(5))
    calls = [5] if graph.stem == "sequence" else [1] * 5
    np.testing.assert_allclose(found, _expected(_samples(5), calls), rtol=1e-5)
    assert found.dtype == np.float32


@settings(deadline=None, derandomize=True, database=None, max_examples=20)
@given(cuts=st.lists(st.integers(0, 12), max_size=5))
def test_a_stream_may_be_cut_anywhere(graph: Path, cuts: list[int]) -> None:
    parts = [part.astype(np.float32) for part in np.split(_samples(12), [cut * FRAME for cut in sorted(cuts)])]
    detector = SileroDetector(graph)
    found = np.concatenate([detector.probabilities(part) for part in parts])
    sizes = [len(part) // FRAME for part in parts if len(part)]
    calls = sizes if graph.stem == "sequence" else [1] * 12
    np.testing.assert_allclose(found, _expected(_samples(12), calls), rtol=1e-5)


def test_many_frames_go_in_several_runs(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero, "_BLOCK", 4)
    found = SileroDetector(graph).probabilities(_samples(10))
    calls = [4, 4, 2] if graph.stem == "sequence" else [1] * 10
    np.testing.assert_allclose(found, _expected(_samples(10), calls), rtol=1e-5)


def test_reset_and_another_start_from_silence(graph: Path) -> None:
    detector = SileroDetector(graph)
    first = detector.probabilities(_samples(3))
    other = detector.another()
    assert detector.probabilities(_samples(3)).tolist() != first.tolist()
    assert other.probabilities(_samples(3)).tolist() == first.tolist()
    detector.reset()
    assert detector.probabilities(_samples(3)).tolist() == first.tolist()


def test_what_the_caller_does_to_its_samples_afterwards_changes_nothing(graph: Path) -> None:
    detector, samples = SileroDetector(graph), _samples(2)
    detector.probabilities(samples)
    samples[:] = -1
    found = detector.probabilities(_samples(1))
    calls = [2, 1] if graph.stem == "sequence" else [1] * 3
    np.testing.assert_allclose(found, _expected(np.concatenate([_samples(2), _samples(1)]), calls)[2:], rtol=1e-5)


def test_no_samples_give_no_probabilities_and_half_frames_are_refused(graph: Path) -> None:
    detector = SileroDetector(graph)
    assert detector.probabilities(np.zeros(0, np.float32)).shape == (0,)
    with pytest.raises(RequestInvalid, match="whole frames of 512"):
        detector.probabilities(np.zeros(FRAME + 1, np.float32))


# --- files -----------------------------------------------------------------------------------------------------


def test_a_path_without_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DetectorMissing, match=r"no\.onnx; check the path") as caught:
        SileroDetector(str(tmp_path / "no.onnx"))
    assert isinstance(caught.value, Qwen3AsrError)
    assert isinstance(caught.value, FileNotFoundError)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(DetectorInvalid, match=r"cannot load .*damaged\.onnx"):
        SileroDetector(path)


def test_a_graph_with_other_inputs_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    inputs = [value(name, TensorProto.FLOAT, [2, 1, 64]) for name in ("input", "sr", "h", "c")]  # as version 4 had
    node = helper.make_node("Identity", ["input"], ["output"])
    graph = helper.make_graph([node], "old", inputs, [value("output", TensorProto.FLOAT, [2, 1, 64])])
    path = tmp_path / "old.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    with pytest.raises(DetectorInvalid, match=r"inputs input, sr, h, c, not those of Silero VAD 5 or 6") as caught:
        SileroDetector(path)
    assert isinstance(caught.value, ValueError)


def test_what_fails_in_a_run_is_the_backends_failure(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    inputs = [value("input", TensorProto.FLOAT, [1, 9]), value("state", TensorProto.FLOAT, [2, 1, 128])]
    nodes = [helper.make_node("Identity", [name], [f"{name}N"]) for name in ("input", "state")]
    outputs = [value("inputN", TensorProto.FLOAT, [1, 9]), value("stateN", TensorProto.FLOAT, [2, 1, 128])]
    path = tmp_path / "narrow.onnx"
    graph = helper.make_graph(nodes, "narrow", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    with pytest.raises(BackendFailed, match="ONNX Runtime failed"):
        SileroDetector(path).probabilities(_samples(1))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No package of those that have the file is installed, but what a test puts into this folder."""

    def find_spec(name: str) -> ModuleSpec | None:
        if not (tmp_path / name).is_dir():
            return None
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path / name)]
        return spec

    monkeypatch.setattr(silero, "find_spec", find_spec)
    return tmp_path


@pytest.mark.parametrize(
    "file",
    [
        "silero_vad/data/silero_vad_16k_sequence.onnx",
        "silero_vad/data/silero_vad.onnx",
        "faster_whisper/assets/silero_vad_v6.onnx",
        "pipecat/audio/vad/data/silero_vad.onnx",
    ],
)
def test_the_file_is_found_in_each_package_that_has_it(installed: Path, file: str) -> None:
    (installed / file).parent.mkdir(parents=True)
    (installed / file).touch()
    assert find_model() == installed / file


def test_a_package_without_the_file_is_passed_over(installed: Path) -> None:
    (installed / "silero_vad" / "data").mkdir(parents=True)
    _graph("sequence", installed)
    target = installed / "faster_whisper" / "assets" / "silero_vad_v6.onnx"
    target.parent.mkdir(parents=True)
    (installed / "sequence.onnx").rename(target)
    assert find_model() == target
    assert len(SileroDetector().probabilities(_samples(2))) == 2


def test_where_no_package_has_it_the_cure_is_named(installed: Path) -> None:
    with pytest.raises(DetectorMissing, match="pip install --no-deps silero-vad"):
        find_model()
    with pytest.raises(DetectorMissing, match="pip install --no-deps silero-vad"):
        SileroDetector()


def test_looking_for_the_file_imports_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "silero_vad"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "silero_vad.onnx").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "silero_vad", raising=False)
    assert find_model() == package / "data" / "silero_vad.onnx"
    assert "silero_vad" not in sys.modules


@pytest.mark.parametrize("module", [None, ModuleType("stand_in")])
def test_packages_that_are_blocked_or_made_up_count_as_missing(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType | None
) -> None:
    for package in ("silero_vad", "faster_whisper", "pipecat"):
        monkeypatch.setitem(sys.modules, package, module)
    with pytest.raises(DetectorMissing):
        find_model()


def test_the_real_model_hears_speech_and_no_noise() -> None:
    try:
        detector = SileroDetector()
    except DetectorMissing as missing:
        pytest.skip(str(missing))
    spoken = read_audio(RECORDINGS / "english-long.flac").samples
    noise = (0.03 * np.random.default_rng(0).normal(size=300 * FRAME)).astype(np.float32)
    found = detector.probabilities(spoken[: len(spoken) // FRAME * FRAME])
    assert np.mean(found[60:] > 0.5) > 0.65  # the words begin after 1.9 s
    assert not (found[:50] > 0.5).any()
    assert not (detector.another().probabilities(noise) > 0.5).any()
