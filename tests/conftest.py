"""Fixtures: the tiny trained models as bundles, and the recordings with what is said in them."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import qwen3asr
from qwen3asr_export import export

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Recording:
    """A spoken file and the truth about it."""

    path: Path
    language: str | None
    text: str
    words: list[dict[str, object]]


@pytest.fixture(scope="session")
def recordings() -> dict[str, Recording]:
    folder = ROOT / "examples" / "recordings"
    entries = json.loads((folder / "manifest.json").read_text("utf-8"))
    return {
        Path(e["audio"]).stem: Recording(folder / e["audio"], e["language"], e["text"], e["words"]) for e in entries
    }


@pytest.fixture(scope="session")
def asr_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _exported("asr", tmp_path_factory)


@pytest.fixture(scope="session")
def aligner_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _exported("aligner", tmp_path_factory)


def _exported(kind: str, folders: pytest.TempPathFactory) -> Path:
    """In fp32, where a batch equals its single rows exactly."""
    target = folders.mktemp("bundles") / kind
    return export(ROOT / "examples/tiny" / kind, target, precision="fp32", check=False).folder


@pytest.fixture(scope="session")
def model(asr_bundle: Path, aligner_bundle: Path) -> qwen3asr.Recognizer:
    return qwen3asr.load(asr_bundle, aligner=aligner_bundle)


@pytest.fixture(autouse=True)
def _quiet_transformers() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Shells start background processes deaf to it, and so what these start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
