"""OpenAI's client against ``qwen3asr serve out/qwen3-asr-0.6b``.

python examples/openai_client.py http://127.0.0.1:8000/v1 AUDIO [API_KEY]
"""

import sys
from pathlib import Path

from openai import OpenAI

url, audio, *key = sys.argv[1:]
client = OpenAI(base_url=url, api_key=key[0] if key else "none")
model = next(iter(client.models.list())).id

verbose = client.audio.transcriptions.create(model=model, file=Path(audio), response_format="verbose_json")
print(f"{verbose.language}, {verbose.duration:.1f} s")
for segment in verbose.segments or []:
    print(f"{segment.start:7.2f} {segment.end:7.2f}  {segment.text}")

for event in client.audio.transcriptions.create(model=model, file=Path(audio), stream=True):
    if event.type == "transcript.text.delta":
        print(event.delta, end="", flush=True)
print()
