"""Speech to text while it is spoken: two faces of one :class:`qwen3asr.listener.Listener`.

:class:`Stream` waits for each answer of the model; :class:`AsyncStream` waits beside other streams of an event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from qwen3asr.errors import RequestInvalid, StreamBehind, StreamEnded
from qwen3asr.events import Event
from qwen3asr.features import SAMPLE_RATE, Samples, WindowSpec
from qwen3asr.incremental import IncrementalAudio
from qwen3asr.listener import Ear, Listener, Work
from qwen3asr.segmenter import StreamSettings
from qwen3asr.vad import SpeechDetector

T = TypeVar("T")
Chunk: TypeAlias = npt.NDArray[np.int16] | npt.NDArray[np.float32]
"""``[n]`` or ``[n, channels]``, of any length; see :meth:`qwen3asr.incremental.IncrementalAudio.check`."""

_WAKE_SECONDS = 0.1  # an asynchronous stream goes to its thread for no less audio
_BACKLOG_SECONDS = 60.0  # and takes no chunk while more than this is waiting
_INLINE = 1 << 15  # samples that are checked on the event loop, in well under a millisecond


class _Face:
    """What both kinds of stream share.

    Args:
        ear: the stream's own; closed when the stream ends.
        detector: the stream's own; started anew.
        settings: how to listen.
        sample_rate: of the chunks, in Hz.
        context: background text or hot words that the speech may contain.
        timestamps: ``"word"`` for word times, which need an ear that aligns.
        windows: how the model cuts its audio.

    Raises:
        AudioFormatInvalid: the rate cannot be audio.
        RequestInvalid: unknown ``timestamps``.
    """

    def __init__(
        self,
        ear: Ear,
        detector: SpeechDetector,
        *,
        settings: StreamSettings | None = None,
        sample_rate: int = SAMPLE_RATE,
        context: str = "",
        timestamps: Literal["word"] | None = None,
        windows: WindowSpec | None = None,
    ) -> None:
        if timestamps not in (None, "word"):
            raise RequestInvalid(f"timestamps={timestamps!r} is not known; give 'word' or None")
        self._audio = IncrementalAudio(sample_rate)
        self._listener = Listener(
            ear, detector, settings or StreamSettings(), context, timestamps == "word", windows or WindowSpec()
        )
        self._rate, self._ended = sample_rate, False
        detector.reset()
        self._prepare()

    @property
    def work(self) -> Work:
        """What the stream has cost so far."""
        return replace(self._listener.work)

    def _prepare(self) -> None:
        """Make what only one kind has."""


class Stream(_Face):
    """Speech to text while it is spoken, in one thread: each push waits for the steps that it makes due.

    The events do not depend on how the audio is cut into chunks. An error of the model ends the stream: what was
    reported before stays valid, and :meth:`abort` gives what was not.
    """

    def push(self, chunk: Chunk) -> list[Event]:
        """Give audio of any length; the events that it brings.

        Raises:
            StreamEnded: the stream was finished, aborted or closed, or an error ended it.
            AudioFormatInvalid: a type or shape that cannot be audio; the stream goes on.
            AudioNotFinite: NaN or infinite samples; nothing of the chunk is taken, and the stream goes on.
            Qwen3AsrError: as the model raises it; the stream has ended.
        """
        if self._ended:
            raise StreamEnded
        return self._drive(self._audio.convert(self._audio.check(chunk)))

    def finish(self) -> list[Event]:
        """No more audio comes: the last events; none if the stream has ended already.

        Raises:
            Qwen3AsrError: as the model raises it; the stream has ended.
        """
        if self._ended:
            return []
        events = self._drive(self._audio.convert(np.zeros(0, np.float32), last=True), last=True)
        self._ended = True
        return events

    def abort(self) -> list[Event]:
        """End the stream now: events not handed out yet, and what is committed of an open segment as its final."""
        self._ended = True
        self._listener.abort()
        return self._listener.collect()

    def close(self) -> None:
        """End the stream without a word; harmless if it has ended."""
        self._ended = True
        self._listener.close()

    def run(self, chunks: Iterable[Chunk]) -> Iterator[Event]:
        """The events of all chunks, each as soon as its chunk is heard; then the stream is finished."""
        with self:
            for chunk in chunks:
                yield from self.push(chunk)
            yield from self.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drive(self, samples: Samples, *, last: bool = False) -> list[Event]:
        try:
            self._listener.take(samples)
            while self._listener.advance(last=last) is not None:
                self._listener.settle()
        except BaseException:
            self.close()
            raise
        return self._listener.collect()


class AsyncStream(_Face):
    """As :class:`Stream`, beside others on one event loop; iterate for the events, in any task.

    The work is done in threads and by the model. A stream that falls behind makes fewer and larger steps.
    """

    def _prepare(self) -> None:
        self._chunks: list[Samples] = []
        self._waiting = 0  # samples in them
        self._wake, self._drained = asyncio.Event(), asyncio.Event()
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._lock = threading.Lock()  # a cancelled worker leaves a thread behind, which has to be waited for
        self._drained.set()

    async def push(self, chunk: Chunk) -> None:
        """Give audio of any length; never waits for the model. Cancelled, it has taken nothing.

        Raises:
            StreamEnded: the stream was finished, aborted or closed, or the error that is its cause ended it.
            StreamBehind: more than a minute of audio waits already.
            AudioFormatInvalid: a type or shape that cannot be audio; the stream goes on.
            AudioNotFinite: NaN or infinite samples; nothing of the chunk is taken, and the stream goes on.
        """
        await asyncio.sleep(0)  # lets the worker run, though the caller never waits
        backlog = self._waiting / self._rate + self._listener.backlog
        if not self._ended and backlog > _BACKLOG_SECONDS:
            raise StreamBehind(backlog)
        small = np.size(chunk) <= _INLINE
        samples = self._audio.check(chunk) if small else await asyncio.to_thread(self._audio.check, chunk)
        if self._ended:
            raise StreamEnded from self._error
        self._chunks.append(samples)
        self._waiting += len(samples)
        if self._waiting >= _WAKE_SECONDS * self._rate:
            self._drained.clear()
            self._wake_worker()

    async def drain(self) -> None:
        """Wait until all audio that was pushed is in a step; for sources that are faster than real time."""
        await self._drained.wait()

    async def finish(self) -> None:
        """No more audio comes: wait for the last event. The iteration ends behind it.

        Raises:
            Qwen3AsrError: the error of the model that ended the stream.
        """
        if not self._ended:
            self._ended = True
            self._wake_worker()
        if self._worker is not None:
            await asyncio.wait([self._worker])
        if self._error is not None:
            raise self._error

    async def abort(self) -> None:
        """End the stream now: what is committed of an open segment is its final, and the last event."""
        await self._stop(self._listener.abort)

    async def aclose(self) -> None:
        """End the stream without a word; harmless if it has ended."""
        await self._stop(self._listener.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self._queue.get()
        if event is not None:
            return event
        self._queue.put_nowait(None)  # for the next one who asks
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    def _wake_worker(self) -> None:
        self._wake.set()
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        try:
            await self._listen()
        except Exception as error:  # noqa: BLE001 (whatever the model raises is told to those who iterate)
            self._error = error
            await self._in_thread(self._listener.close)
        self._conclude()

    async def _listen(self) -> None:
        while True:
            last = self._ended
            future = await self._in_thread(partial(self._advance, self._taken(), last))
            if not self._waiting and self._listener.backlog < _WAKE_SECONDS:
                self._drained.set()
            self._deliver()
            if future is not None:
                await asyncio.gather(asyncio.wrap_future(future), return_exceptions=True)
                await self._in_thread(self._listener.settle)
                self._deliver()
            elif last:
                return
            else:
                await self._wake.wait()
                self._wake.clear()

    def _taken(self) -> list[Samples]:
        chunks, self._chunks, self._waiting = self._chunks, [], 0
        return chunks

    def _advance(self, chunks: list[Samples], last: bool) -> Future[Any] | None:
        mono = np.concatenate([np.zeros(0, np.float32), *chunks])
        self._listener.take(self._audio.convert(mono, last=last))
        return self._listener.advance(merge=True, last=last)

    async def _stop(self, end: Callable[[], None]) -> None:
        if self._worker is not None and self._worker.done():
            return
        self._ended = True
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])
        await self._in_thread(end)
        self._conclude()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        def locked() -> T:
            with self._lock:
                return work()

        return await asyncio.to_thread(locked)

    def _deliver(self) -> None:
        for event in self._listener.collect():
            self._queue.put_nowait(event)

    def _conclude(self) -> None:
        self._ended = True
        self._drained.set()
        self._deliver()
        self._queue.put_nowait(None)
