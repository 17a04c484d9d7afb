"""A whole benchmark of one bundle on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeAlias

from qwen3asr.backends import CpuBackend, Wishes, choose_backend
from qwen3asr.benchmark.about import About, load_times
from qwen3asr.benchmark.alignment import AlignerReport, measure_aligner
from qwen3asr.benchmark.clients import Clients
from qwen3asr.benchmark.energy import open_boards
from qwen3asr.benchmark.levels import Level, measure_levels, summarise
from qwen3asr.benchmark.machine import Machine, Memory, memory, this_machine
from qwen3asr.benchmark.parts import ENCODER_SECONDS, Bench, Part, measure_parts
from qwen3asr.benchmark.published import size_of, why_not
from qwen3asr.benchmark.roofline import ModelWork, Roof, measure_roof
from qwen3asr.benchmark.settings import Settings
from qwen3asr.benchmark.speech import fit, speech_like
from qwen3asr.benchmark.spread import Spread
from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.features import Samples, frame_count
from qwen3asr.load import load, load_aligner
from qwen3asr.prompt import PromptBuilder
from qwen3asr.recognizer import Recognizer
from qwen3asr.tokenizer import open_tokenizer

SCHEMA = 1
"""Version of what :func:`qwen3asr.benchmark.as_dict` gives; it rises when a field goes or changes its meaning."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and of how much."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was measured.

    Attributes:
        when: UTC, ISO 8601.
        audio: the recording's name, or ``synthetic``.
        device: that was asked for.
        engine: likewise; ``None``: the best there is.
        threads: of one operator; 0: one a physical core.
        prompt_tokens: of the clip's prompt, audio included.
        roof: what the machine can do, where that was measured.
        load: seconds that loading took.
        loaded: memory after it.
        energy: why energy is not measured; empty where it is.
        unlike: why the technical report's figures do not stand beside clips as long as its own; else empty.
    """

    when: str
    machine: Machine
    about: About
    settings: Settings
    audio: str
    device: str
    engine: str | None
    threads: int
    prompt_tokens: int
    roof: Roof | None
    load: Spread
    loaded: Memory
    parts: tuple[Part, ...]
    levels: tuple[Level, ...]
    aligner: AlignerReport | None
    energy: str
    unlike: str


def benchmark(
    folder: str | os.PathLike[str],
    settings: Settings,
    *,
    aligner: str | os.PathLike[str] | None = None,
    samples: Samples | None = None,
    audio: str = "synthetic",
    device: str = "auto",
    engine: str | None = None,
    threads: int = 0,
    roofline: bool = True,
    progress: Progress = lambda stage, done, total: None,
) -> Report:
    """Measure a recogniser's bundle, and perhaps an aligner's, on this machine.

    Args:
        folder: of the recogniser's bundle.
        settings: how much work, and how often.
        aligner: folder of an aligner's bundle.
        samples: a recording, float32 ``[n]`` at 16 kHz, cut or repeated to ``settings.seconds``; by default
            something like speech is made up.
        audio: what to call it.
        device: as for :func:`qwen3asr.load`.
        engine: likewise.
        threads: of one operator; 0: one a physical core.
        roofline: measure what the CPU's cores and memory can do, too, if that is what the model runs on.
        progress: told of the stage and how far it is.

    Raises:
        Qwen3AsrError: whatever :func:`qwen3asr.load` raises; ``RequestInvalid`` where the clips do not fit the model.
    """
    bundle = open_bundle(Path(folder), kind="asr")
    words = None if aligner is None else open_bundle(Path(aligner), kind="aligner")  # refused now, not at the end
    clip = fit(speech_like(settings.seconds) if samples is None else samples, settings.seconds)
    prompts = PromptBuilder(open_tokenizer(bundle.folder, bundle.spec))
    frame, rows = prompts.frame(), bundle.spec.windows.tokens(frame_count(len(clip)))
    prompt, slots = len(frame.head) + rows + len(frame.tail), max(settings.concurrency)
    capacity = max(prompt + settings.tokens, *(past + 1 for past in settings.past), 1)

    def opened() -> Recognizer:
        return load(bundle.folder, device=device, engine=engine, threads=threads, slots=slots, capacity=capacity)

    boards, work, about = open_boards(), ModelWork(bundle), About.of(bundle)
    loads = load_times(opened, settings.rounds, partial(progress, "load"))
    with opened() as model:
        loaded, graphs = memory(), (model.engine.encoder, model.engine.decoder)
        parts = _parts(Bench(*graphs, prompts, work, clip, settings), progress)
        clients = Clients(*graphs, bundle.spec.windows, frame, clip, settings.tokens)
        taken = measure_levels(clients, settings, boards, partial(progress, "clips at a time"))
    of_aligner = None
    if words is not None:
        opened_aligner = partial(load_aligner, words.folder, device=device, engine=engine, threads=threads)
        of_aligner = measure_aligner(words, opened_aligner, settings, clip, partial(progress, "aligner"))
    bounded = roofline and _on_cpu(bundle, device, engine)
    roof = _roof(about.precision, progress) if bounded else None  # last: its memory is not the model's
    size = size_of(bundle.spec.hidden, bundle.spec.layers)
    return Report(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=this_machine(boards.names),
        about=about,
        settings=settings,
        audio=audio,
        device=device,
        engine=engine,
        threads=threads,
        prompt_tokens=prompt,
        roof=roof,
        load=loads,
        loaded=loaded,
        parts=parts,
        levels=summarise(taken, settings, work, prompt, len(frame.head), roof, size),
        aligner=of_aligner,
        energy=boards.note,
        unlike=why_not(size, settings.seconds, settings.tokens),
    )


def _on_cpu(bundle: Bundle, device: str, engine: str | None) -> bool:
    """Whether the roofline, which is that of the CPU, bounds the model."""
    return isinstance(choose_backend(bundle, Wishes(device, engine)), CpuBackend)


def _roof(precision: str, progress: Progress) -> Roof:
    progress("memory and cores", 0, 1)
    roof = measure_roof(precision)
    progress("memory and cores", 1, 1)
    return roof


def _parts(bench: Bench, progress: Progress) -> tuple[Part, ...]:
    total = 2 + len(ENCODER_SECONDS) + len(bench.settings.past)
    parts: list[Part] = []
    progress("parts", 0, total)
    for part in measure_parts(bench):
        parts.append(part)
        progress("parts", len(parts), total)
    return tuple(parts)
