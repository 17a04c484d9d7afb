"""Exporting: weights stored once, progress, and nothing half-written whatever happens."""

from __future__ import annotations

import errno
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.checkpoints import TINY, make_checkpoint

from qwen3asr.errors import DiskFull, RequestInvalid, TargetExists
from qwen3asr_export import export
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.graph import Graph, WeightFile
from qwen3asr_export.hub import Found
from qwen3asr_export.numerics import Float, Numerics
from qwen3asr_export.precision import PRECISIONS


def _stored(folder: Path, name: str) -> dict[str, tuple[int, int]]:
    """Offset and bytes of each tensor in a graph's external data."""
    graph = onnx.load(folder / "onnx" / f"{name}.onnx", load_external_data=False).graph
    places = {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer if t.external_data}
    return {tensor: (int(place["offset"]), int(place["length"])) for tensor, place in places.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["asr", "aligner"])
def test_every_weight_is_stored_once_and_takes_what_was_announced(tmp_path: Path, kind: str, precision: str) -> None:
    """The announced size is what the disk is checked for, and what the progress bar counts to."""
    bundle = export(TINY / kind, tmp_path / "out", precision=precision, check=False)
    announced = PRECISIONS[precision].stored_bytes(bundle.spec)
    stored, tables = 0, 0
    for name in ("encoder", "decoder"):
        places = _stored(bundle.folder, name)
        stored += sum(length for _, length in places.values())
        tables += sum(length for tensor, (_, length) in places.items() if tensor.startswith(("rotary", "positions")))
    assert stored == announced + tables
    shared = [name for name in _stored(bundle.folder, "decoder") if "lm_head" in name]
    assert not shared


def test_an_untied_head_is_stored_beside_the_embedding(tmp_path: Path) -> None:
    bundle = export(make_checkpoint(tmp_path / "c", "no-grouping"), tmp_path / "out", precision="fp32", check=False)
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight"} <= _stored(bundle.folder, "decoder").keys()


def test_no_full_logits_and_no_weights_inside_the_graphs(asr_bundle: Path) -> None:
    model = onnx.load(asr_bundle / "onnx" / "decoder.onnx", load_external_data=False)
    assert "logits" not in {output.name for output in model.graph.output}
    for name in ("encoder", "decoder"):
        assert (asr_bundle / "onnx" / f"{name}.onnx").stat().st_size < 200_000


def test_what_the_runtime_and_others_need_comes_along(asr_bundle: Path) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer.json", "processor_config.json"):
        assert (asr_bundle / name).read_bytes() == (TINY / "asr" / name).read_bytes()


def test_progress_tells_of_bytes_and_clips(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    export(TINY / "asr", tmp_path / "out", progress=lambda *step: seen.append(step))
    for stage in ("weights", "verify"):
        steps = [step for step in seen if step[0] == stage]
        assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
        assert steps[-1][1] >= steps[-1][2]


def test_an_unknown_precision_and_an_existing_target_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestInvalid, match="choose from fp32, fp16, bf16, int8, int4"):
        export(TINY / "asr", tmp_path / "out", precision="int3")
    (tmp_path / "out").mkdir()
    with pytest.raises(TargetExists):
        export(TINY / "asr", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_disk_that_fills_up_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second graph does not fit: an error that says so, and no trace of the first."""
    add = WeightFile.add

    def full(self: WeightFile, name: str, array: Any) -> Any:
        if "layers.2.mlp" in name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return add(self, name, array)

    monkeypatch.setattr(WeightFile, "add", full)
    with pytest.raises(DiskFull, match="is full; free"):
        export(TINY / "asr", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_replaced_bundle_works_and_an_interrupted_replacement_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = export(TINY / "asr", tmp_path / "out", check=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("qwen3asr_export.convert.verify", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        export(TINY / "aligner", tmp_path / "out", replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert first.manifest.kind == "asr"
    assert export(TINY / "aligner", tmp_path / "out", check=False, replace=True).manifest.kind == "aligner"


def test_graph_refuses_to_store_a_weight_twice(tmp_path: Path) -> None:
    with WeightFile(tmp_path / "w.data") as weights:
        g = Graph("g", weights, Numerics(Float()), 23)
        g.weight("a", np.zeros(3, np.float32))
        with pytest.raises(ValueError, match="stored already"):
            g.weight("a", np.zeros(3, np.float32))
    assert g.const([1, 2]) == g.const([1, 2]) != g.const([1, 2], np.int32)


def test_a_hub_s_name_and_commit_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def find(source: str, *, revision: str | None, offline: bool) -> Found:
        asked.append((source, revision, offline))
        return Found(TINY / "asr", "Qwen/Qwen3-ASR-0.6B", "c0ffee")

    monkeypatch.setattr("qwen3asr_export.convert.find_checkpoint", find)
    bundle = export("Qwen/Qwen3-ASR-0.6B", tmp_path / "out", revision="main", offline=True, check=False)
    assert asked == [("Qwen/Qwen3-ASR-0.6B", "main", True)]
    assert (bundle.manifest.source["name"], bundle.manifest.source["revision"]) == ("Qwen/Qwen3-ASR-0.6B", "c0ffee")
    card = (bundle.folder / "README.md").read_text("utf-8")
    assert "base_model: Qwen/Qwen3-ASR-0.6B\n" in card
    assert "at revision `c0ffee`" in card


def test_what_cannot_be_is_refused_before_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(*_: object, **__: object) -> Found:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("qwen3asr_export.convert.find_checkpoint", find)
    with pytest.raises(RequestInvalid):
        export("Qwen/Qwen3-ASR-0.6B", tmp_path / "out", precision="int4", dialect="standard")
    (tmp_path / "out").mkdir()
    with pytest.raises(TargetExists):
        export("Qwen/Qwen3-ASR-0.6B", tmp_path / "out")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_too_little_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """What is asked for follows the precision."""
    needed = PRECISIONS[precision].stored_bytes(Checkpoint(TINY / "asr").spec)
    free = namedtuple("free", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: free(10**9, 0, needed + (32 << 20) - 1))
    with pytest.raises(DiskFull, match=rf"out needs {(needed + (32 << 20)) / 1e6:.0f} MB"):
        export(TINY / "asr", tmp_path / "out", precision=precision)
    assert not list(tmp_path.iterdir())
