"""What libsndfile does not read, decoded by ffmpeg: samples come through a pipe, as they are asked for.

ffmpeg waits while nobody reads, so a small file that decodes to hours or to gigabytes takes neither disk nor memory,
and ends with whoever reads it.
"""

from __future__ import annotations

import struct
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from qwen3asr.features import Samples

STALLED_SECONDS = 30.0
"""So long ffmpeg may take for a megabyte of samples (16 s of a mono file at 16 kHz); then it is ended."""
_PART = 1 << 20  # bytes read at a time
_HEADER = struct.Struct(">4s5I")  # of .au: ".snd", its own length, bytes of samples, encoding, rate, channels
_FLOAT = 6  # the encoding
_FORMATS = (
    "3dostr aa aac aax ac3 act aiff alaw amr amrnb amrwb ape aptx aptx_hd asf au avi caf daud dfpwm dsf dss dts dtshd "
    "dv eac3 flac flv g722 g726 g729 gsm gxf ilbc iff kvag loas m4v matroska mlp mov mp3 mpc mpc8 mpeg mpegts "
    "mpegtsraw mulaw mxf nistsphere nsv nut ogg oma qcp rm sbc sdx shn sln sox spdif swf tak truehd tta voc vqf w64 "
    "wav wsaud wtv wv xa xwma"
)
"""Demuxers of ffmpeg that read the file they are given and no other: playlists (hls, concat, dash, sdp, ...) name files
of this machine, which a stranger's upload would then have us read to him."""


class FfmpegFailed(Exception):
    """What ffmpeg says when it fails; for :mod:`qwen3asr.decode`, which makes an error of it that names the file."""


class Ffmpeg:
    """One file being decoded, at its own rate.

    Mixing and resampling stay ours: ffmpeg's -ac 1 adds stereo up (0.7 each) instead of taking the mean.

    Args:
        source: the file; a real one, for ffmpeg must seek in most m4a files.

    Attributes:
        rate: Hz.

    Raises:
        FfmpegFailed: it cannot be decoded.
    """

    def __init__(self, source: Path) -> None:
        # "file:" and the whitelists keep a name or a playlist from sending ffmpeg to the network, or to other files
        command = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-protocol_whitelist", "file"]
        command += ["-format_whitelist", ",".join(_FORMATS.split())]
        command += ["-i", f"file:{source}", "-vn", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._out, errors = _pipe(self._process.stdout), _pipe(self._process.stderr)
        self._said: deque[str] = deque(maxlen=1)
        self._prefix, self._stalled = f"file:{source}: ", False
        self._listener = threading.Thread(target=self._listen, args=(errors,), daemon=True)
        self._listener.start()
        try:
            self.rate, self._channels = self._header()
        except BaseException:
            self.close()
            raise

    def blocks(self, most: int) -> Iterator[Samples]:
        """Mono blocks of at most so many frames, float32 ``[n]``; once.

        Raises:
            FfmpegFailed: the rest cannot be decoded.
        """
        frame = 4 * self._channels
        size = max(1, min(most, _PART // frame)) * frame
        while len(part := self._read(size)) >= frame:
            samples = np.frombuffer(part, ">f4", len(part) // frame * self._channels)
            yield samples.astype(np.float32).reshape(-1, self._channels).mean(axis=1)
        self._check_end()

    def close(self) -> None:
        """End it, wherever it is."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        self._out.close()

    def _header(self) -> tuple[int, int]:
        """Rate and channels."""
        head = self._read(_HEADER.size)
        if len(head) < _HEADER.size:
            self._check_end()
            raise FfmpegFailed("it finds nothing to decode")
        magic, length, _, encoding, rate, channels = _HEADER.unpack(head)
        if magic != b".snd" or encoding != _FLOAT or not channels:
            raise FfmpegFailed("it does not write the format that it was asked for")
        self._read(length - len(head))
        return rate, channels

    def _read(self, size: int) -> bytes:
        with self._watched():
            return self._out.read(size)

    def _check_end(self) -> None:
        with self._watched():
            status = self._process.wait()
        if self._stalled:
            raise FfmpegFailed(f"it gave nothing for {STALLED_SECONDS:g} s")
        if status:
            self._listener.join()
            raise FfmpegFailed(self._said[0] if self._said else f"exit status {status}")

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Ends a process that stalls, whatever waits for it then goes on."""

        def end() -> None:
            self._stalled = True
            self._process.kill()

        watchdog = threading.Timer(STALLED_SECONDS, end)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    def _listen(self, errors: IO[bytes]) -> None:
        """Keep the last line that it says; a damaged file has it say thousands, and stop where nobody reads them."""
        with errors:
            for line in iter(partial(errors.readline, 4096), b""):
                if text := line.decode(errors="replace").strip():
                    self._said.append(text.removeprefix(self._prefix))


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise TypeError("the process was started without this pipe")
    return pipe
