"""A LiveKit agent session that listens: a VAD, Qwen3-ASR while the user speaks; no keys, no server, no network.

python examples/livekit_agent.py BUNDLE AUDIO      (a file in place of a room, at the speed of speech)
"""

import asyncio
import sys

import soundfile
from livekit import rtc
from livekit.agents import Agent, AgentSession, UserInputTranscribedEvent
from livekit.agents.voice.io import AudioInput

import qwen3asr
from qwen3asr_plugins.livekit import STT


class Recording(AudioInput):
    """In place of a room's audio: 20 ms at a time, and a second of silence at the end."""

    def __init__(self, path: str) -> None:
        super().__init__(label=path)
        samples, self._rate = soundfile.read(path, dtype="int16", always_2d=True)
        self._audio = samples[:, 0].tobytes() + bytes(2 * self._rate)
        self.over = asyncio.Event()

    async def __anext__(self) -> rtc.AudioFrame:
        """The next frame, when it is due."""
        await asyncio.sleep(0.02)
        size = self._rate // 50 * 2
        frame, self._audio = self._audio[:size], self._audio[size:]
        if not frame:
            self.over.set()
            raise StopAsyncIteration
        return rtc.AudioFrame(frame, self._rate, 1, len(frame) // 2)


def tell(event: UserInputTranscribedEvent) -> None:
    """In place of the agent's language model."""
    if event.is_final:
        print(f"final    {event.language}: {event.transcript}")
    elif event.transcript:
        print(f"interim  {event.transcript}")


async def main(bundle: str, path: str) -> None:
    """Run the session until the file ends. In a worker, load the model once, in its ``prewarm`` function."""
    model = qwen3asr.load(bundle)
    session: AgentSession[None] = AgentSession(
        stt=STT(model=model, settings=qwen3asr.StreamSettings(step_seconds=0.5)),
        turn_handling={"turn_detection": "stt"},  # of slow speakers; "vad" has finals sooner
    )
    session.on("user_input_transcribed", tell)
    recording = Recording(path)
    session.input.audio = recording
    await session.start(Agent(instructions=""), record=False)
    await recording.over.wait()
    await session.aclose()  # which waits for the last words
    model.close()


asyncio.run(main(*sys.argv[1:]))
