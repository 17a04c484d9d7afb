"""Memory as the system counts it, of processes of their own: what exporting takes, and what loading shares."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT, Recording

from qwen3asr_export.standin import StandIn, write_standin

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")

MIDDLING = StandIn("asr", 6, 512, 8, 2048, hidden_size=512, intermediate_size=2048, vocab_size=151_936)
"""Half a gigabyte in bfloat16, as many layers as the 0.6B."""
SLACK = 200_000_000
"""Bytes beside weights: the graph, one matrix being quantised, what libraries take as they are first used."""

EXPORTING = r"""
import json, re, sys
from pathlib import Path
from qwen3asr_export import export
def peak():  # getrusage's would begin with what the process that started this one held
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
export(sys.argv[1], sys.argv[2], precision=sys.argv[3], check=False)
print(json.dumps([before, peak()]))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("middling") / "asr"
    return write_standin(MIDDLING, folder, seed=0, progress=lambda *_: None)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_an_export_never_holds_the_model_twice(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    """At most 1.3 times its size in bfloat16, on top of the libraries; all together within 2 GB more."""
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    command = [sys.executable, "-c", EXPORTING, checkpoint, tmp_path / "out", precision]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    shutil.rmtree(tmp_path / "out")
    before, peak = json.loads(done.stdout.splitlines()[-1])
    assert size > 400_000_000
    assert peak - before < 1.3 * size + SLACK
    assert peak < 1.3 * size + 2_000_000_000


SHARING = """
import sys, qwen3asr
model = qwen3asr.load(sys.argv[1], share_weights=sys.argv[3] == "shared", slots=1, threads=1)
print(model.transcribe(sys.argv[2]).text, flush=True)
sys.stdin.read()
"""


def _mapped(process: int, file: Path) -> dict[str, int]:
    """Bytes of a file's mappings in a process: Rss, Pss, Private_Dirty ..."""
    totals: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file))
        elif inside and line.endswith(" kB"):
            name, amount = line.split(":")
            totals[name] = totals.get(name, 0) + int(amount.split()[0]) * 1024
    return totals


def test_two_processes_share_the_weights_of_an_fp32_bundle(
    asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    folder, spoken = Path(shutil.copytree(asr_bundle, tmp_path / "asr")), recordings["german"]
    weights = folder / "onnx" / "decoder.onnx.data"
    command = [sys.executable, "-c", SHARING, str(folder), str(spoken.path), "shared"]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        for process in both:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == spoken.text
        held = [_mapped(process.pid, weights) for process in both]
    finally:
        for process in both:
            process.communicate("")
    for each in held:
        assert each["Rss"] > 0.4 * weights.stat().st_size  # half of so small a file are rotary tables, little read
        assert each["Pss"] < 0.55 * each["Rss"]  # each page counts half for either
        assert each["Private_Dirty"] == 0
