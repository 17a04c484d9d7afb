"""The GPU benchmark: what it computes, and that each of its commands runs, here on the CPU."""

from __future__ import annotations

import gc
import json
import sys
import time
import weakref
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import ROOT
from tests.trt_folder import write_folder
from tests.trt_standin import Machine

from qwen3asr.bundle import open_bundle
from qwen3asr.decoder import Decoder
from qwen3asr.engines import Engines, open_engines
from qwen3asr.errors import DeviceUnavailable, EngineBuildFailed
from qwen3asr.sessions.base import Picked
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
        assert exact["logprobs"] < 1e-3
        assert exact.get("rows_equal") == (1 if name == "tiny-asr" else None)
    said = words["models"]["tiny-asr"]["cpu fp32 ort"]
    assert (said["exact"], said["wrong"]) == (1, [])
    rows = speed["models"]
    assert set(rows["tiny-asr"]) == set(rows["tiny-aligner"]) == {"cpu fp32 ort", "transformers"}
    assert rows["tiny-asr"]["cpu fp32 ort"]["2"]["clips"] == 2
    for row in rows["tiny-aligner"].values():
        assert row["throughput"] == pytest.approx(2 / row["seconds"]["mean"])
        assert row["features_s"]["mean"] > 0
    aligner = rows["tiny-aligner"]["cpu fp32 ort"]
    assert aligner["with_features_and_words_s"]["mean"] > 0
    assert aligner["share_of_roofline"] == pytest.approx(aligner["throughput"] / aligner["roofline"]["throughput"])


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
        assert exact["logprobs"] < 1e-3
        assert exact.items() >= seconds.items()
    assert (words["exact"], words["wrong"]) == (1, [])
    assert words.items() >= seconds.items()
    assert speed["tiny-asr"]["tensorrt-native fp32"]["2"].items() >= {"clips": 2, **seconds}.items()
    assert speed["tiny-aligner"]["tensorrt-native fp32"].items() >= seconds.items()
    assert len(set(workshop.built)) == len(workshop.built)
    asr, aligner = "tiny-asr-fp32-standard", "tiny-aligner-fp32-standard"
    sizes = [(name, slots) for name, _, slots, _ in workshop.built]
    assert sorted(sizes) == [(aligner, 1), (aligner, 1), (asr, 1), (asr, 2), (asr, 5), (asr, 8)]
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
    native = ", ".join(f"tensorrt-native {name}" for name in ("bf16", "int8", "fp8", "int4"))
    with pytest.raises(SystemExit, match=f"rocm; known are: nv_tensorrt_rtx bf16 standard, .*, {native}$"):
        gpu.chosen("speed", ["rocm"], False)
    assert [contender.name for contender in gpu.chosen("speed", ["cuda bf16 ort"], False)] == ["cuda bf16 ort"]
    only_in_parity = {one.name for one in gpu.chosen("parity", [], False)} - {
        one.name for one in gpu.chosen("speed", [], False)
    }
    assert only_in_parity == {"tensorrt-native fp16", "tensorrt-native fp32"}


def test_a_dry_run_leaves_the_results_of_gpus_alone(gpu: ModuleType) -> None:
    assert gpu.arguments(["speed", "--dry-run"]).out == Path("build/gpu/dry-run")
    assert gpu.arguments(["speed"]).out == gpu.RESULTS
    assert gpu.arguments(["speed", "--dry-run", "--out", "here"]).out == Path("here")


# --- what is timed and compared ------------------------------------------------------------------------------------


