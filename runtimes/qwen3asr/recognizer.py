"""The model as its users see it: transcribe, stream and align."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Literal, Self, TypedDict, TypeVar, Unpack, cast

import numpy as np

from qwen3asr.aligner import Aligner
from qwen3asr.alignment import align_any_length
from qwen3asr.audio import AudioInput, open_audio
from qwen3asr.bundle import Bundle
from qwen3asr.callers import Callers
from qwen3asr.engine import Engine
from qwen3asr.errors import AlignerMissing, EngineBusy, EngineClosed, Qwen3AsrError, RequestInvalid
from qwen3asr.features import HOP, MEL_BINS, SAMPLE_RATE, Mel, split_windows
from qwen3asr.generate import Generation
from qwen3asr.guards import Guards
from qwen3asr.hearing import EngineEar
from qwen3asr.jobs import Job
from qwen3asr.languages import resolve, resolve_for_aligner
from qwen3asr.metrics import Metrics
from qwen3asr.prompt import Frame, PromptBuilder
from qwen3asr.request import Cancellation, Report, Request
from qwen3asr.segmenter import StreamSettings
from qwen3asr.sessions.base import Ids
from qwen3asr.streaming import AsyncStream, Stream
from qwen3asr.tokenizer import Tokenizer
from qwen3asr.transcript import Transcript
from qwen3asr.transcription import Transcriber
from qwen3asr.types import Word
from qwen3asr.vad import EnergyDetector, SpeechDetector
from qwen3asr.words import check_splitter

Face = TypeVar("Face", Stream, AsyncStream)


@dataclass(frozen=True, slots=True)
class KvCache:
    """The memory that requests work in.

    Attributes:
        slots: requests decoded at a time.
        capacity: tokens of each: 13 a second of audio, the text, and a few for the prompt.
        bytes: of all slots when full; memory is taken as it is first used.
    """

    slots: int
    capacity: int
    bytes: int

    def __str__(self) -> str:
        """In words."""
        return f"{self.slots} slots of {self.capacity} tokens, {self.bytes / 1e9:.1f} GB when full"


class Options(TypedDict, total=False):
    """What :meth:`Recognizer.transcribe` describes, for the methods that take many clips."""

    language: str | None
    context: str
    timestamps: Literal["word"] | None
    max_new_tokens: int | None
    piece_seconds: float | None
    split: bool
    timeout: float | None
    max_seconds: float | None


class StreamOptions(TypedDict, total=False):
    """What :meth:`Recognizer.stream` describes."""

    language: str | None
    context: str
    timestamps: Literal["word"] | None
    sample_rate: int
    settings: StreamSettings | None
    detector: SpeechDetector | None


class Recognizer:
    """A loaded recogniser, perhaps with a forced aligner. Made by :func:`qwen3asr.load`.

    Safe to share between threads and event loops; requests are decoded together. Close it, or use it in a ``with``
    statement, to end its threads and free a GPU's memory at once; otherwise that happens when nobody holds it any more.
    """

    def __init__(
        self, bundle: Bundle, tokenizer: Tokenizer, engine: Engine, aligner: Aligner | None = None,
        guards: Guards | None = None,
    ) -> None:  # fmt: skip
        self.bundle = bundle
        self._tokenizer, self._engine, self._aligner = tokenizer, engine, aligner
        self._guards = Guards() if guards is None else guards
        self._prompts = PromptBuilder(tokenizer)
        self._transcriber = Transcriber(engine, tokenizer, bundle.spec.windows, aligner, self._guards)
        self._threads = ThreadPoolExecutor(engine.slots + 1, "qwen3asr")
        self._stream_threads = ThreadPoolExecutor(engine.slots + 1, "qwen3asr-stream")  # which files cannot hold up
        self._busy = 0  # asynchronous requests on their way
        self._callers = Callers()

    def transcribe(
        self,
        audio: AudioInput,
        *,
        language: str | None = None,
        context: str = "",
        timestamps: Literal["word"] | None = None,
        max_new_tokens: int | None = None,
        sample_rate: int | None = None,
        piece_seconds: float | None = None,
        split: bool = True,
        timeout: float | None = None,
        max_seconds: float | None = None,
        progress: Report | None = None,
    ) -> Transcript:
        """Speech to text, of any length.

        Audio of up to ``piece_seconds`` is decoded in one pass. Longer audio is read as a stream and cut at silences
        into pieces of at most that, which are decoded together; its memory does not grow with its length. A piece
        whose text would be cut, or runs in a circle, is decoded again in two halves.

        Args:
            audio: path, bytes, binary file, array (mono or multi-channel), ``(array, rate)``, or a
                ``datasets`` dict; see :func:`qwen3asr.audio.read_audio`.
            language: name or ISO code to force (``"German"``, ``"de"``); ``None`` detects it, for each piece.
            context: background text or hot words that the speech may contain.
            timestamps: ``"word"`` for word times, which need the aligner.
            max_new_tokens: budget of text tokens of a pass, which then may cut the text; by default far more than the
                audio can hold.
            sample_rate: rate of a bare array in Hz (16000 if not given).
            piece_seconds: longest pass, by default 180 or what the KV cache takes.
            split: ``False`` refuses audio that needs more than one pass.
            timeout: seconds after which to give up.
            max_seconds: refuse longer audio, before or while it is read.
            progress: called after each piece with what it brought.

        Returns:
            The transcript. ``finish_reason`` is ``"length"`` where a budget cut the text, ``"loop"`` where the model
            repeated itself to the last, ``"no_speech"`` where nothing was said. A text that turns out not to be
            alignable (its detected language is none of the aligner's, say) comes without words, and the reason is
            logged as a warning.

        Raises:
            EngineBusy: too many requests are waiting already.
            DeadlineExceeded: not done within ``timeout``.
            AudioPastLimit: the audio is longer than ``max_seconds``.
            Qwen3AsrError: a subclass for each cause; arguments are checked before any work is done.
        """
        request = self._request(
            language=language, context=context, timestamps=timestamps, max_new_tokens=max_new_tokens,
            piece_seconds=piece_seconds, split=split, timeout=timeout, max_seconds=max_seconds,
        )  # fmt: skip
        with self._callers.one():
            return self._transcribe(audio, sample_rate, request, progress)

    async def transcribe_async(
        self, audio: AudioInput, *, sample_rate: int | None = None, progress: Report | None = None,
        **options: Unpack[Options],
    ) -> Transcript:  # fmt: skip
        """As :meth:`transcribe`, without blocking the event loop; cancelling the task cancels the request.

        ``progress`` is called on another thread.
        """
        request, cancellation, began = self._request(**options), Cancellation(), time.monotonic()
        if self._busy >= self._engine.slots + self._engine.queue:
            raise EngineBusy(f"{self._busy} requests are on their way", self._engine.retry_after())
        self._busy += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads,
                lambda: self._transcribe(audio, sample_rate, request, progress, cancellation, began=began),
            )
        except asyncio.CancelledError:
            cancellation.cancel()
            raise
        except RuntimeError as error:
            if self._callers.closed and not isinstance(error, Qwen3AsrError):  # closed since it was checked
                raise EngineClosed from error
            raise
        finally:
            self._busy -= 1

    def transcribe_batch(
        self, audios: Iterable[AudioInput], *, sample_rate: int | None = None, **options: Unpack[Options]
    ) -> list[Transcript]:
        """Many clips, decoded together.

        Args:
            audios: clips, read as they are needed.
            sample_rate: rate of bare arrays in Hz.
            options: as for :meth:`transcribe`; a timeout is each clip's own.

        Returns:
            A transcript for each clip, in their order.

        Raises:
            Qwen3AsrError: of the first clip that fails; the others are given up. :meth:`transcribe_each` gives the
                transcripts of the others too.
        """
        results = []
        for result in self.transcribe_each(audios, sample_rate=sample_rate, **options):
            if isinstance(result, Exception):
                raise result
            results.append(result)
        return results

    def transcribe_each(
        self, audios: Iterable[AudioInput], *, sample_rate: int | None = None, **options: Unpack[Options]
    ) -> Iterator[Transcript | Qwen3AsrError | OSError]:
        """As :meth:`transcribe_batch`, one after the other as soon as it is there; of a clip that fails, its error.

        The options are checked before this returns.
        """
        return self._each(audios, sample_rate, self._request(**options))

    def _each(
        self, audios: Iterable[AudioInput], sample_rate: int | None, request: Request
    ) -> Iterator[Transcript | Qwen3AsrError | OSError]:
        running: deque[Future[Transcript | Qwen3AsrError | OSError]] = deque()
        cancellation = Cancellation()

        def one(audio: AudioInput) -> Transcript | Qwen3AsrError | OSError:
            try:
                return self._transcribe(audio, sample_rate, request, cancellation=cancellation, patient=True)
            except (Qwen3AsrError, OSError) as error:
                return error

        try:
            for audio in audios:
                try:
                    running.append(self._threads.submit(one, audio))
                except RuntimeError as error:  # closed since the last one
                    raise EngineClosed from error
                if len(running) > self._engine.slots:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            cancellation.cancel()  # those that nobody asks for any more

    def stream(
        self,
        *,
        language: str | None = None,
        context: str = "",
        timestamps: Literal["word"] | None = None,
        sample_rate: int = SAMPLE_RATE,
        settings: StreamSettings | None = None,
        detector: SpeechDetector | None = None,
    ) -> Stream:
        """Speech to text while it is spoken; each push waits for the steps that it makes due.

            with model.stream(sample_rate=48_000) as stream:
                for event in stream.run(chunks):
                    print(event.text)

        Args:
            language: name or ISO code to force; ``None`` detects it, for each segment.
            context: background text or hot words.
            timestamps: ``"word"`` for word times, which need the aligner.
            sample_rate: of the chunks, in Hz.
            settings: how to listen.
            detector: tells speech from silence; by default by energy. One detector a stream.

        Raises:
            Qwen3AsrError: a subclass for each cause.
        """
        return self._listen(
            Stream, language=language, context=context, timestamps=timestamps, sample_rate=sample_rate,
            settings=settings, detector=detector,
        )  # fmt: skip

    def stream_async(self, **options: Unpack[StreamOptions]) -> AsyncStream:
        """As :meth:`stream`, for an event loop: pushing never waits for the model.

        async with model.stream_async(sample_rate=48_000) as stream:
            ...  # elsewhere: await stream.push(chunk), at last await stream.finish()
            async for event in stream:
                print(event.text)
        """
        return self._listen(AsyncStream, **options)

    def align(
        self, audio: AudioInput, text: str, *, language: str | None = None, sample_rate: int | None = None,
        piece_seconds: float | None = None, max_seconds: float | None = None,
    ) -> tuple[Word, ...]:  # fmt: skip
        """Times of the words of a known text, in audio of any length.

        What the aligner takes in one pass is aligned as :meth:`qwen3asr.aligner.Aligner.align` does. Longer audio is
        cut at silences and transcribed; the text is shared out by what was heard in each piece.

        Args:
            audio: as for :meth:`transcribe`.
            text: what is said in it.
            language: one of the aligner's eleven, or ``None``; chooses how the text is split into words.
            sample_rate: rate of a bare array in Hz.
            piece_seconds: longest stretch that is aligned in one pass; by default what the aligner is reliable on.
            max_seconds: refuse longer audio, before or while it is read.

        Raises:
            AlignerMissing: the model was loaded without one.
            LanguageUnknown: not one of the aligner's eleven.
            ExtraMissing: splitting Japanese or Korean needs a package.
            AudioError: the audio cannot be read, or is longer than ``max_seconds``.
            RequestInvalid: a number is out of range, or the text is too long for the audio.
            EngineBusy, EngineClosed, BackendFailed: as for :meth:`transcribe`.
        """
        if self._aligner is None:
            raise AlignerMissing
        name = resolve_for_aligner(language)
        check_splitter(name)
        _check_max_seconds(max_seconds)
        with self._callers.one():
            source: AudioInput = cast(BinaryIO, audio).read() if hasattr(audio, "read") else audio  # it is read twice
            return align_any_length(
                self._aligner, self._transcriber, lambda: open_audio(source, sample_rate, most_seconds=max_seconds),
                text, name, piece_seconds,
            )  # fmt: skip

    def generate(
        self, mel: Mel, ids: Ids, *, max_new_tokens: int | None = None, timeout: float | None = None
    ) -> Future[Generation]:
        """Token ids for features and a prompt that were made elsewhere, such as by transformers' processor.

        One pass, decoded together with other requests; waits for room in the queue. No guard looks at the text.

        Args:
            mel: log-mel features of one clip, float32 ``[128, frames]``; :func:`qwen3asr.features.log_mel` says how.
            ids: the prompt, int64 ``[n]``, with an audio pad for each token of the audio, in one run.
            max_new_tokens: by default far more than the audio can hold.
            timeout: seconds after which to give up.

        Returns:
            A future, whose ``cancel()`` frees the slot; its errors are those of :meth:`transcribe`.

        Raises:
            RequestInvalid: features and prompt do not belong together, or do not fit the KV cache.
            EngineClosed: the model was closed.
        """
        spec = self.bundle.spec
        if mel.ndim != 2 or mel.shape[0] != MEL_BINS or not mel.shape[1] or mel.dtype != np.float32:
            raise RequestInvalid(f"features are float32 [{MEL_BINS}, frames], not {mel.dtype} {list(mel.shape)}")
        if ids.ndim != 1 or ids.dtype != np.int64 or not ((ids >= 0) & (ids < spec.vocab)).all():
            raise RequestInvalid(f"a prompt is int64 [n], of ids below {spec.vocab}, not {ids.dtype} {list(ids.shape)}")
        if max_new_tokens is not None and max_new_tokens < 1:
            raise RequestInvalid(f"max_new_tokens={max_new_tokens} writes nothing; give at least 1, or None")
        audio = spec.windows.tokens(mel.shape[1])
        frame = Frame.around(ids, spec.audio_pad, audio)
        budget = max_new_tokens or self._transcriber.budget(frame, audio, mel.shape[1] * HOP / SAMPLE_RATE)
        job = Job(frame, split_windows(mel, spec.windows), budget, timeout=timeout)
        return self._engine.submit(job, wait=True)

    def check(self, **options: Unpack[Options]) -> None:
        """Refuse options of :meth:`transcribe` that no audio can make good; for those who have many files.

        Raises:
            Qwen3AsrError: as :meth:`transcribe`.
        """
        self._request(**options)

    @property
    def engine(self) -> Engine:
        """What runs the requests of all callers; for measurements and for jobs that are no transcription."""
        return self._engine

    @property
    def kv_cache(self) -> KvCache:
        """Slots, capacity and memory of the KV cache."""
        return KvCache(self._engine.slots, self._engine.capacity, self._engine.kv_bytes)

    @property
    def metrics(self) -> Metrics:
        """What the engine has done so far: ``model.metrics.snapshot()``; :mod:`qwen3asr.prometheus` exports it."""
        return self._engine.metrics

    def close(self, *, drain: bool = False) -> None:
        """End the threads, and free a GPU's memory, the aligner's too; harmless when done twice.

        Requests on their way are finished first (``drain``), or end with ``EngineClosed``; so do open streams.
        """
        self._callers.close()
        if drain:
            self._callers.wait()
            self._threads.shutdown(wait=True)
        self._engine.close(drain=drain)
        for threads in (self._threads, self._stream_threads):
            threads.shutdown(wait=True)
        graphs = self._engine.encoder, self._engine.decoder  # nobody runs them any more
        for held in graphs if self._aligner is None else (*graphs, self._aligner):
            held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _transcribe(
        self, audio: AudioInput, sample_rate: int | None, request: Request, progress: Report | None = None,
        cancellation: Cancellation | None = None, *, patient: bool = False, began: float | None = None,
    ) -> Transcript:  # fmt: skip
        began = time.monotonic() if began is None else began
        with open_audio(audio, sample_rate, most_seconds=request.max_seconds) as reader:
            return self._transcriber.transcribe(reader, request, progress, cancellation, patient=patient, began=began)

    def _listen(
        self, face: type[Face], *, language: str | None = None, context: str = "",
        timestamps: Literal["word"] | None = None, sample_rate: int = SAMPLE_RATE,
        settings: StreamSettings | None = None, detector: SpeechDetector | None = None,
    ) -> Face:  # fmt: skip
        longest = (settings or StreamSettings()).longest_seconds
        request = self._request(language=language, context=context, timestamps=timestamps, piece_seconds=longest)
        windows = self.bundle.spec.windows
        ear = EngineEar(
            self._engine, self._transcriber, self._prompts, windows, self._aligner, self._stream_threads,
            request.language,
        )  # fmt: skip
        return face(
            ear, detector or EnergyDetector(), settings=settings, sample_rate=sample_rate, context=context,
            timestamps=timestamps, windows=windows,
        )  # fmt: skip

    def _request(
        self, *, language: str | None = None, context: str = "", timestamps: object = None,
        max_new_tokens: int | None = None, piece_seconds: float | None = None, split: bool = True,
        timeout: float | None = None, max_seconds: float | None = None,
    ) -> Request:  # fmt: skip
        if self._callers.closed:
            raise EngineClosed
        if timestamps not in (None, "word"):
            raise RequestInvalid(f"timestamps={timestamps!r} is not known; give 'word' or None")
        if timestamps and self._aligner is None:
            raise AlignerMissing
        if max_new_tokens is not None and max_new_tokens < 1:
            raise RequestInvalid(f"max_new_tokens={max_new_tokens} writes nothing; give at least 1, or None")
        if timeout is not None and not timeout > 0:
            raise RequestInvalid(f"timeout={timeout} leaves no time; give seconds above 0, or None")
        _check_max_seconds(max_seconds)
        self._prompts.check_context(context)
        name = resolve_for_aligner(language) if timestamps else resolve(language)
        if timestamps:
            check_splitter(name)
        request = Request(
            name, context, timestamps == "word", max_new_tokens, piece_seconds, split, timeout, max_seconds
        )  # fmt: skip
        self._transcriber.check(request)
        return request


def _check_max_seconds(seconds: float | None) -> None:
    if seconds is not None and not 0 < seconds < math.inf:
        raise RequestInvalid(f"max_seconds={seconds} bounds nothing; give seconds above 0, or None")
