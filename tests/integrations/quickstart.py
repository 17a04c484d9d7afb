"""The quick starts of the plugins' README, run as a reader would run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT


def run_quickstart(
    heading: str, following: str, asr_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Run the one block of Python between two headings, in a folder that has the bundle where the README says.

    Returns:
        What the block defines.
    """
    (folder / "out").mkdir()
    (folder / "out/qwen3-asr-0.6b").symlink_to(asr_bundle)
    monkeypatch.chdir(folder)
    text = (ROOT / "integrations/README.md").read_text("utf-8")
    section = text[text.index(f"\n## {heading}") : text.index(f"\n## {following}")]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    known: dict[str, Any] = {}
    exec(block, known)
    return known
