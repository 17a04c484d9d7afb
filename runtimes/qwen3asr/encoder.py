"""Audio to embeddings: windows of many clips share a batch, and each clip gets its own rows back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qwen3asr.features import MEL_BINS, Mel, WindowSpec, split_windows
from qwen3asr.sessions.base import Embeddings, EncoderSession


class Encoder:
    """Encodes log-mel spectrograms, window by window.

    Args:
        session: runs the graph.
        windows: how the model cuts its audio.
    """

    def __init__(self, session: EncoderSession, windows: WindowSpec) -> None:
        self._session, self._windows = session, windows

    @property
    def batch_windows(self) -> int:
        """Windows of one run, at most."""
        return self._session.batch_windows

    def tokens(self, frames: int) -> int:
        """Embedding rows of so many mel frames."""
        return self._windows.tokens(frames)

    def encode(self, mels: Sequence[Mel]) -> list[Embeddings]:
        """Embeddings of each clip.

        Args:
            mels: float32 ``[128, frames]`` each.

        Returns:
            float32 ``[tokens, hidden]`` each, with ``tokens = windows.tokens(frames)``.
        """
        pieces = [(clip, window) for clip, mel in enumerate(mels) for window in split_windows(mel, self._windows)]
        done: dict[int, Embeddings] = {}
        by_width: dict[int, list[int]] = {}
        for index, (_, window) in enumerate(pieces):
            by_width.setdefault(self._windows.pad_frames(window.shape[1]), []).append(index)
        for width, members in by_width.items():
            for start in range(0, len(members), self._session.batch_windows):
                batch = members[start : start + self._session.batch_windows]
                done.update(zip(batch, self._run([pieces[index][1] for index in batch], width), strict=True))
        clips: list[list[Embeddings]] = [[] for _ in mels]
        for index, (clip, _) in enumerate(pieces):
            clips[clip].append(done[index])
        return [np.concatenate(rows) for rows in clips]

    def close(self) -> None:
        """Let go of a device's memory; see :class:`qwen3asr.sessions.base.EncoderSession`."""
        self._session.close()

    def _run(self, windows: Sequence[Mel], width: int) -> list[Embeddings]:
        mel = np.zeros((len(windows), MEL_BINS, width), np.float32)
        frames = np.array([window.shape[1] for window in windows], np.int64)
        for row, window in zip(mel, windows, strict=True):
            row[:, : window.shape[1]] = window
        out = self._session.run(mel, frames)
        return [rows[: self._windows.tokens(int(count))] for rows, count in zip(out, frames, strict=True)]
