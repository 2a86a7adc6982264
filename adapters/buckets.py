"""How many of each size: the counts of a histogram, so that one more costs a fraction of a microsecond. Pure.

Owns the counts, which only ever grow. Does not know what is measured nor who is told; whoever counts does so in one
thread, and whoever reads may be in another.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate


class Buckets:
    """Measurements counted by upper bounds, which rise; what is above the last counts as infinite."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[tuple[float, int]]:
        """How many were at most so much, for each bound and for infinity."""
        return list(zip((*self.bounds, math.inf), accumulate(self.counts), strict=True))
