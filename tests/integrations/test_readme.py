"""The commands of the README beside the plugins, run as they stand; its Python is run beside each plugin's tests."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.server_process import server_process


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
        options = shlex.split(re.sub(r"tcp://0\.0\.0\.0:[0-9]+", "tcp://127.0.0.1:0", command))[1:]
        with server_process(*options, cwd=tmp_path) as process:  # which has begun to listen
            process.signal(signal.SIGTERM)
            assert process.end() == 0
