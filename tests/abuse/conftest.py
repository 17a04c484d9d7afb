"""Examples of the fuzz tests: few and the same in CI, as many as ``FUZZ_EXAMPLES`` says elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tests.runtimes.server.conftest import server, start

import qwen3asr
from qwen3asr import Recognizer

__all__ = ["server", "start"]

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def examples(few: int, share: float = 1.0) -> settings:
    """``few`` examples, derandomised; with FUZZ_EXAMPLES random ones, so many times ``share``."""
    return settings(
        max_examples=max(1, round(EXAMPLES * share)) if EXAMPLES else few,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture
def private(asr_bundle: Path) -> Iterator[Recognizer]:
    """A model that a test may break: two slots, four places to wait."""
    with qwen3asr.load(asr_bundle, slots=2, queue=4, threads=1) as model:
        yield model
