"""The timing cache: how fast kernels ran in builds before, so that they are not timed again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

_log = logging.getLogger("qwen3asr")


class Timings:
    """A timing-cache file, read at the start and written when all is built.

    Args:
        path: the file; it may not be there yet. ``None``: none is kept, as with TensorRT-RTX, which times nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known = path.read_bytes() if path is not None and path.is_file() else b""

    def use(self, config: Any) -> None:
        """Give what is known to a build; what another GPU or version wrote is left aside, and said."""
        if self._path is None:
            return
        cache = config.create_timing_cache(self._known)
        if cache is None or not config.set_timing_cache(cache, False):
            _log.warning("%s is of another GPU or TensorRT; it is not used and will be replaced", self._path)
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def learn(self, config: Any) -> None:
        """Take in what a build timed."""
        if self._path is not None:
            self._known = bytes(memoryview(config.get_timing_cache().serialize()))

    def write(self) -> None:
        """Write the file, once all is built: what is interrupted leaves nothing."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(self._path.name + ".part")
        try:
            draft.write_bytes(self._known)
            draft.replace(self._path)
        finally:
            draft.unlink(missing_ok=True)
