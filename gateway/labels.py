"""Which routes and variants have series of their own: a bounded number of pairs, whatever there is in the registry.

Owns the bound. Everything that is counted by route and variant is told under what `Labels` says, so that one pair is
called the same everywhere. What comes when there is no more room is counted together, as `other`, until a pair that
nobody has asked for in an hour makes room. Knows neither requests nor metrics; any thread may ask.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FORGET_SECONDS = 3600.0
"""Pairs that were not asked for so long make room: pinned versions come and go."""

LOOK_SECONDS = 10.0
"""Between two looks for such pairs, so that a flood of new names costs no request more than the last one's look."""

Pair = tuple[str, str]
"""The name that a client asks for, and the variant that answers."""

NOWHERE: Pair = ("", "")
"""Of a request that was refused before it was known what it asks for."""

OTHER: Pair = ("other", "other")


class Labels:
    """The pairs of one gateway process that have series of their own, `most` of them."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._used: dict[Pair, float] = {}
        self._looked = clock()

    def of(self, route: str, variant: str) -> Pair:
        """What a request of this route and variant is counted under, from now on."""
        pair = (route, variant)
        if pair in self._used or not route or self._has_room():
            self._used[pair] = self._clock()
            return pair
        return OTHER

    def of_route(self, route: str) -> str:
        """What is counted by route alone."""
        known = len(self._used) < self._most or any(name == route for name, _ in self._used.copy())
        return route if known or not route else OTHER[0]

    def __contains__(self, pair: object) -> bool:
        return pair in self._used or pair == OTHER

    def _has_room(self) -> bool:
        if len(self._used) < self._most:
            return True
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        for pair, used in self._used.copy().items():
            if used < now - FORGET_SECONDS:
                self._used.pop(pair, None)
        return len(self._used) < self._most
