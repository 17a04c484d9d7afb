"""Files and bytes as blocks of mono samples: by libsndfile, and by ffmpeg what that does not read."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import soundfile

from qwen3asr.errors import AudioEmpty, AudioNotFound, AudioUnreadable
from qwen3asr.features import SAMPLE_RATE, Samples
from qwen3asr.ffmpeg import Ffmpeg, FfmpegFailed

MAX_RATE = 768_000
"""Hz."""
_MIN_FILE_RATE = 1_000  # below it, a broken header would have us make gigabytes out of a small file
BLOCK = 1 << 20
"""Frames decoded at a time, fewer of more than 8 channels: 65 s at 16 kHz, 24 s at 44.1 kHz."""
_MOST_FRAMES = 1 << 62  # libsndfile gives 2**63 - 1 where the header does not tell


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a decoder gives: mono blocks at the source's own rate, and their frames in all where that is known."""

    blocks: Iterator[Samples]
    rate: int
    frames: int | None


def parts(frames: int) -> Iterator[slice]:
    """So many frames in blocks."""
    return (slice(at, at + BLOCK) for at in range(0, frames, BLOCK))


def open_path(text: str, name: str, resources: ExitStack) -> Decoded:
    """Open a file; what has to be closed, ended or removed afterwards goes to ``resources``.

    Raises:
        AudioNotFound, AudioUnreadable, AudioEmpty: as :func:`qwen3asr.audio.open_audio`.
    """
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
    stream: BinaryIO = resources.enter_context(path.open("rb"))
    if not stat.S_ISREG(status.st_mode):  # a pipe, such as bash's <(...)
        return open_bytes(stream.read(), name, resources)
    if status.st_size == 0:
        raise AudioEmpty(name)
    if path.suffix.lower() == ".raw":  # soundfile takes a file of that name for headerless PCM, whatever the content
        stream = resources.enter_context(os.fdopen(stream.fileno(), "rb", closefd=False))
    return _decode(stream, path, name, resources)


def open_bytes(data: bytes, name: str, resources: ExitStack) -> Decoded:
    """As :func:`open_path`, of a file's content."""
    if not data:
        raise AudioEmpty(name)
    return _decode(_Bytes(data), data, name, resources)


class _Bytes(io.BytesIO):
    """Stays where it is when a broken header has libsndfile seek before the start: an error cannot pass its C code."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _decode(stream: BinaryIO, source: Path | bytes, name: str, resources: ExitStack) -> Decoded:
    """By libsndfile, or by ffmpeg where that fails; ``source`` is the same audio, as ffmpeg is to get it."""

    def by_ffmpeg(error: soundfile.LibsndfileError) -> Decoded:
        return _by_ffmpeg(source, name, f"libsndfile: {error.error_string.strip().rstrip('.')}", resources)

    try:
        file = resources.enter_context(soundfile.SoundFile(stream))
    except soundfile.LibsndfileError as error:
        decoded = by_ffmpeg(error)
    else:
        frames = int(file.frames) if 0 < file.frames < _MOST_FRAMES else None
        decoded = Decoded(_file_blocks(file, by_ffmpeg), int(file.samplerate), frames)
    if not _MIN_FILE_RATE <= decoded.rate <= MAX_RATE:
        reason = f"its header gives a rate of {decoded.rate} Hz; convert it to {SAMPLE_RATE} Hz"
        raise AudioUnreadable(name, reason)
    return decoded


def _file_blocks(
    file: soundfile.SoundFile, instead: Callable[[soundfile.LibsndfileError], Decoded]
) -> Iterator[Samples]:
    """Mono blocks; a file damaged further on is read to its end in what ``instead`` opens."""
    done = 0
    try:
        frames = max(1, 8 * BLOCK // max(8, file.channels))  # a few kB of silence may have 255 channels
        while (block := file.read(frames, dtype="float32", always_2d=True)).shape[0]:
            done += len(block)
            yield block.mean(axis=1)
    except soundfile.LibsndfileError as error:
        yield from _behind(instead(error).blocks, done)


def _behind(blocks: Iterator[Samples], frames: int) -> Iterator[Samples]:
    """The blocks without their first frames."""
    for block in blocks:
        if len(block) > frames:
            yield block[frames:]
        frames = max(frames - len(block), 0)


def _by_ffmpeg(source: Path | bytes, name: str, reason: str, resources: ExitStack) -> Decoded:
    """What ffmpeg makes of the source; ``reason`` is why libsndfile does not do."""
    if shutil.which("ffmpeg") is None:
        raise AudioUnreadable(name, f"{reason}; installing ffmpeg adds more formats (m4a, webm, video ...)")
    if isinstance(source, bytes):  # not through a pipe: ffmpeg must seek in most m4a files
        folder = resources.enter_context(tempfile.TemporaryDirectory(prefix="qwen3asr-"))
        data, source = source, Path(folder, "source")
        source.write_bytes(data)

    def blocks(running: Ffmpeg) -> Iterator[Samples]:
        try:
            yield from running.blocks(BLOCK)
        except FfmpegFailed as error:
            raise AudioUnreadable(name, f"{reason}; ffmpeg: {error}") from error

    try:
        running = resources.enter_context(closing(Ffmpeg(source)))
    except FfmpegFailed as error:
        raise AudioUnreadable(name, f"{reason}; ffmpeg: {error}") from error
    return Decoded(blocks(running), running.rate, None)
