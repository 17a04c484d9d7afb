"""What NVIDIA boards draw, where NVML tells (``pip install 'qwen3asr[bench]'``); elsewhere nothing is made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Boards:
    """The NVIDIA boards of this machine, all of them, whichever the model runs on.

    Attributes:
        names: of the boards; empty where NVML is not there.
        note: why no energy is measured; empty where it is.
    """

    names: tuple[str, ...]
    note: str
    _nvml: Any = None
    _handles: Sequence[Any] = ()

    def joules(self) -> float | None:
        """Energy that all boards have drawn since their driver was loaded; ``None`` where that is not known."""
        if self.note:
            return None
        millijoules = (self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles)
        return float(sum(millijoules)) / 1000


def open_boards() -> Boards:
    """Find the boards and whether they count their energy, which NVIDIA's do from Volta on."""
    try:
        import pynvml  # noqa: PLC0415 (an optional dependency)
    except ModuleNotFoundError as error:
        if error.name != "pynvml":
            raise
        return Boards((), "energy is not measured: nvidia-ml-py is not installed; pip install 'qwen3asr[bench]'")
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
    except pynvml.NVMLError as error:
        return Boards((), f"energy is not measured: there is no NVIDIA board that NVML can see ({error})")
    boards = Boards(names, "" if handles else "energy is not measured: there is no NVIDIA board", pynvml, handles)
    try:
        boards.joules()
    except pynvml.NVMLError as error:
        return Boards(names, f"energy is not measured: {', '.join(names)} does not count it ({error})")
    return boards
