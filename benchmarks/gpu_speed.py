"""Time to first token, real-time factor and throughput of forced texts, beside transformers and what the GPU allows.

Every clock starts with the features in host memory, ours and transformers': making them takes the same for both, on the
same CPU, and is told by itself (``features_s``).
"""

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
from gpu_bars import bars
from gpu_contender import Contender
from gpu_machine import Limits, floors, spread
from gpu_models import Peer, Progress, checkpoint, release

from qwen3asr.aligner import Aligner, AlignerLimits
from qwen3asr.engine import Engine
from qwen3asr.features import Mel, Samples, log_mel, split_windows
from qwen3asr.jobs import Job
from qwen3asr.prompt import Frame, PromptBuilder
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
        clips: at least, so that a 95th percentile is one.
        repeats: of what is measured one by one and takes little.
    """

    seconds: float = 120.0
    tokens: int = 400
    aligned_seconds: float = 60.0
    words: int = 150
    concurrency: tuple[int, ...] = (1, 8, 32, 128)
    rounds: int = 2
    clips: int = 24
    repeats: int = 10


DRY = Load(2.0, 4, 2.0, 3, (1, 2), 1, 1, 1)


@dataclass(slots=True)
class Clock:
    """Notes when each token is written; never ends the text."""

    times: list[float] = field(default_factory=list)

    def push(self, token: int) -> int | None:
        """Take the next token."""
        self.times.append(time.perf_counter())
        return None


def clients(engine: Engine, windows: list[Mel], load: Load, at_a_time: int) -> dict[str, Any]:
    """So many clients, each with the next clip as soon as it has its text; timed from features to tokens."""

    def one(_: int) -> tuple[float, float]:
        start, clock = time.perf_counter(), Clock()
        engine.submit(Job(Frame(np.arange(HEAD), np.arange(TAIL)), list(windows), load.tokens, watch=clock)).result()
        return clock.times[0] - start, clock.times[-1] - start

    count = max(at_a_time * load.rounds, load.clips)
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
    windows = split_windows(log_mel(clip), bundle.spec.windows)
    audio = bundle.spec.windows.tokens(int(load.seconds * 100))
    prompt = HEAD + audio + TAIL
    with (
        closing(contender.open(name, work, slots=at_a_time, capacity=_rounded(prompt + load.tokens))) as graphs,
        closing(Engine(graphs.encoder, graphs.decoder, (), queue=2 * at_a_time)) as engine,
    ):
        row = clients(engine, windows, load, at_a_time) | features(clip, load) | graphs.notes
    size = {"rows": at_a_time, "prompt": prompt, "audio": audio, "tokens": load.tokens}
    least = floors(bundle.spec, contender.widths, limits, **size)
    row["roofline"] = least | {"throughput": at_a_time * load.seconds / least["all_s"]}
    row["share_of_roofline"] = row["throughput"] / row["roofline"]["throughput"]
    return row | bars(name, at_a_time, row)


def transformers(peer: Peer, at_a_time: int, load: Load) -> dict[str, Any]:
    """The same clips and tokens by ``generate``, in a batch of the same size."""
    clip = synthetic(load.seconds)
    mel = log_mel(clip)
    pads = np.full(len(peer.rows(mel)), peer.spec.audio_pad)
    ids, mels = np.concatenate([np.arange(HEAD), pads, np.arange(TAIL)]), [mel] * at_a_time
    peer.forced(ids, mels, 2)  # not counted
    first = [timed(lambda: peer.forced(ids, mels, 1)) for _ in range(load.repeats)]
    whole = timed(lambda: peer.forced(ids, mels, load.tokens))
    row: dict[str, Any] = {"first_token_s": spread(first), "real_time_factor": whole / load.seconds}
    return row | {"throughput": at_a_time * load.seconds / whole, "clips": at_a_time} | features(clip, load)


def features(clip: Samples, load: Load) -> dict[str, Any]:
    """What the features of a clip take, one by one on an idle machine."""
    return {"features_s": spread([timed(lambda: log_mel(clip)) for _ in range(load.repeats)])}


def aligner(name: str, contender: Contender, load: Load, limits: Limits, work: Path) -> dict[str, Any]:
    """From features to time classes, one clip after the other as the runtime does them; and whole alignments."""
    bundle, words, clip = contender.bundle(name, work), _words(load), synthetic(load.aligned_seconds)
    audio = bundle.spec.windows.tokens(int(load.aligned_seconds * 100))
    prompts, mel = PromptBuilder(open_tokenizer(bundle.folder, bundle.spec)), log_mel(clip)
    with closing(contender.open(name, work, slots=1, capacity=_rounded(audio + 16 * load.words + 64))) as graphs:

        def classes() -> int:
            (rows,) = graphs.encoder.encode([mel])
            prompt, marks = prompts.alignment(rows, words)
            graphs.decoder.prefill(prompt, marks, slot=0)
            return len(prompt.ids)

        model = Aligner(graphs.encoder, graphs.decoder, prompts, AlignerLimits(bundle.spec.classes, 80.0))
        prompt = classes()  # not counted
        row = _aligned([timed(classes) for _ in range(load.repeats)], load) | features(clip, load)
        whole = [timed(lambda: model.align_samples(clip, " ".join(words), "English")) for _ in range(load.repeats)]
        row |= {"with_features_and_words_s": spread(whole), **graphs.notes}
    least = floors(bundle.spec, contender.widths, limits, rows=1, prompt=prompt, audio=audio, tokens=1)["prefill_s"]
    row["roofline"] = {"seconds": least, "throughput": load.aligned_seconds / least}
    row["share_of_roofline"] = row["throughput"] / row["roofline"]["throughput"]
    return row | bars(name, 1, row)


def transformers_aligner(peer: Peer, prompts: PromptBuilder, load: Load) -> dict[str, Any]:
    """The same clip and words by transformers' model, from features to time classes."""
    clip = synthetic(load.aligned_seconds)
    mel = log_mel(clip)
    prompt, marks = prompts.alignment(peer.rows(mel), _words(load))
    peer.logits(prompt.ids, mel, marks)  # not counted
    times = [timed(lambda: peer.logits(prompt.ids, mel, marks).argmax(-1)) for _ in range(load.repeats)]
    return _aligned(times, load) | features(clip, load)


