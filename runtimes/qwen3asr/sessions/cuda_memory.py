"""Memory and a stream of one GPU, from NVIDIA's ``cuda-python``: allocated for a session, freed with it.

One stream for everything: the loop makes one call at a time and needs its answer before it plans the next one, so a
second stream would have nothing to run beside the first.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qwen3asr.errors import BackendFailed, DeviceUnavailable, EngineClosed, GpuMemoryShort
from qwen3asr.sessions import cuda
from qwen3asr.sessions.cuda import checked

_MB = 1_000_000

Bytes: TypeAlias = npt.NDArray[np.uint8]


def check_gpu(index: int) -> str:
    """Compute capability of a GPU, as ``9.0``.

    Raises:
        DeviceUnavailable: there is no driver, or no GPU of that index.
        ExtraMissing: cuda-python is not installed.
    """
    runtime = cuda.runtime("running TensorRT engines", "tensorrt")
    count = cuda.device_count()
    if index >= count:
        raise DeviceUnavailable(f"there is no GPU {index} here, only 0 to {count - 1}; give one of these")
    attribute = runtime.cudaDeviceAttr
    names = attribute.cudaDevAttrComputeCapabilityMajor, attribute.cudaDevAttrComputeCapabilityMinor
    return ".".join(str(checked(runtime.cudaDeviceGetAttribute(name, index))[0]) for name in names)


def gpu_name(index: int) -> str:
    """What NVIDIA calls a GPU.

    Raises:
        BackendFailed: CUDA does not tell.
    """
    (properties,) = checked(cuda.runtime().cudaGetDeviceProperties(index))
    return bytes(properties.name).split(b"\0")[0].decode()


class Gpu:
    """A GPU's memory and stream. What was allocated is freed by :meth:`close`, or when nobody holds this any more.

    Args:
        index: which of several.

    Raises:
        BackendFailed: CUDA refuses. So do all methods that call it.
        ExtraMissing: cuda-python is not installed.
    """

    def __init__(self, index: int) -> None:
        self._runtime, self.index = cuda.runtime(), index
        self._held = ExitStack()
        self._release = weakref.finalize(self, _release, self._runtime, index, self._held)
        self._release.atexit = False  # the driver frees what an ending process holds, and may be gone by then
        self.use()
        (self._stream,) = checked(self._runtime.cudaStreamCreateWithFlags(self._runtime.cudaStreamNonBlocking))
        self._held.callback(self._runtime.cudaStreamDestroy, self._stream)

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream)

    @property
    def closed(self) -> bool:
        """Everything was freed."""
        return not self._release.alive

    def close(self) -> None:
        """Free everything; harmless when done twice."""
        self._release()

    def at_close(self, release: Callable[[], object]) -> None:
        """Call something before what was allocated until now is freed; it must not hold this GPU."""
        self._held.callback(release)

    def use(self) -> None:
        """Make it the calling thread's GPU: CUDA keeps one for each thread, and loops have threads of their own."""
        if self.closed:
            raise EngineClosed
        checked(self._runtime.cudaSetDevice(self.index))

    def free_bytes(self) -> int:
        """Memory that nobody uses."""
        return cuda.free_bytes(self.index)

    def allocate(self, size: int, what: str) -> int:
        """Address of so many bytes on the device; what they hold is undefined.

        Args:
            size: bytes.
            what: they are for.

        Raises:
            GpuMemoryShort: they are not free.
        """
        error, address = self._runtime.cudaMalloc(size)
        if error == self._runtime.cudaError_t.cudaErrorMemoryAllocation:
            self._runtime.cudaGetLastError()  # or the next library that asks takes it for its own
            raise GpuMemoryShort(
                f"{size / _MB:.0f} MB for {what} do not fit the GPU, which has {self.free_bytes() / _MB:.0f} MB free; "
                "give fewer slots=, or end other programs on it; TensorRT engines take less with fewer windows or a "
                "smaller chunk"
            )
        checked((error,))
        self._held.callback(self._runtime.cudaFree, address)
        return int(address)

    def pin(self, size: int) -> Bytes:
        """So many bytes on the host that stay where they are: the device copies from and to them by itself."""
        (address,) = checked(self._runtime.cudaHostAlloc(size, self._runtime.cudaHostAllocDefault))
        self._held.callback(self._runtime.cudaFreeHost, address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))

    def zero(self, address: int, size: int) -> None:
        """Queue zeros."""
        checked(self._runtime.cudaMemsetAsync(address, 0, size, self._stream))

    def upload(self, target: int, source: Bytes) -> None:
        """Queue a copy of pinned bytes to the device; they must stay as they are until :meth:`synchronize`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked(self._runtime.cudaMemcpyAsync(target, source.ctypes.data, source.nbytes, kind, self._stream))

    def download(self, target: Bytes, source: int) -> None:
        """Queue a copy from the device to pinned bytes; they are there after :meth:`synchronize`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked(self._runtime.cudaMemcpyAsync(target.ctypes.data, source, target.nbytes, kind, self._stream))

    def copy_blocks(self, target: int, source: int, pitch: int, width: int, count: int) -> None:
        """Queue a copy on the device: the first ``width`` bytes of ``count`` blocks that are ``pitch`` bytes apart."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        checked(self._runtime.cudaMemcpy2DAsync(target, pitch, source, pitch, width, count, kind, self._stream))

    def synchronize(self) -> None:
        """Wait for all that was queued."""
        checked(self._runtime.cudaStreamSynchronize(self._stream))

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is queued within is done at its end; also where an error ends it, as buffers are filled again then."""
        self.use()
        try:
            yield
        except BaseException:
            with contextlib.suppress(BackendFailed):  # the first error tells more
                self.synchronize()
            raise
        self.synchronize()

    def capture(self, queue: Callable[[], None]) -> Callable[[], None]:
        """What a function queues as a CUDA graph: the result queues it again, in one call.

        Raises:
            BackendFailed: something of it cannot be captured.
        """
        runtime = self._runtime
        # Other threads may allocate meanwhile: an aligner's.
        checked(
            runtime.cudaStreamBeginCapture(self._stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        )
        try:
            queue()
        except BaseException:
            runtime.cudaStreamEndCapture(self._stream)  # so that the stream can be used again; its error is known
            runtime.cudaGetLastError()
            raise
        ended = runtime.cudaStreamEndCapture(self._stream)
        runtime.cudaGetLastError()
        (graph,) = checked(ended)
        try:
            (executable,) = checked(runtime.cudaGraphInstantiate(graph, 0))
        finally:
            runtime.cudaGraphDestroy(graph)
        self._held.callback(runtime.cudaGraphExecDestroy, executable)
        stream = self._stream  # and not self: what holds the result does not hold the GPU

        def launch() -> None:
            checked(runtime.cudaGraphLaunch(executable, stream))

        return launch


def _release(runtime: Any, index: int, held: ExitStack) -> None:
    """The last one first. Errors have been raised by the calls that they come from; the thread may be anybody's."""
    _, before = runtime.cudaGetDevice()
    runtime.cudaSetDevice(index)
    held.close()
    runtime.cudaSetDevice(before)
