"""``qwen3asr export``, ``verify`` and ``info``: making bundles and looking into them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

import qwen3asr
from qwen3asr import console
from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.errors import ExtraMissing
from qwen3asr.precisions import PRECISIONS

if TYPE_CHECKING:
    from types import ModuleType


class Precision(StrEnum):
    """What ``--precision`` takes."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    int4 = "int4"


class Device(StrEnum):
    """What a bundle is to run on."""

    cpu = "cpu"
    cuda = "cuda"


class Dialect(StrEnum):
    """Which operators the graphs use."""

    ort = "ort"
    standard = "standard"


class StandIn(StrEnum):
    """The released shapes."""

    asr_small = "0.6b"
    asr_large = "1.7b"
    aligner = "aligner-0.6b"


Source: TypeAlias = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder, or a hub id such as Qwen/Qwen3-ASR-0.6B.")
]
Revision: TypeAlias = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
Offline: TypeAlias = Annotated[bool, typer.Option("--offline", help="Take a hub id from the local cache only.")]


def export(
    checkpoint: Source,
    target: Annotated[Path, typer.Argument(help="Bundle folder to make.")],
    precision: Annotated[Precision, typer.Option(help="auto: int8 for cpu, bf16 for cuda.")] = Precision.auto,
    device: Annotated[Device, typer.Option(help="What it is to run on; decides what auto is.")] = Device.cpu,
    dialect: Annotated[
        Dialect, typer.Option(help="ort for ONNX Runtime; standard for TensorRT and others, in floating point only.")
    ] = Dialect.ort,
    revision: Revision = None,
    offline: Offline = False,
    random_like: Annotated[
        StandIn | None, typer.Option(help="Make CHECKPOINT first, where it is not there: this shape, random weights.")
    ] = None,
    check: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare with PyTorch before finishing.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing target.")] = False,
) -> None:
    r"""Turn a checkpoint into an ONNX bundle and verify it against transformers.

    Needs torch: pip install 'qwen3asr\[export]'. The target appears when it is whole; Ctrl-C leaves nothing.
    """
    _exporter()
    from qwen3asr_export.convert import check_choice  # noqa: PLC0415 (needs torch)
    from qwen3asr_export.convert import export as run  # noqa: PLC0415

    check_choice(precision, device, dialect)
    with console.stages() as progress:
        if random_like is not None and not Path(checkpoint).exists():
            from qwen3asr_export.standin import make_standin  # noqa: PLC0415

            make_standin(
                random_like, Path(checkpoint), progress=lambda _, *step: progress(f"random {random_like}", *step)
            )
        bundle = run(
            checkpoint, target, precision=precision, device=device, dialect=dialect, revision=revision,
            offline=offline, check=check, replace=force, progress=progress,
        )  # fmt: skip
    _show(bundle)


def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    checkpoint: Source,
    revision: Revision = None,
    offline: Offline = False,
    audio: Annotated[list[str] | None, typer.Option(help="Recordings to compare on, besides synthetic clips.")] = None,
) -> None:
    """Compare a bundle with its checkpoint in PyTorch, stage by stage, and record the figures in it.

    All checks run; then one table is printed. Exit code 4 if any figure is past its bound.
    """
    _exporter()
    from qwen3asr_export.checkpoint import Checkpoint  # noqa: PLC0415 (needs torch)
    from qwen3asr_export.hub import find_checkpoint  # noqa: PLC0415
    from qwen3asr_export.verification import verify as run  # noqa: PLC0415

    opened = open_bundle(bundle, check_hashes=True)
    recordings = {name: qwen3asr.read_audio(name).samples for name in audio or ()}
    with console.stages() as progress:
        source = Checkpoint(find_checkpoint(checkpoint, revision=revision, offline=offline).folder)
        report = run(opened, source, recordings=recordings, progress=lambda *step: progress("verify", *step))
    print(report.table())
    print(f"within the bounds of {opened.manifest.precision} against {report.reference}")


def info(bundle: Annotated[Path, typer.Argument(help="Bundle folder.")]) -> None:
    """Show what a bundle holds, checking every file's SHA-256."""
    _show(open_bundle(bundle, check_hashes=True))


def _exporter() -> ModuleType:
    try:
        import qwen3asr_export  # noqa: PLC0415 (needs torch)
    except ModuleNotFoundError as error:
        raise ExtraMissing("this command", error.name or "torch", "export") from error
    return qwen3asr_export


def _show(bundle: Bundle) -> None:
    manifest, spec = bundle.manifest, bundle.spec
    verified = "no"
    if manifest.verified:
        verified = f"{'passed' if manifest.verified['passed'] else 'FAILED'} against {manifest.verified['reference']}"
    rows = {
        "bundle": bundle.folder,
        "kind": manifest.kind,
        "source": manifest.source["name"],
        "precision": f"{manifest.precision}, {manifest.dialect} dialect, opset {manifest.opset}",
        "size": f"{bundle.bytes / 1e6:.1f} MB in {len(bundle.sizes)} files",
        "encoder": f"{spec.encoder.layers} layers, width {spec.encoder.width}",
        "decoder": f"{spec.layers} layers, width {spec.hidden}, {spec.classes} output classes",
        "KV cache": f"{_cache_bytes(bundle) / 1024:.0f} KiB a token",
        "longest sequence": f"{manifest.limits['positions']} tokens",
        "verified": verified,
    }
    print("\n".join(f"{label:<17} {value}" for label, value in rows.items()))
    for check in manifest.verified["checks"] if manifest.verified else ():
        bound = "not judged" if check["bound"] is None else f"at most {check['bound']:g}"
        figures = f"{check['worst']:.2g} {check['unit']}, {bound}, {check['comparisons']} times"
        print(f"  {check['check']:<32} {figures}")


def _cache_bytes(bundle: Bundle) -> int:
    """KV-cache bytes of one token; four a value at a precision that only a newer version knows."""
    spec, precision = bundle.spec, PRECISIONS.get(bundle.manifest.precision)
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * (precision.cache_bytes if precision else 4)
