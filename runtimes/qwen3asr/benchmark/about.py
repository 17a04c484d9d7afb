"""Which bundle was measured, and how long it takes to be loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from qwen3asr.aligner import Aligner
from qwen3asr.benchmark.spread import Spread
from qwen3asr.bundle import Bundle
from qwen3asr.recognizer import Recognizer


@dataclass(frozen=True, slots=True)
class About:
    """A bundle: ``source`` is its checkpoint, ``bytes`` the size of its files."""

    folder: str
    source: str
    kind: str
    precision: str
    dialect: str
    bytes: int

    @classmethod
    def of(cls, bundle: Bundle) -> About:
        """What a bundle says of itself."""
        stated = bundle.manifest
        source = stated.source["name"]
        return cls(bundle.folder.name, source, stated.kind, stated.precision, stated.dialect, bundle.bytes)


def load_times(load: Callable[[], Recognizer | Aligner], rounds: int, progress: Callable[[int, int], None]) -> Spread:
    """Seconds that loading takes; each model goes before the next comes, for two may not fit the memory."""
    seconds = []
    for index in range(rounds):
        progress(index, rounds)
        start = time.perf_counter()
        model = load()
        seconds.append(time.perf_counter() - start)
        model.close()
        del model
    progress(rounds, rounds)
    return Spread.of(seconds)
