from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr.audio import Audio, limit_peak, open_audio, read_audio
from qwen3asr.errors import (
    AudioEmpty,
    AudioFormatInvalid,
    AudioNotFinite,
    AudioNotFound,
    AudioPastLimit,
    AudioUnreadable,
    Qwen3AsrError,
)

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not on the PATH")


def tone(rate: int = 16_000, seconds: float = 1.0, hertz: float = 440.0, peak: float = 0.5) -> npt.NDArray[np.float32]:
    time = np.arange(round(rate * seconds)) / rate
    return (peak * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def encode(samples: npt.NDArray[Any], rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def loudest_hertz(samples: npt.NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax()) * 16_000 / len(samples)


def noise(count: int, peak: float = 0.5) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-peak, peak, count).astype(np.float32)


class Unseekable(io.RawIOBase):
    """What a pipe is to its reader."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._inner.readinto(buffer)


# --- arrays ----------------------------------------------------------------------------------------------------


def test_a_float_array_comes_through_unchanged_and_is_a_copy() -> None:
    given_samples = tone()
    audio = read_audio(given_samples)
    np.testing.assert_array_equal(audio.samples, given_samples)
    assert audio.samples.dtype == np.float32
    assert (audio.name, audio.duration) == ("audio", 1.0)
    given_samples[:] = 9.0  # a caller that reuses its buffer must not change what we hold
    assert audio.samples.max() <= 0.5


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("int16", [0, 16_384, -32_768, 32_767], [0.0, 0.5, -1.0, 32_767 / 32_768]),
        (">i2", [0, 16_384, -32_768], [0.0, 0.5, -1.0]),
        ("int32", [0, 2**30, -(2**31)], [0.0, 0.5, -1.0]),
        ("uint8", [128, 192, 0], [0.0, 0.5, -1.0]),
        ("float16", [0.0, 0.5, -1.0], [0.0, 0.5, -1.0]),
        ("float64", [0.0, 0.5, -1.0], [0.0, 0.5, -1.0]),
        (">f4", [0.0, 0.5, -1.0], [0.0, 0.5, -1.0]),
    ],
)
def test_integers_are_divided_by_full_scale(dtype: str, values: list[float], expected: list[float]) -> None:
    audio = read_audio(np.array(values, dtype=dtype))
    np.testing.assert_array_equal(audio.samples, np.array(expected, np.float32))
    assert audio.samples.dtype == np.dtype(np.float32)


def test_int16_array_equals_its_wav_file_and_its_float_form() -> None:
    integers = (tone() * 32_767).astype(np.int16)
    expected = integers.astype(np.float32) / 32_768
    np.testing.assert_array_equal(read_audio(integers).samples, expected)
    np.testing.assert_array_equal(read_audio(encode(integers, 16_000)).samples, expected)


def test_loud_audio_is_divided_by_its_peak_and_quiet_audio_left_alone() -> None:
    np.testing.assert_allclose(read_audio(np.array([0.0, 2.0, -4.0])).samples, [0.0, 0.5, -1.0])
    np.testing.assert_array_equal(read_audio(np.array([0.0, 1e-4], np.float32)).samples, np.float32([0.0, 1e-4]))


@settings(deadline=None)  # other work on the machine is no failure
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50),
    st.sampled_from([8_000, 16_000, 44_100]),
)
def test_the_result_is_always_within_one(values: list[float], rate: int) -> None:
    try:
        samples = read_audio((np.array(values, np.float32), rate)).samples
    except AudioEmpty:
        assert len(values) < rate / 16_000  # rounds to no sample at 16 kHz
        return
    assert np.abs(samples).max() <= 1.0
    assert samples.ndim == 1


@pytest.mark.parametrize("shape", ["channels last", "channels first"])
def test_stereo_is_the_mean_of_its_channels(shape: str) -> None:
    left, right = tone(), tone(hertz=1_000.0)
    pair = np.stack([left, right], axis=1 if shape == "channels last" else 0)
    np.testing.assert_allclose(read_audio(pair).samples, (left + right) / 2, atol=1e-7)


def test_few_samples_of_many_channels_are_channels_last_in_a_file() -> None:
    frames = np.linspace(-0.5, 0.5, 4 * 6, dtype=np.float32).reshape(4, 6)  # an array of this shape is 4 channels
    audio = read_audio(encode(frames, 16_000, subtype="FLOAT"))
    np.testing.assert_allclose(audio.samples, frames.mean(axis=1), atol=1e-7)
    assert len(read_audio(frames).samples) == 6


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_resampling_keeps_pitch_level_and_length(rate: int) -> None:
    audio = read_audio((tone(rate, 2.0), rate))
    assert abs(len(audio.samples) - 32_000) <= 1
    assert loudest_hertz(audio.samples) == pytest.approx(440.0, abs=0.5)
    assert np.abs(audio.samples[2_000:-2_000]).max() == pytest.approx(0.5, abs=2e-3)


def test_every_way_to_give_a_rate_is_the_same() -> None:
    samples = tone(8_000)
    expected = read_audio((samples, 8_000)).samples
    for source, rate in [
        (samples, 8_000),
        (samples, 8_000.0),
        (samples, np.int64(8_000)),
        ((samples, np.float32(8_000)), None),
        ({"array": samples, "sampling_rate": 8_000, "path": "x.wav"}, None),
        ((samples, 8_000), 44_100),  # a tuple's own rate counts
    ]:
        np.testing.assert_array_equal(read_audio(source, rate).samples, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0, -16_000, 16_000.5, True, "16000", float("nan"), float("inf"), 768_001, [16_000]])
def test_a_senseless_rate_is_named(rate: Any) -> None:
    with pytest.raises(AudioFormatInvalid, match=r"sample rate .*give it in Hz") as caught:
        read_audio((tone(), rate))
    assert repr(rate) in str(caught.value)
    with pytest.raises(AudioFormatInvalid):
        read_audio(tone(), rate)


@pytest.mark.parametrize("dtype", ["bool", "complex64", "object", "U4", "int64", "uint16", "int8", "datetime64[s]"])
def test_a_dtype_that_is_no_audio_names_the_cure(dtype: str) -> None:
    with pytest.raises(AudioFormatInvalid, match=r"astype\(numpy.float32\)"):
        read_audio(np.zeros(4, dtype=dtype))


@pytest.mark.parametrize(
    ("source", "cure"),
    [
        ([0.1, 0.2], "numpy.asarray"),
        (None, "give a path"),
        (12, "give a path"),
        ((16_000, np.zeros(4)), "numpy array first"),
        ((np.zeros(4), 16_000, 1), r"\(samples, rate\)"),
        ({"array": np.zeros(4)}, "sampling_rate"),
        ({"array": [0.0], "sampling_rate": 16_000}, "numpy.asarray"),
        (np.zeros((2, 3, 4)), r"\(2, 3, 4\)"),
        (np.array(0.5), r"shape \(\)"),
        (io.StringIO("text"), '"rb"'),
    ],
)
def test_what_is_no_audio_names_the_cure(source: Any, cure: str) -> None:
    with pytest.raises(AudioFormatInvalid, match=cure) as caught:
        read_audio(source)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0)])
def test_no_samples_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioEmpty, match="holds no audio samples"):
        read_audio(np.zeros(shape, np.float32))


def test_less_than_half_a_sample_is_empty() -> None:
    with pytest.raises(AudioEmpty):
        read_audio((np.ones(1, np.float32), 48_000))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_gives_count_and_time_at_the_source_rate(value: float) -> None:
    samples = tone(8_000)
    samples[[4_000, 6_000]] = value
    with pytest.raises(AudioNotFinite, match=r"clip has 2 .* first at 0.500 s; .*nan_to_num"):
        read_audio((samples, 8_000), name="clip")


def test_not_finite_is_found_in_files_and_in_one_channel() -> None:
    pair = np.zeros((100, 2), np.float32)
    pair[16, 1] = np.nan
    with pytest.raises(AudioNotFinite, match=r"has 1 .* first at 0.001 s"):
        read_audio(encode(pair, 16_000, subtype="FLOAT"))


@pytest.mark.filterwarnings("error")
def test_what_float32_cannot_hold_is_not_finite() -> None:
    with pytest.raises(AudioNotFinite):
        read_audio(np.array([0.0, 1e300]))
    with pytest.raises(AudioNotFinite):  # overflows in the resampling filter only
        read_audio((np.full(4_000, 3e38, np.float32), 8_000))


# --- files, bytes, streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [("WAV", "FLOAT", 0.0), ("FLAC", "PCM_24", 1e-6), ("OGG", "VORBIS", 0.1), ("MP3", "MPEG_LAYER_III", 0.1)],
)
def test_bytes_path_and_stream_of_a_format_agree(kind: str, subtype: str, tolerance: float, tmp_path: Path) -> None:
    data = encode(tone(), 16_000, kind, subtype)
    path = tmp_path / f"clip.{kind.lower()}"
    path.write_bytes(data)
    audio = read_audio(path)
    assert audio.name == str(path)
    assert abs(len(audio.samples) - 16_000) <= (2_500 if kind == "MP3" else 0)  # MP3 pads to frames
    assert loudest_hertz(audio.samples) == pytest.approx(440.0, abs=1.5)
    if kind != "MP3":
        np.testing.assert_allclose(audio.samples, tone(), atol=tolerance)
    with path.open("rb") as stream:
        others = [read_audio(str(path)), read_audio(data), read_audio(stream), read_audio(Unseekable(data))]
    for other in others:
        np.testing.assert_array_equal(other.samples, audio.samples)


def test_a_file_longer_than_a_block_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3asr.decode.BLOCK", 1_000)
    pair = np.stack([tone(), -tone() / 2], axis=1)
    audio = read_audio(encode(pair, 16_000, subtype="FLOAT"))
    np.testing.assert_allclose(audio.samples, tone() / 4, atol=1e-7)


def test_a_44100_hz_stereo_file() -> None:
    samples = tone(44_100)
    audio = read_audio(encode(np.stack([samples, samples], axis=1), 44_100))
    assert abs(len(audio.samples) - 16_000) <= 1
    np.testing.assert_allclose(audio.samples[500:-500], tone()[500:-500], atol=1e-3)


def test_a_wav_whose_header_promises_more_gives_what_is_there() -> None:
    data = encode(tone(), 16_000)
    audio = read_audio(data[: 44 + 2 * 5_000])
    np.testing.assert_allclose(audio.samples, tone()[:5_000], atol=1e-4)


def test_a_stream_is_read_from_where_it_stands() -> None:
    stream = io.BytesIO(b"junk" + encode(tone(), 16_000))
    stream.seek(4)
    assert len(read_audio(stream).samples) == 16_000


def test_a_wav_named_raw_is_still_a_wav(tmp_path: Path) -> None:
    path = tmp_path / "clip.raw"
    path.write_bytes(encode(tone(), 16_000))
    assert len(read_audio(path).samples) == 16_000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(encode(tone(), 16_000),))
    writer.start()
    assert len(read_audio(pipe).samples) == 16_000
    writer.join()


@pytest.mark.parametrize("missing", ["nowhere.wav", "a" * 5_000, "UklGRg" * 60, "a\0b.wav"])
def test_a_missing_file(missing: str) -> None:
    with pytest.raises(AudioNotFound, match="check the path") as caught:
        read_audio(missing)
    assert isinstance(caught.value, FileNotFoundError)
    assert len(str(caught.value)) < 400


def test_a_path_through_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(encode(tone(), 16_000))
    with pytest.raises(AudioNotFound):
        read_audio(tmp_path / "clip.wav" / "inner.wav")


def test_a_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(AudioUnreadable, match="is a directory"):
        read_audio(tmp_path)


@pytest.mark.parametrize("url", ["https://example.org/a.wav", "HTTP://example.org/a.wav"])
def test_a_url_says_download_first(url: str) -> None:
    with pytest.raises(AudioUnreadable, match="download it first"):
        read_audio(url)


def test_empty_file_bytes_stream_and_header(tmp_path: Path) -> None:
    path = tmp_path / "empty.wav"
    path.touch()
    for source in (path, b"", io.BytesIO(), encode(np.zeros(0, np.float32), 16_000)):
        with pytest.raises(AudioEmpty):
            read_audio(source)


def test_a_forbidden_file_is_the_systems_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(encode(tone(), 16_000))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))  # root may read a chmod 000 file

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError) as caught:
        read_audio(path)
    assert not isinstance(caught.value, Qwen3AsrError)


def test_a_header_with_a_rate_of_1_hz_does_not_make_gigabytes() -> None:
    with pytest.raises(AudioUnreadable, match="rate of 1 Hz; convert it"):
        read_audio(encode(np.zeros(1_000, np.float32), 1))


def test_without_ffmpeg_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    path = tmp_path / "notes.txt"
    path.write_text("no audio at all\n" * 20)
    for source in (path, path.read_bytes()):
        with pytest.raises(AudioUnreadable, match="libsndfile: Format not recognised; installing ffmpeg adds more"):
            read_audio(source)


@needs_ffmpeg
def test_a_text_file_says_what_both_decoders_said(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no audio at all\n" * 20)
    with pytest.raises(AudioUnreadable, match="libsndfile: Format not recognised; ffmpeg: ") as caught:
        read_audio(path)
    assert str(caught.value).startswith(f"{path} cannot be read as audio")


@needs_ffmpeg
@pytest.mark.parametrize("kind", ["m4a", "webm"])
def test_ffmpeg_reads_what_libsndfile_cannot(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # "concat:" would be a protocol to ffmpeg, and an m4a has its index at the end: no pipe can carry it
    monkeypatch.chdir(tmp_path)
    wav, path = Path("clip.wav"), Path(f"concat: a clip.{kind}")
    soundfile.write(wav, np.stack([tone(48_000), 0.5 * tone(48_000)], axis=1), 48_000)
    subprocess.run(["ffmpeg", "-loglevel", "error", "-i", wav, f"file:{path}"], check=True)
    audio = read_audio(path)
    assert abs(audio.duration - 1.0) < 0.05
    assert loudest_hertz(audio.samples) == pytest.approx(440.0, abs=1.5)
    # the mean of the channels is 0.375; ffmpeg's own -ac 1 would give 0.53
    assert np.abs(audio.samples[3_000:-3_000]).max() == pytest.approx(0.375, abs=0.03)
    np.testing.assert_array_equal(read_audio(path.read_bytes()).samples, audio.samples)
    np.testing.assert_array_equal(read_audio(Unseekable(path.read_bytes())).samples, audio.samples)


def test_the_name_given_is_the_name_in_messages() -> None:
    with pytest.raises(AudioEmpty, match=r"^upload\.wav holds"):
        read_audio(b"", name="upload.wav")
    assert Audio(np.zeros(8_000, np.float32)).duration == 0.5


# --- in blocks -------------------------------------------------------------------------------------------------


def read_blocks(source: Any, rate: int | None = None) -> list[npt.NDArray[np.float32]]:
    with open_audio(source, rate) as reader:
        return list(reader)


def test_blocks_together_are_the_clip_from_any_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3asr.decode.BLOCK", 1_000)
    pair = np.stack([noise(4_500), tone(seconds=4_500 / 16_000)], axis=1)
    data = encode(pair, 16_000, subtype="FLOAT")
    for name in ("clip.wav", "clip.raw"):
        (tmp_path / name).write_bytes(data)
        for source in (tmp_path / name, data, io.BytesIO(data), Unseekable(data), pair, pair.T, (pair, 16_000)):
            blocks = read_blocks(source)
            assert [len(block) for block in blocks] == [1_000] * 4 + [500]
            np.testing.assert_array_equal(np.concatenate(blocks), pair.mean(axis=1))
            assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
    mono = pair.mean(axis=1)
    assert not any(np.shares_memory(block, mono) for block in read_blocks(mono))


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000])
@pytest.mark.parametrize("count", [1, 5, 1_000, 1_001, 30_007])
def test_a_resampled_stream_is_what_resampling_the_whole_gives(
    rate: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen3asr.decode.BLOCK", 1_000)
    samples = noise(count)
    whole = soxr.resample(samples, rate, 16_000, quality="HQ")
    if not len(whole):
        with pytest.raises(AudioEmpty):
            read_blocks(samples, rate)
        return
    blocks = read_blocks(samples, rate)
    assert all(len(block) for block in blocks)
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-5, rtol=0)
    np.testing.assert_allclose(read_audio(samples, rate).samples, limit_peak(whole), atol=1e-5, rtol=0)


def test_a_long_file_takes_a_few_blocks_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 22_050, 1) as file:
        for _ in range(60):
            file.write(tone(22_050, 10.0))  # ten minutes: 53 MB of float32, and 38 MB at 16 kHz
    tracemalloc.start()
    with open_audio(path) as reader:
        count = sum(len(block) for block in reader)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 600 * 16_000
    assert peak < 25_000_000


def test_the_duration_is_known_from_the_header_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "clip.flac").write_bytes(encode(tone(44_100, 1.5), 44_100, "FLAC"))
    with open_audio(tmp_path / "clip.flac") as reader:
        assert (reader.duration, reader.name) == (1.5, str(tmp_path / "clip.flac"))
    with open_audio((tone(8_000, 2.5), 8_000)) as reader:
        assert (reader.duration, reader.name) == (2.5, "audio")
    with open_audio(np.zeros((2, 8_000), np.int16), name="call") as reader:
        assert (reader.duration, reader.name) == (0.5, "call")
    unknown = bytearray(encode(tone(), 16_000, "FLAC"))
    unknown[21] &= 0xF0  # STREAMINFO's count of samples, 36 bits, as a live encoder leaves it
    unknown[22:26] = bytes(4)
    with open_audio(bytes(unknown)) as reader:
        assert reader.duration is None


def test_blocks_are_as_decoded_and_the_whole_is_divided_by_its_peak() -> None:
    loud = np.array([0.5, -2.0, 1.0], np.float32)
    (block,) = read_blocks(loud)
    np.testing.assert_array_equal(block, loud)
    np.testing.assert_array_equal(read_audio(loud).samples, loud / 2)


def test_the_peak_of_a_piece_is_limited_from_either_side_and_the_piece_left_alone() -> None:
    for piece in (np.float32([0.5, -2.0]), np.float32([2.0, 0.5])):
        before = piece.copy()
        limited = limit_peak(piece)
        assert np.abs(limited).max() == 1.0
        assert limited.dtype == np.float32
        np.testing.assert_array_equal(piece, before)
    quiet = np.float32([0.25, -1.0])
    np.testing.assert_array_equal(limit_peak(quiet), quiet)


def test_bad_samples_are_counted_to_the_end_and_the_first_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3asr.decode.BLOCK", 1_000)
    samples = noise(8_000)
    samples[[2_400, 2_401, 7_000]] = np.nan
    with open_audio((samples, 8_000), name="clip") as reader:
        first = next(iter(reader))
        assert np.isfinite(first).all()
        with pytest.raises(AudioNotFinite, match=r"clip has 3 .* first at 0\.300 s"):
            list(reader)


def test_a_reader_gives_its_blocks_once_and_none_after_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3asr.decode.BLOCK", 1_000)
    with open_audio(encode(tone(), 16_000)) as reader:
        assert len(next(iter(reader))) == 1_000
        assert len(list(reader)) == 15
        assert list(reader) == []
    with open_audio(encode(tone(), 16_000)) as reader:
        next(iter(reader))
    assert list(reader) == []


def test_files_are_closed_with_the_reader_and_where_opening_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    really_open = Path.open

    def watched(*arguments: Any, **named: Any) -> Any:
        opened.append(really_open(*arguments, **named))
        return opened[-1]

    good, slow = tmp_path / "good.wav", tmp_path / "slow.wav"
    good.write_bytes(encode(tone(), 16_000))
    slow.write_bytes(encode(np.zeros(1_000, np.float32), 1))
    monkeypatch.setattr(Path, "open", watched)
    with open_audio(good) as reader:
        next(iter(reader))
        assert not opened[-1].closed
    assert opened[-1].closed
    with pytest.raises(AudioUnreadable):
        open_audio(slow)
    assert opened[-1].closed


def test_a_file_damaged_further_on_gives_what_comes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3asr.decode.BLOCK", 10_000)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    samples = noise(100_000)
    data = encode(samples, 16_000, "FLAC", "PCM_24")
    with open_audio(data[: len(data) // 2], name="half.flac") as reader:
        blocks = [next(iter(reader)) for _ in range(4)]
        np.testing.assert_allclose(np.concatenate(blocks), samples[:40_000], atol=1e-6)
        with pytest.raises(AudioUnreadable, match=r"half\.flac .* lost sync; installing ffmpeg"):
            list(reader)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary files go to."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@needs_ffmpeg
def test_a_damaged_file_is_read_to_its_end_by_ffmpeg(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sample once, though libsndfile has already given the first ones."""
    monkeypatch.setattr("qwen3asr.decode.BLOCK", 10_000)
    samples = noise(100_000)
    data = encode(samples, 16_000, "FLAC", "PCM_24")
    (tmp_path / "half.flac").write_bytes(data[: len(data) // 2])
    with open_audio(tmp_path / "half.flac") as reader:
        got = np.concatenate(list(reader))
    assert not list(temporary.iterdir())
    assert 40_000 < len(got) < 60_000
    np.testing.assert_allclose(got, samples[: len(got)], atol=1e-6)


@needs_ffmpeg
def test_what_ffmpeg_decodes_is_read_in_blocks_and_its_source_removed(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen3asr.decode.BLOCK", 10_000)
    wav, path = tmp_path / "clip.wav", tmp_path / "clip.m4a"
    wav.write_bytes(encode(tone(seconds=3.0), 16_000))
    subprocess.run(["ffmpeg", "-loglevel", "error", "-i", wav, path], check=True)
    for source in (path, path.read_bytes()):
        with open_audio(source) as reader:
            assert reader.duration is None
            blocks = list(reader)
        assert len(blocks[0]) == 10_000
        assert sum(map(len, blocks)) == pytest.approx(48_000, abs=1_600)
        assert not list(temporary.iterdir())


def _flac_in_matroska(folder: Path, seconds: int, rate: int, channels: str) -> Path:
    """Silence that only ffmpeg reads: a few kB."""
    path = folder / "silence.mka"
    source = f"anullsrc=r={rate}:cl={channels}"
    command = ["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", source, "-t", str(seconds), "-c:a", "flac", path]
    subprocess.run(command, check=True)
    return path


class Started(list["subprocess.Popen[bytes]"]):
    """The processes that were started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        really_start = subprocess.Popen

        def start(*arguments: Any, **named: Any) -> Any:
            self.append(really_start(*arguments, **named))
            return self[-1]

        monkeypatch.setattr(subprocess, "Popen", start)


@needs_ffmpeg
def test_a_file_that_ffmpeg_blows_up_takes_neither_disk_nor_memory(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 kB used to become a temporary file of 369 MB before the first sample was looked at."""
    path, started = _flac_in_matroska(tmp_path, 60, 192_000, "7.1"), Started(monkeypatch)
    assert path.stat().st_size < 100_000
    for source in (path, path.read_bytes()):
        tracemalloc.start()
        with open_audio(source, most_seconds=5) as reader:
            with pytest.raises(AudioPastLimit):
                for _ in reader:
                    assert sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file()) < 100_000
            assert started[-1].poll() is None  # it waits for its reader: most of the file was never decoded
        assert started[-1].returncode is not None
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
        tracemalloc.stop()


@needs_ffmpeg
def test_ffmpeg_ends_with_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, started = _flac_in_matroska(tmp_path, 60, 192_000, "7.1"), Started(monkeypatch)
    with open_audio(path) as reader:
        next(iter(reader))
    open_audio(path).close()
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


@needs_ffmpeg
def test_a_rate_past_the_limit_is_refused_before_its_samples_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen3asr.decode.MAX_RATE", 100_000)  # no encoder of ffmpeg's writes more than 768 kHz
    path, started = _flac_in_matroska(tmp_path, 60, 192_000, "7.1"), Started(monkeypatch)
    with pytest.raises(AudioUnreadable, match="rate of 192000 Hz"):
        open_audio(path)
    assert started[0].returncode == -signal.SIGKILL


def _as_ffmpeg(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else in ffmpeg's place."""
    (folder / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


_AU = (
    "printf '.snd\\000\\000\\000\\030\\377\\377\\377\\377\\000\\000\\000\\006\\000\\000\\076\\200\\000\\000\\000\\001'"
)


@pytest.mark.skipif(os.name != "posix", reason="shell scripts")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exec sleep 60", "gave nothing for 0.2 s"),
        (f"{_AU}; exec sleep 60", "gave nothing for 0.2 s"),
        (f"{_AU}; exec >&-; exec sleep 60", "gave nothing for 0.2 s"),
        ("echo no such codec >&2; exit 3", "no such codec"),
        (f"{_AU}; echo damaged >&2; exit 3", "damaged"),
        ("exit 7", "exit status 7"),
        ("exit 0", "finds nothing to decode"),
        ("echo something else altogether than samples", "does not write the format"),
    ],
)
def test_an_ffmpeg_that_stalls_or_fails_is_an_error_that_says_so(
    tmp_path: Path, script: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_ffmpeg(tmp_path, script, monkeypatch)
    monkeypatch.setattr("qwen3asr.ffmpeg.STALLED_SECONDS", 0.2)
    started, begun = Started(monkeypatch), time.monotonic()
    with pytest.raises(AudioUnreadable, match=reason):
        read_audio(b"no audio at all\n" * 20)
    assert time.monotonic() - begun < 10
    assert started[0].returncode is not None


@pytest.mark.skipif(os.name != "posix", reason="shell scripts")
def test_what_ffmpeg_says_does_not_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that nobody reads holds 64 kB; a damaged file brings a line a packet."""
    many = "i=0; while [ $i -lt 4000 ]; do echo error number $i of a damaged file >&2; i=$((i+1)); done"
    _as_ffmpeg(tmp_path, f"{many}; {_AU}; printf '\\077\\000\\000\\000\\277\\000\\000\\000\\077'; {many}", monkeypatch)
    np.testing.assert_array_equal(read_audio(b"no audio at all\n" * 20).samples, np.float32([0.5, -0.5]))
