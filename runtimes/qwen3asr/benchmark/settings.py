"""What a benchmark runs."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3asr.errors import RequestInvalid
from qwen3asr.features import MIN_SAMPLES, SAMPLE_RATE

_LEAST_SECONDS = MIN_SAMPLES / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Settings:
    """How much work, and how often.

    Attributes:
        seconds: length of every clip.
        tokens: text tokens that every clip is forced to, whatever the model says.
        concurrency: how many clips are on their way at a time, one level after the other.
        rounds: how often everything is measured.
        warmup: rounds before them that are not counted.
        clips: clips that each of the clients of a level sends in a round, the next when the one before is done.
        past: tokens in the KV cache when a decode step is measured.

    Raises:
        RequestInvalid: a value that measures nothing.
    """

    seconds: float = 10.0
    tokens: int = 35
    concurrency: tuple[int, ...] = (1, 2, 4)
    rounds: int = 3
    warmup: int = 1
    clips: int = 1
    past: tuple[int, ...] = (150, 1000)

    def __post_init__(self) -> None:
        if not self.seconds >= _LEAST_SECONDS:
            raise RequestInvalid(f"seconds={self.seconds} is too short to measure; give at least {_LEAST_SECONDS}")
        if not self.concurrency:
            raise RequestInvalid("concurrency names no level; give at least one, such as 1")
        least = {"tokens": 2, "rounds": 1, "warmup": 0, "clips": 1, "concurrency": 1, "past": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,), default=bound) < bound:
                raise RequestInvalid(f"{name}={value} measures nothing; give at least {bound}")
