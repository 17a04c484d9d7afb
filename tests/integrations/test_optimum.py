"""The Optimum model over the tiny trained one."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from optimum.modeling_base import OptimizedModel
from tests.checkpoints import TINY
from tests.conftest import Recording

import qwen3asr
from qwen3asr.errors import BundleNotFound, CheckpointInvalid, OutputNotFinite, RequestInvalid
from qwen3asr_plugins.optimum import ORTModelForQwen3ASR
from qwen3asr_plugins.transformers import pipeline


@pytest.fixture(scope="module")
def loaded(asr_bundle: Path, aligner_bundle: Path) -> ORTModelForQwen3ASR:
    return ORTModelForQwen3ASR.from_pretrained(asr_bundle, aligner=aligner_bundle)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_bundle_is_an_optimized_model(loaded: ORTModelForQwen3ASR, recordings: dict[str, Recording]) -> None:
    assert isinstance(loaded, OptimizedModel)
    assert loaded.config.model_type == "qwen3_asr"
    wanted = recordings["german"]
    result = loaded.transcribe(wanted.path)
    assert (result.text, result.language) == (wanted.text, "German")
    assert result == loaded.recognizer.transcribe(wanted.path)
    short = loaded.transcribe(wanted.path, language="de", prompt="wasser", max_new_tokens=2)
    assert short == loaded.recognizer.transcribe(wanted.path, language="German", context="wasser", max_new_tokens=2)
    assert short.finish_reason == "length"


def test_it_goes_into_the_pipeline(loaded: ORTModelForQwen3ASR, recordings: dict[str, Recording]) -> None:
    wanted = recordings["english"]
    pipe = pipeline("automatic-speech-recognition", loaded)
    assert pipe.model is loaded
    result = pipe([wanted.path], return_timestamps="word")
    assert [chunk["text"] for chunk in result[0]["chunks"]] == wanted.text.split()


def test_a_checkpoint_is_exported_kept_and_saved(
    temporary: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    model = ORTModelForQwen3ASR.from_pretrained(TINY / "asr", export=True, precision="fp32", slots=2, check=False)
    assert model.recognizer.bundle.manifest.precision == "fp32"
    assert model.recognizer.kv_cache.slots == 2
    assert len(list(temporary.iterdir())) == 1
    assert model.transcribe(recordings["german"].path).text == recordings["german"].text
    model.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "again")
    del model
    gc.collect()
    assert list(temporary.iterdir()) == []
    again = ORTModelForQwen3ASR.from_pretrained(tmp_path / "saved", check_hashes=True)
    assert again.transcribe(recordings["german"].path).text == recordings["german"].text


def test_the_recogniser_keeps_its_bundle(temporary: Path) -> None:
    """It may outlive the model that it came with."""
    recognizer = ORTModelForQwen3ASR.from_pretrained(TINY / "asr", export=True, check=False).recognizer
    gc.collect()
    assert recognizer.bundle.folder.is_dir()


def test_an_export_that_fails_leaves_nothing(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises((CheckpointInvalid, ValueError)):
        ORTModelForQwen3ASR.from_pretrained(tmp_path, export=True)
    with pytest.raises(TypeError, match="slot"):
        ORTModelForQwen3ASR.from_pretrained(TINY / "asr", export=True, check=False, slot=2)
    assert list(temporary.iterdir()) == []


def test_saving_copies_the_bundle_whole(loaded: ORTModelForQwen3ASR, asr_bundle: Path, tmp_path: Path) -> None:
    loaded.save_pretrained(tmp_path / "copy")
    files = {path.relative_to(asr_bundle) for path in asr_bundle.rglob("*") if path.is_file()}
    assert {p.relative_to(tmp_path / "copy") for p in (tmp_path / "copy").rglob("*") if p.is_file()} == files
    assert all((tmp_path / "copy" / name).read_bytes() == (asr_bundle / name).read_bytes() for name in files)
    qwen3asr.load(tmp_path / "copy", check_hashes=True).close()


def test_what_cannot_be_done_says_what_can(loaded: ORTModelForQwen3ASR, asr_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestInvalid, match=r"no forward.*transcribe\(audio\)"):
        loaded(input_features=None)
    with pytest.raises(RequestInvalid, match="hf upload"):
        loaded.push_to_hub("somebody/model")
    with pytest.raises(RequestInvalid, match="export=True"):
        ORTModelForQwen3ASR.from_pretrained(asr_bundle, precision="int8")
    with pytest.raises(BundleNotFound, match="qwen3asr export"):
        ORTModelForQwen3ASR.from_pretrained(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def processor() -> Any:
    return transformers.AutoProcessor.from_pretrained(TINY / "asr")


@pytest.fixture(scope="module")
def clips(recordings: dict[str, Recording]) -> list[np.ndarray]:
    """Of different lengths, one of them without speech."""
    return [soundfile.read(recordings[name].path, dtype="float32")[0] for name in sorted(recordings)]


@pytest.mark.parametrize("options", [{}, {"max_new_tokens": 4}], ids=["whole", "cut"])
def test_generate_gives_the_ids_of_the_torch_model(
    loaded: ORTModelForQwen3ASR, processor: Any, clips: list[np.ndarray], options: dict[str, int]
) -> None:
    native = transformers.Qwen3ASRForConditionalGeneration.from_pretrained(TINY / "asr", dtype="float32").eval()
    inputs = processor.apply_transcription_request(audio=clips)
    with torch.inference_mode():
        wanted = native.generate(**inputs, do_sample=False, **options)
    found = loaded.generate(**inputs, do_sample=False, **options)
    assert found.dtype == torch.int64
    assert torch.equal(found, wanted)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    np.testing.assert_array_equal(loaded.generate(**arrays, **options), wanted.numpy())


def test_generate_takes_one_row_without_masks_and_features_in_bfloat16(
    loaded: ORTModelForQwen3ASR, processor: Any, recordings: dict[str, Recording]
) -> None:
    spoken = recordings["german"]
    samples, _ = soundfile.read(spoken.path, dtype="float32")
    inputs = processor.apply_transcription_request(audio=samples, language="German")
    features = inputs["input_features"][:, :, : inputs["input_features_mask"].sum()]  # without the processor's padding
    ids = loaded.generate(input_ids=inputs["input_ids"], input_features=features.to(torch.bfloat16))
    text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == spoken.text


def test_generate_refuses_what_does_not_fit(
    loaded: ORTModelForQwen3ASR, processor: Any, clips: list[np.ndarray]
) -> None:
    inputs = processor.apply_transcription_request(audio=clips[:2])
    for option in ({"num_beams": 4}, {"do_sample": True}, {"temperature": 0.5}):
        with pytest.raises(RequestInvalid, match=r"decodes greedily"):
            loaded.generate(**inputs, **option)
    for changed, words in (
        ({"input_features": inputs["input_features"][:1]}, "rows, prompt and frames of the inputs differ"),
        ({"attention_mask": inputs["attention_mask"][:, 1:]}, "rows, prompt and frames of the inputs differ"),
        ({"input_features_mask": None}, r"needs \d+ audio pads"),
        ({"input_ids": torch.zeros_like(inputs["input_ids"])}, r"audio pads .* and has 0"),
        ({"input_ids": inputs["input_ids"] + 100_000}, "ids below"),
        ({"max_new_tokens": 0}, "writes nothing"),
        ({"max_new_tokens": 10**6}, "do not fit the KV cache"),
    ):
        with pytest.raises(RequestInvalid, match=words):
            loaded.generate(**{**inputs, **changed})


def test_a_row_that_fails_takes_the_others_with_it(
    loaded: ORTModelForQwen3ASR, processor: Any, clips: list[np.ndarray]
) -> None:
    inputs = processor.apply_transcription_request(audio=clips)
    inputs["input_features"][1, 0, 0] = float("nan")
    with pytest.raises(OutputNotFinite):
        loaded.generate(**inputs)
    assert loaded.generate(**processor.apply_transcription_request(audio=clips[:1])).shape[0] == 1


def test_missing_packages_name_their_extras() -> None:
    for name, module, extra in (("optimum", "optimum", "optimum"), ("onnx", "onnx", "export")):
        code = (
            f"import sys; sys.modules[{module!r}] = None\n"
            "from qwen3asr_plugins.optimum import ORTModelForQwen3ASR as Model\n"
            f"Model.from_pretrained({str(TINY / 'asr')!r}, export=True)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"needs the package {name}; install it with: pip install 'qwen3asr[{extra}]'" in done.stderr
