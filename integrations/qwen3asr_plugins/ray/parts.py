"""The folder of results: Parquet files that appear whole, and hold one row a path."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from qwen3asr.errors import RequestInvalid
from qwen3asr_plugins.ray.files import FILE, SAID, File

_SETTINGS = "_settings.json"  # readers of Parquet pass over names that begin so
_PART_SECONDS = 60.0  # results that have waited longer are written, however few they are


class Parts:
    """The folder of results: ``part-*.parquet``, of which a later one counts before an earlier.

    A context in which rows are added; at its end, after an error too, what was added is there.

    Args:
        folder: made if need be.
        rows: that make a part.
        settings: what all rows of the folder share.

    Raises:
        RequestInvalid: the folder has rows of other settings.
    """

    def __init__(self, folder: Path, rows: int, settings: Mapping[str, object]) -> None:
        self._folder, self._rows, self._settings = folder, rows, settings
        self._waiting: list[pa.Table] = []
        self._since = 0.0
        for draft in folder.glob(".*.draft"):  # of a run that was killed
            draft.unlink()
        self._check_settings()

    def known(self) -> dict[str, File]:
        """Newest row of each path; older ones are removed, which a run that was stopped may have left."""
        newest: dict[str, File] = {}
        for part in sorted(self._folder.glob("part-*.parquet"), reverse=True):
            table = pq.read_table(part, columns=[*FILE.names, *SAID.names, "error"])
            rows = [File(**row) for row in table.to_pylist()]
            if any(row.path in newest for row in rows):
                self._keep(part, [row.path not in newest for row in rows])
            newest |= {row.path: row for row in rows if row.path not in newest}
        return newest

    def add(self, rows: pa.Table) -> None:
        """Take rows, and write a part if there are enough, or some have waited for long."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= self._rows or time.monotonic() - self._since >= _PART_SECONDS:
            self._flush()

    def __enter__(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._new(self._folder / _SETTINGS) as file:
            file.write(json.dumps(self._settings, indent=2, ensure_ascii=False).encode())

    def __exit__(self, *_: object) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._waiting:
            parts = [int(part.name.split("-")[1]) for part in self._folder.glob("part-*.parquet")]
            name = f"part-{max(parts, default=-1) + 1:06d}-{uuid.uuid4().hex[:8]}.parquet"
            self._write(self._folder / name, pa.concat_tables(self._waiting))
            self._waiting = []

    def _keep(self, part: Path, rows: Sequence[bool]) -> None:
        if any(rows):
            self._write(part, pq.read_table(part).filter(pa.array(rows)))
        else:
            part.unlink()

    def _write(self, part: Path, table: pa.Table) -> None:
        with self._new(part) as file:
            pq.write_table(table, file)

    @contextmanager
    def _new(self, path: Path) -> Iterator[BinaryIO]:
        """A file that is there when it is whole."""
        draft = path.with_name(f".{path.name}.draft")
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    def _check_settings(self) -> None:
        path = self._folder / _SETTINGS
        begun = json.loads(path.read_text("utf-8")) if path.exists() else self._settings
        for name, value in self._settings.items():
            if begun.get(name) != value:
                raise RequestInvalid(
                    f"{self._folder} was begun with {name}={begun.get(name)!r}, not {value!r}; "
                    "give the same again, or another folder"
                )
