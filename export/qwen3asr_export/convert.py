"""From a checkpoint folder or hub id to a verified bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import onnx
import torch
import transformers

from qwen3asr.bundle import COMPONENTS, Bundle, Manifest, check_target, new_bundle, open_bundle
from qwen3asr.errors import RequestInvalid
from qwen3asr.precisions import AUTO
from qwen3asr_export.card import update_card
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.decoder import build_decoder
from qwen3asr_export.dialects import DIALECTS, POSITIONS, Dialect
from qwen3asr_export.encoder import build_encoder
from qwen3asr_export.graph import WeightFile
from qwen3asr_export.hub import Found, find_checkpoint
from qwen3asr_export.precision import PRECISIONS, Precision
from qwen3asr_export.verification import verify

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the stage (``weights`` in bytes, ``verify`` in clips), what is done and what there is to do."""

_SLACK = 32 << 20  # graphs, tokenizer, rotary tables, alignment between tensors


def export(
    checkpoint: str | Path,
    target: str | Path,
    *,
    precision: str = "auto",
    device: str = "cpu",
    dialect: str = "ort",
    revision: str | None = None,
    offline: bool = False,
    check: bool = True,
    replace: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Bundle:
    """Export a checkpoint to ONNX and verify it against transformers' own model.

    Args:
        checkpoint: folder of a recogniser or forced aligner in the ``-hf`` or the original layout, or a hub id.
        target: folder to make; it appears only when everything is written and verified.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``int4``, or ``auto`` for the best of the device.
        device: what it is to run on, ``cpu`` or ``cuda``; it only decides what ``auto`` is.
        dialect: ``ort`` for ONNX Runtime, ``standard`` for TensorRT and others (floating point only).
        revision: branch, tag or commit on the hub.
        offline: take a hub id from the local cache only.
        check: verify stage by stage; without it the bundle says that it is unverified.
        replace: replace an existing target.
        progress: told of the stage and how far it is.

    Raises:
        CheckpointInvalid, CheckpointNotFound, CheckpointForbidden, CheckpointKeysWrong, ConfigInvalid, HubUnreachable:
            before anything is written.
        TargetExists, DiskFull, RequestInvalid: likewise.
        VerificationFailed: with the table of all checks; nothing is left behind.
    """
    chosen, spelling = check_choice(precision, device, dialect)
    check_target(Path(target), replace)  # before a download, and again before writing
    found = find_checkpoint(checkpoint, revision=revision, offline=offline)
    source = Checkpoint(found.folder)
    spelling.check(source.spec)
    total = chosen.stored_bytes(source.spec)
    with new_bundle(Path(target), total + _SLACK, replace=replace) as (folder, write_manifest):
        _write_graphs(source, spelling, chosen, folder, lambda done: progress("weights", min(done, total), total))
        for name, content in source.carried().items():
            (folder / name).write_bytes(content)
        manifest = _manifest(source, found, spelling, chosen)
        write_manifest(manifest)
        bundle = open_bundle(folder)
        update_card(bundle)
        if check:
            verify(bundle, source, progress=lambda done, total: progress("verify", done, total))
    return open_bundle(target)


def check_choice(precision: str, device: str, dialect: str) -> tuple[Precision, Dialect]:
    """The precision (``auto`` resolved) and the dialect that these names mean.

    Raises:
        RequestInvalid: an unknown name, or two that do not go together.
    """
    if device not in AUTO:
        raise RequestInvalid(f"device {device!r} is not known; choose from {', '.join(AUTO)}")
    if dialect not in DIALECTS:
        raise RequestInvalid(f"dialect {dialect!r} is not known; choose from {', '.join(DIALECTS)}")
    offered = [name for name, known in PRECISIONS.items() if dialect in known.dialects]
    name = precision
    if precision == "auto":
        name = AUTO[device] if AUTO[device] in offered else "fp32"
    if name not in offered:
        raise RequestInvalid(
            f"precision {name!r} is not offered in the {dialect} dialect; choose from {', '.join(offered)}"
        )
    return PRECISIONS[name], DIALECTS[dialect]()


def _write_graphs(
    source: Checkpoint, dialect: Dialect, precision: Precision, folder: Path, progress: Callable[[int], None]
) -> None:
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
                model = build_encoder(source.spec, source.tensors, weights, precision.encoder)
            else:
                model = build_decoder(source.spec, source.tensors, weights, dialect, precision.decoder)
        onnx.save(model, onnx_folder / f"{name}.onnx")


def _manifest(source: Checkpoint, found: Found, dialect: Dialect, precision: Precision) -> Manifest:
    return Manifest(
        kind=source.spec.kind,
        precision=precision.name,
        dialect=dialect.name,
        opset=dialect.opset,
        components={name: f"onnx/{name}.onnx" for name in COMPONENTS},
        limits={"positions": min(source.spec.max_positions, POSITIONS)},
        source={
            "name": found.name,
            "weights_sha256": source.weights_sha256,
            "exported_with": ", ".join(f"{lib.__name__} {lib.__version__}" for lib in (torch, transformers, onnx)),
        }
        | ({"revision": found.revision} if found.revision else {}),
    )
