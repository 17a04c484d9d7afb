"""What a damaged, foreign or mismatched bundle says."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qwen3asr
from qwen3asr import bundle as bundles
from qwen3asr.bundle import MANIFEST, new_bundle, open_bundle
from qwen3asr.errors import (
    BundleFileDamaged,
    BundleFileMissing,
    BundleInvalid,
    BundleKindWrong,
    BundleNotFound,
    BundleTooNew,
    ConfigInvalid,
    DeviceUnavailable,
    DiskFull,
    ExtraMissing,
    Qwen3AsrError,
    RequestInvalid,
    TargetExists,
)


@pytest.fixture
def copy(asr_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(asr_bundle, tmp_path / "copy"))


def _edit(folder: Path, change: Callable[[dict[str, Any]], object], name: str = MANIFEST) -> None:
    content = json.loads((folder / name).read_text("utf-8"))
    change(content)
    (folder / name).write_text(json.dumps(content), "utf-8")


def test_a_whole_bundle_opens(asr_bundle: Path) -> None:
    opened = open_bundle(asr_bundle, kind="asr", check_hashes=True)
    assert opened.spec.kind == opened.manifest.kind == "asr"
    assert opened.component("encoder").is_file()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound, match="qwen3asr export CHECKPOINT"):
        qwen3asr.load(tmp_path / "nothing")


def test_a_name_on_the_hub_is_no_folder() -> None:
    with pytest.raises(BundleNotFound, match=r"export Qwen/Qwen3-ASR-0.6B out/Qwen3-ASR-0.6B, and load out/"):
        open_bundle(Path("Qwen/Qwen3-ASR-0.6B"))


@pytest.mark.parametrize(("name", "words"), [("config.json", "looks like a checkpoint"), ("a.txt", "another kind")])
def test_a_folder_that_is_no_bundle(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(BundleInvalid, match=words):
        qwen3asr.load(tmp_path)


@pytest.mark.parametrize("name", ["onnx/decoder.onnx.data", "onnx/encoder.onnx", "tokenizer.json", "config.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleFileMissing, match=name) as caught:
        qwen3asr.load(copy)
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("name", ["onnx/decoder.onnx.data", "onnx/encoder.onnx", "tokenizer.json"])
def test_a_truncated_file_is_named(copy: Path, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleFileDamaged, match=f"{name}.* bytes, not"):
        qwen3asr.load(copy)


def test_swapped_graphs_are_found_at_once(copy: Path) -> None:
    encoder, decoder = copy / "onnx/encoder.onnx", copy / "onnx/decoder.onnx"
    first, second = encoder.read_bytes(), decoder.read_bytes()
    encoder.write_bytes(second)
    decoder.write_bytes(first)
    with pytest.raises(BundleFileDamaged):
        qwen3asr.load(copy)


def test_a_small_file_of_the_same_size_is_found_by_its_hash(copy: Path) -> None:
    path = copy / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"drei", b"dreo"))
    with pytest.raises(BundleFileDamaged, match="SHA-256"):
        qwen3asr.load(copy)


def test_changed_weights_of_the_same_size_are_found_on_request(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy / "onnx/decoder.onnx.data"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(bundles, "_ALWAYS_HASHED", 0)  # the tiny weights count as small otherwise
    assert open_bundle(copy)
    with pytest.raises(BundleFileDamaged, match="SHA-256"):
        qwen3asr.load(copy, check_hashes=True)


def test_a_newer_format_asks_for_an_upgrade(copy: Path) -> None:
    _edit(copy, lambda content: content.update(format=99))
    with pytest.raises(BundleTooNew, match="pip install -U qwen3asr"):
        qwen3asr.load(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("files"),
        lambda content: content.pop("format"),
        lambda content: content.update(format="one"),
        lambda content: content.update(kind="tts"),
        lambda content: content["files"].pop("onnx/encoder.onnx"),
        lambda content: content["files"].update({"config.json": {"size": 1}}),
        lambda content: content.update(files=["a"]),
        lambda content: content.update(components=None),
        lambda content: content["components"].pop("decoder"),
        lambda content: content.update(limits={}),
        lambda content: content.update(source={}),
        lambda content: content.update(source=[]),
        lambda content: content["source"].update(name=1),
        lambda content: content["source"].pop("weights_sha256"),
        lambda content: content["source"].update(revision=2),
        lambda content: content.update(verified={"x": 1}),
        lambda content: content.update(verified={"passed": True, "reference": "r", "checks": 3}),
        lambda content: content.update(verified={"passed": True, "reference": "r", "checks": [{"check": "mel"}]}),
        lambda content: content.update(
            verified={
                "passed": True,
                "reference": "r",
                "checks": [{"check": "mel", "worst": "x", "bound": None, "unit": "u", "comparisons": 1}],
            }
        ),
    ],
)
def test_a_manifest_that_makes_no_sense(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    _edit(copy, change)
    with pytest.raises(BundleInvalid, match="export"):
        qwen3asr.load(copy)


def test_a_tokenizer_of_another_model_is_noticed(copy: Path) -> None:
    _edit(copy, lambda config: config.update(timestamp_token_id=3), "config.json")
    _edit(copy, lambda content: content["files"].pop("config.json"))
    with pytest.raises(BundleInvalid, match="different models"):
        qwen3asr.load(copy)


def test_a_graph_that_onnx_runtime_cannot_load(copy: Path) -> None:
    (copy / "onnx/encoder.onnx").write_bytes(b"no graph")
    _edit(copy, lambda content: content["files"].pop("onnx/encoder.onnx.data"))
    entry = {"size": 8, "sha256": bundles.sha256(copy / "onnx/encoder.onnx")}
    _edit(copy, lambda content: content["files"].update({"onnx/encoder.onnx": entry}))
    with pytest.raises(BundleInvalid, match=r"cannot load encoder\.onnx"):
        qwen3asr.load(copy)


def test_a_manifest_that_is_not_json(copy: Path) -> None:
    (copy / MANIFEST).write_text("{")
    with pytest.raises(BundleInvalid, match="cannot be read"):
        qwen3asr.load(copy)


def test_a_precision_that_the_cpu_does_not_run_is_refused_at_load_with_those_that_it_does(copy: Path) -> None:
    _edit(copy, lambda content: content.update(precision="bf16"))
    with pytest.raises(DeviceUnavailable, match=r"runs on cuda, not on the CPU; .*--precision fp32, int8, int4"):
        qwen3asr.load(copy)


def test_a_precision_of_a_newer_version_is_refused(copy: Path) -> None:
    _edit(copy, lambda content: content.update(precision="int2"))
    with pytest.raises(BundleInvalid, match="'int2', which this version does not know; upgrade"):
        qwen3asr.load(copy)


def test_the_model_card_may_be_edited(copy: Path) -> None:
    with (copy / "README.md").open("a", encoding="utf-8") as card:
        card.write("More about it.\n")
    assert open_bundle(copy, check_hashes=True)


def test_aligner_and_recogniser_are_not_confused(asr_bundle: Path, aligner_bundle: Path) -> None:
    with pytest.raises(BundleKindWrong, match="aligner= argument"):
        qwen3asr.load(aligner_bundle)
    with pytest.raises(BundleKindWrong, match="first argument"):
        qwen3asr.load(asr_bundle, aligner=asr_bundle)
    with pytest.raises(BundleKindWrong):
        qwen3asr.load_aligner(asr_bundle)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 4),
        ("num_hidden_layers", 10**9),
        ("num_key_value_heads", 7),
        ("head_dim", 10**9),
        ("hidden_size", 96),
    ],
)
def test_a_config_of_another_shape_than_the_graph_is_refused_and_names_it(
    asr_bundle: Path, copy: Path, key: str, value: int
) -> None:
    """ONNX Runtime's RuntimeError about an input's name used to come out, or an OSError of mmap's."""
    stated = json.loads((asr_bundle / "config.json").read_text("utf-8"))["text_config"][key]

    def change(config: dict[str, Any]) -> None:
        config["text_config"][key] = value
        if key == "hidden_size":
            config["audio_config"]["output_dim"] = value

    _edit(copy, change, "config.json")
    _edit(copy, lambda content: content["files"].update({"config.json": _entry(copy / "config.json")}))
    with pytest.raises(BundleInvalid, match=f"{key} is {value} there and {stated} in the graph; run `qwen3asr export`"):
        qwen3asr.load(copy, slots=1, capacity=512)


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": bundles.sha256(path)}


