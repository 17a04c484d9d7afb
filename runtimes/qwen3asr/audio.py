"""Audio in: files, bytes, streams and arrays become 16 kHz mono float32.

The order is the original's: mean of the channels, resampling to 16 kHz (soxr HQ), division by the peak where it
exceeds 1. Quiet audio is not amplified. One difference: the original peak-normalises int16 arrays, here integers
are divided by their full scale, so that an array and the WAV file made from it give the same samples.

Everything is read in blocks, so that :func:`open_audio` needs little memory for a file of any length;
:func:`read_audio` puts the blocks together.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import soxr

from qwen3asr.decode import MAX_RATE, Decoded, open_bytes, open_path, parts
from qwen3asr.errors import AudioEmpty, AudioFormatInvalid, AudioNotFinite, AudioPastLimit
from qwen3asr.features import SAMPLE_RATE, Samples

Array: TypeAlias = npt.NDArray[Any]
AudioInput: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Array | tuple[Array, int] | Mapping[str, Any]
"""A path, the bytes of a file, a binary file object, samples, ``(samples, rate)``, or a Hugging Face
``{"array": samples, "sampling_rate": rate}``."""

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


class AudioReader:
    """One clip as consecutive blocks; made by :func:`open_audio`.

    A context manager: files are closed and removed when it ends. Iterating yields float32 ``[n]`` blocks, n >= 1,
    mono, 16 kHz, finite, never the caller's own memory; once, as with a file. Blocks are as decoded: a reader cannot
    know the peak of what is to come, so whoever takes them divides each piece that it uses by its own peak
    (:func:`limit_peak`).

    Attributes:
        name: what messages call the clip.
        duration: in seconds as the header tells it, ``None`` where it does not, and where ffmpeg decodes; of a damaged
            file, less may come.
    """

    def __init__(self, decoded: Decoded, name: str, resources: ExitStack) -> None:
        self.name = name
        self.duration = None if decoded.frames is None else decoded.frames / decoded.rate
        self._blocks = _to_16k(decoded, name)
        self._resources = resources

    def __iter__(self) -> Iterator[Samples]:
        return self._blocks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, end what decodes it and remove temporary ones; nothing can be read any more."""
        self._blocks.close()
        self._resources.close()


