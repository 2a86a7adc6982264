"""Percentiles of what was measured: nearest rank, so that each is one of the values. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Percentiles:
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        ordered = sorted(values)  # once: sorting what is sorted costs little
        return cls(*(percentile(ordered, share) for share in (0.5, 0.95, 0.99)))


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least this share of the values do not exceed (nearest rank); NaN of none.

    It is one of the values, so that infinity may be among them.
    """
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]
