"""A distribution of measured values in buckets one per cent wide: small for ever, however many are counted. Pure.

Locust rounds its response times to two digits and to whole milliseconds; a target of 20 ms between tokens needs more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

WIDTH = math.log(1.01)
"""Of a bucket, in logarithms: a percentile is at most half a per cent off."""

LEAST = 1e-6
"""What is smaller counts as this."""


@dataclass(slots=True)
class Buckets:
    counts: Counter[int] = field(default_factory=Counter)
    count: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, value: float) -> None:
        self.counts[math.floor(math.log(max(value, LEAST)) / WIDTH)] += 1
        self.count += 1
        self.total += value
        self.least = min(self.least, value)
        self.most = max(self.most, value)

    def percentile(self, share: float) -> float | None:
        """The least value that at least this share do not exceed (nearest rank); None of none."""
        if not self.count:
            return None
        rank, seen = max(1, math.ceil(share * self.count - 1e-9)), 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return self._middle(bucket)
        raise AssertionError("the counts add up to less than their sum")

    def shares(self) -> Iterator[tuple[float, float]]:
        """(value, the share that does not exceed it), rising: the distribution as a curve."""
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            yield self._middle(bucket), seen / self.count

    def _middle(self, bucket: int) -> float:
        return min(self.most, max(self.least, math.exp((bucket + 0.5) * WIDTH)))
