"""Transcribe a file and print its words with their times.

python examples/transcribe.py BUNDLE AUDIO [ALIGNER_BUNDLE]
"""

import sys

import qwen3asr

bundle, audio, *aligner = sys.argv[1:]
model = qwen3asr.load(bundle, aligner=aligner[0] if aligner else None)
result = model.transcribe(audio, timestamps="word" if aligner else None)
print(f"{result.language}: {result.text} ({result.finish_reason})")
for word in result.words:
    print(f"{word.start:7.2f} {word.end:7.2f}  {word.text}  {word.confidence:.2f}")
