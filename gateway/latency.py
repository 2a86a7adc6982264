"""How long clients wait, now: the time to the first token and between tokens, and how near they are to the targets.

Owns what is measured of each request (`Timing`), the sliding window over it, and headroom, by which batch and training
make room (promise 7). Knows no request, no engine and no limit. It belongs to the event loop's thread and takes no lock.

A request that still waits for its first token is a censored sample: all that is known is that it takes longer than
its age. So it counts, at every age that it has passed, among those that took longer; of a longer time it says
nothing, neither good nor bad. One that waits among a hundred that did not decides nothing; when all wait, they show at
once; and many that have just come do not hide the slow ones.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from adapters.buckets import Buckets
from adapters.traffic_settings import Targets
from gateway.labels import Labels, Pair
from gateway.series import ITL_BOUNDS, TTFT_BOUNDS, Series
from gateway.traffic import Traffic

SLOTS, MOST_SLOTS, LONGEST_SLOT_SECONDS = 20, 120, 0.5
"""The window's slots: more of them in a long window, so that `since` still finds what a change did soon after it."""

FORGET_SECONDS = 3600.0
"""Names that nobody has asked for so long are no longer reported; pinned versions come and go."""

MOST_SERIES = 500
"""Pairs of route and variant that are told apart, where nobody says otherwise."""

LOWEST = -9.0


@dataclass(frozen=True, slots=True)
class Histogram:
    """What one class of one route's variant ever measured, for Prometheus."""

    kind: str
    """`ttft` or `itl`."""
    traffic: Traffic
    route: str
    variant: str
    measured: Buckets

    @property
    def buckets(self) -> list[tuple[float, int]]:
        """Upper bound in seconds and how many were not above it; the last bound is infinite."""
        return self.measured.cumulative()

    @property
    def count(self) -> int:
        return self.measured.count

    @property
    def sum_seconds(self) -> float:
        return self.measured.total


