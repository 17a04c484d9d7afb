"""The files of a checkpoint folder: JSON, and safetensors in one file or in shards, read one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from qwen3asr.bundle import is_inside
from qwen3asr.errors import CheckpointInvalid

_INDEX = "model.safetensors.index.json"
_BLOCK = 1 << 22  # elements compared at a time


class Lookup(Protocol):
    """Tensors of a model by ``-hf`` name: a checkpoint's, or what is made of them."""

    def __getitem__(self, name: str, /) -> npt.NDArray[np.float32]:
        """One tensor."""


class Tensors:
    """The checkpoint's weights by ``-hf`` name, each read when asked for; float32 ``numpy`` arrays.

    Args:
        places: of each tensor, its file and its name in there.
    """

    def __init__(self, places: Mapping[str, tuple[Path, str]]) -> None:
        self._places = places
        self._open: dict[Path, Any] = {}

    @property
    def names(self) -> set[str]:
        """Every tensor name."""
        return set(self._places)

    @property
    def paths(self) -> list[Path]:
        """The files, sorted."""
        return sorted({path for path, _ in self._places.values()})

    def stored_name(self, name: str) -> str:
        """What the file calls a tensor."""
        return self._places[name][1]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Stored type of a tensor as safetensors calls it (``BF16``), without reading it."""
        return str(self._slice(name).get_dtype())

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors of the same shape hold the same values; reads some rows of both at a time."""
        left, right = self._slice(one), self._slice(other)
        rows, *width = left.get_shape()
        step = max(1, _BLOCK // math.prod(width))
        blocks = (slice(start, start + step) for start in range(0, rows, step))
        return all(bool((left[block] == right[block]).all()) for block in blocks)

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        file, stored = self._file(name)
        tensor: torch.Tensor = file.get_tensor(stored)
        array: npt.NDArray[np.float32] = tensor.to(torch.float32).numpy()
        return array

    def _slice(self, name: str) -> Any:
        file, stored = self._file(name)
        return file.get_slice(stored)

    def _file(self, name: str) -> tuple[Any, str]:
        path, stored = self._places[name]
        if path not in self._open:
            self._open[path] = _opened(path)
        return self._open[path], stored


def read_json(folder: Path, name: str, *, optional: bool = False) -> dict[str, Any]:
    """A JSON object; ``{}`` where an optional file is missing.

    Raises:
        CheckpointInvalid: the file is missing or damaged.
    """
    path = folder / name
    if optional and not path.is_file():
        return {}
    if not path.is_file():
        raise CheckpointInvalid(f"{name} is not in {folder}; give the folder of a whole checkpoint")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # RecursionError: brackets without end
        raise CheckpointInvalid(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointInvalid(f"{path} does not hold a JSON object; download it again")
    return content


def weight_files(folder: Path) -> dict[str, Path]:
    """Of every tensor name in the weights, its file; one whole file counts before shards, as in transformers.

    Raises:
        CheckpointInvalid: there are no weights, they are damaged, or the index does not fit its shards.
    """
    if (single := folder / "model.safetensors").is_file():
        return dict.fromkeys(_opened(single).keys(), single)
    if not (folder / _INDEX).is_file():
        raise CheckpointInvalid(f"model.safetensors is not in {folder}; only safetensors weights are read")
    listed = read_json(folder, _INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise CheckpointInvalid(f"{_INDEX} in {folder} has no weight_map of tensors to files; download it again")
    for file in sorted(set(listed.values())):
        if not is_inside(file):
            raise CheckpointInvalid(f"{_INDEX} in {folder} names {file!r}, outside of it; do not use this checkpoint")
        _check_shard(folder / file, {name for name, place in listed.items() if place == file})
    return {name: folder / file for name, file in listed.items()}


def _check_shard(path: Path, listed: set[str]) -> None:
    if not path.is_file():
        raise CheckpointInvalid(f"the shard {path.name} is not in {path.parent}; download the checkpoint again")
    missing = listed.difference(_opened(path).keys())
    if missing:
        raise CheckpointInvalid(
            f"{min(missing)} is not in the shard {path.name}, where {_INDEX} in {path.parent} has it; "
            "download the checkpoint again, whole"
        )


def _opened(path: Path) -> Any:
    """A safetensors file, mapped into memory; nothing of it is read but its header."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointInvalid(
            f"{path.name} in {path.parent} is damaged or not whole ({error}); download it again"
        ) from error
