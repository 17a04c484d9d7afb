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
from qwen3asr.errors import AudioTooLong, RequestInvalid
from qwen3asr.features import SAMPLE_RATE, Samples, log_mel
from qwen3asr.languages import resolve_for_aligner
from qwen3asr.prompt import PromptBuilder
from qwen3asr.sessions.base import Ids
from qwen3asr.times import moved_words, repair_times, spread_times
from qwen3asr.types import Word
from qwen3asr.words import Unit, split_words

RELIABLE_SECONDS = 240.0
"""The longest audio that is aligned in one pass. The released head can point up to 400 s, but its times are reported
to drift from about 270 s on."""


_TEXT_AT_LEAST, _TEXT_A_SECOND = 1_000, 100  # characters; five times what anyone says, with markup


def check_length(text: str, seconds: float) -> None:
    """Refuse a text before it is split into words, which takes some languages' splitters long.

    Raises:
        RequestInvalid: nobody could have said so much in that time.
    """
    most = _TEXT_AT_LEAST + int(_TEXT_A_SECOND * seconds)
    if len(text) > most:
        raise RequestInvalid(
            f"the text has {len(text)} characters, and {seconds:.1f} s of audio hold at most {most}; "
            "give what is said in this audio, without the rest"
        )


@dataclass(frozen=True, slots=True)
class AlignerLimits:
    """``classes`` time classes of ``class_ms`` milliseconds each: how far the head can point."""

    classes: int
    class_ms: float

    @property
    def seconds(self) -> float:
        """Longest audio that is aligned: as far as the classes reach, but not past :data:`RELIABLE_SECONDS`."""
        return min(self.classes * self.class_ms / 1000, RELIABLE_SECONDS)


class Aligner:
    """A loaded forced aligner. Made by :func:`qwen3asr.load_aligner`.

    Safe to share between threads; requests run one after the other.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, prompts: PromptBuilder, limits: AlignerLimits) -> None:
        self._encoder, self._decoder, self._prompts, self._limits = encoder, decoder, prompts, limits
        self._lock = Lock()

    @property
    def longest(self) -> float:
        """Seconds of audio that it takes in one pass."""
        return self._limits.seconds

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
            Words in text order, times in seconds, non-decreasing and within the audio, each word longer than 0.
            (The original package lets times run past the end of the audio, here they are clipped to it; and it gives
            words without length, which here get a short one. Such words are marked ``repaired``.)

        Raises:
            LanguageUnknown: the aligner does not know the language.
            RequestInvalid: the text has more than 100 characters a second (and 1,000).
            AudioTooLong: the audio, or audio and text together, are longer than the aligner takes; a recogniser
                loaded with it splits them.
            ExtraMissing: Japanese or Korean text, without the extra that splits it.
        """
        name = resolve_for_aligner(language)
        clip = read_audio(audio, sample_rate)
        return self.align_samples(clip.samples, text, name)

    def align_samples(self, samples: Samples, text: str, language: str | None) -> tuple[Word, ...]:
        """As :meth:`align`, for float32 ``[n]`` at 16 kHz mono and a canonical language name."""
        duration = len(samples) / SAMPLE_RATE
        self.check_duration(duration)
        check_length(text, duration)
        units = split_words(text, language)
        if not units:
            return ()
        with self._lock:
            classes = self._classify(samples, units)
        said = [float(index) * self._limits.class_ms for index in classes]
        times = spread_times(_seconds(repair_times(said), duration), duration)
        moved = moved_words(_seconds(said, duration), times)
        rows = zip(units, times[::2], times[1::2], moved, strict=True)
        return tuple(
            Word(text[slice(*unit.span)], start, end, unit.span, repaired=repaired)
            for unit, start, end, repaired in rows
        )

    def check_duration(self, seconds: float) -> None:
        """Refuse audio that is too long for one pass.

        Raises:
            AudioTooLong: it does.
        """
        if seconds > self._limits.seconds:
            raise AudioTooLong(seconds, self._limits.seconds, "forced aligner")

    def close(self) -> None:
        """Let go of a GPU's memory, after the request on its way; harmless when done twice, and nothing on the CPU.

        Then :meth:`align` raises ``EngineClosed`` where there was something to let go of.
        """
        with self._lock:
            self._encoder.close()
            self._decoder.close()

    def _classify(self, samples: Samples, units: Sequence[Unit]) -> Ids:
        """Raw time classes, int64 ``[2 * units]``: start and end of each."""
        (audio,) = self._encoder.encode([log_mel(samples)])
        prompt, marks = self._prompts.alignment(audio, [unit.text for unit in units])
        if len(prompt.ids) > self._decoder.capacity:
            duration = len(samples) / SAMPLE_RATE
            raise AudioTooLong(duration, duration * self._decoder.capacity / len(prompt.ids), "forced aligner")
        return np.asarray(self._decoder.prefill(prompt, marks, slot=0).tokens[0])


def _seconds(milliseconds: Sequence[float], duration: float) -> list[float]:
    """Whole milliseconds in seconds, within the audio."""
    return [min(int(time) / 1000, duration) for time in milliseconds]
