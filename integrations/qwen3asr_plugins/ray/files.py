"""The files of a corpus, and how one is known again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from qwen3asr.errors import ManifestInvalid

Paths: TypeAlias = Iterable[str | os.PathLike[str]]

FILE = pa.schema([("path", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64())])
"""Columns of a file."""
SAID = pa.schema([("text", pa.string()), ("language", pa.string())])
"""Columns of what is known to be said in it."""


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was when it was listed (no size or time: it was not there), and the error that it ended in.

    ``text`` and ``language`` are what is known to be said in it, or, of a row, what the row says.
    """

    path: str
    size: int | None = None
    mtime_ns: int | None = None
    error: str | None = None
    text: str | None = None
    language: str | None = None

    def settled_by(self, row: File | None, retry_failed: bool) -> bool:
        """Whether a row of an earlier run is what another run would give."""
        if row is None or (row.size, row.mtime_ns) != (self.size, self.mtime_ns):
            return False
        if row.error:
            return not retry_failed
        return self.text is None or row.text == self.text


def list_files(source: str | os.PathLike[str] | Paths, known_text: bool = False) -> list[File]:
    """Each file once, in order.

    Args:
        source: paths; or that of a manifest of JSON lines, whose ``audio`` is relative to it.
        known_text: with the ``text`` and ``language`` of the manifest's lines that have them.

    Raises:
        ManifestInvalid: of the manifest, with its problems.
    """
    if isinstance(source, str | os.PathLike):
        listed = _listed(Path(source), known_text)
    else:
        listed = [File(os.fspath(path)) for path in source]
    files: dict[str, File] = {}
    for file in listed:
        path = os.path.abspath(file.path)  # noqa: PTH100 (links stay as they are)
        if path not in files:
            files[path] = _stat(replace(file, path=path))
    return list(files.values())


def _stat(file: File) -> File:
    try:
        found = os.stat(file.path)  # noqa: PTH116
    except OSError:  # the actor says why
        return file
    return replace(file, size=found.st_size, mtime_ns=found.st_mtime_ns)


def _listed(manifest: Path, known_text: bool) -> list[File]:
    files, problems = [], []
    try:
        lines = manifest.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestInvalid(manifest, [str(error)]) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            file = File(os.fspath(manifest.parent / row["audio"]))
            files.append(
                replace(file, text=_said(row, "text"), language=_said(row, "language")) if known_text else file
            )
        except (ValueError, TypeError, KeyError) as error:
            problems.append(f'line {number} is no JSON object with a path as "audio" ({error!r})')
    if problems:
        raise ManifestInvalid(manifest, problems)
    return files


def _said(row: dict[str, object], name: str) -> str | None:
    value = row.get(name)
    if not isinstance(value, str | None):
        raise TypeError(f"{name} is {value!r}, no text")
    return value
