"""Pipelines over the tiny trained model, exported and in torch, with transformers as it is installed."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import soxr
import torch
import transformers
from tests.checkpoints import TINY
from tests.conftest import ROOT, Recording
from torch.utils.data import Dataset
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

import qwen3asr
from qwen3asr import Recognizer
from qwen3asr.errors import (
    AlignerMissing,
    AudioFormatInvalid,
    AudioNotFound,
    BundleInvalid,
    DeviceUnavailable,
    LanguageUnknown,
    RequestInvalid,
)
from qwen3asr_plugins import transformers as plugin
from qwen3asr_plugins.transformers import (
    Qwen3AlignerModel,
    Qwen3AlignmentPipeline,
    Qwen3ASRModel,
    Qwen3ASRPipeline,
    pipeline,
)

ASR = "automatic-speech-recognition"
SPOKEN = ("english", "german", "spanish", "chinese", "english-long", "german-short")


@pytest.fixture(scope="module")
def pipe(model: Recognizer) -> Qwen3ASRPipeline:
    return pipeline(ASR, model)


@pytest.fixture(scope="module")
def native() -> Qwen3ASRPipeline:
    """Transformers' own model, in float32."""
    model = transformers.Qwen3ASRForConditionalGeneration.from_pretrained(TINY / "asr", dtype=torch.float32)
    return pipeline(ASR, model, processor=transformers.AutoProcessor.from_pretrained(TINY / "asr"), device="cpu")


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(PIPELINE_REGISTRY.supported_tasks)
    plugin.register()
    yield
    for task in PIPELINE_REGISTRY.supported_tasks.keys() - before.keys():
        del PIPELINE_REGISTRY.supported_tasks[task]
    for kind in (Qwen3ASRPipeline, Qwen3AlignmentPipeline):
        del kind._registered_impl


def _samples(recording: Recording) -> np.ndarray:
    return np.asarray(soundfile.read(recording.path, dtype="float32")[0])


# --- inputs ----------------------------------------------------------------------------------------------------


@dataclass
class _Decoded:
    data: torch.Tensor
    sample_rate: int


@dataclass
class _Decoder:
    """The two names of torchcodec's AudioDecoder that matter."""

    samples: np.ndarray

    def get_all_samples(self) -> _Decoded:
        return _Decoded(torch.from_numpy(np.stack([self.samples, self.samples])), 16_000)


