"""Bundles that are broken on purpose, with sizes and hashes that agree: an error of ours, whatever is in them."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.abuse.conftest import EXAMPLES, examples
from tests.abuse.limits import memory, patience

import qwen3asr
from qwen3asr.bundle import MANIFEST, open_bundle, sha256
from qwen3asr.cli.exporting import info
from qwen3asr.errors import BundleInvalid, ConfigInvalid, Qwen3AsrError
from qwen3asr.spec import ModelSpec
from qwen3asr.tokenizer import open_tokenizer

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
    | st.sampled_from([0, -1, 1, "../x", "/etc/passwd", "C:\\x", math.inf, math.nan, "", "asr", "1", 10**400])
)  # fmt: skip
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


@pytest.fixture(scope="module")
def folder(asr_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(asr_bundle, tmp_path_factory.mktemp("broken") / "asr"))


def places(content: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key of a JSON document, as the way to it; long lists by their first entries."""
    if isinstance(content, dict):
        inside = [(key, value) for key, value in content.items()][:60]
    elif isinstance(content, list):
        inside = list(enumerate(content))[:3]
    else:
        return []
    return [way for key, value in inside for way in [(*at, key), *places(value, (*at, key))]]


def changed(content: Any, draw: st.DrawFn) -> Any:
    """Some values are of another kind, or missing."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        ways = places(content)
        if not ways:
            return content
        *above, key = draw(st.sampled_from(ways))
        owner = content
        for step in above:
            owner = owner[step]
        if draw(st.booleans()):
            owner[key] = draw(VALUES)
        else:
            del owner[key]
    return content


@st.composite
def documents(draw: st.DrawFn, original: Any) -> str:
    text = json.dumps(draw(VALUES) if draw(st.integers(0, 9)) == 0 else changed(original, draw))
    if draw(st.integers(0, 4)) == 0:
        text = text[: draw(st.integers(0, len(text)))]
    return draw(st.sampled_from([text, text, text, "[" * 100_000, "\ufeff" + text]))


def put(folder: Path, name: str, content: bytes) -> None:
    """A file, and a manifest that agrees with it."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    manifest["files"][name] = {"size": len(content), "sha256": sha256(folder / name)}
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")


def restore(folder: Path, bundle: Path, *names: str) -> None:
    for name in (*names, MANIFEST):
        shutil.copy(bundle / name, folder / name)


def use(folder: Path) -> None:
    """What follows upon opening: ``qwen3asr info``, loading, and a quarter of a second of noise."""
    with redirect_stdout(io.StringIO()):
        info(folder)
    with qwen3asr.load(folder, slots=1, threads=1) as model:
        model.transcribe(0.01 * np.random.default_rng(0).standard_normal(4_000).astype(np.float32), max_new_tokens=2)


@examples(120)
@given(data=st.data())
def test_any_manifest_is_a_bundle_or_an_error(asr_bundle: Path, folder: Path, data: st.DataObject) -> None:
    text = data.draw(documents(json.loads((asr_bundle / MANIFEST).read_text("utf-8"))))
    (folder / MANIFEST).write_text(text, "utf-8", errors="surrogatepass")
    try:
        with memory(), patience():
            open_bundle(folder, kind="asr")
            if data.draw(st.integers(0, 3)) == 0:
                use(folder)
    except Qwen3AsrError:
        pass
    finally:
        restore(folder, asr_bundle)


@examples(120)
@given(data=st.data())
def test_any_config_is_a_model_or_an_error(asr_bundle: Path, folder: Path, data: st.DataObject) -> None:
    text = data.draw(documents(json.loads((asr_bundle / "config.json").read_text("utf-8"))))
    put(folder, "config.json", text.encode("utf-8", "surrogatepass"))
    try:
        with memory(), patience():
            open_bundle(folder, kind="asr")
            if data.draw(st.integers(0, 3)) == 0:
                use(folder)
    except Qwen3AsrError:
        pass
    finally:
        restore(folder, asr_bundle, "config.json")


@examples(25, share=0.3)
@given(data=st.data())
def test_any_tokenizer_is_one_or_an_error(asr_bundle: Path, folder: Path, data: st.DataObject) -> None:
    original, spec = json.loads((asr_bundle / "tokenizer.json").read_text("utf-8")), open_bundle(asr_bundle).spec
    text = data.draw(documents(original))
    put(folder, "tokenizer.json", text.encode("utf-8", "surrogatepass"))
    try:
        with memory(), patience():
            tokenizer = open_tokenizer(folder, spec)
            tokenizer.decode(tokenizer.encode("two words, ½ and 日本"))
    except Qwen3AsrError:
        pass
    finally:
        restore(folder, asr_bundle, "tokenizer.json")


