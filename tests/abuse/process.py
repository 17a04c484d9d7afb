"""``qwen3asr serve`` as a process, and what it holds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx
import psutil

MODEL = "tiny"
LIMIT = 1_000_000
"""Bytes of a request that the server is told to take."""
_STARTING_SECONDS = 120


class ServerProcess:
    """``qwen3asr serve`` on a free port; its log is read by nobody but at the end."""

    def __init__(self, bundle: Path, log: Path, *options: str) -> None:
        command = [sys.executable, "-m", "qwen3asr.cli", "serve", str(bundle), "--port", "0", "--model-name", MODEL]
        command += ["--max-upload-mb", str(LIMIT / 1e6), "--threads", "1", *options]
        with log.open("w") as out:
            self._process = subprocess.Popen(command, stderr=out, env=os.environ | {"OMP_NUM_THREADS": "1"})
        self.log, self._seen = log, psutil.Process(self._process.pid)
        until = time.monotonic() + _STARTING_SECONDS
        while not (found := re.search(r"listening on (http://\S+)", log.read_text())):
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise ChildProcessError(f"it did not start: {log.read_text()}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)
        self.url = found[1]

    def held(self) -> dict[str, float]:
        """What the process holds: resident megabytes, threads, file handles, child processes, and its own gauges."""
        text = httpx.get(f"{self.url}/metrics").text
        gauges = dict(re.findall(r"^qwen3asr_(server_requests|queue_depth|active_rows)\S* (\S+)$", text, re.M))
        return {
            "rss_mb": self._seen.memory_info().rss / 1e6,
            "threads": self._seen.num_threads(),
            "handles": self._seen.num_fds(),
            "children": len(self._seen.children()),
        } | {name: float(value) for name, value in gauges.items()}

    def signal(self, number: int = signal.SIGTERM) -> None:
        """As an operator would."""
        self._process.send_signal(number)

    def end(self, seconds: float = 60.0) -> int:
        """The exit status, once it has stopped."""
        return self._process.wait(seconds)

    def kill(self) -> None:
        """At once; harmless when it has ended."""
        self._process.kill()
        self._process.wait()


def settled(server: ServerProcess, seconds: float = 30.0) -> dict[str, float]:
    """What the server holds once nothing is under way and its idle threads have ended."""

    async def wait() -> dict[str, float]:
        async with asyncio.timeout(seconds):
            while True:
                held = await asyncio.to_thread(server.held)
                if not (held["server_requests"] or held["queue_depth"] or held["active_rows"] or held["children"]):
                    return held
                await asyncio.sleep(0.2)

    return asyncio.run(wait())
