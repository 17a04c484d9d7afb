"""A Pipecat pipeline that listens: a VAD, Qwen3-ASR while the user speaks, and word times; no keys, no network.

python examples/pipecat_agent.py BUNDLE AUDIO [ALIGNER]      (a file in place of a microphone, at the speed of speech)
"""

import asyncio
import sys

import soundfile
from loguru import logger
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADParams
from pipecat.frames.frames import EndFrame, Frame, InputAudioRawFrame, InterimTranscriptionFrame, TranscriptionFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

import qwen3asr
from qwen3asr_plugins.pipecat import Qwen3AlignmentProcessor, Qwen3ASRStreamingSTTService


class Printer(FrameProcessor):
    """In place of the agent's language model."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Print what was understood; let everything pass."""
        await super().process_frame(frame, direction)
        if isinstance(frame, InterimTranscriptionFrame):
            print(f"interim  {frame.text}")
        elif isinstance(frame, TranscriptionFrame):
            print(f"final    {frame.language}: {frame.text}")
            for segment in frame.result["segments"]:
                for word in segment["words"]:
                    print(f"         {word['start']:6.2f} {word['end']:6.2f}  {word['text']}")
        await self.push_frame(frame, direction)


async def speak(worker: PipelineWorker, path: str, rate: int) -> None:
    """Give 20 ms at a time, as a transport does, and a second of silence at the end."""
    samples, _ = soundfile.read(path, dtype="int16", always_2d=True)
    audio = samples[:, 0].tobytes() + bytes(2 * rate)
    size = rate // 50 * 2
    for at in range(0, len(audio), size):
        await worker.queue_frame(InputAudioRawFrame(audio[at : at + size], rate, 1))
        await asyncio.sleep(0.02)
    await worker.queue_frame(EndFrame())


async def main(bundle: str, path: str, aligner: str | None = None) -> None:
    """Run the pipeline until the file ends; it has to be of 8 or 16 kHz, which is what Silero's VAD takes."""
    rate = soundfile.info(path).samplerate
    processors: list[FrameProcessor] = [
        VADProcessor(vad_analyzer=SileroVADAnalyzer(params=VADParams(stop_secs=0.8))),  # of slow speakers
        Qwen3ASRStreamingSTTService(
            model=qwen3asr.load(bundle),
            settings=Qwen3ASRStreamingSTTService.Settings(step_seconds=0.5),
            ttfs_p99_latency=0.5,
        ),
    ]
    if aligner is not None:
        processors.append(Qwen3AlignmentProcessor(aligner=qwen3asr.load_aligner(aligner)))
    worker = PipelineWorker(
        Pipeline([*processors, Printer()]), params=PipelineParams(audio_in_sample_rate=rate), enable_rtvi=False
    )
    runner = WorkerRunner()
    await runner.add_workers(worker)
    await asyncio.gather(runner.run(), speak(worker, path, rate))


logger.remove()  # Pipecat tells about every step
asyncio.run(main(*sys.argv[1:]))
