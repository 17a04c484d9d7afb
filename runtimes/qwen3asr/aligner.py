"""Forced alignment: when was each word of a known text spoken? One non-autoregressive pass.

Source: Qwen3-ASR technical report, section on Qwen3-ForcedAligner: the text is fed with two ``<timestamp>``
marks behind every word, and a linear head classifies each mark into steps of 80 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from qwen3asr.audio import AudioInput, read_audio
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.errors import AudioTooLong
from qwen3asr.features import SAMPLE_RATE, Samples, log_mel
from qwen3asr.languages import resolve_for_aligner
from qwen3asr.prompt import PromptBuilder
from qwen3asr.sessions.base import Ids
from qwen3asr.types import Word
from qwen3asr.words import Unit, repair_times, split_words


@dataclass(frozen=True, slots=True)
class AlignerLimits:
    """``classes`` time classes of ``class_ms`` milliseconds each: how far the head can point."""

    classes: int
    class_ms: float

    @property
    def seconds(self) -> float:
        """Longest audio that can be addressed."""
        return self.classes * self.class_ms / 1000


class Aligner:
    """A loaded forced aligner. Made by :func:`qwen3asr.load_aligner`.

    Safe to share between threads; requests run one after the other.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, prompts: PromptBuilder, limits: AlignerLimits) -> None:
        self._encoder, self._decoder, self._prompts, self._limits = encoder, decoder, prompts, limits
        self._lock = Lock()

    def align(
        self, audio: AudioInput, text: str, *, language: str | None = None, sample_rate: int | None = None
    ) -> tuple[Word, ...]:
        """Times of the words of a known text.

        Args:
            audio: path, bytes, binary file, array, ``(array, rate)``; see :func:`qwen3asr.audio.read_audio`.
            text: what is said in it; text without letters or digits has no words.
            language: one of the aligner's eleven, by name or code, or ``None``; it only chooses how the text
                is split into words.
            sample_rate: rate of a bare array in Hz.

        Returns:
            Words in text order, times in seconds, non-decreasing and within the audio. (The original package
            lets times run past the end of the audio; here they are clipped to it.)

        Raises:
            LanguageUnknown: the aligner does not know the language.
            AudioTooLong: the audio, or audio and text together, are longer than the aligner takes.
            ExtraMissing: Japanese or Korean text, without the extra that splits it.
        """
        name = resolve_for_aligner(language)
        clip = read_audio(audio, sample_rate)
        return self.align_samples(clip.samples, text, name)

    def align_samples(self, samples: Samples, text: str, language: str | None) -> tuple[Word, ...]:
        """As :meth:`align`, for float32 ``[n]`` at 16 kHz mono and a canonical language name."""
        duration = len(samples) / SAMPLE_RATE
        self.check_duration(duration)
        units = split_words(text, language)
        if not units:
            return ()
        with self._lock:
            classes = self._classify(samples, units)
        times = repair_times([float(index) * self._limits.class_ms for index in classes])
        clipped = [min(milliseconds / 1000, duration) for milliseconds in times]
        pairs = zip(units, clipped[::2], clipped[1::2], strict=True)
        return tuple(Word(text[slice(*unit.span)], start, end, unit.span) for unit, start, end in pairs)

    def check_duration(self, seconds: float) -> None:
        """Refuse audio that reaches past the last time class.

        Raises:
            AudioTooLong: it does.
        """
        if seconds > self._limits.seconds:
            raise AudioTooLong(seconds, self._limits.seconds, "forced aligner")

    def _classify(self, samples: Samples, units: Sequence[Unit]) -> Ids:
        """Raw time classes, int64 ``[2 * units]``: start and end of each."""
        (audio,) = self._encoder.encode([log_mel(samples)])
        prompt, marks = self._prompts.alignment(audio, [unit.text for unit in units])
        if len(prompt.ids) > self._decoder.capacity:
            duration = len(samples) / SAMPLE_RATE
            raise AudioTooLong(duration, duration * self._decoder.capacity / len(prompt.ids), "forced aligner")
        return np.asarray(self._decoder.prefill(prompt, marks, slot=0).tokens[0])
