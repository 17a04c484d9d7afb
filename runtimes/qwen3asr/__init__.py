"""Qwen3-ASR speech recognition and forced alignment, without torch.

    import qwen3asr
    model = qwen3asr.load("out/qwen3-asr-0.6b", aligner="out/forced-aligner")
    result = model.transcribe("call.wav", timestamps="word")
    print(result.language, result.text, result.words[0].start)

Importing loads neither torch nor ONNX Runtime; :func:`load` does, when it knows which backend it needs.
"""

from qwen3asr.aligner import Aligner
from qwen3asr.audio import Audio, AudioInput, read_audio
from qwen3asr.errors import Qwen3AsrError
from qwen3asr.languages import ALIGNER_LANGUAGES, LANGUAGES
from qwen3asr.load import load, load_aligner
from qwen3asr.recognizer import Recognizer
from qwen3asr.transcript import Transcript
from qwen3asr.types import FinishReason, Segment, Word

__all__ = [
    "ALIGNER_LANGUAGES",
    "LANGUAGES",
    "Aligner",
    "Audio",
    "AudioInput",
    "FinishReason",
    "Qwen3AsrError",
    "Recognizer",
    "Segment",
    "Transcript",
    "Word",
    "load",
    "load_aligner",
    "read_audio",
]
__version__ = "0.1.0"
