"""What one H200 is to reach, and whether a row does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bar:
    """A bound of a figure.

    Attributes:
        figure: its name in the row; of a spread the mean counts.
        bound: of it.
        most: it is the most that is allowed; otherwise more is wanted.
    """

    figure: str
    bound: float
    most: bool = True

    def judged(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The bound in words, and whether the row meets it."""
        value = row[self.figure]
        reached = value["mean"] if isinstance(value, dict) else value
        met = reached <= self.bound if self.most else reached > self.bound
        return {"bar": f"{'at most' if self.most else 'above'} {self.bound:g}", "met": bool(met)}


_FIRST, _MANY = Bar("first_token_s", 0.030), Bar("first_token_s", 1.0)
BARS: Mapping[tuple[str, int], tuple[Bar, ...]] = {
    ("0.6b", 1): (_FIRST, Bar("real_time_factor", 0.004)),
    ("1.7b", 1): (_FIRST,),
    ("0.6b", 128): (_MANY, Bar("throughput", 4000, most=False)),
    ("1.7b", 128): (_MANY, Bar("throughput", 2400, most=False)),
    ("aligner-0.6b", 1): (Bar("throughput", 3000, most=False),),
}
"""Of a model with so many clips at a time."""


def bars(model: str, at_a_time: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """For the row: ``{"bars": {figure: {"bar", "met"}}}``, or nothing where there is no bar."""
    judged = {bar.figure: bar.judged(row) for bar in BARS.get((model, at_a_time), ())}
    return {"bars": judged} if judged else {}
