"""Live speech to text with OpenAI's own client, from `qwen3asr serve`.

pip install 'openai[realtime]' soundfile soxr
qwen3asr serve BUNDLE
python examples/realtime_client.py http://127.0.0.1:8000/v1 AUDIO [KEY]      (a file in place of a microphone)
"""

import asyncio
import base64
import sys

import numpy as np
import soundfile
import soxr
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection

RATE = 24_000


async def speak(connection: AsyncRealtimeConnection, path: str) -> None:
    """Send a tenth of a second at a time, as a microphone gives it; then say that the last turn is over."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    pcm = (np.clip(soxr.resample(samples.mean(axis=1), rate, RATE), -1, 1) * 32767).astype("<i2")
    for start in range(0, len(pcm), RATE // 10):
        chunk = pcm[start : start + RATE // 10].tobytes()
        await connection.input_audio_buffer.append(audio=base64.b64encode(chunk).decode())
    await connection.input_audio_buffer.commit()
    await connection.input_audio_buffer.clear()  # answered behind everything before it


async def main(url: str, path: str, key: str = "none") -> None:
    """Print what is certain as it comes, a line for each turn."""
    client = AsyncOpenAI(base_url=url, api_key=key)
    async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        speaking = asyncio.create_task(speak(connection, path))
        async for event in connection:
            if event.type == "conversation.item.input_audio_transcription.delta":
                print(event.delta, end="", flush=True)
            elif event.type == "conversation.item.input_audio_transcription.completed":
                print()
            elif event.type == "error":
                print(event.error.message, file=sys.stderr)
            elif event.type == "input_audio_buffer.cleared":
                break
        await speaking


asyncio.run(main(*sys.argv[1:]))
