"""The aligner by itself: one clip after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qwen3asr.aligner import Aligner
from qwen3asr.benchmark.about import About, load_times
from qwen3asr.benchmark.published import PublishedAlignment, published_alignment, size_of
from qwen3asr.benchmark.settings import Settings
from qwen3asr.benchmark.spread import Spread, timed
from qwen3asr.bundle import Bundle
from qwen3asr.features import SAMPLE_RATE, Samples

_WORDS_A_SECOND = 2.5  # of English that is read out


@dataclass(frozen=True, slots=True)
class AlignerReport:
    """What an aligner takes.

    Attributes:
        about: its bundle.
        load: seconds that loading took.
        seconds: duration of the clip.
        words: of its text.
        real_time_factor: time over duration, from samples to words.
        published: what the technical report has for this setting, on other hardware.
    """

    about: About
    load: Spread
    seconds: float
    words: int
    real_time_factor: Spread
    published: PublishedAlignment | None


def measure_aligner(
    bundle: Bundle, load: Callable[[], Aligner], settings: Settings, clip: Samples, progress: Callable[[int, int], None]
) -> AlignerReport:
    """Load an aligner and let it align, as often as the settings say.

    Args:
        bundle: the aligner's.
        load: opens it.
        settings: rounds and warm-up.
        clip: float32 ``[n]`` at 16 kHz, of which as much is aligned as the aligner takes in one pass.
        progress: told how many loads are done, and of how many.
    """
    loads, model = load_times(load, settings.rounds, progress), load()
    samples = clip[: int(model.longest * SAMPLE_RATE)]
    seconds = len(samples) / SAMPLE_RATE
    words = max(1, round(seconds * _WORDS_A_SECOND))
    text = " ".join(["hello"] * words)
    spent = timed(lambda: model.align_samples(samples, text, "English"), settings.rounds, settings.warmup)
    theirs = published_alignment(size_of(bundle.spec.hidden, bundle.spec.layers), seconds)
    return AlignerReport(About.of(bundle), loads, seconds, words, spent.scaled(1 / seconds), theirs)
