"""From a bundle to a folder of engines in it, which appears when it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen3asr.bundle import COMPONENTS, Bundle, check_target, new_folder, open_bundle
from qwen3asr.engines import FLAVOURS, FOLDER, MANIFEST, EngineFile, Engines, open_engines, write_engines
from qwen3asr.errors import RequestInvalid
from qwen3asr.spec import ModelSpec
from qwen3asr_export.tensorrt.builder import EngineBuilder, Order
from qwen3asr_export.tensorrt.gpu import Gpu, choose_gpu, find_gpu
from qwen3asr_export.tensorrt.graphs import write_quantised
from qwen3asr_export.tensorrt.library import Library, find_library
from qwen3asr_export.tensorrt.plan import Plan, make_plan, weight_bytes
from qwen3asr_export.tensorrt.progress import PARTS, Progress
from qwen3asr_export.tensorrt.settings import QUANTISED, Settings, check_precision
from qwen3asr_export.tensorrt.timings import Timings

_SLACK = 64 << 20  # kernels, which grow with the profiles, and alignment


def build_engines(
    bundle: str | Path,
    *,
    settings: Settings | None = None,
    precision: str | None = None,
    gpu: str | None = None,
    gpu_memory: int | None = None,
    timing_cache: Path | None = None,
    replace: bool = False,
    strict: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[Path, Engines]:
    """Build the engines of a bundle into ``BUNDLE/tensorrt/<gpu>-trt<version>``.

    Args:
        bundle: folder that ``qwen3asr export --dialect standard`` wrote.
        settings: sizes that the engines fix.
        precision: the bundle's, or ``int8``, ``fp8`` or ``int4`` from a bf16 bundle, for which the folder's name has
            it too.
        gpu: what they are for, as ``sm90`` or a name; by default the GPU here, or ``any``.
        gpu_memory: bytes of it, where it is not here: refuse at once what would not fit.
        timing_cache: file to keep the times of kernels in; by default beside the folder.
        replace: replace engines of that name.
        strict: refuse engines whose attention is not fused in every profile (fp32 excepted), as far as the builder's
            log tells; otherwise that is a warning, and recorded.
        progress: told of the component and the percentage done.

    Returns:
        The folder, and what engine.json says.

    Raises:
        BundleNotFound, BundleInvalid, BundleFileMissing, BundleFileDamaged: the bundle cannot be used.
        RequestInvalid: it is of another dialect or precision, or a setting makes no sense.
        ExtraMissing, PackageTooOld: of TensorRT.
        GpuMemoryShort: the engines would not run.
        TargetExists, DiskFull: before anything is built, or on the way.
        GraphRefused, EngineBuildFailed, EngineUnexpected: of the build; nothing is left behind.
    """
    opened = open_bundle(bundle, check_hashes=True)
    _check_dialect(opened)
    name = check_precision(precision, opened.manifest.precision)
    library, chosen, plan = check_order(opened.spec, settings or Settings(), name, gpu, gpu_memory)
    target = opened.folder / FOLDER / _folder_name(chosen, library, name)
    if timing_cache is None and not library.portable:
        timing_cache = target.with_name(f"{_folder_name(chosen, library)}.timings")
    check_target(target, replace, MANIFEST)
    timings = Timings(timing_cache)
    builder = EngineBuilder(library, opened.spec, plan.settings, chosen, timings, strict=strict)
    with _room(opened, target, plan, replace) as folder:
        components = {}
        for component in COMPONENTS:
            with _graph(opened, component, name, folder) as graph:
                components[component] = _build(builder, component, graph, plan, folder, progress)
        write_engines(folder, _engines(opened, plan, library, chosen, components))
    timings.write()
    return target, open_engines(target, opened.hashes)


def check_order(
    spec: ModelSpec, settings: Settings, precision: str, gpu: str | None, gpu_memory: int | None
) -> tuple[Library, Gpu, Plan]:
    """What engines would be built with, for what, and how large: all that can be refused before anything is done.

    Arguments and errors are those of :func:`build_engines`.
    """
    plan = make_plan(spec, settings, precision)
    library = find_library()
    here = find_gpu(needed=not library.portable)
    chosen = choose_gpu(gpu, here, portable=library.portable)
    plan.check_memory(gpu_memory or chosen.memory)
    return library, chosen, plan


def _build(
    builder: EngineBuilder, component: str, graph: Path, plan: Plan, folder: Path, progress: Progress
) -> EngineFile:
    stage = f"{component} engine, %"
    progress(stage, 0, PARTS)
    order = Order(component, graph, plan.profiles[component], plan.precision, plan.activations[component])
    return builder.build(order, folder / f"{component}.engine", lambda done: progress(stage, done, PARTS))


@contextmanager
def _room(bundle: Bundle, target: Path, plan: Plan, replace: bool) -> Iterator[Path]:
    """The temporary folder, and no empty ``tensorrt`` folder where nothing came of it."""
    copies = sum(weight_bytes(bundle.spec, "bf16").values()) if plan.precision in QUANTISED else 0
    try:
        with new_folder(target, plan.stored + copies + _SLACK, replace=replace, marker=MANIFEST) as folder:
            yield folder
    finally:
        if target.parent.is_dir() and not any(target.parent.iterdir()):
            target.parent.rmdir()


@contextmanager
def _graph(bundle: Bundle, component: str, precision: str, folder: Path) -> Iterator[Path]:
    """The component's graph; a quantised decoder is written for the time of the build."""
    source = bundle.component(component)
    if component == "encoder" or precision not in QUANTISED:
        yield source
        return
    draft = folder / f"{component}.onnx"
    yield write_quantised(source, draft, precision)
    for path in (draft, draft.with_name(f"{draft.name}.data")):
        path.unlink()


def _engines(bundle: Bundle, plan: Plan, library: Library, gpu: Gpu, components: dict[str, EngineFile]) -> Engines:
    return Engines(
        kind=bundle.spec.kind,
        precision=plan.precision,
        flavour=library.flavour,
        version=library.version,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        capacity=plan.settings.capacity,
        slots=plan.settings.slots,
        graphs={name: digest for name, digest in bundle.hashes.items() if name.startswith("onnx/")},
        components=components,
    )


def _check_dialect(bundle: Bundle) -> None:
    manifest = bundle.manifest
    if manifest.dialect != "standard":
        raise RequestInvalid(
            f"{bundle.folder} has graphs of the {manifest.dialect} dialect in {manifest.precision}, which are for ONNX "
            "Runtime; export the checkpoint again with --engine tensorrt"
        )


def _folder_name(gpu: Gpu, library: Library, precision: str = "") -> str:
    quantised = f"-{precision}" if precision in QUANTISED else ""
    return f"{gpu.name}-{FLAVOURS[library.flavour]}{library.version}{quantised}"