def test_a_graph_with_other_inputs_is_refused(copy: Path) -> None:
    onnx = pytest.importorskip("onnx")
    for name in ("past.0.key", "audio"):
        graph = onnx.load(copy / "onnx/decoder.onnx", load_external_data=False)
        nodes = [node for node in graph.graph.node if name in node.input]
        for node in nodes:
            node.input[:] = [f"other.{part}" if part == name else part for part in node.input]
        next(value for value in graph.graph.input if value.name == name).name = f"other.{name}"
        (copy / "onnx/other.onnx").write_bytes(graph.SerializeToString())
        _edit(copy, lambda content: content["files"].update({"onnx/other.onnx": _entry(copy / "onnx/other.onnx")}))
        _edit(copy, lambda content: content["components"].update(decoder="onnx/other.onnx"))
        with pytest.raises(BundleInvalid, match="other inputs than this version feeds"):
            qwen3asr.load(copy)


def test_settings_that_make_no_sense(asr_bundle: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="'cuda'"):
        qwen3asr.load(asr_bundle, device="cuda")
    with pytest.raises(RequestInvalid, match="threads"):
        qwen3asr.load(asr_bundle, threads=-1)
    with pytest.raises(RequestInvalid, match="1 to 20480"):
        qwen3asr.load(asr_bundle, capacity=10_000_000)