def _aligned(times: list[float], load: Load) -> dict[str, Any]:
    found = spread(times)
    real_time = {"real_time_factor": found["mean"] / load.aligned_seconds}
    return {"seconds": found, **real_time, "throughput": load.aligned_seconds / found["mean"]}


def _words(load: Load) -> list[str]:
    return [str(word) for word in np.resize(np.array("zero one two three four five six seven".split()), load.words)]


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
                progress.row(rows, contender.name, partial(aligner, name, contender, load, limits, work))
                continue
            for at_a_time in load.concurrency:
                measure = partial(recogniser, name, contender, at_a_time, load, limits, work)
                progress.row(rows.setdefault(contender.name, {}), str(at_a_time), measure)
        beside(rows, name, contenders[-1], device, load, work, progress)
        release()  # transformers' model, before the next one's contenders


def beside(
    rows: dict[str, Any], name: str, contender: Contender, device: str, load: Load, work: Path, progress: Progress
) -> None:
    """Transformers on the same model; the contender's bundle has its tokenizer."""
    peer = Peer(checkpoint(name, work), torch.bfloat16 if device == "cuda" else torch.float32, device)
    if "aligner" in name:
        bundle = contender.bundle(name, work)
        prompts = PromptBuilder(open_tokenizer(bundle.folder, bundle.spec))
        progress.row(rows, "transformers", partial(transformers_aligner, peer, prompts, load))
        return
    for at_a_time in load.concurrency:
        measure = partial(transformers, peer, at_a_time, load)
        progress.row(rows.setdefault("transformers", {}), str(at_a_time), measure)
