"""``qwen3asr serve`` as a process, on a port that nobody else has."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


class ServerProcess:
    """A server that runs; its log is read as it comes."""

    def __init__(self, *arguments: object, cwd: Path | None = None, **environment: str) -> None:
        command = [sys.executable, "-m", "qwen3asr.cli", "serve", *map(str, arguments), "--port", "0"]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment
        )
        self.log = ""
        self.url = f"http://127.0.0.1:{self.read(r'listening on http://.*:([0-9]+)')[1]}"

    def read(self, pattern: str) -> re.Match[str]:
        """Wait for a line."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"{pattern} did not come: {self.log}")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        _, rest = self.process.communicate(timeout=30)
        self.log += rest
        return self.process.returncode


@contextlib.contextmanager
def server_process(*arguments: object, cwd: Path | None = None, **environment: str) -> Iterator[ServerProcess]:
    """One that is killed at the end, if it has not ended by then."""
    process = ServerProcess(*arguments, cwd=cwd, **environment)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()
