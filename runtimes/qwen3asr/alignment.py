"""Forced alignment of audio of any length: the text is shared out among pieces by what is heard in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from qwen3asr.aligner import Aligner, check_length
from qwen3asr.assign import assign_text
from qwen3asr.audio import AudioReader, limit_peak
from qwen3asr.features import SAMPLE_RATE, Samples
from qwen3asr.longform import pieces
from qwen3asr.request import Request
from qwen3asr.transcription import Transcriber
from qwen3asr.types import Word


def align_any_length(
    aligner: Aligner, transcriber: Transcriber, source: Callable[[], AudioReader], text: str, language: str | None,
    piece_seconds: float | None = None,
) -> tuple[Word, ...]:  # fmt: skip
    """Word times of a known text.

    Audio that the aligner takes at once is aligned at once. Longer audio is transcribed in pieces, and each piece is
    aligned with the part of the text that was heard there: it is read twice, and never whole in memory.

    Args:
        aligner: finds the times.
        transcriber: hears which part of the text is where.
        source: opens the audio; called up to three times.
        text: what is said in it.
        language: one of the aligner's, or ``None``; chooses how the text is split into words.
        piece_seconds: the longest pass; ``None``: the aligner's.

    Raises:
        RequestInvalid: a pass is longer than aligner or recogniser take, or too short; or the text is longer than
            the audio.
    """
    longest = aligner.longest if piece_seconds is None else min(piece_seconds, aligner.longest)
    with source() as reader:
        cut = pieces(reader, longest=longest)
        only = next(cut)
        if next(cut, None) is None:
            return aligner.align_samples(limit_peak(only.samples), text, language)
    request = Request(language, piece_seconds=min(longest, transcriber.longest_pass(Request(language))))
    transcriber.check(request)
    with source() as reader:
        parts = transcriber.parts(reader, request)
    check_length(text, parts[-1].end)
    spans = assign_text(text, [part.text for part in parts], language)
    words: list[Word] = []
    with source() as reader:
        stops = [round(part.end * SAMPLE_RATE) for part in parts]
        for part, (begin, end), samples in zip(parts, spans, _slices(reader, stops), strict=True):
            for word in aligner.align_samples(limit_peak(samples), text[begin:end], language):
                span = (word.span[0] + begin, word.span[1] + begin)
                first, last = (min(time + part.start, part.end) for time in (word.start, word.end))
                words.append(replace(word, start=first, end=last, span=span))
    return tuple(words)


def _slices(blocks: Iterable[Samples], stops: Iterable[int]) -> Iterator[Samples]:
    """The audio up to each stop, from the one before it; in samples."""
    source, kept, at = iter(blocks), np.zeros(0, np.float32), 0
    for stop in stops:
        while at + len(kept) < stop:
            kept = np.concatenate([kept, next(source)])
        yield kept[: stop - at]
        kept, at = kept[stop - at :], stop
