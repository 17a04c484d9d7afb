"""The GPU benchmark: what it computes, and that each of its commands runs, here on the CPU."""

from __future__ import annotations

import json
import sys
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.trt_folder import write_folder
from tests.trt_standin import Machine

from qwen3asr.bundle import open_bundle
from qwen3asr.engines import Engines, open_engines
from qwen3asr.errors import DeviceUnavailable, EngineBuildFailed
from qwen3asr.spec import ModelSpec
from qwen3asr_export.checkpoint import expected_tensors
from qwen3asr_export.tensorrt import Settings, build_engines
from qwen3asr_export.tensorrt.settings import QUANTISED

SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu

    return gpu


@pytest.fixture(scope="module")
def spec(asr_bundle: Path) -> ModelSpec:
    return open_bundle(asr_bundle).spec


def _main(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> dict[str, Any]:
    line = ["gpu.py", *arguments, "--work", str(folder), "--out", str(folder)]
    monkeypatch.setattr(sys, "argv", line)
    gpu.main()
    report: dict[str, Any] = json.loads((folder / f"gpu_{arguments[0]}.json").read_text("utf-8"))
    return report


def test_every_command_runs_dry_and_writes_what_it_found(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dry = ("--dry-run", "--only", "cpu fp32 ort")
    parity = _main(gpu, monkeypatch, tmp_path, "parity", *dry)
    words = _main(gpu, monkeypatch, tmp_path, "words", *dry)
    speed = _main(gpu, monkeypatch, tmp_path, "speed", *dry)
    for report in (parity, words, speed):
        assert report["dry_run"] is True
        assert "error" not in json.dumps(report)
    for name in ("tiny-asr", "tiny-aligner"):
        exact = parity["models"][name]["against transformers fp32"]["cpu fp32 ort"]
        assert (exact["answers_differ"], exact["clips_equal"]) == (0, 1)
        assert exact["logits"] < 1e-5
    said = words["models"]["tiny-asr"]["cpu fp32 ort"]
    assert (said["exact"], said["wrong"]) == (1, [])
    rows = speed["models"]
    assert set(rows["tiny-asr"]) == {"cpu fp32 ort", "transformers"}
    assert rows["tiny-asr"]["cpu fp32 ort"]["2"]["clips"] == 2
    assert rows["tiny-aligner"]["cpu fp32 ort"]["throughput"] > 0


# --- TensorRT's own engines, on the stand-in ---------------------------------------------------------------------


class Workshop:
    """Stands in for the builder: writes folders of stand-in engines, and remembers their sizes."""

    def __init__(self) -> None:
        self.built: list[tuple[str, str, int, int]] = []
        self.refusal: Exception | None = None

    def build(self, bundle: Path, *, settings: Settings, precision: str, replace: bool) -> tuple[Path, Engines]:
        if self.refusal is not None:
            raise self.refusal
        opened = open_bundle(bundle)
        name = f"h100-trt11.4.0-{precision}" if precision in QUANTISED else "h100-trt11.4.0"
        folder = write_folder(opened, settings, name=name, precision=precision)
        self.built.append((bundle.name, precision, settings.slots, settings.capacity))
        return folder, open_engines(folder, opened.hashes)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    there = Machine()
    there.install(monkeypatch)
    return there


@pytest.fixture
def workshop(gpu: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    import gpu_native

    there = Workshop()
    monkeypatch.setattr(gpu_native, "build_engines", there.build)
    return there


def test_every_command_runs_native_engines_which_are_built_once_a_setting(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, machine: Machine, workshop: Workshop, tmp_path: Path
) -> None:
    from gpu_native import NativeContender

    monkeypatch.setattr(gpu, "ON_CPU", (NativeContender("fp32"),))
    free = machine.free
    for _ in range(2):
        parity = _main(gpu, monkeypatch, tmp_path, "parity", "--dry-run", "--budget", "16")["models"]
        words = _main(gpu, monkeypatch, tmp_path, "words", "--dry-run")["models"]["tiny-asr"]["tensorrt-native fp32"]
        speed = _main(gpu, monkeypatch, tmp_path, "speed", "--dry-run")["models"]
        assert "error" not in json.dumps([parity, words, speed])
    seconds = {"build_s": {"encoder": 1.0, "decoder": 1.0}}
    for name in ("tiny-asr", "tiny-aligner"):
        exact = parity[name]["against transformers fp32"]["tensorrt-native fp32"]
        assert (exact["logits"], exact["answers_differ"], exact["clips_equal"]) == (None, 0, 1)
        assert exact["positions"] > 20
        assert exact.items() >= seconds.items()
    assert (words["exact"], words["wrong"]) == (1, [])
    assert words.items() >= seconds.items()
    assert speed["tiny-asr"]["tensorrt-native fp32"]["2"].items() >= {"clips": 2, **seconds}.items()
    assert speed["tiny-aligner"]["tensorrt-native fp32"].items() >= seconds.items()
    assert len(set(workshop.built)) == len(workshop.built)
    asr, aligner = "tiny-asr-fp32-standard", "tiny-aligner-fp32-standard"
    sizes = [(name, slots) for name, _, slots, _ in workshop.built]
    assert sorted(sizes) == [(aligner, 1), (aligner, 1), (asr, 1), (asr, 2), (asr, 2), (asr, 8)]
    assert (machine.held, machine.free) == (0, free)


def test_engines_are_taken_again_only_if_they_are_of_that_precision_size_and_gpu(
    gpu: ModuleType, workshop: Workshop, tmp_path: Path
) -> None:
    from gpu_native import NativeContender

    bundle = NativeContender("int8").bundle("tiny-asr", tmp_path)
    assert (bundle.manifest.precision, bundle.manifest.dialect) == ("bf16", "standard")
    write_folder(bundle, Settings(slots=2, capacity=256), name="other", precision="int8", capability="12.0")
    asked = [("int8", 2, 256), ("int8", 2, 512), ("int8", 3, 256), ("int4", 2, 256), ("bf16", 2, 256)]
    for _ in range(2):
        for precision, slots, capacity in asked:
            chosen = NativeContender(precision)._engines(bundle, Settings(slots=slots, capacity=capacity)).engines
            assert (chosen.precision, chosen.slots, chosen.capacity) == (precision, slots, capacity)
            assert chosen.compute_capability == "9.0"
    assert [size for _, *size in workshop.built] == [list(one) for one in asked]


def test_what_the_builder_or_the_runtime_refuses_is_the_row(
    gpu: ModuleType, machine: Machine, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gpu_native import NativeContender

    monkeypatch.setattr(gpu, "ON_CPU", (NativeContender("int8"), NativeContender("fp32")))
    workshop.refusal = EngineBuildFailed("TensorRT built no decoder engine: no implementation")
    rows = _main(gpu, monkeypatch, tmp_path, "words", "--dry-run")["models"]["tiny-asr"]
    words = "EngineBuildFailed: TensorRT built no decoder engine: no implementation"
    assert rows == {"tensorrt-native int8": {"error": words}, "tensorrt-native fp32": {"error": words}}
    workshop.refusal, machine.free = None, 1 << 20
    rows = _main(gpu, monkeypatch, tmp_path, "words", "--dry-run", "--only", "tensorrt-native fp32")["models"]
    assert rows["tiny-asr"]["tensorrt-native fp32"]["error"].startswith("KvMemoryShort: slots=8 need ")


def test_the_stand_in_of_the_builder_is_called_as_the_real_one(workshop: Workshop) -> None:
    real, ours = signature(build_engines).parameters, signature(workshop.build).parameters
    assert set(ours) <= set(real)


def test_without_a_gpu_it_says_so_at_once(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="--dry-run"):
        _main(gpu, monkeypatch, tmp_path, "words")


def test_contenders_that_are_not_known_are_named_with_those_that_are(gpu: ModuleType) -> None:
    native = "tensorrt-native bf16, tensorrt-native int8, tensorrt-native int4"
    with pytest.raises(SystemExit, match=f"rocm; known are: nv_tensorrt_rtx bf16 standard, .*, {native}$"):
        gpu.chosen(["rocm"], False)
    assert [contender.name for contender in gpu.chosen(["cuda bf16 ort"], False)] == ["cuda bf16 ort"]


def test_what_a_provider_refuses_is_kept_in_its_own_words_and_saved(gpu: ModuleType) -> None:
    from gpu_models import Progress

    def refuse() -> dict[str, object]:
        raise DeviceUnavailable("compute capability 9.0 is not supported")

    rows: dict[str, dict[str, object]] = {}
    saved: list[int] = []
    progress = Progress(lambda: saved.append(len(rows)), 60)
    progress.row(rows, "rtx", refuse)
    progress.row(rows, "cuda", lambda: {"exact": 1})
    assert rows == {
        "rtx": {"error": "DeviceUnavailable: compute capability 9.0 is not supported"},
        "cuda": {"exact": 1},
    }
    assert saved == [1, 2]
    Progress(lambda: saved.append(0), -1).row(rows, "cuda", refuse)
    assert rows["cuda"] == {"error": "not measured: out of time"}


def test_the_roofline_counts_every_weight_of_the_layers(gpu: ModuleType, spec: ModelSpec) -> None:
    from gpu_machine import encoder_weights, layer_weights

    sizes = {name: shape for name, shape in expected_tensors(spec).items() if len(shape) == 2}
    layers = sum(a * b for name, (a, b) in sizes.items() if "language_model.layers" in name)
    assert layer_weights(spec) == layers
    encoder = sum(a * b for name, (a, b) in sizes.items() if "audio_tower.layers" in name or "projector" in name)
    assert encoder_weights(spec) == encoder


def test_the_roofline_of_the_released_shape_is_what_arithmetic_on_paper_gives(gpu: ModuleType) -> None:
    """0.6B in bf16: 1.19 GB of weights a step, 112 KiB a cached token."""
    from gpu_machine import Limits, floors, prefill_flops, step_bytes
    from gpu_ort import OrtContender

    from qwen3asr_export.standin import STANDINS

    shape = ModelSpec.from_config(STANDINS["0.6b"].config().to_dict())
    bf16 = OrtContender("cuda", "bf16", "ort").widths
    assert step_bytes(shape, bf16, 0, 0) == pytest.approx(1.19e9, rel=0.01)
    assert step_bytes(shape, bf16, 2, 100) - step_bytes(shape, bf16, 0, 0) == 2 * 100 * 112 * 1024
    assert prefill_flops(shape, 1575, 1560) == pytest.approx(2.25e12, rel=0.1)
    least = floors(shape, bf16, Limits(1e12, 1e14), rows=8, prompt=1575, audio=1560, tokens=400)
    assert least["all_s"] == pytest.approx(least["prefill_s"] + 399 * least["step_s"])
    assert least["step_s"] == pytest.approx(step_bytes(shape, bf16, 8, 1775) / 1e12)


def test_quantised_engines_read_less_of_the_layers_and_the_same_of_head_and_cache(gpu: ModuleType) -> None:
    """0.6B has 440 million weights in its layers and 156 million in its head."""
    from gpu_machine import layer_weights, step_bytes
    from gpu_native import NativeContender

    from qwen3asr_export.standin import STANDINS

    shape = ModelSpec.from_config(STANDINS["0.6b"].config().to_dict())
    whole, int8, int4 = (step_bytes(shape, NativeContender(name).widths, 2, 100) for name in ("bf16", "int8", "int4"))
    assert whole - int8 == layer_weights(shape) == pytest.approx(440e6, rel=0.01)
    assert int8 - int4 == layer_weights(shape) * (0.5 - 1 / 16)


def test_percentiles(gpu: ModuleType) -> None:
    from gpu_machine import spread

    assert spread([float(n) for n in range(100, 0, -1)]) == {"mean": 50.5, "p50": 50.5, "p95": 96.0}
    assert spread([2.0]) == {"mean": 2.0, "p50": 2.0, "p95": 2.0}


def test_results_of_one_machine_add_up_and_those_of_another_are_dropped(gpu: ModuleType) -> None:
    row = {"throughput": 1}
    old = {"machine": "a", "gpu": {"name": "x"}, "models": {"0.6b": {"one": {"8": row}, "two": {"8": row}}}}
    new = {"machine": "a", "gpu": {"name": "x"}, "models": {"0.6b": {"one": {"32": row, "8": {"error": "no"}}}}}
    both = {"0.6b": {"one": {"8": {"error": "no"}, "32": row}, "two": {"8": row}}}
    assert gpu.merged(old, new)["models"] == both
    assert gpu.merged(old, new | {"gpu": {"name": "y"}})["models"] == new["models"]


def test_utterances_are_those_prepared_or_else_the_recordings(gpu: ModuleType, tmp_path: Path) -> None:
    from gpu_words import utterances

    assert {one.text for one in utterances(tmp_path)} >= {""}
    (tmp_path / "manifest.json").write_text('[{"audio": "a.flac", "text": "one", "language": "English"}]')
    (one,) = utterances(tmp_path)
    assert (one.audio, one.text, one.language) == (tmp_path / "a.flac", "one", "English")
