"""``qwen3asr export``, ``verify`` and ``info``: making bundles and looking into them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

import qwen3asr
from qwen3asr import console
from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.cli.building import Building, describe_all, option
from qwen3asr.errors import ExtraMissing, RequestInvalid
from qwen3asr.precisions import PRECISIONS

if TYPE_CHECKING:
    from types import ModuleType

    from qwen3asr.spec import ModelSpec


class Precision(StrEnum):
    """What ``--precision`` takes."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    int4 = "int4"
    fp8 = "fp8"


class Device(StrEnum):
    """What a bundle is to run on."""

    cpu = "cpu"
    cuda = "cuda"


class Dialect(StrEnum):
    """Which operators the graphs use."""

    ort = "ort"
    standard = "standard"


class Target(StrEnum):
    """What is made."""

    onnx = "onnx"
    tensorrt = "tensorrt"
    triton = "triton"


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
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Checkpoint folder, or a hub id such as Qwen/Qwen3-ASR-0.6B; for engines and Triton also a bundle.",
        ),
    ] = None,
    target: Annotated[Path | None, typer.Argument(help="Bundle folder to make; of Triton, the repository.")] = None,
    engine: Annotated[
        Target,
        typer.Option(
            help="onnx: a bundle. tensorrt: a bundle of the standard dialect, and engines in it. triton: a model "
            "repository from a bundle."
        ),
    ] = Target.onnx,
    precision: Annotated[
        Precision,
        typer.Option(
            help="auto: int8 for cpu, fp32 there in the standard dialect; bf16 for cuda and engines, or what the "
            "bundle has that they are built from. fp8: of engines only."
        ),
    ] = Precision.auto,
    device: Annotated[Device, typer.Option(help="What it is to run on; decides what auto is.")] = Device.cpu,
    dialect: Annotated[
        Dialect | None,
        typer.Option(help="ort (default) for ONNX Runtime; standard for TensorRT and others, in floating point only."),
    ] = None,
    revision: Revision = None,
    offline: Offline = False,
    random_like: Annotated[
        StandIn | None, typer.Option(help="Make CHECKPOINT first, where it is not there: this shape, random weights.")
    ] = None,
    check: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare with PyTorch before finishing.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing target, or engines.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print shapes and memory of engines; make none.")] = False,
    slots: Annotated[int | None, option("Requests decoded at a time, at most; default 8.")] = None,
    capacity: Annotated[
        int | None, option("KV-cache tokens of a request, 13 a second of audio; every step reads all of them.")
    ] = None,
    chunk: Annotated[int | None, option("Tokens of one prefill, at most; default 512.")] = None,
    draft: Annotated[int | None, option("Tokens of a stream's draft checked at a time; default 128.")] = None,
    windows: Annotated[int | None, option("Windows of 8 s encoded at a time, at most; default 64.")] = None,
    workspace: Annotated[int | None, option("MB that one layer may use while it runs.")] = None,
    level: Annotated[int | None, option("The builder's optimisation level, 0 to 5.")] = None,
    gpu: Annotated[str | None, option("What engines are for: sm90, a name, any; default: the GPU here.")] = None,
    gpu_memory: Annotated[float | None, option("GB of the GPU: refuse what does not fit.")] = None,
    timing_cache: Annotated[Path | None, option("File that keeps the times of kernels between builds.")] = None,
    strict: Annotated[bool, option("Refuse engines whose attention is not fused; without, that is a warning.")] = False,
    aligner: Annotated[Path | None, typer.Option(help="Aligner's bundle, for word times on Triton.")] = None,
) -> None:
    r"""Turn a checkpoint into an ONNX bundle, verified against transformers, or a bundle into TensorRT engines.

    Needs torch: pip install 'qwen3asr\[export]'; engines need 'qwen3asr\[export,tensorrt]'. What is made appears when
    it is whole; Ctrl-C leaves nothing of it.
    """
    sizes = {"slots": slots, "capacity": capacity, "chunk": chunk, "draft": draft, "windows": windows}
    wanted = None if precision is Precision.auto else precision.value
    building = Building(
        sizes | {"workspace": workspace, "level": level}, wanted, gpu, gpu_memory, timing_cache, force, strict
    )  # fmt: skip
    _check_engine(engine, dialect, dry_run, building, aligner)
    if engine is Target.triton and (dialect or revision or offline or random_like or force or wanted or not check):
        raise RequestInvalid(
            "a model repository is written from a bundle; of the options it takes --aligner, --device, --slots"
        )
    _exporter()
    if engine is Target.triton:
        _write_repository(_named(checkpoint), target, aligner, device, slots)
    elif dry_run:
        building.print_plan(_spec(checkpoint, random_like, revision, offline))
    elif engine is Target.tensorrt and target is None:
        building.run(Path(_named(checkpoint)))
    elif target is None:
        raise RequestInvalid(f"name the bundle folder to make, behind the checkpoint {_named(checkpoint)}")
    elif engine is Target.tensorrt:
        building.check(_spec(checkpoint, random_like, revision, offline))
        _export(
            _named(checkpoint), target, building.bundle_precision, device, Dialect.standard, revision, offline,
            random_like, check, force,
        )  # fmt: skip
        building.run_after_export(target)
    else:
        made = _export(
            _named(checkpoint), target, precision.value, device, dialect or Dialect.ort, revision, offline, random_like,
            check, force,
        )  # fmt: skip
        _show(made)


