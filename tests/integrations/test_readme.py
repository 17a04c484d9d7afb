"""The commands of the README beside the plugins, run as they stand; its Python is run beside each plugin's tests."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_the_readme_s_commands_work(asr_bundle: Path, aligner_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/qwen3-asr-0.6b").symlink_to(asr_bundle)
    (tmp_path / "out/forced-aligner").symlink_to(aligner_bundle)
    commands = re.findall(r"^qwen3asr (.*)$", (ROOT / "integrations/README.md").read_text("utf-8"), re.MULTILINE)
    serving = [command for command in commands if command.startswith("serve ")]
    assert serving
    for command in set(commands) - set(serving):
        subprocess.run([sys.executable, "-m", "qwen3asr.cli", *shlex.split(command)], check=True, cwd=tmp_path)
    written = {path.name for path in (tmp_path / "models/qwen3_asr").iterdir()}
    assert {"config.pbtxt", "1"} <= written
    for command in serving:
        _serves(re.sub(r"tcp://0\.0\.0\.0:[0-9]+", "tcp://127.0.0.1:0", command), tmp_path)


def _serves(command: str, folder: Path) -> None:
    """It listens until it is told to stop; on ports that nobody else has."""
    arguments = [sys.executable, "-m", "qwen3asr.cli", *shlex.split(command), "--port", "0"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=folder) as process:
        try:
            assert process.stderr is not None
            assert any("listening on http" in line for line in process.stderr)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
