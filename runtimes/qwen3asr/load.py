"""From a folder to a model: checks the bundles and chooses the backend."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from qwen3asr.aligner import Aligner, AlignerLimits
from qwen3asr.backends import Wishes, choose_backend
from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.engine import Engine
from qwen3asr.errors import ConfigInvalid, RequestInvalid
from qwen3asr.guards import Guards
from qwen3asr.memory import choose_slots
from qwen3asr.precisions import PRECISIONS
from qwen3asr.prompt import PromptBuilder
from qwen3asr.recognizer import Recognizer
from qwen3asr.scheduler import Policy
from qwen3asr.tokenizer import open_tokenizer

_log = logging.getLogger("qwen3asr")

ASR_CAPACITY = 4_096
"""Default KV-cache tokens of a slot: three minutes of audio, which is a pass, and twice the text that fits them."""
ALIGNER_CAPACITY = 12_288
"""KV-cache tokens of the aligner: the 400 s that its classes can address, and 7,000 tokens of words."""


def load(
    bundle: str | os.PathLike[str],
    *,
    aligner: str | os.PathLike[str] | None = None,
    device: str = "auto",
    engine: str | None = None,
    provider: str | None = None,
    provider_cache: str | os.PathLike[str] | None = None,
    engines: str | os.PathLike[str] | None = None,
    build_engines: bool = False,
    cuda_graphs: bool = True,
    threads: int = 0,
    slots: int | None = None,
    capacity: int | None = None,
    queue: int = 64,
    guards: Guards | None = None,
    policy: Policy | None = None,
    share_weights: bool = False,
    check_hashes: bool = False,
) -> Recognizer:
    """Load a recogniser.

    Args:
        bundle: folder that ``qwen3asr export`` wrote.
        aligner: folder of a forced aligner's bundle, for word times.
        device: ``"cpu"``, ``"cuda"`` (``"cuda:1"`` for another GPU than the first), or ``"auto"``: CUDA where ONNX
            Runtime has it, a GPU is there and the bundle runs on it, or the bundle has TensorRT engines that run here;
            otherwise the CPU.
        engine: what runs the graphs, ``"onnxruntime"`` or ``"tensorrt"``; ``None``: TensorRT where the bundle has
            engines that run here, otherwise ONNX Runtime.
        engines: which of the bundle's folders of TensorRT engines, by its name there or as a path; by default those
            of the bundle's own precision. For the recogniser, not for ``aligner``.
        build_engines: build TensorRT engines in the bundle where it has none that run here, for these ``slots`` and
            this ``capacity``, which takes minutes, and the exporter; what it does is logged.
        provider: which of ONNX Runtime's providers runs them on a GPU: ``"cuda"`` (the default), ``"tensorrt"`` or
            ``"nv_tensorrt_rtx"``. The latter two build engines when they first run, which takes minutes.
        provider_cache: folder in which those engines are kept; by default ``ort-engines`` in the bundle.
        cuda_graphs: capture the steps of decoding as CUDA graphs, with ``provider="cuda"`` or TensorRT.
        threads: threads of one operator; 0: one a physical core.
        slots: requests that are decoded at a time, each with KV-cache memory of its own; by default up to 8, as many
            as fit in half of the memory that is free, and 1 where the system does not tell (other than Linux); on a
            GPU up to 32 and four fifths; with TensorRT up to what the engines were built for. A CPU's memory is taken
            as it is first used, a GPU's at once; :attr:`Recognizer.kv_cache` tells how much it may become.
        capacity: KV-cache tokens of a slot, which bound a pass (13 a second of audio, and the text); by default 4096,
            with TensorRT what the engines were built for.
        queue: requests that may wait for a slot; one more is refused with ``EngineBusy``.
        guards: what keeps loops and invented text out; ``Guards.off()`` gives the model's text as it is.
        policy: how new requests and running ones share the device.
        share_weights: leave the decoder's weights in the mapped file, so that processes share them and loading is
            quick; decoding takes up to two thirds more time. For fp32 bundles only.
        check_hashes: compare every file's SHA-256 first (seconds a gigabyte).

    Raises:
        BundleNotFound, BundleInvalid, BundleTooNew, BundleKindWrong, BundleFileMissing, BundleFileDamaged,
        ConfigInvalid: the bundle cannot be used; the message says why.
        DeviceUnavailable: the device cannot be used, or does not run the bundle's precision.
        EnginesMissing, EnginesForeign, EnginesInvalid, EngineBuildFailed: TensorRT engines that were asked for cannot
        be used; the message says why.
        NodesMisplaced: the GPU would leave part of a graph to the CPU.
        BackendFailed: the device's memory is too small, or CUDA fails.
        ExtraMissing, PackageTooOld: ONNX Runtime, or a package for GPUs, is not installed, or too old.
        KvMemoryShort, GpuMemoryShort: so many slots of that capacity do not fit the memory that is free, or not even
        weights and activations.
        RequestInvalid: a setting makes no sense, or the bundle's weights cannot be shared.
    """
    wishes = _wishes(
        device, engine, provider, provider_cache, cuda_graphs, threads, share_weights, engines, build_engines,
        check_hashes, slots, capacity,
    )  # fmt: skip
    opened = open_bundle(Path(bundle), kind="asr", check_hashes=check_hashes)
    backend = choose_backend(opened, wishes)
    built, tokenizer = backend.built_capacity, open_tokenizer(opened.folder, opened.spec)
    room = _capacity(opened, capacity, ASR_CAPACITY, built)
    words = None
    if aligner is not None:  # first: on a GPU it takes its memory at once, and slots are counted in what is left
        words = load_aligner(
            aligner, device=device, engine=engine, provider=provider, provider_cache=provider_cache,
            build_engines=build_engines, cuda_graphs=cuda_graphs, threads=threads, share_weights=share_weights,
            check_hashes=check_hashes,
        )  # fmt: skip
    rows = choose_slots(
        _slot_bytes(opened, built or room), backend.free_bytes(), slots, most=backend.most_slots, share=backend.share
    )
    running = Engine(*backend.open(rows, room), opened.spec.eos, queue=queue, policy=policy)
    model = Recognizer(opened, tokenizer, running, words, guards)
    _log.info("%s: KV cache of %s", opened.folder, model.kv_cache)
    return model


def load_aligner(
    bundle: str | os.PathLike[str],
    *,
    device: str = "auto",
    engine: str | None = None,
    provider: str | None = None,
    provider_cache: str | os.PathLike[str] | None = None,
    engines: str | os.PathLike[str] | None = None,
    build_engines: bool = False,
    cuda_graphs: bool = True,
    threads: int = 0,
    share_weights: bool = False,
    check_hashes: bool = False,
) -> Aligner:
    """Load a forced aligner by itself, to align text that is known already.

    Arguments and errors are those of :func:`load`; ``engines`` here is a folder of the aligner's engines.
    """
    wishes = _wishes(
        device, engine, provider, provider_cache, cuda_graphs, threads, share_weights, engines, build_engines,
        check_hashes,
    )  # fmt: skip
    opened = open_bundle(Path(bundle), kind="aligner", check_hashes=check_hashes)
    backend = choose_backend(opened, wishes)
    prompts = PromptBuilder(open_tokenizer(opened.folder, opened.spec))
    class_ms = opened.config("processor_config.json").get("timestamp_segment_time", 80.0)
    if not isinstance(class_ms, int | float) or not 0 < class_ms < math.inf:
        raise ConfigInvalid("timestamp_segment_time", f"{class_ms!r} is no time in milliseconds")
    graphs = backend.open(1, _capacity(opened, None, ALIGNER_CAPACITY, backend.built_capacity))
    return Aligner(*graphs, prompts, AlignerLimits(opened.spec.classes, class_ms))


def _wishes(
    device: str, engine: str | None, provider: str | None, provider_cache: str | os.PathLike[str] | None,
    cuda_graphs: bool, threads: int, share_weights: bool, engines: str | os.PathLike[str] | None, build_engines: bool,
    check_hashes: bool, slots: int | None = None, capacity: int | None = None,
) -> Wishes:  # fmt: skip
    if threads < 0:
        raise RequestInvalid(f"threads={threads} makes no sense; give 0 for one a core, or a positive number")
    cache = None if provider_cache is None else Path(provider_cache)
    named = None if engines is None else Path(engines)
    return Wishes(
        device, engine, provider, cache, cuda_graphs, threads, share_weights, named, build_engines, check_hashes, slots,
        capacity,
    )  # fmt: skip


def _capacity(bundle: Bundle, wanted: int | None, default: int, built: int | None) -> int:
    limit = built or bundle.manifest.limits["positions"]
    if wanted is None:
        return built or min(default, limit)
    if not 1 <= wanted <= limit:
        whose = "these engines'" if built else "this model's"
        raise RequestInvalid(f"capacity={wanted} is outside of {whose} 1 to {limit} tokens")
    return wanted


def _slot_bytes(bundle: Bundle, capacity: int) -> int:
    spec = bundle.spec
    value = PRECISIONS[bundle.manifest.precision].cache_bytes
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * capacity * value
