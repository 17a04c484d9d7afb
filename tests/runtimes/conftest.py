"""Bundles of the tiny recogniser that only GPUs are meant for."""

from __future__ import annotations

import pytest
from tests.conftest import ROOT

from qwen3asr.bundle import Bundle
from qwen3asr_export import export

TINY = ROOT / "examples" / "tiny"


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target = tmp_path_factory.mktemp("standard") / "asr"
    return export(TINY / "asr", target, precision="fp32", dialect="standard", check=False)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(TINY / "asr", tmp_path_factory.mktemp("half") / "asr", precision="fp16", check=False)
