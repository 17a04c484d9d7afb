"""Speech to text while it is spoken: one task pushes audio as it comes, another takes the events.

python examples/stream.py BUNDLE AUDIO      (a file in place of a microphone, much faster than real time)
"""

import asyncio
import sys

import soundfile

import qwen3asr


async def speak(stream: qwen3asr.AsyncStream, path: str) -> None:
    """Push 20 ms at a time, as a microphone gives them."""
    rate = soundfile.info(path).samplerate
    for chunk in soundfile.blocks(path, blocksize=rate // 50, dtype="float32"):
        await stream.push(chunk)
        await stream.drain()  # a microphone needs no waiting
    await stream.finish()


async def main(bundle: str, path: str) -> None:
    """Print what is certain, what is not yet ("..."), and each closed segment with its language."""
    model = qwen3asr.load(bundle)
    async with model.stream_async(sample_rate=soundfile.info(path).samplerate) as stream:
        speaking = asyncio.create_task(speak(stream, path))
        async for event in stream:
            if isinstance(event, qwen3asr.Partial):
                print(f"{event.end:7.2f}  {event.committed} [{event.text[len(event.committed) :].strip()}] ...")
            else:
                print(f"{event.end:7.2f}  {event.language}: {event.text}")
        await speaking


asyncio.run(main(*sys.argv[1:]))
