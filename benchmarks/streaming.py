"""What a step of a stream costs at minute 1, 5 and 10, against decoding all audio again there.

python benchmarks/streaming.py --work build/bench --out benchmarks/results/streaming.json

Full-size 0.6B with random weights, speech without a pause. Random weights write nonsense that changes with each step,
as no stream of speech does: so the graphs run as they are, and their answers are replaced by a text that grows with the
audio, 3.5 tokens a second. Chunks of 0.5 s, a step each second, segments of 30 s. Between the minutes that are measured
the stream goes on, but the graphs do not run. Decoding all again is measured up to its first token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

import qwen3asr
from qwen3asr.bundle import open_bundle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.engine import Engine
from qwen3asr.features import SAMPLE_RATE, Mel, Samples
from qwen3asr.recognizer import Recognizer
from qwen3asr.sessions.base import Embeddings, Ids, Picked
from qwen3asr.sessions.onnxruntime import OrtDecoder, OrtEncoder
from qwen3asr.tokenizer import Tokenizer, open_tokenizer

MINUTES, CHUNK, TOKENS_A_SECOND = (1, 5, 10), 0.5, 3.5


class Speaking:
    """A decoder session that computes everything, and answers with a text that grows with the audio in the slot."""

    def __init__(self, session: OrtDecoder, tokenizer: Tokenizer, pad: int, end: int) -> None:
        self._session, self._pad, self._end = session, pad, end
        self.slots, self.capacity, self.slot_bytes = session.slots, session.capacity, session.slot_bytes
        self._behind = tokenizer.id("<|audio_end|>")
        self._header = tokenizer.encode("language English<asr_text>")
        self._text = tokenizer.encode("a b c d e f g h i k l m n o p q r s t u v w x y z ")
        self._held: list[list[int]] = [[] for _ in range(session.slots)]
        self.fed, self.at_work = 0, True

    def run(self, ids: Ids, audio: Embeddings, take: Ids, slots: range, past: Ids) -> Picked:
        """See :class:`qwen3asr.sessions.base.DecoderSession`."""
        if self.at_work:
            self._session.run(ids, audio, take, slots, past)
        self.fed += ids.size
        tokens = np.zeros(take.shape, np.int64)
        for row, (slot, held) in enumerate(zip(slots, past.tolist(), strict=True)):
            self._held[slot][held:] = ids[row].tolist()
            for column, at in enumerate(take[row].tolist()):
                tokens[row, column] = self._answer(self._held[slot], held + at)
        return Picked(tokens, np.full(tokens.shape, -0.1, np.float32))

    def _answer(self, content: list[int], position: int) -> int:
        index = position - (content.index(self._behind) + 5)  # <|audio_end|><|im_end|>\\n<|im_start|>assistant\\n
        if index < len(self._header):
            return self._header[index]
        spoken = len(self._header) + int(content.count(self._pad) / 13 * TOKENS_A_SECOND)
        return self._text[index % len(self._text)] if index < spoken else self._end

    def swap(self, first: int, second: int, tokens: int) -> None:
        """See :class:`qwen3asr.sessions.base.DecoderSession`."""
        self._session.swap(first, second, tokens)
        self._held[first], self._held[second] = self._held[second], self._held[first]

    def close(self) -> None:
        """See :class:`qwen3asr.sessions.base.DecoderSession`."""
        self._session.close()


class Resting:
    """An encoder session that may be told to compute nothing."""

    def __init__(self, session: OrtEncoder, hidden: int) -> None:
        self._session, self._hidden = session, hidden
        self.batch_windows, self.at_work = session.batch_windows, True

    def run(self, mel: Mel, frames: Ids) -> Embeddings:
        """See :class:`qwen3asr.sessions.base.EncoderSession`."""
        if self.at_work:
            return self._session.run(mel, frames)
        return np.zeros((len(mel), mel.shape[2] // 100 * 13, self._hidden), np.float32)

    def close(self) -> None:
        """See :class:`qwen3asr.sessions.base.EncoderSession`."""
        self._session.close()


class Always:
    """A detector that hears speech all the time."""

    def probabilities(self, samples: Samples) -> Samples:
        """See :class:`qwen3asr.vad.SpeechDetector`."""
        return np.ones(len(samples) // 512, np.float32)

    def reset(self) -> None:
        """Nothing to forget."""


def model(folder: Path, capacity: int) -> tuple[Recognizer, Speaking, Resting]:
    """The bundle, with the answers replaced."""
    bundle = open_bundle(folder)
    spec, tokenizer = bundle.spec, open_tokenizer(folder, bundle.spec)
    session = OrtDecoder(bundle.component("decoder"), spec, slots=1, capacity=capacity)
    speaking = Speaking(session, tokenizer, spec.audio_pad, spec.eos[0])
    resting = Resting(OrtEncoder(bundle.component("encoder")), spec.hidden)
    engine = Engine(Encoder(resting, spec.windows), Decoder(speaking, spec.audio_pad, spec.hidden), spec.eos)
    return Recognizer(bundle, tokenizer, engine, guards=qwen3asr.Guards.off()), speaking, resting


def stream(folder: Path, minutes: int) -> list[dict[str, Any]]:
    """Steps in the minute before each of the minutes: two segments each, so that every length of one is in them."""
    recogniser, speaking, resting = model(folder, 2048)
    rng = np.random.default_rng(0)
    steps = []
    with recogniser, recogniser.stream(detector=Always()) as listener:
        for index in range(int(minutes * 60 / CHUNK)):
            speaking.at_work = resting.at_work = any(0 <= 60 * m - index * CHUNK < 61 for m in MINUTES)
            chunk = rng.normal(0, 0.05, int(CHUNK * SAMPLE_RATE)).astype(np.float32)
            before, fed, start = listener.work, speaking.fed, time.perf_counter()
            listener.push(chunk)
            after, seconds = listener.work, time.perf_counter() - start
            if after.steps > before.steps:
                steps.append({
                    "at": index * CHUNK, "seconds": seconds, "windows": after.windows - before.windows,
                    "frames": after.frames - before.frames, "tokens": speaking.fed - fed,
                })  # fmt: skip
            if index % 120 == 119:
                print(f"minute {(index + 1) * CHUNK / 60:.0f}", file=sys.stderr, flush=True)
    rows = []
    for minute in MINUTES:
        near = [step for step in steps if minute * 60 - 60 <= step["at"] < minute * 60]
        if near:
            row: dict[str, Any] = {"minute": minute, "steps": len(near)}
            row |= {key: round(statistics.mean(step[key] for step in near), 3) for key in near[0] if key != "at"}
            row["most_seconds"] = round(max(step["seconds"] for step in near), 3)
            rows.append(row)
    return rows


def again(folder: Path, minute: int) -> float:
    """The whole stream up to a minute from scratch, in one pass, up to its first token."""
    recogniser, *_ = model(folder, 1200 * (1 + minute))
    audio = np.random.default_rng(0).normal(0, 0.05, minute * 60 * SAMPLE_RATE).astype(np.float32)
    with recogniser:
        start = time.perf_counter()
        recogniser.transcribe(audio, split=False, max_new_tokens=1)
        return time.perf_counter() - start


def main() -> None:
    """Measure one bundle and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/streaming.json"))
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--minutes", type=int, default=10)
    args = parser.parse_args()
    folder = args.work / f"b-{args.precision}"
    report: dict[str, Any] = {
        "command": "python benchmarks/streaming.py", "machine": machine(), "model": f"0.6b {args.precision}, random",
        "steps": stream(folder, args.minutes), "decoding_all_again_s": {},
    }  # fmt: skip
    for minute in (minute for minute in MINUTES if minute <= args.minutes):
        report["decoding_all_again_s"][f"minute {minute}"] = round(again(folder, minute), 2)
        args.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
