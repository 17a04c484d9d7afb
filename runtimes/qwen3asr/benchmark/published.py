"""What the authors of Qwen3-ASR publish, for settings that are theirs.

Source: Qwen3-ASR technical report, Table 2: the online rows, clips of about two minutes, and the aligner's, offline on
clips of one minute; vLLM 0.14 in bfloat16 on a data-centre GPU that it does not name. Its real-time factor is the time
of a request over the duration of its audio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

HARDWARE = "vLLM 0.14 in bf16 on a data-centre GPU that the report does not name: other hardware than here"
_CLIP = (100.0, 140.0)  # seconds: "about two minutes"
_MINUTE = (50.0, 70.0)  # seconds, of the aligner's clips
TOKENS_A_SECOND = 3
"""Of text at least, in what people say: with fewer a clip costs less than the report's, whose texts are real."""


@dataclass(frozen=True, slots=True)
class Published:
    """One row: mean time to first token in seconds, real-time factor, seconds of audio a second."""

    first_token: float
    real_time_factor: float
    throughput: float


@dataclass(frozen=True, slots=True)
class PublishedAlignment:
    """The aligner's row for one clip after the other: real-time factor, seconds of audio a second."""

    real_time_factor: float
    throughput: float


_ALIGNER = PublishedAlignment(0.0089, 112)
_TABLE: Mapping[str, Mapping[int, Published]] = {
    "0.6B": {
        1: Published(0.092, 0.0094, 106),
        8: Published(0.228, 0.0147, 543),
        32: Published(0.820, 0.0291, 1099),
        128: Published(3.210, 0.0640, 2000),
    },
    "1.7B": {
        1: Published(0.102, 0.0148, 67),
        8: Published(0.224, 0.0200, 400),
        32: Published(0.847, 0.0397, 806),
        128: Published(3.392, 0.1050, 1220),
    },
}
_SIZES = {(1024, 28): "0.6B", (2048, 28): "1.7B"}  # width and layers of the decoder


def size_of(hidden: int, layers: int) -> str | None:
    """What the report calls a model of that shape; ``None`` for others."""
    return _SIZES.get((hidden, layers))


def published(size: str | None, seconds: float, tokens: int, concurrency: int) -> Published | None:
    """The report's figures where the setting is its own: a released size, two minutes, texts as long as speech.

    Args:
        size: as the report calls it.
        seconds: of every clip.
        tokens: of text in each.
        concurrency: clips at a time.
    """
    if size is None or not _CLIP[0] <= seconds <= _CLIP[1] or tokens < TOKENS_A_SECOND * seconds:
        return None
    return _TABLE[size].get(concurrency)


def why_not(size: str | None, seconds: float, tokens: int) -> str:
    """What keeps the report's figures from standing beside clips as long as its own; empty where nothing does."""
    if size is None or not _CLIP[0] <= seconds <= _CLIP[1] or tokens >= TOKENS_A_SECOND * seconds:
        return ""
    least = math.ceil(TOKENS_A_SECOND * seconds)
    return (
        f"Not set beside the Qwen3-ASR technical report, Table 2: {tokens} tokens are too few for {seconds:g} s of "
        f"speech; give --tokens {least} or more."
    )


def published_alignment(size: str | None, seconds: float) -> PublishedAlignment | None:
    """The report's figures of its aligner where the setting is its own: that shape, clips of a minute."""
    return _ALIGNER if size == "0.6B" and _MINUTE[0] <= seconds <= _MINUTE[1] else None
