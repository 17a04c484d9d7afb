"""engine.json: what is written is what is read, and nothing else passes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen3asr.engines import (
    MANIFEST,
    EngineFile,
    Engines,
    Profile,
    Range,
    engine_folders,
    open_engines,
    write_engines,
)
from qwen3asr.errors import (
    EngineFileDamaged,
    EngineFileMissing,
    EnginesForeign,
    EnginesInvalid,
    EnginesStale,
    EnginesTooNew,
)

GRAPHS = {"onnx/decoder.onnx": "d" * 64, "onnx/encoder.onnx": "e" * 64}
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of no bytes


def _engine(name: str) -> EngineFile:
    step = Profile("step", {"ids": Range((1, 1), (4, 1), (8, 1)), "take": Range((1, 1), (4, 1), (8, 1))})
    prefill = Profile("prefill", {"ids": Range((1, 1), (1, 64), (1, 512)), "take": Range((1, 1), (1, 1), (1, 129))})
    return EngineFile(
        f"{name}.engine", 0, EMPTY, (step, prefill), 10, 20, {"KV_CACHE_UPDATE": 6}, ("Attention_50 in 1 of 2",), 1.5
    )


@pytest.fixture
def engines() -> Engines:
    components = {name: _engine(name) for name in ("encoder", "decoder")}
    return Engines("asr", "bf16", "tensorrt", "11.4.0", "rtx4090", "8.9", 4096, 8, GRAPHS, components)


@pytest.fixture
def folder(tmp_path: Path, engines: Engines) -> Path:
    path = tmp_path / "tensorrt" / "rtx4090-trt11.4.0"
    path.mkdir(parents=True)
    for engine in engines.components.values():
        (path / engine.file).touch()
    write_engines(path, engines)
    return path


def _amend(folder: Path, **values: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | values))


def test_what_is_written_is_read(folder: Path, engines: Engines, tmp_path: Path) -> None:
    assert open_engines(folder, GRAPHS, check_hashes=True) == engines
    assert engine_folders(tmp_path) == [folder]
    assert engine_folders(tmp_path / "none") == []


def test_the_first_profile_that_holds_a_call_is_its_own() -> None:
    engine = _engine("decoder")
    assert engine.profile({"ids": (8, 1), "take": (8, 1)}) == 0
    assert engine.profile({"ids": (1, 1), "take": (1, 1)}) == 0
    assert engine.profile({"ids": (1, 512), "take": (1, 129)}) == 1
    assert engine.profile({"ids": (1, 513)}) is None
    assert engine.profile({"ids": (9, 1)}) is None
    assert engine.profile({"ids": (1, 100), "take": (1, 0)}) is None
    assert engine.profile({"ids": (1, 1, 1)}) is None


@pytest.mark.parametrize("ends", [((2,), (1,), (3,)), ((1,), (4,), (3,)), ((-1,), (1,), (1,)), ((1,), (1, 1), (1,))])
def test_shapes_that_do_not_ascend_are_none(ends: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"ascend|argument"):
        Range(*ends)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"format": 2}, EnginesTooNew, "pip install -U qwen3asr"),
        ({"format": 0}, EnginesInvalid, "not a number"),
        ({"format": "1"}, EnginesInvalid, "not a number"),
        ({"kind": "vad"}, EnginesInvalid, "damaged"),
        ({"flavour": "tvm"}, EnginesInvalid, "damaged"),
        ({"capacity": 0}, EnginesInvalid, "capacity"),
        ({"slots": "8"}, EnginesInvalid, "slots"),
        ({"graphs": {}}, EnginesInvalid, "damaged"),
        ({"components": {}}, EnginesInvalid, "encoder"),
        ({"components": {"encoder": {}, "decoder": {}}}, EnginesInvalid, "profiles"),
        ({"graphs": {"onnx/decoder.onnx": "0"}}, EnginesStale, "onnx/decoder.onnx"),
    ],
)
def test_another_manifest_is_refused(folder: Path, values: Any, error: type[Exception], words: str) -> None:
    _amend(folder, **values)
    with pytest.raises(error, match=words):
        open_engines(folder, GRAPHS)


@pytest.mark.parametrize("change", [{"file": "../decoder.engine"}, {"profiles": []}, {"size": None}])
def test_another_entry_is_refused(folder: Path, change: dict[str, Any]) -> None:
    components = json.loads((folder / MANIFEST).read_text())["components"]
    components["decoder"] |= change
    _amend(folder, components=components)
    with pytest.raises(EnginesInvalid, match="damaged"):
        open_engines(folder, GRAPHS)


def test_no_manifest_and_no_json(folder: Path, tmp_path: Path) -> None:
    for content in ("{", "[" * 100_000):
        (folder / MANIFEST).write_text(content)
        with pytest.raises(EnginesInvalid, match="cannot be read"):
            open_engines(folder, GRAPHS)
    with pytest.raises(EnginesInvalid, match="--engine tensorrt"):
        open_engines(tmp_path, GRAPHS)


def test_files_are_checked(folder: Path, engines: Engines) -> None:
    (folder / "decoder.engine").write_bytes(b"x")
    with pytest.raises(EngineFileDamaged, match="1 bytes, not 0"):
        open_engines(folder, GRAPHS)
    larger = replace(engines.components["decoder"], size=1)
    write_engines(folder, replace(engines, components={**engines.components, "decoder": larger}))
    open_engines(folder, GRAPHS)
    with pytest.raises(EngineFileDamaged, match="SHA-256"):
        open_engines(folder, GRAPHS, check_hashes=True)
    (folder / "decoder.engine").unlink()
    with pytest.raises(EngineFileMissing, match=r"decoder\.engine"):
        open_engines(folder, GRAPHS)


def test_engines_run_where_they_were_built_for(folder: Path, engines: Engines) -> None:
    engines.check_runtime(folder, "tensorrt", "11.4.0", "8.9")
    replace(engines, compute_capability=None).check_runtime(folder, "tensorrt", "11.4.0", "12.0")
    for here in (("tensorrt", "11.5.0", "8.9"), ("tensorrt_rtx", "11.4.0", "8.9"), ("tensorrt", "11.4.0", "9.0")):
        with pytest.raises(EnginesForeign, match="build engines here"):
            engines.check_runtime(folder, *here)
