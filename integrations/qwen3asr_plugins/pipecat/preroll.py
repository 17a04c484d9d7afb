"""The audio from before the VAD heard the user, which belongs to what is said."""

from __future__ import annotations

PRE_ROLL_SECONDS = 1.0  # as Pipecat's own segmented services: a VAD hears speech only some tenths after it began


def keep_last(audio: bytearray, size: int) -> None:
    """Drop all but the last bytes."""
    del audio[: max(0, len(audio) - size)]
