"""Files and bytes as blocks of mono samples: by libsndfile, and by ffmpeg what that does not read."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import soundfile

from qwen3asr.errors import AudioEmpty, AudioNotFound, AudioUnreadable
from qwen3asr.features import SAMPLE_RATE, Samples

MAX_RATE = 768_000
"""Hz."""
_MIN_FILE_RATE = 1_000  # below it, a broken header would have us make gigabytes out of a small file
BLOCK = 1 << 20
"""Frames decoded at a time, fewer of more than 8 channels: 65 s at 16 kHz, 24 s at 44.1 kHz."""
_MOST_FRAMES = 1 << 62  # libsndfile gives 2**63 - 1 where the header does not tell
_FFMPEG_FORMATS = (
    "3dostr aa aac aax ac3 act aiff alaw amr amrnb amrwb ape aptx aptx_hd asf au avi caf daud dfpwm dsf dss dts dtshd "
    "dv eac3 flac flv g722 g726 g729 gsm gxf ilbc iff kvag loas m4v matroska mlp mov mp3 mpc mpc8 mpeg mpegts "
    "mpegtsraw mulaw mxf nistsphere nsv nut ogg oma qcp rm sbc sdx shn sln sox spdif swf tak truehd tta voc vqf w64 "
    "wav wsaud wtv wv xa xwma"
)
"""Demuxers of ffmpeg that read the file they are given and no other: playlists (hls, concat, dash, sdp, ...) name files
of this machine, which a stranger's upload would then have us read to him."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a decoder gives: mono blocks at the source's own rate, and their frames in all where that is known."""

    blocks: Iterator[Samples]
    rate: int
    frames: int | None


def parts(frames: int) -> Iterator[slice]:
    """So many frames in blocks."""
    return (slice(at, at + BLOCK) for at in range(0, frames, BLOCK))


def open_path(text: str, name: str, resources: ExitStack, most_seconds: float | None = None) -> Decoded:
    """Open a file; what has to be closed or removed afterwards goes to ``resources``.

    What ffmpeg decodes ends a second after ``most_seconds``, so that a small file cannot fill the disk.

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
        return open_bytes(stream.read(), name, resources, most_seconds)
    if status.st_size == 0:
        raise AudioEmpty(name)
    if path.suffix.lower() == ".raw":  # soundfile takes a file of that name for headerless PCM, whatever the content
        stream = resources.enter_context(os.fdopen(stream.fileno(), "rb", closefd=False))
    return _decode(stream, path, name, resources, most_seconds)


def open_bytes(data: bytes, name: str, resources: ExitStack, most_seconds: float | None = None) -> Decoded:
    """As :func:`open_path`, of a file's content."""
    if not data:
        raise AudioEmpty(name)
    return _decode(_Bytes(data), data, name, resources, most_seconds)


class _Bytes(io.BytesIO):
    """Stays where it is when a broken header has libsndfile seek before the start: an error cannot pass its C code."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _decode(
    stream: BinaryIO, source: Path | bytes, name: str, resources: ExitStack, most_seconds: float | None
) -> Decoded:
    """By libsndfile, or by ffmpeg where that fails; ``source`` is the same audio, as ffmpeg is to get it."""

    def by_ffmpeg(error: soundfile.LibsndfileError) -> soundfile.SoundFile:
        reason = f"libsndfile: {error.error_string.strip().rstrip('.')}"
        return _by_ffmpeg(source, name, reason, resources, most_seconds)

    try:
        file = resources.enter_context(soundfile.SoundFile(stream))
    except soundfile.LibsndfileError as error:
        file = by_ffmpeg(error)
    rate, frames = int(file.samplerate), int(file.frames)
    if not _MIN_FILE_RATE <= rate <= MAX_RATE:
        raise AudioUnreadable(name, f"its header gives a rate of {rate} Hz; convert it to {SAMPLE_RATE} Hz")
    return Decoded(_file_blocks(file, by_ffmpeg), rate, frames if 0 < frames < _MOST_FRAMES else None)


def _file_blocks(
    file: soundfile.SoundFile, instead: Callable[[soundfile.LibsndfileError], soundfile.SoundFile] | None = None
) -> Iterator[Samples]:
    """Mono blocks; a file damaged further on is read to its end in what ``instead`` opens."""
    done = 0
    try:
        frames = max(1, 8 * BLOCK // max(8, file.channels))  # a few kB of silence may have 255 channels
        while (block := file.read(frames, dtype="float32", always_2d=True)).shape[0]:
            done += len(block)
            yield block.mean(axis=1)
    except soundfile.LibsndfileError as error:
        if instead is None:
            raise
        other = instead(error)
        other.seek(min(done, other.frames))
        yield from _file_blocks(other)


def _by_ffmpeg(
    source: Path | bytes, name: str, reason: str, resources: ExitStack, most_seconds: float | None
) -> soundfile.SoundFile:
    """What ffmpeg makes of the source, opened; ``reason`` is why libsndfile does not do."""
    if shutil.which("ffmpeg") is None:
        raise AudioUnreadable(name, f"{reason}; installing ffmpeg adds more formats (m4a, webm, video ...)")
    folder = resources.enter_context(tempfile.TemporaryDirectory(prefix="qwen3asr-"))
    if isinstance(source, bytes):  # not through a pipe: ffmpeg must seek in most m4a files
        data, source = source, Path(folder, "source")
        source.write_bytes(data)
    target = Path(folder, "decoded.au")
    problem = _run_ffmpeg(source, target, most_seconds)
    if problem is not None:
        raise AudioUnreadable(name, f"{reason}; ffmpeg: {problem}")
    try:
        return resources.enter_context(soundfile.SoundFile(resources.enter_context(target.open("rb"))))
    except (OSError, soundfile.LibsndfileError) as error:  # it said that all was well, and wrote nothing of use
        raise AudioUnreadable(name, f"{reason}; ffmpeg decodes it to nothing that can be read") from error


def _run_ffmpeg(source: Path, target: Path, most_seconds: float | None) -> str | None:
    """Decode to float32 at the file's own rate and channels; the last line of what ffmpeg says if it fails.

    Mixing and resampling stay ours: ffmpeg's -ac 1 adds stereo up (0.7 each) instead of taking the mean.
    "file:" and the whitelists keep a name or a playlist from sending ffmpeg to the network, or to other files.
    """
    command = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-protocol_whitelist", "file"]
    command += ["-format_whitelist", ",".join(_FFMPEG_FORMATS.split())]
    limit = [] if most_seconds is None else ["-t", f"{most_seconds + 1:f}"]
    command += ["-i", f"file:{source}", *limit, "-vn", "-c:a", "pcm_f32be", "-f", "au", f"file:{target}"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if result.returncode == 0:
        return None
    lines = result.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix(f"file:{source}: ") if lines else f"exit status {result.returncode}"
