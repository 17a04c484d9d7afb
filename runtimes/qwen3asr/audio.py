"""Audio in: files, bytes, streams and arrays become 16 kHz mono float32.

The order is the original's: mean of the channels, resampling to 16 kHz (soxr HQ), division by the peak where it
exceeds 1. Quiet audio is not amplified. One difference: the original peak-normalises int16 arrays, here integers
are divided by their full scale, so that an array and the WAV file made from it give the same samples.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from qwen3asr.errors import AudioEmpty, AudioFormatInvalid, AudioNotFinite, AudioNotFound, AudioUnreadable
from qwen3asr.features import SAMPLE_RATE, Samples

Array: TypeAlias = npt.NDArray[Any]
AudioInput: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Array | tuple[Array, int] | Mapping[str, Any]
"""A path, the bytes of a file, a binary file object, samples, ``(samples, rate)``, or a Hugging Face
``{"array": samples, "sampling_rate": rate}``."""

MAX_RATE = 768_000
_MIN_FILE_RATE = 1_000  # below it, a broken header would have us make gigabytes out of a small file
_BLOCK = 1 << 20  # frames decoded at a time: only the mono mix of a long file is ever whole in memory
_FULL_SCALE = {  # kind and bytes of a dtype: the value of silence, and the distance to full scale
    "f2": (0.0, 1.0),
    "f4": (0.0, 1.0),
    "f8": (0.0, 1.0),
    "u1": (128.0, 128.0),
    "i2": (0.0, 2.0**15),
    "i4": (0.0, 2.0**31),
}


@dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """One clip.

    Attributes:
        samples: float32 ``[n]``, n >= 1, mono, 16 kHz, within +-1; never the caller's own memory.
        name: what messages call it: its path, or "audio".
    """

    samples: Samples
    name: str = "audio"

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE


def read_audio(source: AudioInput, sample_rate: int | None = None, name: str | None = None) -> Audio:
    """Read one clip as 16 kHz mono.

    Args:
        source: path, bytes, binary file object (read from where it stands; need not seek) in any format of libsndfile,
            or of ffmpeg where that is on the PATH; or an array ``[n]``, ``[n, channels]`` or ``[channels, n]``
            (when shape[0] <= 8 and shape[1] > shape[0]) of float16/32/64, int16, int32 or uint8.
        sample_rate: rate of a bare array in Hz, 16000 if ``None``; files, tuples and dicts bring their own.
        name: what messages call the clip; by default its path, or "audio".

    Raises:
        AudioNotFound: the path names nothing.
        AudioUnreadable: a directory, a URL, or nothing that libsndfile or ffmpeg can decode.
        AudioEmpty: no bytes or no samples.
        AudioNotFinite: NaN or infinite samples.
        AudioFormatInvalid: a type, shape or rate that cannot be audio.
        PermissionError: as the system raises it.
    """
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        name = name or path
        mono, rate = _read_path(path, name)
    elif isinstance(source, bytes | bytearray | memoryview):
        name = name or "audio"
        mono, rate = _read_bytes(bytes(source), name)
    elif hasattr(source, "read"):
        name = name or _stream_name(source)
        mono, rate = _read_bytes(_read_stream(source, name), name)
    else:
        name = name or "audio"
        array, rate = _array_and_rate(source, sample_rate, name)
        mono = _mono(array, name)
    return Audio(_to_16k(mono, rate, name), name)


# --- files -----------------------------------------------------------------------------------------------------


def _read_path(text: str, name: str) -> tuple[Samples, int]:
    if text.lower().startswith(("http://", "https://")):
        raise AudioUnreadable(name, "it is a URL; download it first, then give the file's path or bytes")
    path = Path(text)
    try:
        status = path.stat()
    except PermissionError:
        raise
    except (OSError, ValueError) as error:  # also too long a name, a path through a file, a NUL character
        raise AudioNotFound(text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)") from error
    if stat.S_ISDIR(status.st_mode):
        raise AudioUnreadable(name, "it is a directory; give the files in it one by one")
    with path.open("rb") as stream:
        if not stat.S_ISREG(status.st_mode):  # a pipe, such as bash's <(...)
            return _read_bytes(stream.read(), name)
        if status.st_size == 0:
            raise AudioEmpty(name)
        # soundfile takes a name that ends in .raw for headerless PCM, whatever the content
        seekable = io.BytesIO(stream.read()) if path.suffix.lower() == ".raw" else stream
        return _decode(seekable, path, name)


def _read_stream(stream: Any, name: str) -> bytes:
    data = stream.read()
    if not isinstance(data, bytes | bytearray | memoryview):
        raise AudioFormatInvalid(f'{name} gives {type(data).__name__}, not bytes; open it in binary mode, "rb"')
    return bytes(data)


def _stream_name(stream: Any) -> str:
    name = getattr(stream, "name", None)
    return name if isinstance(name, str) and name else "audio"


def _read_bytes(data: bytes, name: str) -> tuple[Samples, int]:
    if not data:
        raise AudioEmpty(name)
    return _decode(io.BytesIO(data), data, name)


def _decode(stream: BinaryIO, source: Path | bytes, name: str) -> tuple[Samples, int]:
    """Mono samples and rate, by libsndfile; ``source`` is the same audio, as ffmpeg is to get it."""
    try:
        return _decode_libsndfile(stream, name)
    except soundfile.LibsndfileError as error:
        reason = f"libsndfile: {error.error_string.strip().rstrip('.')}"
    if shutil.which("ffmpeg") is None:
        raise AudioUnreadable(name, f"{reason}; installing ffmpeg adds more formats (m4a, webm, video ...)")
    with tempfile.TemporaryDirectory(prefix="qwen3asr-") as folder:
        if isinstance(source, bytes):  # not through a pipe: ffmpeg must seek in most m4a files
            data, source = source, Path(folder, "source")
            source.write_bytes(data)
        target = Path(folder, "decoded.au")
        problem = _run_ffmpeg(source, target)
        if problem is not None:
            raise AudioUnreadable(name, f"{reason}; ffmpeg: {problem}")
        with target.open("rb") as decoded:
            return _decode_libsndfile(decoded, name)


def _run_ffmpeg(source: Path, target: Path) -> str | None:
    """Decode to float32 at the file's own rate and channels; the last line of what ffmpeg says if it fails.

    Mixing and resampling stay ours: ffmpeg's -ac 1 adds stereo up (0.7 each) instead of taking the mean.
    "file:" and the whitelist keep a name or a playlist from sending ffmpeg to the network.
    """
    command = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-protocol_whitelist", "file"]
    command += ["-i", f"file:{source}", "-vn", "-c:a", "pcm_f32be", "-f", "au", f"file:{target}"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if result.returncode == 0:
        return None
    lines = result.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix(f"file:{source}: ") if lines else f"exit status {result.returncode}"


def _decode_libsndfile(stream: BinaryIO, name: str) -> tuple[Samples, int]:
    with soundfile.SoundFile(stream) as file:
        rate = int(file.samplerate)
        if not _MIN_FILE_RATE <= rate <= MAX_RATE:
            raise AudioUnreadable(name, f"its header gives a rate of {rate} Hz; convert it to {SAMPLE_RATE} Hz")
        blocks: list[Samples] = []
        while (block := file.read(_BLOCK, dtype="float32", always_2d=True)).shape[0]:
            blocks.append(block.mean(axis=1))
    if not blocks:
        raise AudioEmpty(name)
    return np.concatenate(blocks), rate


# --- arrays ----------------------------------------------------------------------------------------------------


def _array_and_rate(source: Any, sample_rate: int | None, name: str) -> tuple[Array, int]:
    rate: Any = SAMPLE_RATE if sample_rate is None else sample_rate
    array = source
    if isinstance(source, Mapping):
        if not {"array", "sampling_rate"} <= source.keys():
            raise AudioFormatInvalid(f'{name} is a dict without "array" and "sampling_rate"; give it both')
        array, rate = source["array"], source["sampling_rate"]
    elif isinstance(source, tuple):
        if len(source) != 2 or not isinstance(source[0], np.ndarray):
            raise AudioFormatInvalid(f"{name} is a tuple, but not (samples, rate); give the numpy array first")
        array, rate = source
    if not isinstance(array, np.ndarray):
        raise AudioFormatInvalid(
            f"{name} is of type {type(array).__name__}; give a path, bytes, a binary file object, "
            "or a numpy array (numpy.asarray(...), or .numpy() of a tensor)"
        )
    return array, _checked_rate(rate, name)


def _checked_rate(rate: Any, name: str) -> int:
    number = isinstance(rate, int | float | np.integer | np.floating) and not isinstance(rate, bool)
    if not number or not 0 < rate <= MAX_RATE or int(rate) != rate:
        raise AudioFormatInvalid(
            f"{name} has the sample rate {rate!r}; give it in Hz, a whole number from 1 to {MAX_RATE}, such as 16000"
        )
    return int(rate)


def _mono(array: Array, name: str) -> Samples:
    """float32 ``[n]`` at full scale 1; the mean of the channels."""
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    if kind not in _FULL_SCALE:
        raise AudioFormatInvalid(
            f"{name} has samples of type {array.dtype}; give float16, float32, float64, int16, int32 or uint8, "
            "for example with .astype(numpy.float32)"
        )
    if array.ndim not in (1, 2):
        raise AudioFormatInvalid(
            f"{name} has the shape {array.shape}; give one clip of shape [samples] or [samples, channels]"
        )
    if array.size == 0:
        raise AudioEmpty(name)
    zero, scale = _FULL_SCALE[kind]
    with np.errstate(over="ignore"):  # what float32 cannot hold turns infinite, and is reported as such
        samples: Samples = array.astype(np.float32)
        if scale != 1.0:
            samples = (samples - np.float32(zero)) / np.float32(scale)
        if samples.ndim == 2:
            channels_first = samples.shape[0] <= 8 and samples.shape[1] > samples.shape[0]
            samples = samples.mean(axis=0 if channels_first else 1)
        return samples


def _to_16k(mono: Samples, rate: int, name: str) -> Samples:
    _check_finite(mono, rate, name)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
        if mono.shape[0] == 0:  # less than half a sample
            raise AudioEmpty(name)
        _check_finite(mono, SAMPLE_RATE, name)  # samples near float32's largest overflow in the filter
    peak = float(np.abs(mono).max())
    if peak > 1.0:
        mono = mono / np.float32(peak)
    return np.clip(mono, -1.0, 1.0)


def _check_finite(mono: Samples, rate: int, name: str) -> None:
    finite = np.isfinite(mono)
    if not finite.all():
        raise AudioNotFinite(name, int(finite.size - finite.sum()), int(finite.argmin()) / rate)