# --- graphs ----------------------------------------------------------------------------------------------------

LOADING = """
import os, random, resource, sys
import numpy as np, qwen3asr
from pathlib import Path
from tests.abuse.test_fuzz_bundle import put, restore
folder, bundle, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
random.seed(int(sys.argv[4]))
names = ["onnx/encoder.onnx", "onnx/decoder.onnx"]
for number in range(count):
    name = random.choice(names)
    data = bytearray((bundle / name).read_bytes())
    for _ in range(random.choice([0, 1, 1, 3])):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    if random.random() < 0.3:
        del data[random.randrange(len(data)):]
    put(folder, name, bytes(data))
    try:
        with qwen3asr.load(folder, slots=1, threads=1) as model:
            model.transcribe(np.zeros(4000, np.float32) + 0.01 * np.random.randn(4000).astype("f4"))
    except qwen3asr.errors.Qwen3AsrError:
        pass
    restore(folder, bundle, name)
    print(number, flush=True)
"""


def test_broken_graphs_are_errors(asr_bundle: Path, tmp_path: Path) -> None:
    """In a process of its own: nothing holds ONNX Runtime to an exception."""
    count = max(20, EXAMPLES // 20)
    folder = shutil.copytree(asr_bundle, tmp_path / "asr")
    command = [sys.executable, "-c", LOADING, folder, asr_bundle, str(count), str(EXAMPLES)]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=60 + 2 * count,
        cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr[-2_000:]) == (0, "")
    assert len(done.stdout.split()) == count


@pytest.mark.parametrize(
    ("location", "offset"), [("../secret", 0), ("/etc/passwd", 0), ("decoder.onnx.data", 10**12), ("none", 0)]
)
def test_weights_outside_of_the_folder_or_past_the_end_are_refused(
    asr_bundle: Path, tmp_path: Path, location: str, offset: int
) -> None:
    onnx = pytest.importorskip("onnx")
    folder = Path(shutil.copytree(asr_bundle, tmp_path / "asr"))
    (folder / "secret").write_bytes(bytes(10**6))
    graph = onnx.load(folder / "onnx/decoder.onnx", load_external_data=False)
    stored = next(tensor for tensor in graph.graph.initializer if tensor.external_data)
    for entry in stored.external_data:
        entry.value = location if entry.key == "location" else str(offset) if entry.key == "offset" else entry.value
    put(folder, "onnx/decoder.onnx", graph.SerializeToString())
    with pytest.raises(BundleInvalid, match="cannot load"):
        qwen3asr.load(folder)


# --- what was found --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "onnx/../../secret", "C:\\secret", "..\\secret", "a\0b"])
def test_a_manifest_cannot_name_files_outside_of_its_folder(folder: Path, asr_bundle: Path, name: str) -> None:
    """They used to be opened and hashed, and given to ONNX Runtime."""
    content = json.loads((asr_bundle / MANIFEST).read_text("utf-8"))
    content["files"][name] = content["files"]["onnx/decoder.onnx"]
    content["components"]["decoder"] = name
    (folder / MANIFEST).write_text(json.dumps(content), "utf-8")
    try:
        with pytest.raises(BundleInvalid, match="outside of it; do not use this bundle"):
            open_bundle(folder)
    finally:
        restore(folder, asr_bundle)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "audio_token_id", "x"), (None, "eos_token_id", {"a": 1}), (None, "architectures", 3),
        ("audio_config", "n_window", 0), ("audio_config", "n_window_infer", -1), ("text_config", "head_dim", math.inf),
        ("text_config", "rms_norm_eps", math.nan), ("text_config", "rope_parameters", [1]),
        ("text_config", "hidden_size", [1]),
    ],
)  # fmt: skip
def test_a_config_of_odd_values_names_the_key(asr_bundle: Path, section: str | None, key: str, value: object) -> None:
    """They used to be a TypeError, an OverflowError, a ZeroDivisionError, an AttributeError ..."""
    config = json.loads((asr_bundle / "config.json").read_text("utf-8"))
    (config if section is None else config[section])[key] = value
    with pytest.raises(ConfigInvalid, match=key):
        ModelSpec.from_config(config)
