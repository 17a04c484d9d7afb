"""Levels of concurrency: first tokens, tokens, whole clips and throughput with so many clips on their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen3asr.benchmark.clients import Clients, Round
from qwen3asr.benchmark.energy import Boards
from qwen3asr.benchmark.machine import Memory, memory
from qwen3asr.benchmark.published import Published, published
from qwen3asr.benchmark.roofline import ModelWork, Roof
from qwen3asr.benchmark.settings import Settings
from qwen3asr.benchmark.spread import Spread


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the roofline leaves possible: least seconds to the first token and between two, most throughput.

    The first token is that of a clip that has the machine to itself; tokens and throughput are those of full batches.
    """

    first_token: float
    inter_token: float
    throughput: float


@dataclass(frozen=True, slots=True)
class Level:
    """What came of so many clips at a time.

    Attributes:
        concurrency: clips on their way.
        first_token: seconds from the samples to the first token, of all clips.
        inter_token: seconds from a token to the next, of all tokens of all clips.
        clip: seconds from the samples to the last token, of all clips.
        real_time_factor: the same over the clip's duration.
        throughput: seconds of audio a second, of all rounds.
        rows_per_step: mean size of a decoder batch.
        memory: of this process after it.
        joules_per_audio_second: of the NVIDIA boards, of all rounds; ``None`` where it is not measured.
        bounds: by the roofline, where there is one.
        published: what the technical report has for this setting, on other hardware.
    """

    concurrency: int
    first_token: Spread
    inter_token: Spread
    clip: Spread
    real_time_factor: Spread
    throughput: Spread
    rows_per_step: float
    memory: Memory
    joules_per_audio_second: Spread | None
    bounds: Bounds | None
    published: Published | None


@dataclass(slots=True)
class _Taken:
    """Rounds of one level as they come."""

    rounds: list[Round]
    joules: list[float]
    memory: Memory


def measure_levels(
    clients: Clients, settings: Settings, boards: Boards, progress: Callable[[int, int], None]
) -> dict[int, _Taken]:
    """Every level in every round, so that what changes on the machine meanwhile touches all of them.

    Args:
        clients: of the model.
        settings: levels, rounds, clips.
        boards: whose energy is read.
        progress: told how many levels of all rounds are done, and of how many.
    """
    taken = {count: _Taken([], [], Memory(None, None)) for count in settings.concurrency}
    rounds = settings.warmup + settings.rounds
    for index in range(rounds):
        for place, (count, level) in enumerate(taken.items()):
            progress(index * len(taken) + place, rounds * len(taken))
            before = boards.joules()
            done = clients.run(count, settings.clips)
            after = boards.joules()
            level.memory = memory()
            if index >= settings.warmup:
                level.rounds.append(done)
                if before is not None and after is not None:
                    level.joules.append(after - before)
    progress(rounds * len(taken), rounds * len(taken))
    return taken


def summarise(
    taken: dict[int, _Taken], settings: Settings, work: ModelWork, prompt: int, head: int, roof: Roof | None,
    size: str | None,
) -> tuple[Level, ...]:  # fmt: skip
    """The levels' figures.

    Args:
        taken: their rounds.
        settings: that they were run with.
        work: what the model must read and compute.
        prompt: tokens of a clip's prompt.
        head: those of them before the audio, which a slot may still hold from the clip before.
        roof: of this machine, if it was measured.
        size: of the released models, if it is one.
    """

    def bounds(count: int) -> Bounds | None:
        return None if roof is None else _bounds(count, settings, work, prompt, head, roof)

    return tuple(_level(count, level, settings, bounds(count), size) for count, level in taken.items())


def _level(count: int, taken: _Taken, settings: Settings, bounds: Bounds | None, size: str | None) -> Level:
    watches = [watch for done in taken.rounds for watch in done.watches]
    audio, clip = settings.seconds * settings.clips * count, Spread.of(watch.seconds for watch in watches)
    return Level(
        concurrency=count,
        first_token=Spread.of(watch.first_token for watch in watches),
        inter_token=Spread.of(gap for watch in watches for gap in watch.gaps),
        clip=clip,
        real_time_factor=clip.scaled(1 / settings.seconds),
        throughput=Spread.of(audio / done.seconds for done in taken.rounds),
        rows_per_step=_mean([done.rows_per_step for done in taken.rounds]),
        memory=taken.memory,
        joules_per_audio_second=Spread.of(joules / audio for joules in taken.joules) if taken.joules else None,
        bounds=bounds,
        published=published(size, settings.seconds, settings.tokens, count),
    )


def _bounds(count: int, settings: Settings, work: ModelWork, prompt: int, head: int, roof: Roof) -> Bounds:
    encode, prefill = work.encode(round(settings.seconds * 100)), work.feed(prompt - head, head)
    first = roof.seconds(encode) + roof.seconds(prefill)
    steps = [roof.seconds(work.feed(1, prompt + index, rows=count)) for index in range(settings.tokens - 1)]
    return Bounds(first, _mean(steps), count * settings.seconds / (count * first + sum(steps)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