def test_without_onnxruntime_the_extra_is_named(asr_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "qwen3asr.sessions.onnxruntime", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExtraMissing, match=r"qwen3asr\[cpu\]"):
        qwen3asr.load(asr_bundle)


@pytest.mark.parametrize("key", ["model_type", "audio_config", "eos_token_id"])
def test_a_config_without_a_needed_key_names_it(asr_bundle: Path, key: str) -> None:
    from qwen3asr.spec import ModelSpec

    config = json.loads((asr_bundle / "config.json").read_text("utf-8"))
    config.pop(key)
    with pytest.raises(ConfigInvalid, match=key):
        ModelSpec.from_config(config)


# --- writing -----------------------------------------------------------------------------------------------------


def _old_bundle(target: Path) -> Path:
    target.mkdir()
    (target / MANIFEST).write_text("{}")
    (target / "old").write_text("kept")
    return target


def test_an_existing_target_is_refused_and_kept(tmp_path: Path) -> None:
    target = _old_bundle(tmp_path / "there")
    with pytest.raises(TargetExists, match="--force"), new_bundle(target, 0):
        pass
    assert (target / "old").read_text() == "kept"


def test_only_a_bundle_is_ever_replaced(tmp_path: Path) -> None:
    """--force on a mistyped target once would have removed the checkpoint, or a home directory."""
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(TargetExists, match="no bundle"), new_bundle(tmp_path, 0, replace=True):
        pytest.fail("the block must not run")
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_target_that_appears_during_the_export_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(TargetExists), new_bundle(target, 0):
        _old_bundle(target)
    assert (target / "old").read_text() == "kept"


@pytest.mark.parametrize("nth", [1, 2])
def test_ctrl_c_within_the_swap_keeps_one_whole_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    target, calls, rename = _old_bundle(tmp_path / "out"), [], Path.rename

    def interrupted(self: Path, to: Path) -> Path:
        calls.append(self)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), new_bundle(target, 0, replace=True) as (folder, _):
        (folder / "new").write_text("here")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (target / "old").read_text() == "kept"


def test_too_little_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="free some space"), new_bundle(tmp_path / "out", 1 << 62):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull),
        (OSError(errno.EACCES, "Permission denied"), PermissionError),
        (RuntimeError("boom"), RuntimeError),
    ],
)
@pytest.mark.parametrize("replace", [False, True])
def test_a_failure_on_the_way_leaves_nothing_and_keeps_the_old(
    tmp_path: Path, raised: BaseException, seen: type[BaseException], replace: bool
) -> None:
    target = tmp_path / "out"
    if replace:
        _old_bundle(target)
    with pytest.raises(seen), new_bundle(target, 10, replace=replace) as (folder, _):
        (folder / "half").write_text("written")
        raise raised
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if replace else [])
    assert not replace or (target / "old").read_text() == "kept"


def test_replacing_swaps_the_whole_folder(tmp_path: Path) -> None:
    target = _old_bundle(tmp_path / "out")
    with new_bundle(target, 10, replace=True) as (folder, _):
        (folder / "new").write_text("here")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_every_error_is_ours_and_a_standard_one() -> None:
    from qwen3asr import errors

    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Qwen3AsrError)]
    assert len(classes) > 20
    for cls in classes:
        standard = [base for base in cls.__mro__ if base.__module__ in sys.stdlib_module_names]
        group = cls in (Qwen3AsrError, errors.AudioError, errors.UsageError)
        assert group or standard[0] is not Exception, cls
        assert cls.__doc__
