"""One stream without its waiting: judges audio, calls the ear, and turns its answers into events.

A stream is cut into segments where somebody speaks. Within one, each step of new audio is decoded from the segment's
start; the windows that the encoder has finished are kept by the :class:`Ear`, and the hypothesis before is its draft,
so a step costs the same however long the stream is. What two steps agree on is committed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from qwen3asr.agreement import Agreement, ends_sentence, last_units, strip_overlap
from qwen3asr.errors import StepCancelled
from qwen3asr.events import Event, Final, Partial
from qwen3asr.features import SAMPLE_RATE, Mel, Samples, WindowSpec
from qwen3asr.generate import Generation
from qwen3asr.incremental import IncrementalMel
from qwen3asr.segmenter import Begin, End, Segmenter, Split, StreamSettings, quietest
from qwen3asr.types import FinishReason, Word
from qwen3asr.vad import FRAME, SpeechDetector

T = TypeVar("T")

_log = logging.getLogger("qwen3asr")
_JUDGED = 64  # frames given to the detector at a time


class Ear(Protocol):
    """One stream's decoder: remembers the windows of the open segment that it was told to keep.

    Its methods are called from one thread at a time, not always the same. ``hear`` is called after the answer to the
    call before; ``align`` may still be at work then.
    """

    def begin(self, context: str) -> None:
        """A new segment: forget all windows."""

    def hear(self, *, keep: int, windows: Sequence[Mel], complete: int, draft: Sequence[int]) -> Future[Generation]:
        """Decode the segment's audio so far.

        Args:
            keep: leading windows that are as they were kept; the rest is forgotten.
            windows: those that follow, float32 ``[128, frames]``.
            complete: how many of them, from the first, are to be kept.
            draft: token ids of the hypothesis before.
        """

    def align(
        self, samples: Samples, text: str, language: str | None, generation: Generation
    ) -> Future[tuple[Word, ...]]:
        """Word times of a text in float32 ``[n]`` at 16 kHz; none where the text cannot be aligned.

        Words have a confidence where the text stands in what was decoded.
        """

    def read(self, generation: Generation) -> tuple[str | None, str]:
        """Language and text of what was decoded."""

    def confidence(self, generation: Generation) -> float | None:
        """Geometric mean probability of what was decoded."""

    def invented(self, samples: Samples, generation: Generation) -> Future[bool]:
        """Whether nobody said what was decoded of float32 ``[n]`` at 16 kHz, the whole segment."""

    def close(self) -> None:
        """The stream has ended."""


@dataclass(slots=True)
class Work:
    """What a stream has cost so far.

    Attributes:
        seconds: of audio judged.
        steps: calls of :meth:`Ear.hear`.
        windows: encoder windows given to it, open ones each time.
        frames: mel frames transformed.
    """

    seconds: float = 0.0
    steps: int = 0
    windows: int = 0
    frames: int = 0


@dataclass(slots=True)
class _Segment:
    start: int
    mel: IncrementalMel
    agreement: Agreement
    surplus: str = ""  # of the segment before: words that may be heard again here
    begun: bool = False
    tokens: tuple[int, ...] = ()
    language: str | None = None
    shown: tuple[str, str, tuple[Word, ...]] = ("", "", ())
    words: tuple[Word, ...] = ()
    aligned: str = ""  # committed text whose alignment was asked for
    aligning: Future[tuple[Word, ...]] | None = None

    @property
    def end(self) -> int:
        return self.start + len(self.mel.samples)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of the ear, and what is to be done with its answer."""

    future: Future[Any]
    then: Callable[[Any], None]


