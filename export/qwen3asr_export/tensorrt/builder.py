"""One graph to one serialised engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3asr.bundle import sha256
from qwen3asr.engines import EngineFile, Profile
from qwen3asr.errors import EngineBuildFailed, RequestInvalid
from qwen3asr.spec import ModelSpec
from qwen3asr_export.tensorrt.gpu import Gpu
from qwen3asr_export.tensorrt.library import Library
from qwen3asr_export.tensorrt.log import Record, make_logger
from qwen3asr_export.tensorrt.network import (
    allow_unfused,
    attention_nodes,
    check_fusion,
    check_network,
    find_unfused,
    parse,
)
from qwen3asr_export.tensorrt.progress import Share, make_monitor
from qwen3asr_export.tensorrt.settings import Settings
from qwen3asr_export.tensorrt.timings import Timings

_log = logging.getLogger("qwen3asr")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be built.

    Attributes:
        component: ``encoder`` or ``decoder``.
        graph: the ONNX file.
        profiles: shapes to build for.
        precision: what it is to compute in.
        activations: bytes that are planned, for a builder that does not tell.
    """

    component: str
    graph: Path
    profiles: Sequence[Profile]
    precision: str
    activations: int


class EngineBuilder:
    """Builds the engines of one model with one library for one GPU.

    Args:
        library: what builds.
        spec: shapes of the model.
        settings: sizes that the engines fix, fitted to the model.
        gpu: what they are for.
        timings: kernels timed by builds before.
        strict: attention that is not fused is an error.
    """

    def __init__(
        self, library: Library, spec: ModelSpec, settings: Settings, gpu: Gpu, timings: Timings, *, strict: bool = False
    ) -> None:
        self._library, self._spec, self._settings, self._strict = library, spec, settings, strict
        self._gpu, self._timings = gpu, timings

    def build(self, order: Order, target: Path, tell: Callable[[int], None]) -> EngineFile:
        """Build, check and write one engine. Ctrl-C stops it at the builder's next step.

        Args:
            order: what to build.
            target: the file to write.
            tell: called with the percentage done.

        Raises:
            GraphRefused: the parser does not take the graph.
            EngineUnexpected: network or engine are not what was meant.
            EngineBuildFailed: no engine came of it; with the builder's own words.
        """
        began, record = time.perf_counter(), Record()
        module, logger = self._library.module, make_logger(self._library.module, record)
        try:
            builder = module.Builder(logger)
        except TypeError as error:  # what the bindings make of a library that gives no builder
            raise EngineBuildFailed(
                f"{self._library.flavour} {self._library.version} cannot start ({_words(record)}); it builds on the "
                "GPU that engines are for, or install tensorrt_rtx, which builds without one"
            ) from error
        network = builder.create_network(self._flags())
        parse(module, logger, network, order.graph, self._settings.capacity)
        layers = check_network(module, network, order.component, self._spec, order.precision)
        nodes = attention_nodes(network)
        if order.precision == "fp32":
            allow_unfused(module, network)
        config = self._config(builder, network, order.profiles)
        plan = self._run(builder, network, config, tell)
        if plan is None:
            raise EngineBuildFailed(f"TensorRT built no {order.component} engine: {_words(record)}")
        unfused = find_unfused(nodes, len(order.profiles), record)
        check_fusion(order.component, unfused, order.precision, strict=self._strict)
        self._timings.learn(config)
        with target.open("wb") as file:
            file.write(memoryview(plan))
        return EngineFile(
            file=target.name, size=target.stat().st_size, sha256=sha256(target), profiles=tuple(order.profiles),
            weights_bytes=record.largest("Weights"), activation_bytes=_activations(order, record), layers=layers,
            unfused=unfused, seconds=round(time.perf_counter() - began, 1),
        )  # fmt: skip

    def _flags(self) -> int:
        """Types are the graph's: always so from version 11 on, where the flag means nothing."""
        flag = getattr(self._library.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def _config(self, builder: Any, network: Any, profiles: Sequence[Profile]) -> Any:
        module, config = self._library.module, builder.create_builder_config()
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # so that the log lists the kernels
        if self._settings.workspace is not None:
            config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, self._settings.workspace)
        if self._settings.level is not None:
            config.builder_optimization_level = self._settings.level
        if self._library.portable and self._gpu.compute_capability:
            config.num_compute_capabilities = 1
            if not config.set_compute_capability(self._capability(self._gpu.compute_capability), 0):
                raise EngineBuildFailed(f"{self._library.flavour} does not build for {self._gpu.name}")
        names = [network.get_input(index).name for index in range(network.num_inputs)]
        for profile in profiles:
            shapes = builder.create_optimization_profile()
            for name in names:
                sizes = profile.inputs[name]
                shapes.set_shape(name, sizes.least, sizes.best, sizes.most)
            config.add_optimization_profile(shapes)
        self._timings.use(config)
        return config

    def _capability(self, wanted: str) -> Any:
        known = self._library.module.ComputeCapability.__members__
        name = f"SM{wanted.replace('.', '')}"
        if name not in known:
            have = ", ".join(known.keys() - {"NONE", "CURRENT"})
            raise RequestInvalid(f"{self._library.flavour} builds for {have}, not {name}; use tensorrt on that GPU")
        return known[name]

    def _run(self, builder: Any, network: Any, config: Any, tell: Callable[[int], None]) -> Any:
        """Build in a thread: the main one stays free for Ctrl-C, which cannot be raised through the builder."""
        share = Share()
        config.progress_monitor = make_monitor(self._library.module, share, tell)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(builder.build_serialized_network, network, config)
            try:
                plan = future.result()
            except BaseException:
                _log.warning("stopping at the builder's next step, which may take half a minute")
                share.cancelled = True  # leaving the pool waits until it has stopped
                raise
        if share.failure is not None:
            raise share.failure
        return plan


def _activations(order: Order, record: Record) -> int:
    """As the builder says; the runtime counts slots in what they leave."""
    told = record.largest("Activation")
    if not told:
        _log.warning("the builder did not tell the activations of the %s; engine.json has the plan's", order.component)
    return told or order.activations


def _words(record: Record) -> str:
    return record.errors[-1] if record.errors else "it gave no reason"
