"""The whole way, offline: export the tiny trained models to ONNX, verify them, transcribe recordings.

    make demo

The tiny models know 64 words in four languages (examples/tiny); a released checkpoint goes the same way.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import qwen3asr

EXAMPLES = Path(__file__).resolve().parent
OUT = EXAMPLES.parent / "build" / "demo"


def main() -> None:
    """Export, verify, transcribe; exits with 1 if any text or language is wrong."""
    for kind in ("asr", "aligner"):
        print(f"\n$ qwen3asr export examples/tiny/{kind} build/demo/{kind}\n")
        command = [sys.executable, "-m", "qwen3asr.cli", "export", str(EXAMPLES / "tiny" / kind), str(OUT / kind)]
        subprocess.run([*command, "--force"], check=True)

    print("\n$ python examples/demo.py\n")
    model = qwen3asr.load(OUT / "asr", aligner=OUT / "aligner")
    wrong = 0
    for entry in json.loads((EXAMPLES / "recordings" / "manifest.json").read_text("utf-8")):
        result = model.transcribe(EXAMPLES / "recordings" / entry["audio"], timestamps="word")
        right = (result.text, result.language) == (entry["text"], entry["language"])
        wrong += not right
        print(f"{entry['audio']}  {result.duration:.1f} s  {result.language}  [{'right' if right else 'WRONG'}]")
        print(f"  {result.text or '(no speech)'}")
        for word, true in zip(result.words, entry["words"], strict=False):
            spoken = f"spoken {true['start']:.2f} - {true['end']:.2f}"
            print(f"  {word.start:6.2f} - {word.end:5.2f}  {word.text:<10} ({spoken})")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
