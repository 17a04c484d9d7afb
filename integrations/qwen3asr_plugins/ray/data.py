"""Recordings as rows: the stage of a Ray dataset that transcribes them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray

import qwen3asr
from qwen3asr.errors import Qwen3AsrError, RequestInvalid

_INPUTS = ("audio", "bytes", "sampling_rate")  # columns that a row of results does not carry on
_SAID = ("text", "language")  # columns of what is known to be said, which become those of the result
_TIMES = [("start", pa.float64()), ("end", pa.float64())]
_WORD = pa.struct([("text", pa.string()), *_TIMES, ("confidence", pa.float64()), ("repaired", pa.bool_())])
_RESULT = pa.schema(
    [
        ("text", pa.string()),
        ("language", pa.string()),
        ("duration", pa.float64()),
        ("finish_reason", pa.string()),
        ("words", pa.list_(_WORD)),
        ("error", pa.string()),
    ]
)


class Transcribe:
    """A stage for ``Dataset.map_batches``: a row with a recording becomes a row with its text.

    Give it ``batch_format="pyarrow"``. The recording of a row is its column ``bytes`` (a file's), else ``audio`` (a
    file's bytes, a path, samples with a column ``sampling_rate``, or a struct as ``datasets`` makes them), else
    ``path``, which the actor reads. Of these ``path`` needs least memory: what is not yet read is in no one's.

    A row comes out with its other columns and ``text``, ``language``, ``duration`` (seconds), ``finish_reason``,
    ``words`` (text, start and end in seconds, confidence, repaired) and ``error``: ``None``, or, where all others are
    ``None``, such as ``"AudioNotFound: there is no ..."``. A recording that fails harms no other.

    With ``known_text`` rows may have ``text``, and ``language``: what is said in them is then aligned, not transcribed,
    and their ``finish_reason`` is ``None``. Rows whose ``text`` is ``None`` are transcribed.

    The rows of a batch are decoded together, as many as the model has slots; a batch should hold several times as
    many. An actor may run several batches at a time, so that its slots stay full: ``ActorPoolStrategy(size=8,
    max_concurrent_calls_per_actor=2, enable_true_multi_threading=True)``.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        aligner: str | os.PathLike[str] | None = None,
        language: str | None = None,
        context: str = "",
        timestamps: Literal["word"] | None = None,
        known_text: bool = False,
        threads: int | None = None,
        slots: int | None = None,
    ) -> None:
        """Load the model; Ray calls this in each actor.

        Args:
            bundle: folder of the recogniser, on every node.
            aligner: folder of the aligner, for word times.
            language: as for :meth:`qwen3asr.Recognizer.transcribe`.
            context: as for ``transcribe``.
            timestamps: ``"word"`` for word times.
            known_text: align the text of rows that have one; ``aligner`` is needed.
            threads: of one operator; by default as many as Ray gave the actor CPUs.
            slots: recordings decoded at a time; by default as for :func:`qwen3asr.load`. Give it where several actors
                share a node: each would count on half of the free memory.

        Raises:
            Qwen3AsrError: the bundle cannot be loaded, or the options cannot be met.
        """
        self._model = qwen3asr.load(bundle, aligner=aligner, threads=assigned_threads(threads), slots=slots)
        self._language, self._context, self._timestamps = language, context, timestamps
        self._known_text = known_text
        self._model.check(language=language, context=context, timestamps=timestamps)
        if known_text:
            self._model.check(timestamps="word")  # which need the aligner too

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Transcribe a batch.

        Raises:
            RequestInvalid: the batch is no table, has no column with recordings, or has one of a result's name.
        """
        kept = _other_columns(batch, self._known_text)
        results = pa.Table.from_pylist(list(self._results(batch)), _RESULT)
        for field, column in zip(_RESULT, results.columns, strict=True):
            kept = kept.append_column(field, column)
        return kept

    def _results(self, batch: pa.Table) -> Iterator[dict[str, object]]:
        recordings = _recordings(batch)
        if not self._known_text:
            return map(_result, self._heard(recordings))
        return self._aligned_or_heard(list(zip(recordings, _said(batch), strict=True)))

    def _heard(self, recordings: Iterator[Any]) -> Iterator[qwen3asr.Transcript | Exception]:
        return self._model.transcribe_each(
            recordings, language=self._language, context=self._context, timestamps=self._timestamps
        )

    def _aligned_or_heard(self, rows: list[tuple[Any, tuple[str | None, str | None]]]) -> Iterator[dict[str, object]]:
        heard = self._heard(recording for recording, (text, _) in rows if text is None)
        for recording, (text, language) in rows:
            if text is None:
                yield _result(next(heard))
            else:
                yield self._aligned(recording, text, language or self._language)

    def _aligned(self, recording: Any, text: str, language: str | None) -> dict[str, object]:
        try:
            audio = qwen3asr.read_audio(recording)
            words = self._model.align(audio.samples, text, language=language, sample_rate=16_000)
        except (Qwen3AsrError, OSError) as error:
            return _result(error)
        return _result(qwen3asr.Transcript.from_words(text, words, audio.duration, language)) | {"finish_reason": None}


def assigned_threads(threads: int | None) -> int:
    """Threads of one operator: as given, else as many as Ray assigned CPUs to this actor; outside of Ray 0, for all."""
    if threads is not None:
        return threads
    context = ray.get_runtime_context() if ray.is_initialized() else None
    if context is None or context.worker.mode != ray.WORKER_MODE:
        return 0
    assigned = context.get_assigned_resources()  # type: ignore[no-untyped-call]
    return max(1, int(assigned.get("CPU", 1)))


def _other_columns(batch: pa.Table, known_text: bool) -> pa.Table:
    """Those that rows of results carry on."""
    if not isinstance(batch, pa.Table):
        raise RequestInvalid(f'a batch came as {type(batch).__name__}; give map_batches batch_format="pyarrow"')
    dropped = [*_INPUTS, *(_SAID if known_text else ())]
    kept = batch.drop_columns([name for name in batch.column_names if name in dropped])
    if taken := [name for name in kept.column_names if name in _RESULT.names]:
        raise RequestInvalid(f"rows have {', '.join(taken)} already, as results are called; give rename_columns first")
    return kept


def _said(batch: pa.Table) -> list[tuple[str | None, str | None]]:
    """Text and language of each row, as far as they are known."""
    columns = (batch[name].to_pylist() if name in batch.column_names else [None] * len(batch) for name in _SAID)
    return list(zip(*columns, strict=True))


def _recordings(batch: pa.Table) -> Iterator[Any]:
    name = next((name for name in ("bytes", "audio", "path") if name in batch.column_names), None)
    if name is None:
        raise RequestInvalid(f"rows have {', '.join(batch.column_names)}, but no column bytes, audio or path")
    rates = batch["sampling_rate"] if "sampling_rate" in batch.column_names else [None] * len(batch)
    return (_recording(cell.as_py(), rate and rate.as_py()) for cell, rate in zip(batch[name], rates, strict=True))


def _recording(cell: Any, rate: int | None) -> Any:
    """What :func:`qwen3asr.read_audio` takes; of what it does not, it says why."""
    if isinstance(cell, Mapping) and "array" in cell:
        cell, rate = cell["array"], cell.get("sampling_rate", rate)
    elif isinstance(cell, Mapping):  # datasets' Audio(decode=False)
        return cell.get("bytes") or cell.get("path")
    if isinstance(cell, Sequence) and not isinstance(cell, str | bytes):
        with contextlib.suppress(ValueError):
            cell = np.asarray(cell, np.float32)
    return (cell, rate) if isinstance(cell, np.ndarray) and rate is not None else cell


def _result(one: qwen3asr.Transcript | Exception) -> dict[str, object]:
    if isinstance(one, Exception):
        return {"error": f"{type(one).__name__}: {one}"}
    plain = one.to_dict()
    words = [word for segment in plain["segments"] for word in segment["words"]]
    return {name: plain[name] for name in ("text", "language", "duration", "finish_reason")} | {"words": words}
