"""Importing the package is cheap: no torch, no backend."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def _python(code: str, env: Mapping[str, str] | None = None) -> str:
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
    return run.stdout.strip()


def test_import_loads_neither_torch_nor_a_backend() -> None:
    heavy = ("torch", "transformers", "onnxruntime", "onnx", "tensorrt", "scipy", "nagisa", "soynlp", "typer")
    code = f"import sys, qwen3asr; print([name for name in {heavy!r} if name in sys.modules])"
    assert _python(code) == "[]"


def test_import_takes_less_than_a_third_of_a_second(tmp_path: Path) -> None:
    """The one promise about time that is tested: the best of several runs, so that a busy machine does not fail it.

    With bytecode, as an installed package has it: it used to fail where the environment forbids to write any.
    """
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    code = "import time; t = time.perf_counter(); import qwen3asr; print(time.perf_counter() - t)"
    assert min(float(_python(code, env | {"PYTHONPYCACHEPREFIX": str(tmp_path)})) for _ in range(7)) < 0.3


def test_the_plugins_import_without_torch() -> None:
    assert _python("import sys, qwen3asr_plugins; print('torch' in sys.modules)") == "False"
