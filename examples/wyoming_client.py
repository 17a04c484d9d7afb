"""A Wyoming client: sends a recording as a voice satellite would, and prints the text as it comes.

python examples/wyoming_client.py tcp://127.0.0.1:10300 AUDIO [LANGUAGE]
"""

import asyncio
import sys

import soundfile
from wyoming.asr import Transcribe, Transcript, TranscriptChunk
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncClient
from wyoming.error import Error
from wyoming.info import Describe, Info


async def main(uri: str, path: str, language: str | None = None) -> None:
    """Ask what the server is, then send the recording in chunks of a tenth of a second."""
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    channels = samples.shape[1]
    async with AsyncClient.from_uri(uri) as client:
        await client.write_event(Describe().event())
        await client.write_event(Transcribe(language=language).event())
        await client.write_event(AudioStart(rate, 2, channels).event())
        for at in range(0, len(samples), rate // 10):
            audio = samples[at : at + rate // 10].tobytes()
            await client.write_event(AudioChunk(rate, 2, channels, audio).event())
        await client.write_event(AudioStop().event())
        while (event := await client.read_event()) is not None:
            if Info.is_type(event.type):
                (program,) = Info.from_event(event).asr
                print(f"{program.name} {program.version}: {program.models[0].name}")
            elif TranscriptChunk.is_type(event.type):
                print(f"    {TranscriptChunk.from_event(event).text}")
            elif Transcript.is_type(event.type):
                transcript = Transcript.from_event(event)
                print(f"{transcript.language}: {transcript.text}")
                return
            elif Error.is_type(event.type):
                sys.exit(Error.from_event(event).text)


asyncio.run(main(*sys.argv[1:]))
