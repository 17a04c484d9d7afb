"""What the README shows of the server is run as it stands, but for its address."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT, Recording
from tests.runtimes.server.conftest import Start

from qwen3asr.server import ServerSettings


@pytest.mark.parametrize("name", ["README.md", "runtimes/README.md"])
def test_the_openai_client_of_the_readme_gets_the_text(
    start: Start, recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    wanted = recordings["german"]
    server = start(ServerSettings(model_name="qwen3-asr-0.6b", api_keys=("secret",)))
    [block] = [
        block
        for block in re.findall(r"```py\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL)
        if "OpenAI(" in block
    ]
    code = block.replace("http://127.0.0.1:8000", server.url).replace("client.audio", "text = client.audio")
    monkeypatch.chdir(tmp_path)
    shutil.copy(wanted.path, "call.wav")
    known: dict[str, Any] = {"key": "secret"}
    exec(code, known)
    assert known["text"] == wanted.text