class Listener:
    """``advance``, wait for the call, ``settle``, and again until there is no call.

    The methods may run in any thread, one at a time.

    Args:
        ear: decodes; closed when the stream ends.
        detector: tells speech from silence.
        settings: how to listen.
        context: background text or hot words.
        align: find word times.
        spec: how the model cuts its audio.
    """

    def __init__(
        self, ear: Ear, detector: SpeechDetector, settings: StreamSettings, context: str, align: bool, spec: WindowSpec
    ) -> None:
        self._ear, self._detector, self._settings, self._spec = ear, detector, settings, spec
        self._context, self._align = context, align
        self._segmenter = Segmenter(settings)
        self._waiting: Samples = np.zeros(0, np.float32)
        self._judged: deque[float] = deque()  # of the first frames that wait
        self._idle: Samples = np.zeros(0, np.float32)  # the audio that the next segment would begin with
        self._segment: _Segment | None = None
        self._closing: _Segment | None = None
        self._call: _Call | None = None
        self._carried = ""
        self._events: list[Event] = []
        self._closed = False
        self.work = Work()

    # --- what the faces do -------------------------------------------------------------------------------------

    @property
    def backlog(self) -> float:
        """Seconds of audio that wait to be judged."""
        return len(self._waiting) / SAMPLE_RATE

    def take(self, samples: Samples) -> None:
        """Append 16 kHz audio; computes nothing."""
        self._waiting = np.concatenate([self._waiting, samples])

    def advance(self, *, merge: bool = False, last: bool = False) -> Future[Any] | None:
        """Go through the waiting audio until the model is needed: its call, or ``None`` at the audio's end.

        Args:
            merge: make one step of all that waits, where several would be due.
            last: no more audio comes: close the open segment, then the ear.
        """
        if self._closed:  # a stream that was closed while this waited for its thread: no new segment
            return None
        while self._call is None and len(self._waiting) >= FRAME:
            self._feed()
            if self._call is None and self._segmenter.due and not merge:
                self._step()
        if self._call is None and last:
            self._finish()
        elif self._call is None and self._segmenter.due:
            self._step()
        return self._call.future if self._call else None

    def settle(self) -> None:
        """Take the answer of the call; raises what it raises."""
        if self._call is not None:
            call, self._call = self._call, None
            call.then(_result(call.future))

    def collect(self) -> list[Event]:
        """The events since the last time."""
        events, self._events = self._events, []
        return events

    def abort(self) -> None:
        """Give up what is not committed; also after an error."""
        segment = self._closing or self._segment
        self._closing = self._segment = None
        if segment is not None and segment.begun:
            self._emit_final(segment, segment.agreement.committed, "cancelled")
        self.close()

    def close(self) -> None:
        """Let go of the ear; harmless if done before."""
        if self._closed:
            return
        self._closed = True
        if self._call is not None:
            self._call.future.cancel()
        self._ear.close()

    # --- from audio to calls -----------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Judge one frame, and let segments begin and end."""
        if not self._judged:
            count = min(len(self._waiting) // FRAME, _JUDGED)
            self._judged.extend(self._detector.probabilities(self._waiting[: count * FRAME]).tolist())
        frame, self._waiting = self._waiting[:FRAME], self._waiting[FRAME:]
        if len(self._waiting) < FRAME:
            self._waiting = self._waiting.copy()  # a view would keep all of a long chunk
        self._hold(frame)
        border = self._segmenter.feed(self._judged.popleft())
        self.work.seconds = self._segmenter.now / SAMPLE_RATE
        match border:
            case Begin(at):
                self._segment = self._open(at, self._idle)
                if self._settings.announce:
                    self._events.append(Partial("", "", None, at / SAMPLE_RATE, self._segmenter.now / SAMPLE_RATE))
            case End(at):
                self._close(at)
            case Split(earliest):
                self._split(earliest)

    def _hold(self, samples: Samples) -> None:
        if self._segment is not None:
            self._segment.mel.push(samples)
        else:
            self._idle = np.concatenate([self._idle, samples])[-self._segmenter.memory :]

    def _open(self, start: int, samples: Samples) -> _Segment:
        segment = _Segment(start, IncrementalMel(self._spec), Agreement(self._settings.hold_back))
        segment.mel.push(samples)
        return segment

    def _split(self, earliest: int) -> None:
        if self._segment is None:
            return
        at = earliest + quietest(self._segment.mel.samples[earliest - self._segment.start :])
        self._segmenter.split(at)
        self._close(at)
        if self._segmenter.start is not None:
            self._segment = self._open(at, self._idle)

    def _finish(self) -> None:
        """Close the open segment with the samples that make no frame; then the stream."""
        if self._segment is None:
            self.close()
            return
        self._segment.mel.push(self._waiting)
        self._waiting = self._waiting[:0]
        self._close(self._segment.end)

    def _close(self, at: int) -> None:
        """End the segment at a sample; what was heard behind it may belong to the next one."""
        segment, self._segment = self._segment, None
        if segment is None:
            return
        self._closing = segment
        self._idle = segment.mel.samples[at - segment.start :].copy()
        segment.mel.truncate(at - segment.start)
        self._hear(segment, lambda generation: self._concluded(segment, generation))

    def _step(self) -> None:
        segment = self._segment
        if segment is not None:
            self._segmenter.heard()
            self._hear(segment, lambda generation: self._stepped(segment, generation))

    def _hear(self, segment: _Segment, then: Callable[[Generation], None]) -> None:
        if not segment.begun:
            self._ear.begin("\n".join(part for part in (self._context, self._carried) if part))
            segment.begun = True
        before = segment.mel.frames
        state = segment.mel.state()
        windows = state.windows[state.kept :]
        self.work.steps += 1
        self.work.windows += len(windows)
        self.work.frames += segment.mel.frames - before
        complete = state.complete - state.kept
        future = self._ear.hear(keep=state.kept, windows=windows, complete=complete, draft=segment.tokens)
        self._call = _Call(future, then)

    # --- from answers to events --------------------------------------------------------------------------------

    def _read(self, segment: _Segment, generation: Generation) -> str:
        language, text = self._ear.read(generation)
        segment.tokens, segment.language = generation.tokens, language or segment.language
        return strip_overlap(segment.surplus, text) if segment.surplus else text

    def _stepped(self, segment: _Segment, generation: Generation) -> None:
        hypothesis = self._read(segment, generation)
        if generation.finish_reason == "loop":  # not what was said, even if the model says it twice
            text = segment.agreement.preview(hypothesis)
        else:
            _, text = segment.agreement.update(hypothesis)
        self._segmenter.sentence_ended = ends_sentence(text)
        committed, words = segment.agreement.committed, self._committed_words(segment, generation)
        if segment.shown != (text, committed, words):
            segment.shown = text, committed, words
            start, end = segment.start / SAMPLE_RATE, segment.end / SAMPLE_RATE
            self._events.append(Partial(text, committed, segment.language, start, end, words))

    def _committed_words(self, segment: _Segment, generation: Generation) -> tuple[Word, ...]:
        """Words that are aligned by now; asks for the new ones, but does not wait for them."""
        if not (self._align and self._settings.partial_words):
            return ()
        if segment.aligning is not None and segment.aligning.done():
            segment.words = _shifted(_result(segment.aligning), segment)
            segment.aligning = None
        committed = segment.agreement.committed
        if segment.aligning is None and committed != segment.aligned:
            segment.aligned = committed
            segment.aligning = self._ear.align(segment.mel.samples, committed, segment.language, generation)
        return segment.words

    def _concluded(self, segment: _Segment, generation: Generation) -> None:
        hypothesis = self._read(segment, generation)
        if hypothesis and not segment.agreement.committed:
            self._call = _Call(
                self._ear.invented(segment.mel.samples, generation),
                lambda made_up: self._conclude(segment, generation, "" if made_up else hypothesis),
            )
        else:
            self._conclude(segment, generation, hypothesis)

    def _conclude(self, segment: _Segment, generation: Generation, hypothesis: str) -> None:
        text = segment.agreement.finish(hypothesis)
        reason: FinishReason = generation.finish_reason
        if reason == "length":
            _log.warning(
                "stream: the text of %.1f s is cut; load the model with a larger capacity=",
                len(segment.mel.samples) / SAMPLE_RATE,
            )
        if not text and reason in ("stop", "loop"):
            reason = "no_speech"
        if self._segment is not None:  # it was split, and the next one goes on at once
            self._segment.surplus = segment.agreement.surplus
        if reason != "no_speech":  # what ended in a loop is no context: the next segment would catch it
            self._carried = last_units(text, self._settings.carry_words) if reason != "loop" else ""
        if segment.aligning is not None:
            segment.aligning.cancel()
        confidence = self._ear.confidence(generation) if text else None
        if not (self._align and text):
            self._emit_final(segment, text, reason, confidence=confidence)
            return
        self._call = _Call(
            self._ear.align(segment.mel.samples, text, segment.language, generation),
            lambda words: self._emit_final(segment, text, reason, _shifted(words, segment), confidence),
        )

    def _emit_final(
        self, segment: _Segment, text: str, reason: FinishReason, words: tuple[Word, ...] = (),
        confidence: float | None = None,
    ) -> None:  # fmt: skip
        self._closing = None
        start, end = segment.start / SAMPLE_RATE, segment.end / SAMPLE_RATE
        self._events.append(Final(text, segment.language, start, end, reason, words, confidence))


def _result(future: Future[T]) -> T:
    """Of a future that may still be running; its cancellation is not that of a task that waits for it."""
    try:
        return future.result()
    except CancelledError as error:
        raise StepCancelled from error


def _shifted(words: tuple[Word, ...], segment: _Segment) -> tuple[Word, ...]:
    """Words of a segment at their times in the stream."""
    start = segment.start / SAMPLE_RATE
    return tuple(replace(word, start=word.start + start, end=word.end + start) for word in words)
