"""Subtitles of a recording whose text is known, with its punctuation.

python examples/align.py ALIGNER_BUNDLE AUDIO "What is said in it." > subtitles.srt
"""

import sys

import qwen3asr

bundle, audio, text = sys.argv[1:]
clip = qwen3asr.read_audio(audio)
words = qwen3asr.load_aligner(bundle).align((clip.samples, 16_000), text)
print(qwen3asr.Transcript.from_words(text, words, clip.duration).to_srt(), end="")
