"""The Python module of TensorRT, or of TensorRT-RTX where that one is installed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwen3asr.engines import FLAVOURS
from qwen3asr.errors import ExtraMissing, PackageTooOld

LEAST = {"tensorrt": "10.15", "tensorrt_rtx": "1.2"}
"""By NVIDIA's documentation TensorRT 10.14 brought attention as a layer, 10.15 rotary embedding and KV-cache updates.
Of TensorRT-RTX 1.7 was tried; older ones are let through, as what a parser lacks it refuses by the node's name."""


@dataclass(frozen=True, slots=True)
class Library:
    """An installed module.

    Attributes:
        flavour: its name, a key of :data:`qwen3asr.engines.FLAVOURS`.
        version: of it.
        module: itself; it has no types.
    """

    flavour: str
    version: str
    module: Any

    @property
    def portable(self) -> bool:
        """It builds without a GPU, for the GPUs that are named, or for all that it knows."""
        return self.flavour == "tensorrt_rtx"


def find_library(flavours: Sequence[str] = tuple(FLAVOURS)) -> Library:
    """The first of the modules that is installed.

    Raises:
        ExtraMissing: none is.
        PackageTooOld: it is, in a version without the layers that the decoder needs.
    """
    for flavour in flavours:
        try:
            module = importlib.import_module(flavour)
        except ModuleNotFoundError as error:
            if error.name != flavour:
                raise
            continue
        version = str(module.__version__)
        if _numbers(version) < _numbers(LEAST[flavour]):
            raise PackageTooOld(flavour, version, LEAST[flavour])
        return Library(flavour, version, module)
    raise ExtraMissing("building engines", "tensorrt (or tensorrt_rtx)", "tensorrt")


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:2]]
