"""Time to first token, real-time factor and throughput of forced texts, beside transformers and what the GPU allows."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_contender import Contender
from gpu_machine import Limits, floors, spread
from gpu_models import Peer, Progress, checkpoint

from qwen3asr.aligner import Aligner, AlignerLimits
from qwen3asr.bundle import Bundle
from qwen3asr.engine import Engine
from qwen3asr.features import SAMPLE_RATE, Samples, log_mel, split_windows
from qwen3asr.jobs import Job
from qwen3asr.prompt import Frame, PromptBuilder
from qwen3asr.scheduler import Policy
from qwen3asr.tokenizer import open_tokenizer
from qwen3asr_export.expectation import synthetic

HEAD, TAIL = 9, 6  # prompt tokens before and behind the audio


@dataclass(frozen=True, slots=True)
class Load:
    """What is measured.

    Attributes:
        seconds: of a clip.
        tokens: forced of each.
        aligned_seconds: of a clip for the aligner.
        words: aligned in it.
        concurrency: clips at a time.
        rounds: clips for each of those at a time.
    """

    seconds: float = 120.0
    tokens: int = 400
    aligned_seconds: float = 60.0
    words: int = 150
    concurrency: tuple[int, ...] = (1, 8, 32, 128)
    rounds: int = 2


DRY = Load(2.0, 4, 2.0, 3, (1, 2), 1)


@dataclass(slots=True)
class Clock:
    """Notes when each token is written; never ends the text."""

    times: list[float] = field(default_factory=list)

    def push(self, token: int) -> int | None:
        """Take the next token."""
        self.times.append(time.perf_counter())
        return None


def clients(engine: Engine, bundle: Bundle, clip: Samples, load: Load, at_a_time: int) -> dict[str, Any]:
    """So many clients, each with the next clip as soon as it has its text; timed from samples to tokens."""

    def one(_: int) -> tuple[float, float]:
        start, clock = time.perf_counter(), Clock()
        windows = split_windows(log_mel(clip), bundle.spec.windows)
        engine.submit(Job(Frame(np.arange(HEAD), np.arange(TAIL)), windows, load.tokens, watch=clock)).result()
        return clock.times[0] - start, clock.times[-1] - start

    count = at_a_time * load.rounds
    with ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(one, range(at_a_time)))  # not counted
        start = time.perf_counter()
        times = list(pool.map(one, range(count)))
        wall = time.perf_counter() - start
    return {
        "first_token_s": spread([first for first, _ in times]),
        "real_time_factor": spread([last / load.seconds for _, last in times])["mean"],
        "throughput": count * load.seconds / wall,
        "clips": count,
    }


def recogniser(
    name: str, contender: Contender, at_a_time: int, load: Load, limits: Limits, work: Path
) -> dict[str, Any]:
    """One contender, so many clips at a time."""
    bundle, clip = contender.bundle(name, work), synthetic(load.seconds)
    audio = bundle.spec.windows.tokens(int(load.seconds * 100))
    prompt = HEAD + audio + TAIL
    with closing(contender.open(name, work, slots=at_a_time, capacity=_rounded(prompt + load.tokens))) as graphs:
        policy = Policy(units_per_step=4)
        with closing(Engine(graphs.encoder, graphs.decoder, (), queue=2 * at_a_time, policy=policy)) as engine:
            row = clients(engine, bundle, clip, load, at_a_time) | graphs.notes
    size = {"rows": at_a_time, "prompt": prompt, "audio": audio, "tokens": load.tokens}
    least = floors(bundle.spec, contender.widths, limits, **size)
    row["roofline"] = least | {"throughput": at_a_time * load.seconds / least["all_s"]}
    row["share_of_roofline"] = row["throughput"] / row["roofline"]["throughput"]
    return row


def transformers(peer: Peer, at_a_time: int, load: Load) -> dict[str, Any]:
    """The same clips and tokens by ``generate``, in a batch of the same size."""
    mel = log_mel(synthetic(load.seconds))
    pads = np.full(len(peer.rows(mel)), peer.spec.audio_pad)
    ids, mels = np.concatenate([np.arange(HEAD), pads, np.arange(TAIL)]), [mel] * at_a_time
    peer.forced(ids, mels, 2)  # not counted
    first = timed(lambda: peer.forced(ids, mels, 1))
    whole = timed(lambda: peer.forced(ids, mels, load.tokens))
    row: dict[str, Any] = {"first_token_s": spread([first]), "real_time_factor": whole / load.seconds}
    return row | {"throughput": at_a_time * load.seconds / whole, "clips": at_a_time}


def aligner(name: str, contender: Contender, load: Load, work: Path) -> dict[str, Any]:
    """Whole alignments, one after the other as the runtime does them."""
    bundle = contender.bundle(name, work)
    text = " ".join(np.resize(np.array("zero one two three four five six seven".split()), load.words))
    audio = bundle.spec.windows.tokens(int(load.aligned_seconds * 100))
    prompts = PromptBuilder(open_tokenizer(bundle.folder, bundle.spec))
    limits = AlignerLimits(bundle.spec.classes, 80.0)
    clip = (synthetic(load.aligned_seconds), SAMPLE_RATE)
    with closing(contender.open(name, work, slots=1, capacity=_rounded(audio + 16 * load.words + 64))) as graphs:
        model = Aligner(graphs.encoder, graphs.decoder, prompts, limits)
        model.align(clip, text, language="English")
        times = [timed(lambda: model.align(clip, text, language="English")) for _ in range(5 * load.rounds)]
    found = spread(times)
    return {
        "seconds": found,
        "real_time_factor": found["mean"] / load.aligned_seconds,
        "throughput": load.aligned_seconds / found["mean"],
        **graphs.notes,
    }


def _rounded(tokens: int) -> int:
    """Capacity for so many tokens, and the one position that engines keep to themselves."""
    return -(-(tokens + 1) // 256) * 256


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call, whose result is on the host when it returns."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def speed(
    report: dict[str, Any], names: list[str], contenders: tuple[Contender, ...], device: str, limits: Limits,
    load: Load, work: Path, progress: Progress,
) -> None:  # fmt: skip
    """All models; contenders first, then transformers. Fills ``report``."""
    for name in names:
        rows = report.setdefault(name, {})
        for contender in contenders:
            if "aligner" in name:
                progress.row(rows, contender.name, partial(aligner, name, contender, load, work))
                continue
            for at_a_time in load.concurrency:
                measure = partial(recogniser, name, contender, at_a_time, load, limits, work)
                progress.row(rows.setdefault(contender.name, {}), str(at_a_time), measure)
        if "aligner" not in name:
            peer = Peer(checkpoint(name, work), torch.bfloat16 if device == "cuda" else torch.float32, device)
            for at_a_time in load.concurrency:
                measure = partial(transformers, peer, at_a_time, load)
                progress.row(rows.setdefault("transformers", {}), str(at_a_time), measure)