class Latencies:
    """What all requests of this gateway measured within the window."""

    def __init__(
        self,
        targets: Targets,
        clock: Callable[[], float] = time.monotonic,
        labels: Labels | None = None,
    ) -> None:
        """`clock` counts seconds upwards from 0 or more; `labels` say what is told apart for Prometheus."""
        self._targets = targets
        self._clock = clock
        window = targets.window_seconds
        self._slots = min(max(SLOTS, math.ceil(window / LONGEST_SLOT_SECONDS)), MOST_SLOTS)
        self._rate = self._slots / window
        self._tracks: dict[Traffic, dict[str, _Track]] = {traffic: {} for traffic in Traffic}
        self._labels = labels or Labels(MOST_SERIES, clock)
        self._ever: dict[tuple[Traffic, Pair], _Ever] = {}
        self._begun = dict.fromkeys(Traffic, 0)
        self._last_forgotten = -math.inf

    def begin(self, route: str, traffic: Traffic, *, streams: bool = True, variant: str = "") -> Timing:
        """A request has come. `route` is a name that resolved, so that their number is the registry's; `variant` is
        what is to answer it.

        One that does not stream has no first token to wait for: only its whole answer says how it fared.
        """
        track = self._tracks[traffic].get(route) or self._add(route, traffic)
        self._begun[traffic] += 1
        return Timing(track, streams, variant)

    def headroom(self, since: float = -math.inf) -> float:
        """1 less the worst p95 over its target among interactive requests; 1.0 only where nothing was measured.

        `since` (of the same clock) leaves out what was measured before it, to a slot: for a controller that wants to
        see what its last change did. Who still waits counts with all of the time that they waited. Never below -9.
        """
        now = self._clock()
        last = int(now * self._rate)
        first = int(since * self._rate) + 1 if since > 0 else 0  # a slot that it falls into is mixed
        tracks = self._tracks[Traffic.INTERACTIVE].values()
        return max(LOWEST, 1.0 - max([track.pressure(now, first, last) for track in tracks], default=0.0))

    def quiet_for(self) -> float:
        """Seconds since an interactive request was under way: 0 while one is, infinite where there never was one."""
        tracks = self._tracks[Traffic.INTERACTIVE].values()
        if any(track.in_flight for track in tracks):
            return 0.0
        return self._clock() - max([track.used for track in tracks], default=self._last_forgotten)

    def begun(self) -> dict[Traffic, int]:
        """How many requests of each class ever came."""
        return dict(self._begun)

    def histograms(self) -> Iterator[Histogram]:
        """What was ever measured, by class, route and variant, for as long as anybody asks for them. Streams only: an
        answer in one piece has no first token. May be asked in any thread."""
        oldest = self._clock() - FORGET_SECONDS
        for (traffic, (route, variant)), ever in self._ever.copy().items():
            for kind, measured in (("ttft", ever.ttft), ("itl", ever.itl)):
                if ever.used >= oldest and measured.count:
                    yield Histogram(kind, traffic, route, variant, measured)

    def in_flight(self) -> dict[tuple[Traffic, str], int]:
        """How many requests are under way, those that wait among them, by class and route. May be asked in any
        thread."""
        return {
            (traffic, route): track.in_flight
            for traffic, tracks in self._tracks.items()
            for route, track in tracks.copy().items()  # the event loop may be adding to them
        }

    def report(self) -> dict[str, Any]:
        """What the window holds, ready for JSON."""
        self._forget()
        quiet = self.quiet_for()
        return {
            "window_seconds": self._targets.window_seconds,
            "headroom": self.headroom(),
            "quiet_seconds": quiet if math.isfinite(quiet) else None,
            "classes": {traffic.value: self._report_class(traffic) for traffic in Traffic},
        }

    def _report_class(self, traffic: Traffic) -> dict[str, Any]:
        tracks = self._tracks[traffic]
        now = self._clock()
        last = int(now * self._rate)
        return {
            "begun": self._begun[traffic],
            "in_flight": sum(track.in_flight for track in tracks.values()),
            "waiting": sum(len(track.waiting) for track in tracks.values()),
            "routes": {route: track.report(now, last) for route, track in tracks.items()},
        }

    def _ever_of(self, traffic: Traffic, route: str, variant: str) -> _Ever:
        key = (traffic, self._labels.of(route, variant))
        return self._ever.get(key) or self._begin_ever(key)

    def _begin_ever(self, key: tuple[Traffic, Pair]) -> _Ever:
        """Measures a pair from now on; what was measured of pairs that have made room is forgotten."""
        for old in [old for old in self._ever if old[1] not in self._labels]:
            del self._ever[old]
        return self._ever.setdefault(key, _Ever())

    def _add(self, route: str, traffic: Traffic) -> _Track:
        self._forget()
        ever_of = functools.partial(self._ever_of, traffic, route)
        track = _Track(self._targets.of(route), self._clock, self._slots, self._rate, ever_of)
        self._tracks[traffic][route] = track
        return track

    def _forget(self) -> None:
        oldest = self._clock() - FORGET_SECONDS
        for traffic, tracks in self._tracks.items():
            for route in [r for r, t in tracks.items() if not t.in_flight and t.used < oldest]:
                used = tracks.pop(route).used
                if traffic is Traffic.INTERACTIVE:
                    self._last_forgotten = max(self._last_forgotten, used)


