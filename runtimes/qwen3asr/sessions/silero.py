"""Silero VAD through ONNX Runtime: a speech detector for those who have its model file (MIT licence, 1 to 2 MB).

Two graphs of versions 5 and 6 do the same: one takes a frame and ``state``, the other any number of frames and ``h``
and ``c``, twice as fast (https://github.com/snakers4/silero-vad). Each frame goes in behind the last 64 samples before
it. The Python package needs torch: its file is found without importing it.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime

from qwen3asr.errors import BackendFailed, DetectorInvalid, DetectorMissing
from qwen3asr.features import SAMPLE_RATE, Samples
from qwen3asr.vad import whole_frames

_CONTEXT, _CELLS = 64, 128
_BLOCK = 1_024  # frames of one run of the graph that takes many
_PLACES = (
    ("silero_vad", "data/silero_vad_16k_sequence.onnx"),
    ("silero_vad", "data/silero_vad.onnx"),
    ("faster_whisper", "assets/silero_vad_v6.onnx"),
    ("pipecat", "audio/vad/data/silero_vad.onnx"),
)

State: TypeAlias = dict[str, npt.NDArray[np.float32]]


def find_model() -> Path:
    """The model file in an installed package: silero_vad, faster_whisper or pipecat. None is imported.

    Raises:
        DetectorMissing: none of them is installed, or has the file.
    """
    for package, file in _PLACES:
        for folder in _folders(package):
            if (path := folder / file).is_file():
                return path
    raise DetectorMissing(
        "there is no model file of Silero VAD; give SileroDetector its path, or get one with: "
        "pip install --no-deps silero-vad"
    )


class SileroDetector:
    """See :class:`qwen3asr.vad.SpeechDetector`. It runs on one thread.

    Args:
        path: the ONNX file; ``None`` looks for one, see :func:`find_model`.

    Raises:
        DetectorMissing: there is no such file.
        DetectorInvalid: ONNX Runtime cannot load it, or it is not Silero VAD of version 5 or 6.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        path = find_model() if path is None else Path(path)
        if not path.is_file():
            raise DetectorMissing(f"there is no model file at {path}; check the path")
        self._graph = _Graph(path)
        self.reset()

    def another(self) -> SileroDetector:
        """A detector for another stream, on the same loaded model; cheap, and as independent as a new one."""
        detector = object.__new__(SileroDetector)
        detector._graph = self._graph
        detector.reset()
        return detector

    def reset(self) -> None:
        """See :class:`qwen3asr.vad.SpeechDetector`."""
        self._state, self._context = self._graph.silence(), np.zeros(_CONTEXT, np.float32)

    def probabilities(self, samples: Samples) -> Samples:
        """See :class:`qwen3asr.vad.SpeechDetector`.

        Raises:
            BackendFailed: ONNX Runtime stopped.
        """
        frames = whole_frames(samples)
        if not len(frames):
            return np.zeros(0, np.float32)
        before = np.concatenate([self._context[None], frames[:-1, -_CONTEXT:]])
        self._context = frames[-1, -_CONTEXT:].copy()
        rows, step = np.concatenate([before, frames], axis=1), self._graph.frames
        found = []
        for start in range(0, len(rows), step):
            speech, self._state = self._graph.run(rows[start : start + step], self._state)
            found.append(speech)
        return np.concatenate(found)


class _Graph:
    """The loaded file; knows which of the two graphs it is. Holds no state of a stream: threads may share it."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no other base
            raise DetectorInvalid(f"ONNX Runtime cannot load {path}: {error}; download the file again") from error
        shapes = {value.name: value.shape for value in self._session.get_inputs()}
        many = shapes.keys() == {"input", "h", "c"}
        if not many and shapes.keys() - {"sr"} != {"input", "state"}:
            raise DetectorInvalid(
                f"{path} has the inputs {', '.join(shapes)}, not those of Silero VAD 5 or 6; "
                "get one with: pip install --no-deps silero-vad"
            )
        self._state = {"h": (1, 1, _CELLS), "c": (1, 1, _CELLS)} if many else {"state": (2, 1, _CELLS)}
        self._fixed = {"sr": np.array(SAMPLE_RATE, np.int64)} if "sr" in shapes else {}
        self.frames = _BLOCK if many else 1

    def silence(self) -> State:
        """The state before a stream."""
        return {name: np.zeros(shape, np.float32) for name, shape in self._state.items()}

    def run(self, rows: Samples, state: State) -> tuple[Samples, State]:
        """Probabilities of rows ``[k, 576]``, ``k <= frames``, and the state behind them."""
        inputs: dict[str, Any] = {"input": rows, **state, **self._fixed}
        try:
            speech, *new = self._session.run(None, inputs)
        except Exception as error:
            raise BackendFailed("ONNX Runtime", error) from error
        return speech.reshape(-1), dict(zip(state, new, strict=True))


def _folders(package: str) -> list[Path]:
    try:
        spec = find_spec(package)
    except ValueError:  # a module of that name was made by hand
        return []
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
