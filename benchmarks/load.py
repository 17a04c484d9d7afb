"""Thousands of clients of every kind at once against ``qwen3asr serve``: what each got, and what the server held.

python benchmarks/load.py BUNDLE --out benchmarks/results/load.json

The bundle is the tiny model's, exported in fp32, where a text never depends on its neighbours: every answer must be
exactly what the model says of that clip alone. Ends by itself, with exit status 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from machine import machine

import qwen3asr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the clients are those of the tests
from tests.abuse.process import ServerProcess, settled  # noqa: E402
from tests.abuse.traffic import Clip, Load, clips  # noqa: E402

RECORDINGS = ROOT / "examples" / "recordings"
SLOTS, QUEUE, SHOWN = 4, 16, 20


def main() -> int:
    """Run it, print what came of it, and write the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("bundle", type=Path)
    options.add_argument("--count", type=int, default=12_000, help="requests after the warm-up; at most 100,000")
    options.add_argument("--at-a-time", type=int, default=64)
    options.add_argument("--rounds", type=int, default=4, help="memory is read after each")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(given.bundle, Path(folder, "log"), "--slots", str(SLOTS), "--queue", str(QUEUE))
        try:
            result = _measure(server, given.bundle, min(given.count, 100_000), given.at_a_time, given.rounds)
        finally:
            server.kill()
    print(json.dumps(result, indent=2, ensure_ascii=False))
    if given.out:
        given.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return 1 if result["wrong"] or result["tracebacks"] or result["exit_status"] else 0


def _measure(server: ServerProcess, bundle: Path, count: int, at_a_time: int, rounds: int) -> dict[str, Any]:
    spoken, texts = _clips(bundle)
    outcomes, wrong, held = Counter[str](), list[str](), []
    Load(server.url, spoken, texts).run(400, at_a_time)  # its allocators and pools reach their size
    held.append(settled(server))
    begun = time.monotonic()
    for number in range(rounds):
        load = Load(server.url, spoken, texts, seed=number + 1).run(count // rounds, at_a_time)
        outcomes += load.outcomes
        wrong += load.wrong
        held.append(settled(server))
    seconds = time.monotonic() - begun
    server.signal(signal.SIGTERM)
    status = server.end()
    return {
        "command": "python benchmarks/load.py BUNDLE",
        "machine": machine(),
        "slots": SLOTS,
        "queue": QUEUE,
        "requests": sum(outcomes.values()),
        "at_a_time": at_a_time,
        "seconds": round(seconds, 1),
        "outcomes": dict(sorted(outcomes.items())),
        "wrong": len(wrong),
        "wrong_first": wrong[:SHOWN],
        "tracebacks": server.log.read_text().count("Traceback"),
        "held_after_warm_up_and_each_round": held,
        "exit_status": status,
    }


def _clips(bundle: Path) -> tuple[list[Clip], dict[str, str]]:
    said = {
        Path(entry["audio"]): entry["text"] for entry in json.loads((RECORDINGS / "manifest.json").read_text("utf-8"))
    }
    short = {path: text for path, text in said.items() if text and path.stem != "english-long"}
    with qwen3asr.load(bundle, threads=1) as model:
        return clips(model, [RECORDINGS / path for path in short]), {path.stem: text for path, text in short.items()}


if __name__ == "__main__":
    sys.exit(main())
