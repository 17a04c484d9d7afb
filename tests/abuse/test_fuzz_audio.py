"""Files that are broken in any way: audio comes out, or an error that says so; never anything else."""

from __future__ import annotations

import io
import struct
from functools import cache

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from tests.abuse.conftest import examples
from tests.abuse.limits import memory, patience

from qwen3asr.audio import open_audio, read_audio
from qwen3asr.decode import _Bytes
from qwen3asr.errors import AudioError

KINDS = (
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "MS_ADPCM"), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"),
    ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"),
    ("AU", "ULAW"), ("CAF", "ALAC_16"), ("W64", "PCM_U8"), ("NIST", "ALAW"), ("VOC", "PCM_16"), ("SVX", "PCM_16"),
    ("MAT5", "FLOAT"), ("HTK", "PCM_16"),
)  # fmt: skip
NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
LONGEST = 30.0


@cache
def encoded(kind: str, subtype: str) -> bytes:
    """A third of a second."""
    file, rate = io.BytesIO(), 48_000 if subtype == "OPUS" else 16_000
    samples = 0.3 * np.sin(np.arange(rate // 3) / 7)
    soundfile.write(file, samples.astype(np.float32), rate, format=kind, subtype=subtype)
    return file.getvalue()


def change(data: bytes, how: str, draw: st.DrawFn) -> bytes:
    """One thing that goes wrong with a file; mostly in its first bytes, where the header is."""
    most = len(data) if draw(st.booleans()) else min(len(data), 120)
    at = draw(st.integers(0, max(0, most - 1)))
    match how:
        case "cut":
            return data[:at]
        case "flip":
            return data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :] if data else data
        case "number":
            form = draw(st.sampled_from("<I >I <H >H <Q >Q".split()))
            number = struct.pack(form, draw(st.sampled_from(NUMBERS)) & (0xFFFF if form[1] == "H" else -1))
            return data[:at] + number + data[at + len(number) :]
        case "insert":
            return data[:at] + draw(st.binary(max_size=40)) + data[at:]
        case "repeat":
            return data[:at] + data[at : at + 200] * draw(st.integers(2, 20)) + data[at:]
        case _:
            return data[:at] + encoded(*draw(st.sampled_from(KINDS)))[at:]


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    data = encoded(*draw(st.sampled_from(KINDS)))
    for how in draw(st.lists(st.sampled_from("cut flip number insert repeat splice".split()), min_size=1, max_size=4)):
        data = change(data, how, draw)
    return data


@examples(80)
@given(data=broken() | st.binary(max_size=200))
def test_any_bytes_are_audio_or_an_audio_error(data: bytes) -> None:
    with memory(), patience():
        try:
            with open_audio(data, most_seconds=LONGEST) as reader:
                samples = np.concatenate(list(reader))
        except AudioError:
            return
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert 0 < len(samples) <= (LONGEST + 1) * 16_000


# --- what was found --------------------------------------------------------------------------------------------


def test_silence_of_many_channels_takes_no_more_memory_than_any() -> None:
    """28 kB of Vorbis with 255 channels used to take 0.8 GB, for blocks were counted in frames."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 48_000, 255, format="OGG", subtype="VORBIS") as out:
        for _ in range(15):
            out.write(np.zeros((48_000, 255), np.float32))
    with memory(150):
        assert read_audio(file.getvalue()).duration == pytest.approx(15.0, abs=0.1)


def test_a_seek_before_the_start_stays_within_the_file() -> None:
    """Some headers have libsndfile do it; Python's error used to be printed from inside of its C code."""
    stream = _Bytes(b"abc")
    stream.read(2)
    assert (stream.seek(-1), stream.seek(1)) == (2, 1)
