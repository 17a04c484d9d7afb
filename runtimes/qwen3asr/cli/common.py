"""What the commands share: exit codes, common options, failing, and writing whole files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn, TypeAlias

import typer

from qwen3asr import console

INPUT_FAILED, USAGE, UNUSABLE, DIFFERS, INTERRUPTED = 1, 2, 3, 4, 130
"""Exit codes; see :mod:`qwen3asr.cli`."""

Model: TypeAlias = Annotated[
    Path, typer.Argument(help="Folder of the recogniser's bundle, as `qwen3asr export` wrote it.")
]
Threads: TypeAlias = Annotated[int, typer.Option(min=0, help="CPU threads; 0: one a physical core.")]
Slots: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Requests or pieces decoded at a time; default: by memory.")
]
Device: TypeAlias = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto for the best there is.")]
Engine: TypeAlias = Annotated[
    str | None, typer.Option(help="onnxruntime, or tensorrt; default: TensorRT where its engines are and run here.")
]
Capacity: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1, help="KV-cache tokens of each: 13 a second of audio, and the text; default 4096, or what engines have."
    ),
]


def fail(code: int, message: str) -> NoReturn:
    """Show an error and end the command with an exit code."""
    console.error(message)
    raise typer.Exit(code)


def check_writable(option: str, target: Path | None) -> None:
    """End the command now where a file could not be written after hours of work; ``None`` is the screen."""
    if target is None:
        return
    folder = target.absolute().parent
    if target.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        fail(USAGE, f"{option} {target} cannot be written; name a file in a folder that exists and is yours")


def write(text: str, target: Path | None) -> None:
    """Write UTF-8 text to the screen (``None``) or to a file, which appears when it is whole."""
    if target is None:
        print(text, end="", flush=True)
        return
    draft = target.with_name(target.name + ".part")
    try:
        draft.write_text(text, "utf-8")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
