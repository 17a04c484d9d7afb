"""Optimisation profiles: the shapes in which encoder and decoder are called, the tightest first.

One engine with several profiles, not an engine each: they share the weights. Measured at the 0.6B shape in bf16
(capacity 4096, 8 slots): one decoder engine with all three takes 1265 MB, two with one each 2447 MB.
"""

from __future__ import annotations

from qwen3asr.engines import Profile, Range
from qwen3asr.features import MEL_BINS
from qwen3asr.spec import ModelSpec
from qwen3asr_export.tensorrt.settings import Settings

_PROMPT = 24  # tokens around the audio of a stream's pass: the end of the prompt and a forced language


def encoder_profiles(spec: ModelSpec, settings: Settings) -> tuple[Profile, ...]:
    """``one`` window, as streams and short clips give it, and ``many``."""
    chunk, window, most = spec.windows.chunk_frames, spec.windows.window_frames, settings.windows

    def profile(name: str, least: int, best: int, most: int) -> Profile:
        ends = ((least, chunk), (best, window), (most, window))
        mel = Range(*((count, MEL_BINS, frames) for count, frames in ends))
        return Profile(name, {"mel": mel, "frames": Range(*((count,) for count, _ in ends))})

    one = profile("one", 1, 1, 1)
    return (one,) if most == 1 else (one, profile("many", 1, min(most, 16), most))


def decoder_profiles(spec: ModelSpec, settings: Settings) -> tuple[Profile, ...]:
    """``step`` (one token of every row), ``verify`` (a stream's open window and draft) and ``prefill``.

    An aligner only prefills, and is asked for an answer at any token. Zero answers are no shape: take one, ignore it.
    """
    prefill = _profile(spec, settings, "prefill", settings.chunk, settings.chunk, settings.draft + 1)
    if spec.kind == "aligner":
        return (_profile(spec, settings, "prefill", settings.chunk, settings.chunk, settings.chunk),)
    tokens = min(spec.windows.window_tokens + _PROMPT + settings.draft, settings.chunk)
    audio = min(spec.windows.window_tokens, tokens)
    verify = _profile(spec, settings, "verify", tokens, audio, min(settings.draft + 1, tokens))
    step = _profile(spec, settings, "step", 1, 1, 1, rows=settings.slots)
    return (step, verify, prefill) if tokens < settings.chunk else (step, prefill)


def _profile(
    spec: ModelSpec, settings: Settings, name: str, tokens: int, audio: int, taken: int, rows: int = 1
) -> Profile:
    """Tuned for every row, half of the tokens and audio, and a few answers."""
    cache = (spec.kv_heads, settings.capacity, spec.head_dim)
    few = taken if spec.kind == "aligner" else min(taken, 16 if name == "verify" else 1)
    inputs = {
        "ids": Range((1, 1), (rows, _half(tokens)), (rows, tokens)),
        "audio": Range((1, spec.hidden), (_half(audio), spec.hidden), (audio, spec.hidden)),
        "past": Range((1,), (rows,), (rows,)),
        "take": Range((1, 1), (rows, few), (rows, taken)),
    }
    caches = Range((1, *cache), (rows, *cache), (rows, *cache))
    sides = (f"past.{layer}.{side}" for layer in range(spec.layers) for side in ("key", "value"))
    return Profile(name, inputs | dict.fromkeys(sides, caches))


def _half(count: int) -> int:
    return max(1, count // 2)
