"""Between LiveKit's frames, times, languages and errors, and the model's."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from livekit import rtc
from livekit.agents import APIError, APITimeoutError, LanguageCode, stt
from livekit.agents.types import NOT_GIVEN, TimedString

from qwen3asr import LANGUAGES, Word
from qwen3asr.errors import DeadlineExceeded, EngineBusy, EngineFailed, Qwen3AsrError, StepCancelled

Input: TypeAlias = "rtc.AudioFrame | stt.RecognizeStream._FlushSentinel"

_PASSING = (EngineBusy, EngineFailed, StepCancelled)  # the same request may succeed a moment later


def seconds_of(item: Input) -> float:
    """Of audio; a flush has none."""
    return item.duration if isinstance(item, rtc.AudioFrame) else 0.0


def samples_of(frame: rtc.AudioFrame) -> npt.NDArray[np.int16]:
    """Int16 ``[n, channels]``."""
    return np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)


def timed_strings(words: tuple[Word, ...], shift: float, offset: float) -> list[TimedString]:
    """Words, their times moved by ``shift`` seconds, of which ``offset`` are LiveKit's."""
    return [
        TimedString(
            word.text,
            start_time=word.start + shift,
            end_time=word.end + shift,
            confidence=NOT_GIVEN if word.confidence is None else word.confidence,
            start_time_offset=offset,
        )
        for word in words
    ]


def model_language(language: str | None) -> str | None:
    """What the model takes of a language as LiveKit's users write it: ``"cmn-Hans-CN"`` becomes ``"zh-CN"``."""
    return None if language is None else LanguageCode(language).iso


def language_code(name: str | None) -> LanguageCode:
    """LiveKit's code of one of the model's languages; empty where the model named none."""
    return LanguageCode("" if name is None else LANGUAGES[name])


def api_error(error: Qwen3AsrError) -> APIError:
    """As LiveKit wants errors: with whether another attempt may help."""
    if isinstance(error, DeadlineExceeded):
        return APITimeoutError(str(error))
    return APIError(str(error), retryable=isinstance(error, _PASSING))
