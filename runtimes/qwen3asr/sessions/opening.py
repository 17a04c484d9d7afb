"""Sessions of ONNX Runtime, opened on a provider that then runs every node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnxruntime

from qwen3asr.errors import BundleInvalid, DeviceUnavailable, NodesMisplaced
from qwen3asr.sessions.providers import CPU, CPU_NAME, RTX_NAME, Provider, missing_library, rtx_devices

NAME = "ONNX Runtime"

ON_HOST = frozenset({"Shape", "Squeeze", "Concat"})
"""Operators that ONNX Runtime puts on the host on purpose: they compute shapes, a few integers that kernels read there.
Nothing is copied from the device for them."""

# ONNX Runtime's errors have no common base but Exception: it is caught where one of its calls is all that runs.


def open_session(
    graph: Path | bytes, provider: Provider = CPU, *, threads: int = 0, weights: Path | None = None,
    mapped: bool = False, sizes: Mapping[str, int] | None = None,
) -> onnxruntime.InferenceSession:  # fmt: skip
    """Load a graph.

    Args:
        graph: its path, or the model itself with its weights in ``weights``.
        provider: runs it; elsewhere than on the CPU it must run all of it.
        threads: threads of one operator; 0: one a physical core.
        weights: folder of the external data, where ``graph`` is not a path.
        mapped: leave the weights in the mapped file.
        sizes: of the graph's dimensions those that are to be fixed, by name.

    Raises:
        BundleInvalid: the graph cannot be loaded.
        DeviceUnavailable: the provider does not start.
        NodesMisplaced: some nodes would run on the CPU.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised
    for dimension, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(dimension, size)
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    if provider.memory != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    name = "the graph" if isinstance(graph, bytes) else graph.name
    providers: list[tuple[str, dict[str, str]]] | None = [(p.name, dict(p.options)) for p in provider.chain]
    if provider.name == RTX_NAME:  # a plugin's devices are named in the options
        options.add_provider_for_devices(rtx_devices(provider.index), dict(provider.options))
        providers = None
    try:  # without its own second try on the CPU
        session = onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph), options, providers, enable_fallback=0
        )
    except Exception as error:
        _check_libraries(provider)
        raise BundleInvalid(
            f"{NAME} cannot load {name} on {provider.name}: {error}; export the checkpoint again with this version"
        ) from error
    if provider.memory != "cpu":
        session.disable_fallback()  # a run that fails must not be tried again on the CPU
        _check_started(session, provider)
        check_placement(name, provider, _nodes(session))
    return session


def check_placement(graph: str, provider: Provider, nodes: Iterator[tuple[str, str, str]]) -> None:
    """Raise if the CPU is to run more than :data:`ON_HOST`.

    Args:
        graph: its name.
        provider: that was to run it.
        nodes: of each its provider's name, its operator and its own name.

    Raises:
        NodesMisplaced: it is; names the nodes.
    """
    wanted = {p.name for p in provider.chain}
    wrong = [(kind, name) for where, kind, name in nodes if where not in wanted and kind not in ON_HOST]
    if wrong:
        raise NodesMisplaced(graph, provider.name, wrong)


def _check_started(session: onnxruntime.InferenceSession, provider: Provider) -> None:
    """ONNX Runtime leaves a provider out that does not start, and says so in its log only."""
    if provider.name not in session.get_providers():
        _check_libraries(provider)
        raise DeviceUnavailable(
            f"{NAME} could not start {provider.name}, and tells why in its log; check the driver with `nvidia-smi`, "
            "or load with device='cpu'"
        )


def _check_libraries(provider: Provider) -> None:
    reason = missing_library(provider)
    if reason is not None:
        raise DeviceUnavailable(
            f"{NAME} could not start {provider.name}: {reason}; install what is missing with: "
            f"pip install {provider.packages}; or load with device='cpu'"
        )


def _nodes(session: onnxruntime.InferenceSession) -> Iterator[tuple[str, str, str]]:
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            yield part.ep_name or CPU_NAME, node.op_type, node.name
