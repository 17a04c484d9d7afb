"""How long after the end of speech both Pipecat services give their final transcript.

python benchmarks/pipecat_latency.py --work build/bench --out benchmarks/results/pipecat_latency.json

A pipeline of one service, fed in real time with 20 ms frames. Turns are the recordings of the tiny model, or noise of 2
to 8 s for the full-size 0.6B with random weights, whose graphs run as they are and whose answers are replaced by a text
that grows with the audio. The VAD's frames are given where a VAD with ``stop_secs=0.2`` gives them; so latency counts
from 0.2 s before its stop, as Pipecat's time to the final segment does, but of all turns: Pipecat itself measures no
final that comes later than ``stt_ttfb_timeout``. Of 20 turns the 99th percentile is no more than the worst of 20; for a
figure that is to hold, give ``--rounds`` and ``--turns`` that make hundreds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from loguru import logger
from machine import machine
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InputAudioRawFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner
from streaming import model

import qwen3asr
from qwen3asr.recognizer import Recognizer
from qwen3asr_plugins.pipecat import Qwen3ASRStreamingSTTService, Qwen3ASRSTTService

RATE, FRAME, STOP, START = 16_000, 320, 0.2, 0.2
RECORDINGS = Path(__file__).parent.parent / "examples" / "recordings"


class Ear(FrameProcessor):
    """Notes when transcripts come."""

    def __init__(self) -> None:
        super().__init__()
        self.finals: asyncio.Queue[float] = asyncio.Queue()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Let everything pass."""
        await super().process_frame(frame, direction)
        if isinstance(frame, TranscriptionFrame):
            self.finals.put_nowait(time.perf_counter())
        await self.push_frame(frame, direction)


def recordings(rounds: int) -> list[np.ndarray]:
    """What is said in the recordings of the tiny model, int16."""
    clips = [soundfile.read(path, dtype="int16")[0] for path in sorted(RECORDINGS.glob("*.flac"))]
    return [clip for clip in clips if np.abs(clip).max() > 3_000] * rounds


def noise(turns: int) -> list[np.ndarray]:
    """Turns of 2 to 8 s."""
    rng = np.random.default_rng(0)
    return [rng.normal(0, 2_000, int(rng.uniform(2, 8) * RATE)).astype(np.int16) for _ in range(turns)]


def frames(turn: np.ndarray) -> Iterator[Frame]:
    """20 ms each: half a second of silence, the turn with the VAD's frames, and silence up to its stop."""
    silence = np.zeros(RATE // 2, np.int16)
    audio = np.concatenate([silence, turn, np.zeros(int(STOP * RATE), np.int16)])
    begins = len(silence) + int(START * RATE)
    for at in range(0, len(audio) - FRAME + 1, FRAME):
        if at <= begins < at + FRAME:
            yield VADUserStartedSpeakingFrame(start_secs=START)
        yield InputAudioRawFrame(audio[at : at + FRAME].tobytes(), RATE, 1)
    yield VADUserStoppedSpeakingFrame(stop_secs=STOP)


async def latencies(service: FrameProcessor, turns: list[np.ndarray]) -> list[float]:
    """Seconds from the end of each turn's speech to its final transcript."""
    ear, found = Ear(), []
    params = PipelineParams(audio_in_sample_rate=RATE)
    worker = PipelineWorker(Pipeline([service, ear]), params=params, enable_rtvi=False, idle_timeout_secs=None)
    runner = WorkerRunner()
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    for number, turn in enumerate(turns):
        clock = time.perf_counter()
        for frame in frames(turn):
            await worker.queue_frame(frame)
            if isinstance(frame, InputAudioRawFrame):
                clock += FRAME / RATE
                await asyncio.sleep(max(0.0, clock - time.perf_counter()))
        stopped = time.perf_counter()
        found.append(await asyncio.wait_for(ear.finals.get(), 60) - stopped + STOP)
        print(f"{type(service).__name__} {number + 1}/{len(turns)}: {found[-1]:.2f} s", file=sys.stderr, flush=True)
    await worker.queue_frame(EndFrame())
    await running
    return found


async def measure(recogniser: Recognizer, turns: list[np.ndarray]) -> dict[str, Any]:
    """Both services over the same turns."""
    report: dict[str, Any] = {"turns": len(turns), "seconds": round(sum(map(len, turns)) / RATE, 1)}
    for name, service in (
        ("segmented", Qwen3ASRSTTService(model=recogniser, ttfs_p99_latency=1.0)),
        ("streaming", Qwen3ASRStreamingSTTService(model=recogniser, ttfs_p99_latency=1.0)),
    ):
        found = await latencies(service, turns)
        report[name] = {f"p{p}": round(float(np.percentile(found, p)), 3) for p in (50, 90, 99)}
    return report


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pipecat_latency.json"))
    parser.add_argument("--rounds", type=int, default=5, help="times that each recording is said")
    parser.add_argument("--turns", type=int, default=20, help="of the 0.6B")
    args = parser.parse_args()
    logger.remove()  # Pipecat tells about every step
    report: dict[str, Any] = {"command": "python benchmarks/pipecat_latency.py", "machine": machine()}
    with qwen3asr.load(args.work / "tiny-asr") as tiny:
        report["tiny fp32"] = asyncio.run(measure(tiny, recordings(args.rounds)))
    with model(args.work / "b-int8", 2048)[0] as large:
        report["0.6b int8, random"] = asyncio.run(measure(large, noise(args.turns)))
    args.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
