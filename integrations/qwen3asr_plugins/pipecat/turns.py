"""The audio of turns: what was heard before the VAD did, where in time it lies, and what waits for its transcript."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pipecat.frames.frames import AudioRawFrame, VADUserStartedSpeakingFrame, VADUserStoppedSpeakingFrame

PRE_ROLL_SECONDS = 1.0  # as Pipecat's own segmented services: a VAD hears speech only some tenths after it began
_TURNS = 8  # that may wait for their transcripts


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where the times of a result count from.

    Attributes:
        start_time: when its first sample was heard, in seconds of ``time.time()``.
        pre_roll: seconds of its audio from before the VAD heard the user.
    """

    start_time: float
    pre_roll: float = 0.0

    @classmethod
    def before(cls, timestamp: float, seconds: float) -> Anchor:
        """Of audio that began so many seconds before the VAD's start."""
        return cls(timestamp - seconds, seconds)

    def later(self, seconds: float) -> Anchor:
        """Of the same audio without its first seconds."""
        return Anchor(self.start_time + seconds, max(0.0, self.pre_roll - seconds))

    def to_dict(self) -> dict[str, float]:
        """As results have it, rounded to milliseconds."""
        return {"start_time": round(self.start_time, 3), "pre_roll": round(self.pre_roll, 3)}


def keep_last(audio: bytearray, size: int) -> int:
    """Drop all but the last bytes; how many those were."""
    dropped = max(0, len(audio) - size)
    del audio[:dropped]
    return dropped


@dataclass(slots=True)
class Clip:
    """16-bit audio; what comes in another format starts it anew."""

    rate: int = 1
    channels: int = 1
    audio: bytearray = field(default_factory=bytearray)

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.audio) / (2 * self.channels * self.rate)

    @property
    def samples(self) -> npt.NDArray[np.int16]:
        """``[n, channels]``."""
        return np.frombuffer(bytes(self.audio), np.int16).reshape(-1, self.channels)

    def add(self, frame: AudioRawFrame, longest: float) -> float:
        """Append a frame, and keep the last seconds only; how many were dropped."""
        dropped = 0.0
        if (frame.sample_rate, frame.num_channels) != (self.rate, self.channels):
            dropped = self.take().seconds
            self.rate, self.channels = frame.sample_rate, frame.num_channels
        self.audio += frame.audio
        sample = 2 * self.channels
        return dropped + keep_last(self.audio, round(longest * self.rate) * sample) / sample / self.rate

    def take(self) -> Clip:
        """What there is; nothing is left."""
        taken = Clip(self.rate, self.channels, self.audio)
        self.audio = bytearray()
        return taken


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user said, from a second before the VAD's start to its stop, and when that was."""

    clip: Clip
    anchor: Anchor
    ended: float


class UserTurns:
    """The user's turns that wait for their transcripts, in order; eight at most, of which the oldest goes.

    Args:
        longest: seconds of audio kept of a turn: its last.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._open = Clip()
        self._anchor: Anchor | None = None  # of the turn that goes on; none while nobody speaks
        self._over: deque[Turn] = deque(maxlen=_TURNS)

    def hear(self, frame: AudioRawFrame) -> None:
        """Keep audio."""
        if self._anchor is None:
            self._open.add(frame, PRE_ROLL_SECONDS)
        else:
            self._anchor = self._anchor.later(self._open.add(frame, self._longest))

    def begin(self, frame: VADUserStartedSpeakingFrame) -> None:
        """The VAD hears the user."""
        if self._anchor is None:
            self._anchor = Anchor.before(frame.timestamp, self._open.seconds)

    def end(self, frame: VADUserStoppedSpeakingFrame) -> None:
        """The VAD hears the user no more."""
        if self._anchor is not None:
            self._over.append(Turn(self._open.take(), self._anchor, frame.timestamp))
        self._anchor = None

    def claim(self, within: float) -> Turn | None:
        """The turn of a transcript that comes now: the oldest that has waited for no more than so many seconds."""
        while self._over:
            turn = self._over.popleft()
            if time.time() - turn.ended <= within:
                return turn
        return None