class Timing:
    """One request's clock. Whoever began it calls `end` on every way out."""

    __slots__ = ("_ended", "_ever", "_last", "_track", "begun")

    def __init__(self, track: _Track, streams: bool, variant: str) -> None:
        self._track = track
        self._ever = track.ever_of(variant)
        self.begun = track.used = self._ever.used = track.clock()
        self._last: float | None = None
        self._ended = False
        track.in_flight += 1
        if streams:
            track.waiting[self] = self.begun

    def turn_to(self, variant: str) -> None:
        """What is measured from now on is this variant's."""
        self._ever = self._track.ever_of(variant)

    def piece(self) -> None:
        """Whole events are about to go to the client: first the first token, then a gap each time."""
        track = self._track
        now = track.clock()
        last = self._last
        self._last = now
        if last is not None:
            track.itl.add(now - last, now)
            self._ever.itl.add(now - last)
        else:
            track.waiting.pop(self, None)
            track.ttft.add(now - self.begun, now)
            self._ever.ttft.add(now - self.begun)

    def whole(self, tokens: int | None) -> None:
        """The answer is about to go out in one piece: it should have taken a first token's time and the gaps of the
        rest. Of unknown length, it counts as one token."""
        track = self._track
        now = self._last = track.clock()
        track.waiting.pop(self, None)
        wanted = track.ttft_target + (max(tokens or 1, 1) - 1) * track.itl_target
        track.whole.add((now - self.begun) / wanted, now)

    def end(self) -> None:
        """The request is over, one way or another; again is nothing.

        One that ends without a first token (the client left, no engine could answer) has waited at least so long:
        that is a sample where it is longer than the target. Otherwise the worst waits would be those never counted.
        Below it, nothing is known: had they stayed, they might have been served in time or not.
        """
        if self._ended:
            return
        self._ended = True
        track = self._track
        now = track.used = self._ever.used = track.clock()
        track.in_flight -= 1
        if track.waiting.pop(self, None) is not None and now - self.begun > track.ttft_target:
            track.ttft.add(now - self.begun, now)
            self._ever.ttft.add(now - self.begun)


class _Ever:
    """What one class of one route's variant measured since the first request."""

    __slots__ = ("itl", "ttft", "used")

    def __init__(self) -> None:
        self.ttft = Buckets(TTFT_BOUNDS)
        self.itl = Buckets(ITL_BOUNDS)
        self.used = -math.inf


class _Track:
    """What one class of one route measured."""

    __slots__ = (
        "clock",
        "ever_of",
        "in_flight",
        "itl",
        "itl_target",
        "ttft",
        "ttft_target",
        "used",
        "waiting",
        "whole",
    )

    def __init__(
        self,
        targets: tuple[float, float],
        clock: Callable[[], float],
        slots: int,
        rate: float,
        ever_of: Callable[[str], _Ever],
    ) -> None:
        self.ttft_target, self.itl_target = targets
        self.clock = clock
        self.ever_of = ever_of
        self.ttft = Series(slots, rate)
        self.itl = Series(slots, rate)
        self.whole = Series(slots, rate)  # in times the target
        self.waiting: dict[
            Timing, float
        ] = {}  # streams without a first token and when they began, oldest first
        self.in_flight = 0
        self.used = -math.inf

    def pressure(self, now: float, first: int, last: int) -> float:
        """The worst p95 over its target in the slots from `first` to `last`; 0 where nothing was measured."""
        return max(
            self.ttft.percentile(95, first, last, self._waits(now)) / self.ttft_target,
            self.itl.percentile(95, first, last) / self.itl_target,
            self.whole.percentile(95, first, last),
        )

    def report(self, now: float, last: int) -> dict[str, Any]:
        return {
            "in_flight": self.in_flight,
            "waiting": len(self.waiting),
            "headroom": max(LOWEST, 1.0 - self.pressure(now, 0, last)),
            "ttft": {"target_seconds": self.ttft_target, **self.ttft.report(last, "_seconds")},
            "itl": {"target_seconds": self.itl_target, **self.itl.report(last, "_seconds")},
            "whole": self.whole.report(last, "_of_target"),
        }

    def _waits(self, now: float) -> Iterable[float]:
        """Seconds that each stream has waited for its first token, longest first."""
        return (now - begun for begun in self.waiting.values()) if self.waiting else ()
