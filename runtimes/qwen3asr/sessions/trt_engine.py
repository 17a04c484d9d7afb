"""TensorRT's own objects: a deserialised engine, and contexts to run it in."""

from __future__ import annotations

import logging
import mmap
from collections import deque
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qwen3asr.engines import EngineFile, Shape
from qwen3asr.errors import BackendFailed, EngineRefused
from qwen3asr.sessions.cuda_memory import Gpu

NAME = "TensorRT"
_log = logging.getLogger("qwen3asr")


class TrtEngine:
    """A component's engine on the device.

    Args:
        module: ``tensorrt`` or ``tensorrt_rtx``, of the version that built it.
        folder: of the engines.
        file: what engine.json says of it.
        types: name of every tensor to the name of its type in TensorRT.
        gpu: that holds its weights.

    Raises:
        EngineRefused: TensorRT does not take the file, or it holds other tensors than engine.json says.
    """

    def __init__(self, module: Any, folder: Path, file: EngineFile, types: Mapping[str, str], gpu: Gpu) -> None:
        self.file, self._module = file, module
        self._stream = gpu.stream  # and not the GPU, whose closing lets go of contexts and so of this
        self._logger = _logger(module)
        self._runtime = module.Runtime(self._logger)
        gpu.use()
        path = folder / file.file
        # Mapped: it is copied to the device, and need not lie in memory of ours before.
        with path.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
            self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineRefused(path, self.last_words())
        found = {
            name: self._engine.get_tensor_dtype(name).name
            for name in map(self._engine.get_tensor_name, range(self._engine.num_io_tensors))
        }
        differing = sorted(name for name in {*types, *found} if types.get(name) != found.get(name))
        if differing:
            raise EngineRefused(path, f"{differing[0]} is {found.get(differing[0])}, not {types.get(differing[0])}")
        profiles = self._engine.num_optimization_profiles
        if profiles != len(file.profiles):
            raise EngineRefused(path, f"it has {profiles} profiles, not {len(file.profiles)}")

    @property
    def scratch_bytes(self) -> int:
        """Memory of one context while it runs, in its largest profile."""
        return int(self._engine.device_memory_size_v2)

    def context(self, profile: int, scratch: int) -> TrtContext:
        """A context of one profile; changing a context's profile would cost time and its captured graph.

        Args:
            profile: its index.
            scratch: address of :attr:`scratch_bytes`; contexts that never run at a time may share it.

        Raises:
            BackendFailed: TensorRT refuses.
        """
        context = self._engine.create_execution_context(self._module.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None or not context.set_optimization_profile_async(profile, self._stream):
            raise BackendFailed(NAME, RuntimeError(self.last_words()))
        context.set_device_memory(scratch, self.scratch_bytes)
        return TrtContext(self, context, self._stream)

    def last_words(self) -> str:
        """The errors that TensorRT told since they were asked for, the last three of them."""
        words = "; ".join(self._logger.errors) or "it gave no reason"
        self._logger.errors.clear()
        return words


class TrtContext:
    """An execution context: shapes and addresses are told to it where they differ from the last ones."""

    def __init__(self, engine: TrtEngine, context: Any, stream: int) -> None:
        self._engine, self._context, self._stream = engine, context, stream
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Set where tensors lie.

        Raises:
            BackendFailed: TensorRT refuses.
        """
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                self._taken(self._context.set_tensor_address(name, address))
                self._addresses[name] = address

    def shape(self, shapes: Mapping[str, Shape]) -> None:
        """Set shapes of inputs.

        Raises:
            BackendFailed: TensorRT refuses, as for a shape that the profile does not hold.
        """
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape:
                self._taken(self._context.set_input_shape(name, shape))
                self._shapes[name] = shape

    def queue(self) -> None:
        """Queue the run.

        Raises:
            BackendFailed: TensorRT refuses.
        """
        self._taken(self._context.execute_async_v3(self._stream))

    def _taken(self, done: bool) -> None:
        if not done:
            raise BackendFailed(NAME, RuntimeError(self._engine.last_words()))


@cache
def _logger(module: Any) -> Any:
    """The one logger of a TensorRT module: it keeps the first that it is given, and calls it as long as it lives."""
    severity = module.ILogger.Severity
    levels = {severity.INTERNAL_ERROR: logging.ERROR, severity.ERROR: logging.ERROR, severity.WARNING: logging.WARNING}

    class Logger(module.ILogger):  # type: ignore[misc]  # the module has no types
        def __init__(self) -> None:
            super().__init__()
            self.errors: deque[str] = deque(maxlen=3)

        def log(self, severity: Any, msg: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            _log.log(level, "%s: %s", NAME, msg)
            if level == logging.ERROR:
                self.errors.append(msg)

    return Logger()
