"""What the server says of itself."""

from __future__ import annotations

from wyoming.info import AsrModel, AsrProgram, Attribution, Info

import qwen3asr
from qwen3asr import LANGUAGES, Recognizer


def info_of(model: Recognizer) -> Info:
    """What the server answers to ``Describe``."""
    qwen = Attribution(name="Qwen team, Alibaba Cloud", url="https://github.com/QwenLM/Qwen3-ASR")
    asr = AsrModel(
        name=model_name(model),
        description=f"Qwen3-ASR, {model.bundle.manifest.precision}",
        version=None,
        attribution=qwen,
        installed=True,
        languages=list(LANGUAGES.values()),
    )
    program = AsrProgram(
        name="qwen3asr",
        description="Qwen3-ASR on ONNX Runtime",
        version=qwen3asr.__version__,
        attribution=qwen,
        installed=True,
        models=[asr],
        supports_transcript_streaming=True,
        requires_external_vad=True,  # the client says where the audio stops
    )
    return Info(asr=[program])


def model_name(model: Recognizer) -> str:
    """What requests call the model."""
    return model.bundle.folder.name


def language_code(language: str | None) -> str | None:
    """The code of one of the model's languages."""
    return None if language is None else LANGUAGES[language]
