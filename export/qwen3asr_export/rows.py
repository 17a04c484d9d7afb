"""Work on large matrices, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qwen3asr_export.graph import Array

ROWS = 8_192
"""Rows at a time: bounds the memory that an embedding matrix takes."""


def by_rows(make: Callable[[Array], tuple[Array, ...]], matrix: Array) -> tuple[Array, ...]:
    """What ``make`` makes of a matrix whose rows do not hear of each other: arrays with as many rows."""
    parts = [make(matrix[start : start + ROWS]) for start in range(0, len(matrix), ROWS)]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
