"""What of the services can change while they run, and what Pipecat and the model call languages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipecat.services.settings import STTSettings
from pipecat.transcriptions.language import Language
from pipecat.utils.types import NOT_GIVEN, NotGiven

from qwen3asr import LANGUAGES

_NAMES = {code: name for name, code in LANGUAGES.items()} | {"tl": "Filipino", "zh-HK": "Cantonese"}


@dataclass
class Qwen3ASRSTTSettings(STTSettings):
    """What of :class:`Qwen3ASRSTTService` can change while it runs, by ``STTUpdateSettingsFrame(delta=...)``.

    ``language`` is Pipecat's ``Language``, a name or a code; ``None`` detects it. ``model`` has no use.

    Attributes:
        context: names and terms that the user may say.
        timestamps: ``"word"`` for word times in ``result``, which need a model loaded with an aligner.
    """

    context: str | NotGiven = field(default_factory=lambda: NOT_GIVEN)
    timestamps: Literal["word"] | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)


@dataclass
class Qwen3ASRStreamingSTTSettings(Qwen3ASRSTTSettings):
    """As :class:`Qwen3ASRSTTSettings`; a change takes effect with the user's next turn.

    Attributes:
        step_seconds: new audio that makes a step, and perhaps an interim frame: 0.1 to 10.
    """

    step_seconds: float | NotGiven = field(default_factory=lambda: NOT_GIVEN)


def model_language(language: Language) -> str | None:
    """The model's name of a language (``"German"`` of ``de-AT``); ``None`` if it knows none."""
    return _NAMES.get(language.value) or _NAMES.get(language.value.split("-")[0])


def pipecat_language(name: str | None) -> Language | None:
    """Pipecat's name of one of the model's languages; all thirty have one."""
    return None if name is None else Language(LANGUAGES[name])
