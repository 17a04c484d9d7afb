"""The Triton repository: its configuration against Triton's schema, its code over a stand-in for Triton's module."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
from google.protobuf import json_format, text_format
from tests.conftest import Recording
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup
from tritonclient.utils import triton_to_np_dtype

import qwen3asr
from qwen3asr.errors import BundleKindWrong, DeviceUnavailable, RequestInvalid, TargetExists
from qwen3asr_export.triton import write_repository

FINAL = 1
PATIENCE = 30.0
Load = Callable[..., Any]


# --- a stand-in for triton_python_backend_utils: what pb_stub.cc and response_sender.cc do --------------------------


class Tensor:
    def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self._array


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.tensors, self.error = list(output_tensors), error

    def values(self) -> dict[str, Any]:
        assert self.error is None, self.error.message()
        values = {tensor.name(): tensor.as_numpy().flat[0] for tensor in self.tensors}
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


class Sender:
    """Refuses what Triton's refuses."""

    def __init__(self, decoupled: bool) -> None:
        self.responses: list[InferenceResponse] = []
        self.closed, self.first, self.cancelled = threading.Event(), threading.Event(), threading.Event()
        self._decoupled = decoupled

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if flags not in (0, FINAL) or (response is None and flags == 0):
            raise ValueError("Unable to send response. Unsupported flag provided.")
        if not self._decoupled and response is not None and self.responses:
            raise ValueError("Unable to send response. Non-decoupled model cannot send more than one response.")
        if self.closed.is_set():
            raise ValueError("Unable to send response. Response sender has been closed.")
        if response is not None:
            self.responses.append(response)
        self.first.set()
        if flags == FINAL:
            self.closed.set()

    def is_cancelled(self) -> bool:
        return self.cancelled.is_set()

    def all(self) -> list[InferenceResponse]:
        assert self.closed.wait(PATIENCE), "no answer"
        return self.responses

    def one(self) -> InferenceResponse:
        [response] = self.all()
        return response


@dataclass
class Request:
    tensors: dict[str, Any]
    decoupled: bool = True
    microseconds: int = 0
    sender: Sender = field(init=False)

    def __post_init__(self) -> None:
        self.sender = Sender(self.decoupled)

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self.tensors.items()]

    def timeout(self) -> int:
        return self.microseconds

    def get_response_sender(self) -> Sender:
        return self.sender


class Logger:
    @staticmethod
    def log_error(message: str) -> None:
        sys.stderr.write(message)


def _get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("triton_python_backend_utils")
    for name, value in {
        "Tensor": Tensor, "TritonError": TritonError, "InferenceResponse": InferenceResponse, "Logger": Logger,
        "TRITONSERVER_RESPONSE_COMPLETE_FINAL": FINAL, "get_input_tensor_by_name": _get_input_tensor_by_name,
    }.items():  # fmt: skip
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, module.__name__, module)


# --- instances -------------------------------------------------------------------------------------------------


def _config(folder: Path) -> ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), ModelConfig())


@pytest.fixture
def load(backend: None) -> Iterator[Load]:
    """Loads a repository's model.py as Triton does; unloads it at the end."""
    instances = []

    def start(folder: Path) -> Any:
        spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["model"] = module
        spec.loader.exec_module(module)
        instance = module.TritonPythonModel()
        instance.initialize({
            "model_config": json_format.MessageToJson(_config(folder), preserving_proto_field_name=True),
            "model_instance_kind": "CPU", "model_instance_device_id": "0", "model_repository": str(folder),
            "model_version": "1", "model_name": folder.name,
        })  # fmt: skip
        instances.append(instance)
        return instance

    yield start
    for instance in instances:
        instance.finalize()
    sys.modules.pop("model", None)


def _string(value: str) -> np.ndarray[Any, Any]:
    return np.array([value.encode()], np.object_)


def _request(audio: bytes, *, decoupled: bool = True, **texts: str) -> Request:
    tensors = {"audio": np.frombuffer(audio, np.uint8).copy()}
    return Request(tensors | {name: _string(text) for name, text in texts.items()}, decoupled)


