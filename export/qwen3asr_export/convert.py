"""From a checkpoint folder to a verified bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import onnx
import torch
import transformers

from qwen3asr.bundle import COMPONENTS, Bundle, Manifest, new_bundle, open_bundle
from qwen3asr.errors import RequestInvalid
from qwen3asr_export.checkpoint import CARRIED, Checkpoint, parameter_bytes
from qwen3asr_export.decoder import POSITIONS, Dialect, OrtDialect, build_decoder
from qwen3asr_export.encoder import build_encoder
from qwen3asr_export.graph import OPSET, WeightFile
from qwen3asr_export.verification import verify

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the stage (``weights``, ``verify``), what is done and what there is to do."""

PRECISIONS = ("fp32",)
_SLACK = 32 << 20  # graphs, tokenizer, rotary tables, alignment between tensors


def export(
    checkpoint: str | Path,
    target: str | Path,
    *,
    precision: str = "fp32",
    check: bool = True,
    replace: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Bundle:
    """Export a checkpoint to ONNX and verify it against transformers' own model.

    Args:
        checkpoint: folder in the ``-hf`` layout, recogniser or forced aligner.
        target: folder to make; it appears only when everything is written and verified.
        precision: ``fp32``.
        check: verify stage by stage; without it the bundle says that it is unverified.
        replace: replace an existing target.
        progress: told of the stage and how far it is.

    Raises:
        CheckpointInvalid, CheckpointKeysWrong, ConfigInvalid: before anything is written.
        TargetExists, DiskFull, RequestInvalid: likewise.
        VerificationFailed: with the table of all checks; nothing is left behind.
    """
    if precision not in PRECISIONS:
        raise RequestInvalid(f"precision {precision!r} is not offered; choose from {', '.join(PRECISIONS)}")
    source = Checkpoint(Path(checkpoint))
    dialect = OrtDialect()
    dialect.check(source.spec)
    total = parameter_bytes(source.spec)
    with new_bundle(Path(target), total + _SLACK, replace=replace) as (folder, write_manifest):
        _write_graphs(source, dialect, folder, lambda done: progress("weights", done, total))
        for name in CARRIED:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, folder / name)
        write_manifest(_manifest(source, dialect, precision))
        if check:
            verify(open_bundle(folder), source, progress=lambda done, total: progress("verify", done, total))
    return open_bundle(target)


def _write_graphs(source: Checkpoint, dialect: Dialect, folder: Path, progress: Callable[[int], None]) -> None:
    onnx_folder = folder / "onnx"
    onnx_folder.mkdir()
    written = 0

    def count(size: int) -> None:
        nonlocal written
        written += size
        progress(written)

    for name in COMPONENTS:
        with WeightFile(onnx_folder / f"{name}.onnx.data", count) as weights:
            if name == "encoder":
                model = build_encoder(source.spec, source.tensors, weights)
            else:
                model = build_decoder(source.spec, source.tensors, weights, dialect)
        onnx.save(model, onnx_folder / f"{name}.onnx")


def _manifest(source: Checkpoint, dialect: Dialect, precision: str) -> Manifest:
    return Manifest(
        kind=source.spec.kind,
        precision=precision,
        dialect=dialect.name,
        opset=OPSET,
        components={name: f"onnx/{name}.onnx" for name in COMPONENTS},
        limits={"positions": min(source.spec.max_positions, POSITIONS)},
        source={
            "name": source.folder.resolve().name,
            "weights_sha256": source.weights_sha256,
            "exported_with": ", ".join(f"{lib.__name__} {lib.__version__}" for lib in (torch, transformers, onnx)),
        },
    )
