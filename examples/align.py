"""Subtitles of a recording whose text is known, with its punctuation.

python examples/align.py ALIGNER_BUNDLE AUDIO "What is said in it." > subtitles.srt
"""

import sys

import qwen3asr
from qwen3asr import Transcript
from qwen3asr.subtitles import segments_of

bundle, audio, text = sys.argv[1:]
clip = qwen3asr.read_audio(audio)
words = qwen3asr.load_aligner(bundle).align((clip.samples, 16_000), text)
segments = segments_of(text, words, clip.duration)
print(Transcript(text, None, clip.duration, "stop", segments).to_srt(), end="")
