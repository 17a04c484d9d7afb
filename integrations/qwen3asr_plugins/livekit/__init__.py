"""LiveKit Agents: speech to text for voice agents, while it is spoken or a recording at a time.

    model = qwen3asr.load("out/qwen3-asr-0.6b")
    session = AgentSession(stt=STT(model=model), ...)

Checked with livekit-agents 1.8. Any number of sessions share one model. Frames may have any rate and any number of
channels: they reach the model as they are, without LiveKit's resampler.
"""

from __future__ import annotations

from qwen3asr.errors import ExtraMissing

try:
    import livekit.agents  # noqa: F401
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "livekit":
        raise
    raise ExtraMissing("the LiveKit plugin", "livekit-agents", "livekit") from error

from .service import STT
from .stream import RecognizeStream

__all__ = ["STT", "RecognizeStream"]