def _check_engine(
    engine: Target, dialect: Dialect | None, dry_run: bool, building: Building, aligner: Path | None
) -> None:
    allowed = {"slots"} if engine is Target.triton else set()
    if engine is not Target.tensorrt and (dry_run or building.asked - allowed):
        raise RequestInvalid("sizes, GPU, timing cache and --dry-run are of engines; add --engine tensorrt")
    if engine is Target.tensorrt and dialect is Dialect.ort:
        raise RequestInvalid("engines are built from the standard dialect; leave --dialect out")
    if engine is not Target.triton and aligner is not None:
        raise RequestInvalid("--aligner goes with --engine triton; an aligner is exported like any other checkpoint")


def _write_repository(
    bundle: str, target: Path | None, aligner: Path | None, device: Device, slots: int | None
) -> None:
    from qwen3asr_export.triton import write_repository  # noqa: PLC0415 (the exporter is an extra)

    if target is None:
        raise RequestInvalid("name the model repository to write into, behind the bundle")
    print(write_repository(bundle, target, aligner=aligner, device=device.value, slots=slots))


def _named(checkpoint: str | None) -> str:
    if checkpoint is None:
        raise RequestInvalid("name a checkpoint: a folder, or a hub id such as Qwen/Qwen3-ASR-0.6B")
    return checkpoint


def _spec(checkpoint: str | None, random_like: StandIn | None, revision: str | None, offline: bool) -> ModelSpec:
    from qwen3asr_export.tensorrt import find_spec, standin_spec  # noqa: PLC0415 (needs torch)

    if random_like is not None and (checkpoint is None or not Path(checkpoint).exists()):
        return standin_spec(random_like)
    return find_spec(_named(checkpoint), revision=revision, offline=offline)


def _export(
    checkpoint: str, target: Path, precision: str, device: Device, dialect: Dialect, revision: str | None,
    offline: bool, random_like: StandIn | None, check: bool, force: bool,
) -> Bundle:  # fmt: skip
    from qwen3asr_export.convert import check_choice  # noqa: PLC0415 (needs torch)
    from qwen3asr_export.convert import export as run  # noqa: PLC0415

    check_choice(precision, device, dialect)
    with console.stages() as progress:
        if random_like is not None and not Path(checkpoint).exists():
            from qwen3asr_export.standin import make_standin  # noqa: PLC0415

            make_standin(
                random_like, Path(checkpoint), progress=lambda _, *step: progress(f"random {random_like}", *step)
            )
        return run(
            checkpoint, target, precision=precision, device=device, dialect=dialect, revision=revision,
            offline=offline, check=check, replace=force, progress=progress,
        )  # fmt: skip


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
    opened = open_bundle(bundle, check_hashes=True)
    _show(opened)
    for line in describe_all(opened):
        print(line)


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
        worst = "not finite" if check["worst"] is None else f"{check['worst']:.2g}"
        figures = f"{worst} {check['unit']}, {bound}, {check['comparisons']} times"
        print(f"  {check['check']:<32} {figures}")


def _cache_bytes(bundle: Bundle) -> int:
    """KV-cache bytes of one token; four a value at a precision that only a newer version knows."""
    spec, precision = bundle.spec, PRECISIONS.get(bundle.manifest.precision)
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * (precision.cache_bytes if precision else 4)
