"""What the authors of Qwen3-ASR publish, for settings that are theirs.

Source: Qwen3-ASR technical report, Table 2, the online rows: vLLM 0.14 in bfloat16, clips of about two minutes, on a
data-centre GPU that it does not name. Its real-time factor is the time of a request over the duration of its audio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HARDWARE = "vLLM 0.14 in bf16 on a data-centre GPU that the report does not name: other hardware than here"
_CLIP = (100.0, 140.0)  # seconds: "about two minutes"


@dataclass(frozen=True, slots=True)
class Published:
    """One row: mean time to first token in seconds, real-time factor, seconds of audio a second."""

    first_token: float
    real_time_factor: float
    throughput: float


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
    """What the report calls a recogniser of that shape; ``None`` for others."""
    return _SIZES.get((hidden, layers))


def published(size: str | None, seconds: float, concurrency: int) -> Published | None:
    """The report's figures where the setting is its own: a released size, clips of two minutes, as many at a time."""
    if size is None or not _CLIP[0] <= seconds <= _CLIP[1]:
        return None
    return _TABLE[size].get(concurrency)
