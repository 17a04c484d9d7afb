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
from qwen3asr.events import Event, Final, Partial
from qwen3asr.generate import Generation
from qwen3asr.guards import EchoGuard, Guards, LoopGuard, SpeechGate
from qwen3asr.languages import ALIGNER_LANGUAGES, LANGUAGES
from qwen3asr.load import load, load_aligner
from qwen3asr.metrics import MetricsSnapshot
from qwen3asr.recognizer import KvCache, Recognizer
from qwen3asr.request import Progress
from qwen3asr.scheduler import Policy
from qwen3asr.segmenter import StreamSettings
from qwen3asr.stitch import join_texts, transcript_of
from qwen3asr.streaming import AsyncStream, Stream
from qwen3asr.transcript import Transcript
from qwen3asr.types import FinishReason, Segment, Word
from qwen3asr.vad import FRAME, EnergyDetector, SpeechDetector

__all__ = [
    "ALIGNER_LANGUAGES",
    "FRAME",
    "LANGUAGES",
    "Aligner",
    "AsyncStream",
    "Audio",
    "AudioInput",
    "EchoGuard",
    "EnergyDetector",
    "Event",
    "Final",
    "FinishReason",
    "Generation",
    "Guards",
    "KvCache",
    "LoopGuard",
    "MetricsSnapshot",
    "Partial",
    "Policy",
    "Progress",
    "Qwen3AsrError",
    "Recognizer",
    "Segment",
    "SpeechDetector",
    "SpeechGate",
    "Stream",
    "StreamSettings",
    "Transcript",
    "Word",
    "join_texts",
    "load",
    "load_aligner",
    "read_audio",
    "transcript_of",
]
__version__ = "0.1.0"
