"""The files of a corpus, and how one is known again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from qwen3asr.errors import ManifestInvalid

Paths: TypeAlias = Iterable[str | os.PathLike[str]]

FILE = pa.schema([("path", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64())])
"""Columns of a file."""


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was when it was listed (no size or time: it was not there), and the error that it ended in."""

    path: str
    size: int | None = None
    mtime_ns: int | None = None
    error: str | None = None

    def settled_by(self, row: File | None, retry_failed: bool) -> bool:
        """Whether a row of an earlier run is what another run would give."""
        if row is None or (row.size, row.mtime_ns) != (self.size, self.mtime_ns):
            return False
        return not (retry_failed and row.error)


def list_files(source: str | os.PathLike[str] | Paths) -> list[File]:
    """Each file once, in order.

    Args:
        source: paths; or that of a manifest of JSON lines, whose ``audio`` is relative to it.

    Raises:
        ManifestInvalid: of the manifest, with its problems.
    """
    paths = _listed(Path(source)) if isinstance(source, str | os.PathLike) else source
    return [_stat(path) for path in dict.fromkeys(map(os.path.abspath, paths))]


def _stat(path: str) -> File:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:  # the actor says why
        return File(path)
    return File(path, found.st_size, found.st_mtime_ns)


def _listed(manifest: Path) -> list[Path]:
    paths, problems = [], []
    try:
        lines = manifest.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestInvalid(manifest, [str(error)]) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            paths.append(manifest.parent / json.loads(line)["audio"])
        except (ValueError, TypeError, KeyError) as error:
            problems.append(f'line {number} is no JSON object with a path as "audio" ({error!r})')
    if problems:
        raise ManifestInvalid(manifest, problems)
    return paths