def test_features_are_made_before_every_clock_and_told_by_themselves(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import gpu_speed
    from gpu_machine import Limits
    from gpu_models import Peer, checkpoint
    from gpu_ort import OrtContender

    from qwen3asr.features import log_mel
    from qwen3asr.prompt import PromptBuilder
    from qwen3asr.tokenizer import open_tokenizer

    def slow(clip: Any) -> Any:
        time.sleep(2)
        return log_mel(clip)

    monkeypatch.setattr(gpu_speed, "log_mel", slow)
    contender, limits, load = OrtContender("cpu", "fp32", "ort"), Limits(1e10, 1e10), replace(gpu_speed.DRY, clips=5)
    torch_model = Peer(checkpoint("tiny-aligner", tmp_path), torch.float32, "cpu")
    bundle = contender.bundle("tiny-aligner", tmp_path)
    prompts = PromptBuilder(open_tokenizer(bundle.folder, bundle.spec))
    ours = gpu_speed.recogniser("tiny-asr", contender, 1, load, limits, tmp_path)
    rows = [
        (ours, "first_token_s"),
        (
            gpu_speed.transformers(Peer(checkpoint("tiny-asr", tmp_path), torch.float32, "cpu"), 1, load),
            "first_token_s",
        ),
        (gpu_speed.aligner("tiny-aligner", contender, load, limits, tmp_path), "seconds"),
        (gpu_speed.transformers_aligner(torch_model, prompts, load), "seconds"),
    ]
    for row, figure in rows:
        assert row[figure]["p95"] < 2 <= row["features_s"]["mean"]
    assert ours["clips"] == 5  # one at a time, and yet enough for a percentile


def test_steps_alone_and_together_run_as_captured_graphs(
    gpu: ModuleType, machine: Machine, workshop: Workshop, tmp_path: Path
) -> None:
    import gpu_parity
    from gpu_models import checkpoint
    from gpu_native import NativeContender

    contender = NativeContender("fp32")
    bundle = contender.bundle("tiny-asr", tmp_path)
    wanted = gpu_parity.Wanted(checkpoint("tiny-asr", tmp_path), bundle, torch.float32, "cpu", 8)
    found = gpu_parity.compare(contender, "tiny-asr", wanted, tmp_path)
    assert (found["clips_equal"], found["rows_equal"]) == (1, 1)
    assert len(machine.launches) == 2  # one row, and all five
    assert {(1, 1), (5, 1)} <= {run.get("ids") for run in machine.runs}


def test_rows_that_differ_beside_others_and_wrong_probabilities_are_seen(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import gpu_parity
    from gpu_models import checkpoint
    from gpu_ort import OrtContender

    contender = OrtContender("cpu", "fp32", "ort")
    bundle = contender.bundle("tiny-asr", tmp_path)
    wanted = gpu_parity.Wanted(checkpoint("tiny-asr", tmp_path), bundle, torch.float32, "cpu", 8)
    step, feed = Decoder.step_rows, Decoder.feed

    def confused(decoder: Decoder, tokens: Any, past: Any, first: int = 0) -> Picked:
        picked = step(decoder, tokens, past, first)
        picked.tokens[1:2] = 3
        return picked

    def unsure(decoder: Decoder, *arguments: Any) -> Picked:
        picked = feed(decoder, *arguments)
        return Picked(picked.tokens, picked.logprobs - np.float32(0.25))

    monkeypatch.setattr(Decoder, "step_rows", confused)
    monkeypatch.setattr(Decoder, "feed", unsure)
    found = gpu_parity.compare(contender, "tiny-asr", wanted, tmp_path)
    assert (found["clips_equal"], found["rows_equal"]) == (1, 0.8)
    assert found["logprobs"] == pytest.approx(0.25, abs=1e-3)


def test_transformers_models_are_gone_before_the_next_contender_is_opened(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import gpu_speed
    from gpu_models import Progress
    from gpu_ort import OrtContender

    peers: list[weakref.ref[Any]] = []

    class Held:
        def __init__(self, *_: object) -> None:
            self.itself = self  # as modules of torch do
            peers.append(weakref.ref(self))

    def row(*_: object) -> dict[str, Any]:
        assert not [peer for peer in peers if peer() is not None]
        return {}

    monkeypatch.setattr(gpu_speed, "Peer", Held)
    monkeypatch.setattr(gpu_speed, "recogniser", row)
    monkeypatch.setattr(gpu_speed, "transformers", lambda *_: {})
    report: dict[str, Any] = {}
    contenders, names = (OrtContender("cpu", "fp32", "ort"),), ["tiny-asr", "tiny-asr"]
    gc.disable()
    gpu_speed.speed(report, names, contenders, "cpu", None, gpu_speed.DRY, tmp_path, Progress(lambda: None, 60))
    gc.enable()
    assert len(peers) == 2
    assert "error" not in json.dumps(report)


def test_bars_stand_beside_the_figures_of_the_rows_that_have_one(gpu: ModuleType) -> None:
    from gpu_bars import bars

    row = {"first_token_s": {"mean": 0.02, "p95": 0.5}, "real_time_factor": 0.005, "throughput": 4001.0}
    assert bars("0.6b", 1, row) == {
        "bars": {
            "first_token_s": {"bar": "at most 0.03", "met": True},
            "real_time_factor": {"bar": "at most 0.004", "met": False},
        }
    }
    many = {
        "first_token_s": {"bar": "at most 1", "met": True},
        "throughput": {"bar": "above 4000", "met": True},
    }
    assert bars("0.6b", 128, row)["bars"] == many
    assert bars("1.7b", 128, row | {"throughput": 2400})["bars"]["throughput"]["met"] is False
    assert bars("aligner-0.6b", 1, {"throughput": 3500})["bars"] == {"throughput": {"bar": "above 3000", "met": True}}
    assert bars("0.6b", 8, row) == bars("tiny-asr", 1, row) == {}


def test_the_rate_is_measured_on_numbers_that_are_not_all_zero(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_machine

    done: list[Any] = []
    monkeypatch.setattr(gpu_machine, "_fastest", lambda call, device: done.append(call()) or 1.0)
    gpu_machine.measure_limits("cpu", quick=True)
    assert done[1].std() > 1


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
    whole, int8, fp8, int4 = (
        step_bytes(shape, NativeContender(name).widths, 2, 100) for name in ("bf16", "int8", "fp8", "int4")
    )
    assert int8 == fp8
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
