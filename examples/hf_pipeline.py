"""Hugging Face's pipeline over an exported model: many files, decoded together, with the times of their words.

python examples/hf_pipeline.py BUNDLE ALIGNER_BUNDLE AUDIO [AUDIO ...]
"""

import sys

from qwen3asr_plugins.transformers import pipeline

bundle, aligner, *paths = sys.argv[1:]
pipe = pipeline("automatic-speech-recognition", bundle, aligner=aligner, return_timestamps="word", return_language=True)
for path, result in zip(paths, pipe(path for path in paths), strict=True):  # a generator: results as they come
    print(f"{path}  {result['language']}: {result['text']}")
    for chunk in result["chunks"]:
        start, end = chunk["timestamp"]
        print(f"{start:7.2f} {end:7.2f}  {chunk['text']}")
