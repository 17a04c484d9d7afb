"""What the README and the examples show is run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.checkpoints import TINY
from tests.conftest import ROOT, Recording


def _run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def test_transcribe_example(asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording]) -> None:
    printed = _run(ROOT / "examples/transcribe.py", asr_bundle, recordings["spanish"].path, aligner_bundle).stdout
    assert printed.startswith(f"Spanish: {recordings['spanish'].text} (stop)\n")
    assert len(printed.splitlines()) == 1 + len(recordings["spanish"].words)


def test_align_example_keeps_punctuation(aligner_bundle: Path, recordings: dict[str, Recording]) -> None:
    text = recordings["english"].text.capitalize().replace(" ", ", ") + "!"
    printed = _run(ROOT / "examples/align.py", aligner_bundle, recordings["english"].path, text).stdout
    assert text in printed.replace("\n", " ")
    assert "-->" in printed


def test_stream_example(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    wanted = recordings["spanish"]
    printed = _run(ROOT / "examples/stream.py", asr_bundle, wanted.path).stdout.splitlines()
    assert printed[-1].endswith(f"Spanish: {wanted.text}")
    assert any(line.endswith("...") for line in printed[:-1])


@pytest.mark.parametrize("name", ["README.md", "integrations/README.md"])
def test_the_readme_s_python_works(
    asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording], tmp_path: Path, name: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/qwen3-asr-0.6b").symlink_to(asr_bundle)
    (tmp_path / "out/forced-aligner").symlink_to(aligner_bundle)
    for clip in ("call.wav", "one.wav", "two.wav"):
        (tmp_path / clip).write_bytes(recordings["english"].path.read_bytes())
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], check=True, cwd=tmp_path)


def test_the_readme_s_commands_exist() -> None:
    from qwen3asr.cli import app

    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    used = set(re.findall(r"^qwen3asr +(\w+)", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE))
    assert used == known


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_a_real_signal_during_an_export_leaves_nothing(tmp_path: Path, signal: str) -> None:
    """The process is hit while it writes the decoder's weights."""
    code = f"""
import os, signal, sys
from qwen3asr_export.graph import WeightFile
from qwen3asr import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # what started the tests may have it ignored
add = WeightFile.add
def hit(self, name, array):
    if "layers.1.mlp.up_proj" in name:
        os.kill(os.getpid(), signal.{signal})
    return add(self, name, array)
WeightFile.add = hit
cli.main(["export", {os.fspath(TINY / "asr")!r}, {os.fspath(tmp_path / "out")!r}])
"""
    assert "interrupted" in _run("-c", code, code=130).stderr
    assert list(tmp_path.iterdir()) == []


def test_no_file_of_the_project_names_a_place_of_the_machine_it_was_made_on() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".json", ".txt", ".jinja"} and path.is_file():
            assert str(ROOT) not in path.read_text("utf-8"), name


def test_the_benchmarks_readme_quotes_the_results_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    text = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    for make in tables.TABLES:
        assert make() in text
    sizes = tables.load("graphs")["models"]["0.6b"]
    readme = (ROOT / "README.md").read_text("utf-8")
    for precision in ("fp32", "fp16", "bf16", "int8", "int4"):
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{precision}`"))
        assert row.endswith(f" {sizes[precision]['bundle_mb']} MB |")


def test_the_load_test_starts_as_it_is_documented(tmp_path: Path) -> None:
    """It once found neither its own modules nor those of the tests, whose clients it uses."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "load.py", "--help"],
        cwd=tmp_path, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert "--at-a-time" in done.stdout