FORMS = {
    "path": lambda path, samples: path,
    "text path": lambda path, samples: os.fspath(path),
    "bytes": lambda path, samples: path.read_bytes(),
    "file": lambda path, samples: io.BytesIO(path.read_bytes()),
    "array": lambda path, samples: samples,
    "float64": lambda path, samples: samples.astype(np.float64),
    "tensor": lambda path, samples: torch.from_numpy(samples),
    "with its rate": lambda path, samples: (soxr.resample(samples, 16_000, 48_000), 48_000),
    "datasets": lambda path, samples: {"path": None, "array": samples, "sampling_rate": 16_000},
    "raw": lambda path, samples: {"raw": soxr.resample(samples, 16_000, 44_100), "sampling_rate": 44_100},
    "raw list": lambda path, samples: {"raw": samples.tolist(), "sampling_rate": 16_000},
    "raw tensor": lambda path, samples: {"raw": torch.from_numpy(samples), "sampling_rate": 16_000},
    "undecoded bytes": lambda path, samples: {"bytes": path.read_bytes(), "path": "call.flac"},
    "undecoded path": lambda path, samples: {"bytes": None, "path": os.fspath(path)},
    "decoder": lambda path, samples: _Decoder(samples),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_audio_gives_the_text(
    pipe: Qwen3ASRPipeline, recordings: dict[str, Recording], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no ffmpeg, which the stock pipeline needs
    wanted = recordings["german"]
    assert pipe(FORMS[form](wanted.path, _samples(wanted))) == {"text": wanted.text}


def test_the_torch_model_takes_the_same_forms(native: Qwen3ASRPipeline, recordings: dict[str, Recording]) -> None:
    wanted = recordings["german"]
    given = [make(wanted.path, _samples(wanted)) for make in FORMS.values()]
    assert native(given, batch_size=4) == [{"text": wanted.text}] * len(given)


def test_what_is_no_audio_is_refused(pipe: Qwen3ASRPipeline, tmp_path: Path) -> None:
    with pytest.raises(AudioNotFound, match=r"missing\.wav"):
        pipe(tmp_path / "missing.wav")
    with pytest.raises(AudioFormatInvalid, match="sampling_rate"):
        pipe({"raw": np.zeros(16_000, np.float32)})
    with pytest.raises(RequestInvalid, match="stride"):
        pipe({"raw": np.zeros(16_000, np.float32), "sampling_rate": 16_000, "stride": (0, 0)})


# --- results ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SPOKEN, "silence"])
def test_results_are_those_of_transcribe(
    pipe: Qwen3ASRPipeline, model: Recognizer, recordings: dict[str, Recording], name: str
) -> None:
    wanted = model.transcribe(recordings[name].path, timestamps="word")
    assert wanted.text == recordings[name].text
    words = pipe(recordings[name].path, return_timestamps="word", return_language=True)
    assert words == {
        "text": wanted.text,
        "language": wanted.language,
        "chunks": [
            {"text": word.text, "timestamp": (word.start, word.end), "language": wanted.language}
            for word in wanted.words
        ],
    }
    segments = pipe(recordings[name].path, return_timestamps=True)
    plain = model.transcribe(recordings[name].path)
    assert segments["chunks"] == [{"text": s.text, "timestamp": (s.start, s.end)} for s in plain.segments]
    assert " ".join(chunk["text"] for chunk in segments["chunks"]) == wanted.text


def test_languages_of_chunks_are_their_own(pipe: Qwen3ASRPipeline, recordings: dict[str, Recording]) -> None:
    quiet = np.zeros(16_000, np.float32)
    both = np.concatenate([_samples(recordings["german"]), quiet, _samples(recordings["english"])])
    result = pipe(both, chunk_length_s=6, return_timestamps=True, return_language=True)
    assert [chunk["language"] for chunk in result["chunks"]] == ["German", "English"]
    words = pipe(both, chunk_length_s=6, return_timestamps="word", return_language=True)
    assert {chunk["language"] for chunk in words["chunks"]} == {"German", "English"}


def test_chunk_length_is_the_longest_pass(
    pipe: Qwen3ASRPipeline, model: Recognizer, recordings: dict[str, Recording], caplog: pytest.LogCaptureFixture
) -> None:
    path = recordings["english-long"].path
    with caplog.at_level(logging.INFO, "qwen3asr"):
        cut = pipe(path, chunk_length_s=4, stride_length_s=(1, 1), return_timestamps=True)
    assert [record.message for record in caplog.records if "stride_length_s has no effect" in record.message]
    wanted = model.transcribe(path, piece_seconds=4)
    assert len(wanted.segments) > 1
    assert cut["chunks"] == [{"text": s.text, "timestamp": (s.start, s.end)} for s in wanted.segments]
    assert len(pipe(path, chunk_length_s=0, return_timestamps=True)["chunks"]) == 1  # 0 is transformers' "not cut"


def test_generate_kwargs_reach_the_model(
    pipe: Qwen3ASRPipeline, model: Recognizer, recordings: dict[str, Recording], caplog: pytest.LogCaptureFixture
) -> None:
    path = recordings["english"].path
    forced = pipe(path, generate_kwargs={"language": "de"}, return_language=True)
    assert (forced["text"], forced["language"]) == (model.transcribe(path, language="German").text, "German")
    assert pipe(path, generate_kwargs={"max_new_tokens": 5})["text"] == model.transcribe(path, max_new_tokens=5).text
    assert pipe(path, max_new_tokens=5) == pipe(path, generate_kwargs={"max_new_tokens": 5})
    assert pipe(path, generate_kwargs={"prompt": None}) == pipe(path)
    with pytest.raises(qwen3asr.Qwen3AsrError, match="im_start"):  # so the prompt is the context
        pipe(path, generate_kwargs={"prompt": "<|im_start|>"})


def test_parameters_of_the_pipeline_are_defaults_of_the_call(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    path = recordings["english"].path
    made = pipeline(ASR, model, return_timestamps="word", generate_kwargs={"max_new_tokens": 5})
    assert made(path) == pipeline(ASR, model)(path, return_timestamps="word", max_new_tokens=5)
    assert made(path, return_timestamps=False, max_new_tokens=None) == {"text": recordings["english"].text}


def test_what_is_not_known_is_refused_by_name(pipe: Qwen3ASRPipeline, recordings: dict[str, Recording]) -> None:
    path = recordings["english"].path
    with pytest.raises(RequestInvalid, match="num_beams, task: not known"):
        pipe(path, generate_kwargs={"num_beams": 4, "task": "transcribe"})
    with pytest.raises(RequestInvalid, match="temperature: not known"):
        pipe(path, temperature=0.5)
    with pytest.raises(RequestInvalid, match="'char'"):
        pipe(path, return_timestamps="char")
    with pytest.raises(LanguageUnknown, match="Klingon"):
        pipe([path], generate_kwargs={"language": "Klingon"})
    with pytest.raises(RequestInvalid, match=r"language=\['en'\] is no text"):
        pipe([path], generate_kwargs={"language": ["en"]})
    with pytest.raises(RequestInvalid, match="batch_size=0"):
        pipe([path], batch_size=0)


def test_word_times_need_the_aligner(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    with pytest.raises(AlignerMissing, match="aligner="):
        pipeline(ASR, asr_bundle)(recordings["english"].path, return_timestamps="word")


# --- many ------------------------------------------------------------------------------------------------------


def test_a_list_is_decoded_together_and_comes_in_order(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    pipe = pipeline(ASR, asr_bundle, model_kwargs={"slots": 4})
    metrics = pipe.model.recognizer.metrics
    names = [*SPOKEN, "silence"]
    results = pipe([recordings[name].path for name in names], batch_size=4)
    together = metrics.snapshot().steps
    assert [result["text"] for result in results] == [recordings[name].text for name in names]
    for name in names:
        pipe(recordings[name].path)
    assert together < metrics.snapshot().steps - together  # a step serves several clips


def test_a_generator_is_read_as_results_are_asked_for(pipe: Qwen3ASRPipeline, recordings: dict[str, Recording]) -> None:
    wanted, read = recordings["german-short"], []

    def clips() -> Iterator[Path]:
        for number in range(100):
            read.append(number)
            yield wanted.path

    results = pipe(clips(), batch_size=2)
    assert len(read) <= 1
    assert next(results) == {"text": wanted.text}
    assert len(read) <= pipe.model.recognizer.kv_cache.slots + 1
    results.close()


class _Rows(Dataset[dict[str, Any]]):
    """A torch dataset, whose end is its length: no ``IndexError`` tells it."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self):
            raise RuntimeError(f"there is no row {index}")
        return self.rows[index]


def test_datasets_and_other_iterables(
    pipe: Qwen3ASRPipeline, native: Qwen3ASRPipeline, recordings: dict[str, Recording]
) -> None:
    rows = _Rows([{"audio": {"array": _samples(recordings[n]), "sampling_rate": 16_000}} for n in SPOKEN])
    wanted = [{"text": recordings[name].text} for name in SPOKEN]
    for each in (pipe, native):
        assert list(each(KeyDataset(rows, "audio"), batch_size=3)) == wanted
        assert list(each(map(os.fspath, [recordings[n].path for n in SPOKEN]))) == wanted
        assert each([]) == []


@pytest.mark.parametrize("decode", [True, False])
def test_columns_of_datasets(pipe: Qwen3ASRPipeline, recordings: dict[str, Recording], decode: bool) -> None:
    """Files as ``Audio`` leaves them undecoded, and samples; what ``Audio`` decodes needs torchcodec."""
    if decode:
        rows = [{"array": _samples(recordings[name]), "sampling_rate": 16_000} for name in SPOKEN]
        column = datasets.Dataset.from_dict({"audio": rows})["audio"]
    else:
        paths = [os.fspath(recordings[name].path) for name in SPOKEN]
        whole = datasets.Dataset.from_dict({"audio": paths})
        column = whole.cast_column("audio", datasets.Audio(decode=False))["audio"]
    assert isinstance(column, datasets.Column)
    wanted = [{"text": recordings[name].text} for name in SPOKEN]
    assert list(pipe(column)) == wanted
    assert list(pipe(KeyDataset(datasets.Dataset.from_dict({"audio": list(column)}), "audio"))) == wanted


def test_of_many_clips_the_error_is_that_of_the_one(
    pipe: Qwen3ASRPipeline, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    paths = [recordings["english"].path, tmp_path / "missing.wav"]
    with pytest.raises(AudioNotFound, match=r"missing\.wav"):
        pipe(paths)
    results = pipe(path for path in paths)
    assert next(results)["text"] == recordings["english"].text
    with pytest.raises(AudioNotFound, match=r"missing\.wav"):
        next(results)


# --- the torch model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_torch_model_says_the_same(
    pipe: Qwen3ASRPipeline, native: Qwen3ASRPipeline, recordings: dict[str, Recording], batch_size: int
) -> None:
    paths = [recordings[name].path for name in SPOKEN]
    assert native(paths, return_language=True, batch_size=batch_size) == pipe(paths, return_language=True)


def test_the_torch_model_is_asked_as_the_exported_one(
    pipe: Qwen3ASRPipeline, native: Qwen3ASRPipeline, recordings: dict[str, Recording],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = recordings["english"].path
    for language in ("de", "german"):
        options = {"language": language, "prompt": "wasser"}
        assert native(path, generate_kwargs=options, return_language=True) == pipe(
            path, generate_kwargs=options, return_language=True
        )
    assert not [record for record in caplog.records if "cut" in record.message]
    assert native(path, max_new_tokens=5) == pipe(path, max_new_tokens=5)
    assert "cut at 5 tokens" in caplog.text
    for each in (pipe, native):
        assert each(path, max_new_tokens=5, return_finish_reason=True)["finish_reason"] == "length"
        assert each(path, return_finish_reason=True)["finish_reason"] == "stop"


def test_the_torch_model_reads_prompt_and_language(
    native: Qwen3ASRPipeline, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, generate = [], native.model.generate

    def spy(**inputs: Any) -> torch.Tensor:
        read.append(native.tokenizer.decode(inputs["input_ids"][0]))
        return generate(**inputs)

    monkeypatch.setattr(native.model, "generate", spy)
    native(recordings["german"].path, generate_kwargs={"prompt": "wasser", "language": "de"})
    native(recordings["german"].path, generate_kwargs={"prompt": None})
    assert ["system\nwasser" in prompt for prompt in read] == [True, False]
    assert [prompt.endswith("language German<asr_text>") for prompt in read] == [True, False]


def test_what_the_torch_model_cannot_do(native: Qwen3ASRPipeline, recordings: dict[str, Recording]) -> None:
    path = recordings["english"].path
    for asked in (True, "word"):
        with pytest.raises(RequestInvalid, match=r"torch model has no times.*aligner="):
            native(path, return_timestamps=asked)
    with pytest.raises(RequestInvalid, match="torch model has no chunk_length_s"):
        native(path, chunk_length_s=30)
    assert native(path, return_timestamps=False, chunk_length_s=0)["text"] == recordings["english"].text


def test_a_model_that_cannot_transcribe_is_refused(aligner_bundle: Path) -> None:
    with pytest.raises(RequestInvalid, match="Qwen3AlignerModel cannot transcribe"):
        pipeline(ASR, Qwen3AlignerModel.from_pretrained(aligner_bundle))
    with pytest.raises(RequestInvalid, match=r"processor=AutoProcessor"):
        pipeline(ASR, transformers.Qwen3ASRForConditionalGeneration.from_pretrained(TINY / "asr"))


# --- transformers' own pipeline() ------------------------------------------------------------------------------


def test_transformers_own_pipeline_takes_the_model(model: Recognizer, recordings: dict[str, Recording]) -> None:
    for given in (model, Qwen3ASRModel(model)):
        pipe = transformers.pipeline(ASR, model=given, pipeline_class=Qwen3ASRPipeline)
        assert pipe(recordings["german"].path, return_language=True) == {
            "text": recordings["german"].text,
            "language": "German",
        }
    assert pipe.task == ASR
    assert pipe.model.config.model_type == "qwen3_asr"
    assert "Qwen3ASRModel" in repr(pipe)


def test_transformers_own_pipeline_loads_a_bundle_by_its_path(
    asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording]
) -> None:
    pipe = transformers.pipeline(
        ASR, model=os.fspath(asr_bundle), pipeline_class=Qwen3ASRPipeline,
        model_kwargs={"aligner": aligner_bundle, "slots": 2},
    )  # fmt: skip
    assert isinstance(pipe.model, Qwen3ASRModel)
    assert (pipe.task, pipe.model.recognizer.kv_cache.slots) == (ASR, 2)
    result = pipe(recordings["german"].path, return_timestamps="word")
    assert (result["text"], len(result["chunks"])) == (recordings["german"].text, len(recordings["german"].words))


def test_transformers_own_pipeline_loads_a_torch_checkpoint_by_its_path(recordings: dict[str, Recording]) -> None:
    pipe = transformers.pipeline(
        ASR, model=os.fspath(TINY / "asr"), pipeline_class=Qwen3ASRPipeline, dtype=torch.float32, device="cpu"
    )
    assert isinstance(pipe.model, transformers.Qwen3ASRForConditionalGeneration)
    assert pipe(recordings["german"].path) == {"text": recordings["german"].text}


def test_transformers_own_pipeline_takes_a_torch_checkpoint(recordings: dict[str, Recording]) -> None:
    class_ = transformers.AutoModelForMultimodalLM
    pipe = transformers.pipeline(
        ASR, model=class_.from_pretrained(TINY / "asr", dtype=torch.float32), pipeline_class=Qwen3ASRPipeline,
        processor=os.fspath(TINY / "asr"), device="cpu",
    )  # fmt: skip
    assert pipe(recordings["german"].path) == {"text": recordings["german"].text}


@pytest.mark.usefixtures("registered")
def test_a_registered_task_loads_bundles_by_path(
    asr_bundle: Path, aligner_bundle: Path, model: Recognizer, recordings: dict[str, Recording]
) -> None:
    wanted = recordings["spanish"]
    pipe = transformers.pipeline(
        "qwen3-asr", model=asr_bundle, model_kwargs={"aligner": aligner_bundle, "slots": 2}, return_timestamps="word"
    )
    assert isinstance(pipe.model, Qwen3ASRModel)
    assert pipe.model.recognizer.kv_cache.slots == 2
    assert pipe(wanted.path) == pipeline(ASR, model)(wanted.path, return_timestamps="word")
    aligned = transformers.pipeline("forced-alignment", model=os.fspath(aligner_bundle))
    assert [word["text"] for word in aligned(wanted.path, text=wanted.text)] == wanted.text.split()


@pytest.mark.usefixtures("registered")
def test_a_registered_task_loads_torch_checkpoints_too(recordings: dict[str, Recording]) -> None:
    pipe = transformers.pipeline("qwen3-asr", model=os.fspath(TINY / "asr"), dtype=torch.float32, device="cpu")
    assert isinstance(pipe.model, transformers.Qwen3ASRForConditionalGeneration)
    assert pipe(recordings["german"].path) == {"text": recordings["german"].text}


@pytest.mark.usefixtures("registered")
def test_registering_twice_is_harmless_and_leaves_the_stock_task() -> None:
    before = dict(PIPELINE_REGISTRY.supported_tasks)
    plugin.register()
    assert all(PIPELINE_REGISTRY.supported_tasks[task] is entry for task, entry in before.items())
    assert "AutomaticSpeechRecognitionPipeline" in str(before[ASR]["impl"])


def test_a_gpu_that_happens_to_be_there_is_left_alone(model: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.pipelines.base.is_torch_cuda_available", lambda: True)
    assert pipeline(ASR, model).device == torch.device("cpu")
    assert pipeline("forced-alignment", model).device == torch.device("cpu")
    assert pipeline(ASR, model, device="cpu:0").device.type == "cpu"
    with pytest.raises(DeviceUnavailable, match="cannot move to cuda:1"):
        transformers.pipeline(ASR, model=model, pipeline_class=Qwen3ASRPipeline, device="cuda:1")


# --- alignment -------------------------------------------------------------------------------------------------


def test_alignment_is_that_of_the_aligner(aligner_bundle: Path, recordings: dict[str, Recording]) -> None:
    wanted = recordings["english"]
    aligner = qwen3asr.load_aligner(aligner_bundle)
    words = aligner.align(wanted.path, wanted.text, language="English")
    expected = [{"text": word.text, "timestamp": (word.start, word.end)} for word in words]
    assert [word["text"] for word in expected] == wanted.text.split()
    for given in (aligner_bundle, aligner, Qwen3AlignerModel(aligner)):
        pipe = pipeline("forced-alignment", given)
        assert pipe(wanted.path, text=wanted.text, language="English") == expected
        assert pipe({"audio": wanted.path, "text": wanted.text, "language": "English"}) == expected
        assert pipe({"array": _samples(wanted), "sampling_rate": 16_000}, text=wanted.text) == expected


def test_many_alignments(model: Recognizer, recordings: dict[str, Recording]) -> None:
    pipe = pipeline("forced-alignment", model)
    rows = [{"audio": recordings[n].path, "text": recordings[n].text, "language": recordings[n].language}
            for n in ("english", "german", "chinese")]  # fmt: skip
    alone = [pipe(row) for row in rows]
    assert pipe(rows) == alone
    assert list(pipe(row for row in rows)) == alone
    assert [len(words) for words in alone] == [len(recordings[n].words) for n in ("english", "german", "chinese")]


def test_a_recogniser_aligns_what_is_too_long_for_the_aligner(
    asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording]
) -> None:
    pipe = pipeline("forced-alignment", asr_bundle, aligner=aligner_bundle, model_kwargs={"slots": 2})
    assert pipe.model.aligner.kv_cache.slots == 2
    wanted, quiet = recordings["english"], np.zeros(16_000, np.float32)
    long = np.concatenate([part for _ in range(60) for part in (_samples(wanted), quiet)])
    assert len(long) / 16_000 > qwen3asr.load_aligner(aligner_bundle).longest
    words = pipe(long, text=" ".join([wanted.text] * 60))
    assert len(words) == 300
    assert words[-1]["timestamp"][1] > 240


def test_an_alignment_needs_a_text_and_a_known_language(model: Recognizer, recordings: dict[str, Recording]) -> None:
    pipe = pipeline("forced-alignment", model)
    for given in (recordings["english"].path, {"audio": recordings["english"].path}):
        with pytest.raises(RequestInvalid, match="no text to align"):
            pipe(given)
    with pytest.raises(LanguageUnknown, match="Thai"):
        pipe(recordings["english"].path, text="a", language="Thai")
    with pytest.raises(LanguageUnknown, match="Thai"):  # a row's own goes before that of the call
        pipe({"audio": recordings["english"].path, "text": "a", "language": "Thai"}, language="English")
    with pytest.raises(TypeError, match="return_timestamps"):
        pipe(recordings["english"].path, text="a", return_timestamps=True)
    with pytest.raises(RequestInvalid, match="str cannot align"):
        Qwen3AlignmentPipeline("out/forced-aligner")


# --- loading and saving ----------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_refused(model: Recognizer, aligner_bundle: Path, asr_bundle: Path) -> None:
    with pytest.raises(RequestInvalid, match="'text-generation' is not known"):
        pipeline("text-generation", model)  # type: ignore[call-overload]
    with pytest.raises(RequestInvalid, match="aligner: for a bundle's folder only"):
        pipeline(ASR, model, aligner=aligner_bundle)
    with pytest.raises(BundleInvalid, match="qwen3asr export"):
        pipeline(ASR, TINY / "asr")
    with pytest.raises(TypeError, match="slot"):
        pipeline(ASR, asr_bundle, model_kwargs={"slot": 2})  # type: ignore[typeddict-unknown-key]


@pytest.mark.usefixtures("registered")
def test_a_saved_pipeline_is_the_bundle(asr_bundle: Path, tmp_path: Path) -> None:
    """Transformers' own way of saving rewrites the tokenizer, which the bundle then refuses to load with."""
    pipe = transformers.pipeline("qwen3-asr", model=asr_bundle)
    pipe.save_pretrained(tmp_path / "copy")
    files = sorted(path.relative_to(asr_bundle) for path in asr_bundle.rglob("*"))
    assert sorted(path.relative_to(tmp_path / "copy") for path in (tmp_path / "copy").rglob("*")) == files
    assert all((tmp_path / "copy" / f).read_bytes() == (asr_bundle / f).read_bytes() for f in files if f.suffix)
    qwen3asr.load(tmp_path / "copy", check_hashes=True).close()
    pipe.save_pretrained(asr_bundle)  # onto itself


def test_an_aligner_is_saved_if_its_bundle_is_known(aligner_bundle: Path, tmp_path: Path) -> None:
    model = Qwen3AlignerModel.from_pretrained(aligner_bundle)
    model.save_pretrained(tmp_path / "copy")
    qwen3asr.load_aligner(tmp_path / "copy", check_hashes=True)
    with pytest.raises(RequestInvalid, match="copy that folder"):
        Qwen3AlignerModel(model.aligner).save_pretrained(tmp_path / "other")


def test_the_example_prints_texts_and_words(
    asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording]
) -> None:
    wanted = [recordings[name] for name in ("english", "german")]
    command = [sys.executable, ROOT / "examples/hf_pipeline.py", asr_bundle, aligner_bundle, *(w.path for w in wanted)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in printed if ".flac" in line] == [f"{w.path}  {w.language}: {w.text}" for w in wanted]
    assert len(printed) == sum(1 + len(w.words) for w in wanted)


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_names_its_extra(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; import qwen3asr_plugins.transformers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"needs the package {package}; install it with: pip install 'qwen3asr[transformers]'" in done.stderr