def _execute(instance: Any, *requests: Request) -> None:
    assert instance.execute(list(requests)) is None
    for request in requests:  # Triton takes the memory back
        for array in request.tensors.values():
            array.fill(b"" if array.dtype == np.object_ else 0)
        request.tensors = {}


def _long(recordings: dict[str, Recording], seconds: float) -> bytes:
    samples, rate = soundfile.read(recordings["english-long"].path, dtype="int16")
    file = io.BytesIO()
    soundfile.write(file, np.tile(samples, round(seconds * rate / len(samples))), rate, format="FLAC")
    return file.getvalue()


# --- the folder ------------------------------------------------------------------------------------------------


def test_the_configuration_is_what_triton_s_schema_says(asr_bundle: Path, aligner_bundle: Path, tmp_path: Path) -> None:
    folder = write_repository(asr_bundle, tmp_path, aligner=aligner_bundle, name="ears", instances=2, slots=3)
    config = _config(folder)
    assert folder == tmp_path / "ears"
    assert (config.name, config.backend, config.max_batch_size) == ("ears", "python", 0)
    assert config.model_transaction_policy.decoupled
    [group] = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (ModelInstanceGroup.KIND_CPU, 2, [])
    types = {tensor.name: (DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in config.input}
    assert types == {
        "audio": ("TYPE_UINT8", [-1]), "samples": ("TYPE_FP32", [-1]), "sample_rate": ("TYPE_INT32", [1]),
        "language": ("TYPE_STRING", [1]), "context": ("TYPE_STRING", [1]), "timestamps": ("TYPE_STRING", [1]),
    }  # fmt: skip
    assert all(tensor.optional for tensor in config.input)
    assert {tensor.name: (DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in config.output} == {
        "text": ("TYPE_STRING", [1]), "language": ("TYPE_STRING", [1]), "finish_reason": ("TYPE_STRING", [1]),
        "words": ("TYPE_STRING", [1]), "partial": ("TYPE_BOOL", [1]),
    }  # fmt: skip
    assert {key: value.string_value for key, value in config.parameters.items()} == {"slots": "3", "threads": "0"}
    used = {descriptor.name for descriptor, _ in config.ListFields()}
    assert used == {"name", "backend", "model_transaction_policy", "instance_group", "input", "output", "parameters"}
    assert qwen3asr.load(folder / "1" / "bundle", aligner=folder / "1" / "aligner", check_hashes=True)


def test_a_gpu_repository_and_one_without_streaming(asr_bundle: Path, tmp_path: Path) -> None:
    config = _config(write_repository(asr_bundle, tmp_path, device="cuda", gpus=(1, 3), threads=4, streaming=False))
    [group] = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (ModelInstanceGroup.KIND_GPU, 1, [1, 3])
    assert not config.model_transaction_policy.decoupled
    assert {key: value.string_value for key, value in config.parameters.items()} == {"threads": "4"}


def test_what_cannot_be_served_is_refused_and_leaves_nothing(
    asr_bundle: Path, aligner_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong: list[dict[str, Any]] = [
        {"name": "a/b"}, {"name": ""}, {"instances": 0}, {"slots": 0}, {"threads": -1}, {"device": "tpu"}, {"gpus": ()},
    ]  # fmt: skip
    for settings in wrong:
        with pytest.raises(RequestInvalid):
            write_repository(asr_bundle, tmp_path / "out", **settings)
    with pytest.raises(BundleKindWrong):
        write_repository(aligner_bundle, tmp_path / "out")
    with pytest.raises(BundleKindWrong):
        write_repository(asr_bundle, tmp_path / "out", aligner=asr_bundle)
    bf16 = tmp_path / "bf16"
    shutil.copytree(asr_bundle, bf16)
    manifest = bf16 / "bundle.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"precision": "fp32"', '"precision": "bf16"'), "utf-8")
    with pytest.raises(DeviceUnavailable, match="bf16, which runs on cuda, not on cpu"):
        write_repository(bf16, tmp_path / "out")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr("qwen3asr_export.triton.shutil.copytree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_repository(asr_bundle, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    write_repository(asr_bundle, tmp_path / "out")
    with pytest.raises(TargetExists):
        write_repository(asr_bundle, tmp_path / "out")


def test_files_are_linked_where_that_can_be_and_else_copied(
    asr_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = asr_bundle / "onnx" / "encoder.onnx"
    linked = write_repository(asr_bundle, tmp_path, name="linked") / "1/bundle/onnx/encoder.onnx"
    assert linked.samefile(original)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    copied = write_repository(asr_bundle, tmp_path, name="copied") / "1/bundle/onnx/encoder.onnx"
    assert not copied.samefile(original)
    assert copied.read_bytes() == original.read_bytes()


# --- requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
def test_requests_are_answered_together_as_they_finish(
    load: Load, asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording], tmp_path: Path,
    streaming: bool,
) -> None:  # fmt: skip
    folder = write_repository(asr_bundle, tmp_path, aligner=aligner_bundle, slots=2, streaming=streaming)
    instance = load(folder)
    wanted = [recordings[name] for name in ("english", "german-short", "spanish", "chinese")]
    requests = [_request(one.path.read_bytes(), decoupled=streaming, timestamps="word") for one in wanted]
    samples, rate = soundfile.read(wanted[0].path, dtype="float32")
    numbers = {"samples": samples, "sample_rate": np.array([rate], np.int32), "language": _string("en")}
    numbered = Request(numbers, streaming)
    silence = _request(recordings["silence"].path.read_bytes(), decoupled=streaming, language="", context="water")
    _execute(instance, *requests, numbered, silence)

    assert numbered.sender.one().values()["text"] == wanted[0].text
    quiet = silence.sender.one().values()
    assert quiet == {"text": "", "language": "", "finish_reason": "no_speech", "words": "[]", "partial": False}
    values = [request.sender.one().values() for request in requests]
    assert [(one["text"], one["language"], one["finish_reason"]) for one in values] == [
        (one.text, one.language, "stop") for one in wanted
    ]
    words = json.loads(values[0]["words"])
    assert [word["text"] for word in words] == wanted[0].text.split()
    assert 0 <= words[0]["start"] < words[0]["end"]
    assert 0 < words[0]["confidence"] <= 1
    assert not any(one["partial"] for one in values)
    config = {tensor.name: tensor for tensor in _config(folder).output}
    for tensor in requests[0].sender.one().tensors:
        said = DataType.Name(config.pop(tensor.name()).data_type).removeprefix("TYPE_")
        assert tensor.as_numpy().dtype == triton_to_np_dtype({"STRING": "BYTES"}.get(said, said))
        assert tensor.as_numpy().shape == (1,)
    assert not config, "outputs that were not given"


def test_long_audio_is_answered_piece_by_piece(
    load: Load, asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording], model: qwen3asr.Recognizer,
    tmp_path: Path,
) -> None:  # fmt: skip
    instance = load(write_repository(asr_bundle, tmp_path, aligner=aligner_bundle, slots=2))
    audio = _long(recordings, 400)
    request = _request(audio, language="en")
    _execute(instance, request)
    *partials, final = [response.values() for response in request.sender.all()]
    assert final["text"] == model.transcribe(audio, language="en").text
    assert [one["partial"] for one in partials] == [True, True]  # and no third, which would be the answer
    assert not final["partial"]
    texts = [one["text"] for one in [*partials, final]]
    assert all(longer.startswith(text) and len(longer) > len(text) for text, longer in itertools.pairwise(texts))
    assert {(one["language"], one["finish_reason"]) for one in partials} == {("English", "")}


def test_without_streaming_long_audio_has_one_answer(
    load: Load, asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    instance = load(write_repository(asr_bundle, tmp_path, streaming=False))
    request = _request(_long(recordings, 200), decoupled=False)
    _execute(instance, request)
    assert request.sender.one().values()["finish_reason"] == "stop"


def test_a_bad_request_gets_its_error_and_harms_no_other(
    load: Load, asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    instance = load(write_repository(asr_bundle, tmp_path, slots=2))
    audio = recordings["spanish"].path.read_bytes()
    file = np.frombuffer(audio, np.uint8).copy()
    numbers = np.zeros(16_000, np.float32)
    bad = {
        "AudioUnreadable: ": _request(b"no audio"),
        "AudioEmpty: ": _request(b""),
        "LanguageUnknown: ": _request(audio, language="Klingon"),
        "AlignerMissing: ": _request(audio, timestamps="word"),
        "RequestInvalid: timestamps='line'": _request(audio, timestamps="line"),
        "RequestInvalid: give the audio as": Request({"language": _string("en")}),
        "RequestInvalid: give the audio as a": Request({"audio": file, "samples": numbers}),
        "RequestInvalid: samples need their rate": Request({"samples": numbers}),
        "RequestInvalid: context is not UTF-8": Request({
            "audio": file.copy(), "context": np.array([b"\xff"], np.object_)
        }),
        "AudioFormatInvalid: ": Request({"samples": numbers.copy(), "sample_rate": np.array([-1], np.int32)}),
    }  # fmt: skip
    good = _request(audio)
    _execute(instance, *bad.values(), good)
    for message, request in bad.items():
        error = request.sender.one().error
        assert error is not None
        assert error.message().startswith(message)
        assert error.code() == TritonError.INVALID_ARG
    assert good.sender.one().values()["text"] == recordings["spanish"].text


def test_a_timeout_and_a_full_queue_are_unavailable(
    load: Load, asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    instance = load(write_repository(asr_bundle, tmp_path, slots=1))
    late = _request(_long(recordings, 600))
    late.microseconds = 1_000
    _execute(instance, late)
    error = late.sender.all()[-1].error
    assert error is not None
    assert (error.code(), error.message().split(":")[0]) == (TritonError.UNAVAILABLE, "DeadlineExceeded")
    audio = recordings["german-short"].path.read_bytes()
    many = [_request(audio) for _ in range(120)]  # a slot, and a queue of 64
    _execute(instance, *many)
    answers = [request.sender.one() for request in many]
    refused = [answer.error for answer in answers if answer.error is not None]
    assert {(one.code(), one.message().split(":")[0]) for one in refused} == {(TritonError.UNAVAILABLE, "EngineBusy")}
    assert {answer.values()["text"] for answer in answers if answer.error is None} == {"neun"}


def test_a_cancelled_request_ends_and_frees_its_slot(
    load: Load, asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    instance = load(write_repository(asr_bundle, tmp_path, slots=1))
    request = _request(_long(recordings, 1_800))
    _execute(instance, request)
    assert request.sender.first.wait(PATIENCE)
    request.sender.cancelled.set()
    *partials, end = request.sender.all()
    assert len(partials) < 9
    assert end.error is not None
    assert end.error.code() == TritonError.CANCELLED
    after = _request(recordings["english"].path.read_bytes())
    _execute(instance, after)
    assert after.sender.one().values()["text"] == recordings["english"].text


def test_a_failure_of_ours_is_answered_and_logged(
    load: Load, asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    instance = load(write_repository(asr_bundle, tmp_path))

    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret")

    with monkeypatch.context() as patch:
        patch.setattr(qwen3asr.Recognizer, "transcribe_async", fail)
        request = _request(recordings["english"].path.read_bytes())
        _execute(instance, request)
        error = request.sender.one().error
    assert error is not None
    assert (error.code(), error.message()) == (TritonError.INTERNAL, "the model failed; the server's log says why")
    assert "ZeroDivisionError: a secret" in capsys.readouterr().err


def test_unloading_answers_what_was_begun_and_ends_all_threads(
    load: Load, asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    before = set(threading.enumerate())
    instance = load(write_repository(asr_bundle, tmp_path, slots=2))
    requests = [_request(recordings["english-long"].path.read_bytes()) for _ in range(3)]
    _execute(instance, *requests)
    instance.finalize()
    instance.finalize = lambda: None
    for request in requests:
        assert request.sender.closed.is_set()
        error = request.sender.one().error
        assert error is None or error.code() == TritonError.UNAVAILABLE
    assert not [thread.name for thread in set(threading.enumerate()) - before if thread.is_alive()]


def test_a_damaged_bundle_is_named_when_triton_loads_it(load: Load, asr_bundle: Path, tmp_path: Path) -> None:
    folder = write_repository(asr_bundle, tmp_path)
    (folder / "1" / "bundle" / "tokenizer.json").unlink()
    with pytest.raises(qwen3asr.errors.BundleFileMissing, match=r"tokenizer\.json"):
        load(folder)