def read_audio(source: AudioInput, sample_rate: int | None = None, name: str | None = None) -> Audio:
    """Read one clip whole, as 16 kHz mono, divided by its peak where that exceeds 1.

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
    with open_audio(source, sample_rate, name) as reader:
        samples = np.concatenate(list(reader))
    return Audio(limit_peak(samples), reader.name)


def open_audio(
    source: AudioInput, sample_rate: int | None = None, name: str | None = None, most_seconds: float | None = None
) -> AudioReader:
    """Open one clip, to be read in blocks.

    Of a file only a block is in memory at a time; bytes, streams and pipes are held as they came, arrays are the
    caller's. ffmpeg decodes as blocks are asked for; what is not a file yet is written into a temporary one for it.

    Args:
        source: as for :func:`read_audio`.
        sample_rate: as for :func:`read_audio`.
        name: as for :func:`read_audio`.
        most_seconds: refuse longer audio: by its header, and where that does not tell, when so much was read.

    Raises:
        AudioPastLimit: it is longer than ``most_seconds``.
        AudioError: as :func:`read_audio`. What only the samples show, ``AudioEmpty``, ``AudioNotFinite`` and
            ``AudioUnreadable`` of a file damaged further on, is raised while the blocks are read.
        PermissionError: as the system raises it.
    """
    resources = ExitStack()
    try:
        if isinstance(source, str | os.PathLike):
            path = os.fsdecode(source)
            name = name or path
            decoded = open_path(path, name, resources)
        elif isinstance(source, bytes | bytearray | memoryview):
            name = name or "audio"
            decoded = open_bytes(bytes(source), name, resources)
        elif hasattr(source, "read"):
            name = name or _stream_name(source)
            decoded = open_bytes(_read_stream(source, name), name, resources)
        else:
            name = name or "audio"
            decoded = _open_array(*_array_and_rate(source, sample_rate, name), name)
        if most_seconds is not None:
            decoded = _bounded(decoded, most_seconds)
    except BaseException:
        resources.close()
        raise
    return AudioReader(decoded, name, resources)


def limit_peak(samples: Samples) -> Samples:
    """A clip or piece within +-1: divided by its peak where that exceeds 1, else as it is; float32 ``[n]``, n >= 1."""
    peak = max(samples.max(), -samples.min())
    return samples / peak if peak > 1 else samples


# --- streams ---------------------------------------------------------------------------------------------------


def _read_stream(stream: Any, name: str) -> bytes:
    data = stream.read()
    if not isinstance(data, bytes | bytearray | memoryview):
        raise AudioFormatInvalid(f'{name} gives {type(data).__name__}, not bytes; open it in binary mode, "rb"')
    return bytes(data)


def _stream_name(stream: Any) -> str:
    name = getattr(stream, "name", None)
    return name if isinstance(name, str) and name else "audio"


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


def _open_array(array: Array, rate: int, name: str) -> Decoded:
    if f"{array.dtype.kind}{array.dtype.itemsize}" not in _FULL_SCALE:
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
    channels_first = array.ndim == 2 and array.shape[0] <= 8 and array.shape[1] > array.shape[0]
    frames = array.T if channels_first else array
    return Decoded((_mono(frames[part]) for part in parts(len(frames))), rate, len(frames))


def _mono(frames: Array) -> Samples:
    """float32 ``[n]`` at full scale 1 from ``[n]`` or ``[n, channels]``: the mean of the channels; a copy."""
    zero, scale = _FULL_SCALE[f"{frames.dtype.kind}{frames.dtype.itemsize}"]
    with np.errstate(over="ignore"):  # what float32 cannot hold turns infinite, and is reported as such
        samples: Samples = frames.astype(np.float32)
        if scale != 1.0:
            samples = (samples - np.float32(zero)) / np.float32(scale)
        return samples.mean(axis=1) if samples.ndim == 2 else samples


# --- blocks ----------------------------------------------------------------------------------------------------


def _bounded(decoded: Decoded, seconds: float) -> Decoded:
    most = int(seconds * decoded.rate)
    if decoded.frames is not None and decoded.frames > most:
        raise AudioPastLimit(seconds)

    def blocks() -> Iterator[Samples]:
        done = 0
        for block in decoded.blocks:
            done += len(block)
            if done > most:
                raise AudioPastLimit(seconds)
            yield block

    return replace(decoded, blocks=blocks())


def _to_16k(decoded: Decoded, name: str) -> Generator[Samples, None, None]:
    blocks = _finite(decoded.blocks, decoded.rate, name)
    if decoded.rate != SAMPLE_RATE:  # samples near float32's largest overflow in the filter
        blocks = _finite(_resampled(blocks, decoded.rate), SAMPLE_RATE, name)
    empty = True
    for block in blocks:
        empty = False
        yield block
    if empty:  # less than half a sample is none
        raise AudioEmpty(name)


def _resampled(blocks: Iterator[Samples], rate: int) -> Iterator[Samples]:
    """What resampling the whole at once gives."""
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    parts = (stream.resample_chunk(block) for block in blocks)
    yield from (part for part in parts if part.size)
    if (rest := stream.resample_chunk(np.zeros(0, np.float32), last=True)).size:
        yield rest


def _finite(blocks: Iterator[Samples], rate: int, name: str) -> Iterator[Samples]:
    done = 0
    for block in blocks:
        finite = np.isfinite(block)
        if not finite.all():
            first = (done + int(finite.argmin())) / rate
            bad = finite.size - finite.sum() + sum(rest.size - np.isfinite(rest).sum() for rest in blocks)
            raise AudioNotFinite(name, int(bad), first)
        done += len(block)
        yield block
