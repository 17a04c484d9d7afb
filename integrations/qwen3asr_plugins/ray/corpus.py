"""A corpus of files, transcribed on a cluster into a folder of Parquet files; in several runs if need be."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, Dataset

from qwen3asr.errors import Qwen3AsrError
from qwen3asr_plugins.ray.data import Transcribe
from qwen3asr_plugins.ray.files import FILE, SAID, File, Paths, list_files
from qwen3asr_plugins.ray.parts import Parts


@dataclass(frozen=True, slots=True)
class Corpus:
    """How far a corpus is.

    Attributes:
        total: files in it.
        skipped: those that an earlier run did.
        done: those that this run transcribed.
        failed: those that this run could not.
        seconds: of audio that this run transcribed.
    """

    total: int
    skipped: int
    done: int = 0
    failed: int = 0
    seconds: float = 0.0


def transcribe_corpus(
    source: str | os.PathLike[str] | Paths,
    out_folder: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    *,
    aligner: str | os.PathLike[str] | None = None,
    language: str | None = None,
    context: str = "",
    timestamps: Literal["word"] | None = None,
    known_text: bool = False,
    actors: int | tuple[int, int] = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    slots: int | None = None,
    batch_size: int = 32,
    part_rows: int = 1_000,
    retry_failed: bool = False,
    progress: Callable[[Corpus], None] | None = None,
) -> Corpus:
    """Transcribe files on a cluster into a folder of Parquet files; a run that was stopped is gone on with.

    ``out_folder`` holds one row a path: ``path``, ``size``, ``mtime_ns`` and what :class:`Transcribe` adds;
    ``pyarrow.parquet.read_table(out_folder)`` reads it. Parts appear whole or not at all. A later run does what is not
    there yet: a file is known by path, size and time of modification, so one that changed is done again and its old row
    goes. Only one run at a time may write to a folder. The driver reads no audio, and keeps some hundred bytes a file.

    Args:
        source: paths of files as the nodes see them; or a manifest of JSON lines with ``audio`` relative to itself.
            Of its ``text`` and ``language``, see ``known_text``.
        out_folder: on the driver.
        bundle: as for :class:`Transcribe`, as ``aligner``, ``language``, ``context``, ``timestamps`` and ``slots``.
        aligner: see there.
        language: see there.
        context: see there.
        timestamps: see there.
        known_text: align the ``text`` of the manifest's lines that have one, in place of transcribing them; ``aligner``
            is needed. A file whose text has changed is done again.
        actors: how many, each with a model; ``(least, most)`` lets Ray choose.
        cpus: of an actor, which are its threads.
        gpus: of an actor.
        slots: see there.
        batch_size: files that an actor is given at a time, and has to do again if it is lost.
        part_rows: rows that make a part. What has waited for a minute is written with fewer.
        retry_failed: do files again whose row has an error.
        progress: called with each batch of results.

    Returns:
        What was done. Files that failed are rows with an ``error``.

    Raises:
        ManifestInvalid: of the manifest, with its problems.
        RequestInvalid: the folder was begun with other settings.
        Qwen3AsrError: the model cannot be loaded, or the options cannot be met; found before any file is read.
    """
    options = {
        "bundle": os.path.abspath(bundle),  # noqa: PTH100 (actors work in another folder; links stay as they are)
        "aligner": None if aligner is None else os.path.abspath(aligner),  # noqa: PTH100
        "language": language,
        "context": context,
        "timestamps": timestamps,
        "known_text": known_text,
    }
    files = list_files(source, known_text)
    parts = Parts(Path(out_folder), part_rows, options)
    known = parts.known()
    todo = [file for file in files if not file.settled_by(known.get(file.path), retry_failed)]
    corpus = Corpus(len(files), len(files) - len(todo))
    if not todo:
        return corpus
    _check(options | {"slots": slots}, cpus, gpus)
    least, most = (actors, actors) if isinstance(actors, int) else actors
    columns = pa.unify_schemas([FILE, SAID]) if known_text else FILE
    results = _dataset(todo, columns, batch_size).map_batches(
        Transcribe,
        fn_constructor_kwargs=options | {"slots": slots},
        batch_format="pyarrow",
        batch_size=None,  # a block
        # the next batch begins while the last files of one are still decoded
        compute=ActorPoolStrategy(
            min_size=least, max_size=most, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
        ),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    with parts:  # an error on the way leaves what has come
        for rows in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            parts.add(rows)
            corpus = _counted(corpus, rows)
            if progress is not None:
                progress(corpus)
    parts.known()  # leaves no old row of a file that was done again
    return corpus


def _check(options: Mapping[str, object], cpus: float, gpus: float) -> None:
    """Where an actor would: as an actor of Ray Data that does not start, it would end in an error of Ray's."""

    def load() -> None:
        Transcribe(**cast(dict[str, Any], options))

    try:
        ray.get(ray.remote(load).options(num_cpus=cpus, num_gpus=gpus).remote())
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Qwen3AsrError) else error) from None


def _dataset(files: Sequence[File], columns: pa.Schema, batch_size: int) -> Dataset:
    table = pa.Table.from_pylist([{name: getattr(file, name) for name in columns.names} for file in files], columns)
    return ray.data.from_arrow([table.slice(at, batch_size) for at in range(0, len(table), batch_size)])


def _counted(corpus: Corpus, rows: pa.Table) -> Corpus:
    failed = len(rows) - rows["error"].null_count
    return replace(
        corpus,
        done=corpus.done + len(rows) - failed,
        failed=corpus.failed + failed,
        seconds=corpus.seconds + (pc.sum(rows["duration"]).as_py() or 0.0),
    )
