"""Three hours of speech in bounded memory, and 32 live streams in real time, both on the tiny trained model.

python benchmarks/long_audio.py --work build/bench --out benchmarks/results/long_audio.json [hours streams]

The tiny model costs next to nothing, so what is seen is what reading, cutting, features, engine and stitching take.
Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from machine import machine, resident_mebibytes

import qwen3asr
from qwen3asr.features import SAMPLE_RATE, Samples
from qwen3asr_export import export

ROOT = Path(__file__).resolve().parent.parent
HOURS, STREAMS, STREAM_SECONDS, CHUNK_MS = 3, 32, 60, 20


def recordings() -> list[Samples]:
    """Spoken clips with a second of faint noise behind each."""
    rng = np.random.default_rng(0)
    clips = []
    for name in ("english", "german", "spanish", "chinese"):
        samples = soundfile.read(ROOT / f"examples/recordings/{name}.flac", dtype="float32")[0]
        clips.append(np.concatenate([samples, rng.normal(0, 1e-4, SAMPLE_RATE).astype(np.float32)]))
    return clips


def bundle(work: Path) -> Path:
    """The tiny recogniser, exported once."""
    if not (work / "tiny-asr").exists():
        export(ROOT / "examples/tiny/asr", work / "tiny-asr", precision="fp32", check=False)
    return work / "tiny-asr"


def hours(work: Path) -> dict[str, Any]:
    """Memory and time of a file of three hours."""
    path = work / "hours.flac"
    if not path.exists():
        round_of_all = np.concatenate(recordings())
        with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
            for _ in range(round(HOURS * 3600 * SAMPLE_RATE / len(round_of_all))):
                file.write(round_of_all)
    model = qwen3asr.load(bundle(work))
    model.transcribe(np.concatenate(recordings())[: 12 * SAMPLE_RATE])
    loaded = resident_mebibytes()
    seen: list[tuple[float, int]] = []
    start = time.perf_counter()
    with model:
        result = model.transcribe(path, progress=lambda now: seen.append((now.done, resident_mebibytes()["resident"])))
    seconds = time.perf_counter() - start
    return {
        "audio_hours": round(result.duration / 3600, 2),
        "seconds": round(seconds, 1),
        "real_time_factor": round(seconds / result.duration, 5),
        "pieces": len(seen),
        "kv_cache": str(model.kv_cache),
        "resident_mib_loaded": loaded["resident"],
        "resident_mib_by_hour": {
            f"{hour} h": next(mib for done, mib in seen if done >= hour * 3590) for hour in (1, 2, 3)
        },
        "peak_mib_above_loaded": resident_mebibytes()["peak"] - loaded["resident"],
    }


def streams(work: Path) -> dict[str, Any]:
    """How far the last event of each stream is behind its audio, with all of them speaking in real time."""
    return asyncio.run(_streams(qwen3asr.load(bundle(work), slots=STREAMS)))


async def _streams(model: qwen3asr.Recognizer) -> dict[str, Any]:
    size = SAMPLE_RATE * CHUNK_MS // 1000
    clips = recordings()
    late: list[float] = []  # of pushing: how long after its time a chunk was taken
    lags: list[float] = []  # from the end of the audio that an event is of, to the event
    finals = steps = 0

    def audio(number: int) -> Iterator[Samples]:
        whole = np.concatenate([clips[(number + index) % len(clips)] for index in range(20)])
        return (whole[at : at + size] for at in range(0, STREAM_SECONDS * SAMPLE_RATE, size))

    async def speak(stream: qwen3asr.AsyncStream, number: int, start: float) -> None:
        for index, chunk in enumerate(audio(number)):
            due = start + (index + 1) * CHUNK_MS / 1000
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            late.append(time.perf_counter() - due)
            await stream.push(chunk)
        await stream.finish()

    async def listen(stream: qwen3asr.AsyncStream, start: float) -> None:
        nonlocal finals
        async for event in stream:
            lags.append(time.perf_counter() - start - event.end)
            finals += isinstance(event, qwen3asr.Final)

    async def one(number: int) -> None:
        nonlocal steps
        async with model.stream_async() as stream:
            start = time.perf_counter() + number / STREAMS  # they do not all begin in one moment
            await asyncio.gather(speak(stream, number, start), listen(stream, start))
            steps += stream.work.steps

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one(number) for number in range(STREAMS)))
    wall = time.perf_counter() - began
    counted = model.metrics.snapshot()
    return {
        "streams": STREAMS,
        "audio_seconds_each": STREAM_SECONDS,
        "wall_seconds": round(wall, 1),
        "cpu_share_of_the_machine": round((time.process_time() - cpu) / wall / 2, 2),
        "steps": steps,
        "finals": finals,
        "step_ms": {q: round(getattr(counted.latency, q) * 1000, 1) for q in ("p50", "p90", "p99")},
        "event_behind_its_audio_ms": {f"p{q}": round(float(np.percentile(lags, q)) * 1000) for q in (50, 90, 99)},
        "chunk_taken_late_ms": {f"p{q}": round(float(np.percentile(late, q)) * 1000, 1) for q in (50, 90, 99)},
        "rows_per_step": round(counted.rows_per_step, 2),
    }


def main() -> None:
    """Run each in a process of its own, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["hours", "streams"])
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/long_audio.json"))
    parser.add_argument("--here", choices=["hours", "streams"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.here:
        print(json.dumps({"hours": hours, "streams": streams}[args.here](args.work)))
        return
    report: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    report |= {"command": "python benchmarks/long_audio.py", "machine": machine(), "model": "tiny, fp32"}
    for part in args.parts:
        command = [sys.executable, __file__, "--here", part, "--work", str(args.work)]
        report[part] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        args.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        print(json.dumps(report[part], indent=1), flush=True)


if __name__ == "__main__":
    main()
