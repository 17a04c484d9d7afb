"""Synthetic speech, and an ear that hears it: its text is what the features that it was given hold, and nothing else.

A word is 0.3 s of one tone and 0.1 s of silence. So a window that is wrong, stale, lost or given twice, and a cut in
the wrong place, all show in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from qwen3asr.features import SAMPLE_RATE, Mel, Samples, log_mel
from qwen3asr.generate import Generation
from qwen3asr.types import FinishReason, Word
from qwen3asr.vad import FRAME

WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "stop.")
TONE, GAP = 4_800, 1_600  # samples of a word
FLICKER = 1_000  # ids from here on are words that are not heard to their end

_LEAST_FRAMES = 20  # of a word that is recognised
_PART_FRAMES = 5  # of one that is guessed at


def speak(script: Iterable[int | float]) -> Samples:
    """Audio of a script: an int is a word, a float so many seconds of silence."""
    parts = [
        np.zeros(round(item * SAMPLE_RATE), np.float32) if isinstance(item, float) else _word(item) for item in script
    ]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def spoken(script: Iterable[int | float]) -> str:
    return " ".join(WORDS[item] for item in script if isinstance(item, int))


@lru_cache(maxsize=len(WORDS))
def _word(number: int) -> Samples:
    time = np.arange(TONE) / SAMPLE_RATE
    tone = 0.3 * np.sin(2 * np.pi * _hertz(number) * time)
    return np.pad(tone.astype(np.float32), (0, GAP))


def _hertz(number: int) -> float:
    return 400.0 * 1.4**number


@lru_cache(maxsize=1)
def _bands() -> npt.NDArray[np.int64]:
    """The word whose tone is loudest in each mel band, or -1."""
    table = np.full(128, -1)
    for number in range(len(WORDS)):
        table[log_mel(_word(number))[:, 5:25].mean(axis=1).argmax()] = number
    return table


class LoudDetector:
    """Whatever is louder than -40 dB is speech."""

    def __init__(self) -> None:
        self.frames = 0

    def probabilities(self, samples: Samples) -> Samples:
        power = np.square(samples.reshape(-1, FRAME)).mean(axis=1)
        self.frames += len(power)
        return np.asarray(power > 1e-4, np.float32)

    def reset(self) -> None:
        self.frames = 0


def hear_tokens(mel: Mel, flicker: bool) -> tuple[int, ...]:
    """Words of features: runs of frames whose loudest band is a word's, within three decades of the loudest."""
    peaks = mel.max(axis=0)
    heard = np.where(peaks > peaks.max() - 0.75, _bands()[mel.argmax(axis=0)], -1)
    starts = np.flatnonzero(np.diff(heard, prepend=-2))
    tokens: list[int] = []
    for start, length in zip(starts, np.diff(starts, append=len(heard)), strict=True):
        if heard[start] >= 0 and length >= _LEAST_FRAMES:
            tokens.append(int(heard[start]))
        elif heard[start] >= 0 and length >= _PART_FRAMES and flicker:
            tokens.append(FLICKER + len(heard))  # another word each time
    return tuple(tokens)


class ScriptedEar:
    """Hears what is spoken, and refuses what a real ear could not serve.

    Args:
        flicker: guess at words that are not yet over; otherwise they are left out.
        changes: what to make of the tokens of each step.
        remember: keep the features of every step, in ``mels``.
    """

    def __init__(
        self,
        *,
        flicker: bool = False,
        changes: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None,
        remember: bool = False,
    ) -> None:
        self.flicker, self._changes, self._remember = flicker, changes, remember
        self.contexts: list[str] = []
        self.held: list[Mel] = []
        self.mels: list[Mel] = []  # all features of the segment, at each step
        self.drafts: list[tuple[int, ...]] = []
        self.given: list[int] = []  # windows given at each step
        self.aligned: list[str] = []
        self.reason: FinishReason = "stop"
        self.error: Exception | None = None
        self.made_up = False  # what invented() answers
        self.doubted: list[tuple[int, ...]] = []
        self.closed = 0
        self._last: tuple[int, ...] | None = None

    def begin(self, context: str) -> None:
        self.contexts.append(context)
        self.held, self._last = [], ()

    def hear(self, *, keep: int, windows: Sequence[Mel], complete: int, draft: Sequence[int]) -> Future[Generation]:
        assert not self.closed
        assert self._last is not None
        assert tuple(draft) == self._last
        assert 0 <= keep <= len(self.held)
        assert complete <= len(windows)
        assert all(window.shape == (128, 800) for window in [*self.held[:keep], *windows[:-1], *windows[:complete]])
        assert len(windows) - complete <= 1
        mel = np.concatenate([*self.held[:keep], *windows], axis=1)
        self.held = [*self.held[:keep], *windows][: keep + complete]
        if self._remember:
            self.mels.append(mel)
        self.drafts.append(tuple(draft))
        self.given.append(len(windows))
        tokens = hear_tokens(mel, self.flicker)
        self._last = self._changes(tokens) if self._changes else tokens
        return self.answer(Generation(self._last, (-0.1,) * len(self._last), self.reason))

    def answer(self, generation: Generation) -> Future[Generation]:
        future: Future[Generation] = Future()
        if self.error is not None:
            future.set_exception(self.error)
        else:
            future.set_result(generation)
        return future

    def invented(self, samples: Samples, generation: Generation) -> Future[bool]:
        self.doubted.append(generation.tokens)
        future: Future[bool] = Future()
        future.set_result(self.made_up)
        return future

    def read(self, generation: Generation) -> tuple[str | None, str]:
        words = [WORDS[token] if token < FLICKER else f"uh{token}" for token in generation.tokens]
        return ("English" if words else None), " ".join(words)

    def confidence(self, generation: Generation) -> float | None:
        return len(generation.tokens) / 100

    def align(
        self, samples: Samples, text: str, language: str | None, generation: Generation
    ) -> Future[tuple[Word, ...]]:
        """One word for each stretch of sound."""
        assert language == "English"
        assert text in self.read(generation)[1]
        self.aligned.append(text)
        future: Future[tuple[Word, ...]] = Future()
        future.set_result(_align(samples, text))
        return future

    def close(self) -> None:
        self.closed += 1


def _align(samples: Samples, text: str) -> tuple[Word, ...]:
    loud = np.abs(samples) > 1e-3
    smooth = np.convolve(loud, np.ones(400), "same") > 0.5  # zero crossings are no silence
    edges = np.flatnonzero(np.diff(np.concatenate([[0], smooth, [0]])))
    words: list[Word] = []
    at = 0
    for word, first, last in zip(text.split(), edges[::2], edges[1::2], strict=False):
        at = text.index(word, at)
        words.append(Word(word, first / SAMPLE_RATE, last / SAMPLE_RATE, (at, at + len(word))))
        at += len(word)
    return tuple(words)
