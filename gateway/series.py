"""Measurements over a sliding window: counted in buckets, so that each costs little. Pure.

Owns the buckets, eight to a doubling (9 % wide): a percentile is the middle of its bucket, at most 4.5 % off. The bounds
that Prometheus is told are among the buckets' edges, so that the two never disagree on what is above one. Does not know
what is measured, nor the time: a slot is a number that only grows.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise
from operator import sub
from typing import Any

# vLLM's own bounds, so that its histograms and ours can be laid over each other.
_SECONDS = (0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
TTFT_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, *_SECONDS, 160.0, 640.0)
ITL_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, *_SECONDS)

EDGES = tuple(sorted({2.0 ** (step / 8) for step in range(-80, 81)} | {*TTFT_BOUNDS, *ITL_BOUNDS}))
"""The greatest value of each bucket, from a thousandth to a thousand (seconds, or times the target)."""
LOWER = (-math.inf, *EDGES)
MIDDLES = (EDGES[0] / 2, *(math.sqrt(low * high) for low, high in pairwise(EDGES)), EDGES[-1])


class Series:
    """The measurements of one kind: how many in each bucket, by slot of time.

    The counts of a bucket lie side by side, a slot each, so that the sum over a part of the window is one of a slice;
    those of the whole window are kept. Slots are reset when their time comes again, and never by a timer.
    """

    __slots__ = ("_at", "_counts", "_last", "_rate", "_sizes", "_slots", "_tops", "_window")

    def __init__(self, slots: int, rate: float) -> None:
        self._slots = slots
        self._rate = rate
        self._last = -slots  # the number of the newest slot, counted from the clock's 0
        self._at = 0  # its place in the ring
        self._counts: list[int] = []  # [bucket * slots + place]; made with the first measurement
        self._window: list[int] = []  # the same over all slots
        self._sizes = [0] * slots
        self._tops = [0] * slots  # the highest bucket that a slot uses

    def add(self, value: float, now: float) -> None:
        slot = int(now * self._rate)
        if slot != self._last:
            self._turn(slot)
        bucket = bisect_left(EDGES, value)
        at = self._at
        self._window[bucket] += 1
        self._counts[bucket * self._slots + at] += 1
        self._sizes[at] += 1
        if bucket > self._tops[at]:
            self._tops[at] = bucket

    def percentile(self, percent: int, first: int, last: int, waits: Iterable[float] = ()) -> float:
        """The least value that `percent` of the samples in a range of slots do not exceed (nearest rank); 0.0 where
        there are none. `waits` are lower bounds of samples, longest first; `last` is the slot of now."""
        window, counts, slots = self._window, self._counts, self._slots
        begin, end, is_within = self._part(first, last)
        many = self._size(begin, end, is_within)
        longest_first = iter(waits)
        wait = next(longest_first, None)
        if not many and wait is None:
            return 0.0
        top = max(max(self._tops) if many else 0, 0 if wait is None else bisect_left(EDGES, wait))
        above = 0
        for bucket in range(top, -1, -1):
            while wait is not None and wait > LOWER[bucket]:
                above += 1
                many += 1
                wait = next(longest_first, None)
            if window and window[bucket]:
                if begin == end:
                    above += 0 if is_within else window[bucket]
                else:
                    part = sum(counts[bucket * slots + begin : bucket * slots + end])
                    above += part if is_within else window[bucket] - part
            if above * 100 > many * (100 - percent):
                break
        return MIDDLES[bucket]

    def report(self, last: int, unit: str) -> dict[str, Any]:
        """How many the window holds, and their percentiles; None where there are none."""
        count = self._size(*self._part(0, last))
        found = {f"p{p}{unit}": self.percentile(p, 0, last) if count else None for p in (50, 95, 99)}
        return {"count": count, **found}

    def _part(self, first: int, last: int) -> tuple[int, int, bool]:
        """Where in the ring the slots from `first` to `last` lie: within a range of places, or all but those."""
        slots = self._slots
        if self._last != last and self._counts:
            self._turn(last)
        if first > last:
            return 0, 0, True
        if first <= last - slots + 1:
            return 0, 0, False
        begin, end = first % slots, last % slots + 1
        return (begin, end, True) if begin < end else (end, begin, False)

    def _size(self, begin: int, end: int, is_within: bool) -> int:
        part = sum(self._sizes[begin:end])
        return part if is_within else sum(self._sizes) - part

    def _turn(self, slot: int) -> None:
        """Makes `slot` the newest, and those between the last one and it empty."""
        slots = self._slots
        if not self._counts:
            self._counts = [0] * (slots * len(LOWER))
            self._window = [0] * len(LOWER)
        for each in range(max(self._last + 1, slot - slots + 1), slot + 1):
            at = each % slots
            if self._sizes[at]:
                self._empty(at)
        self._last = slot
        self._at = slot % slots

    def _empty(self, at: int) -> None:
        used = self._tops[at] + 1
        leaving = slice(at, used * self._slots, self._slots)
        self._window[:used] = map(sub, self._window[:used], self._counts[leaving])
        self._counts[leaving] = [0] * used
        self._sizes[at] = self._tops[at] = 0
