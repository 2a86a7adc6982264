"""How many batch lines may be under way at once: as many as leave interactive requests their latency. Pure.

Additive increase, multiplicative decrease (Chiu & Jain, 1989), with TCP's slow start and its one decrease for each
reaction (Jacobson, 1988; RFC 5681): the limit is the congestion window, an engine the path, and lost headroom the
lost packet. As HyStart does (RFC 9406), slow start ends when latency rises, before anything is lost.

* Nobody interactive for a while: it doubles up to the ceiling. Engines that idle are filled.
* Headroom above `full_above`, and the limit is what holds batch back: it doubles up to the threshold (half of the last
  limit that was too much), then grows by steps.
* Between the bounds the threshold comes down to it, and it goes by steps that are further apart towards the headroom in
  the middle, each for what was measured since the one before: up above it, down below it. Where it stayed instead, what
  batch has beside people would be what it began with, and a p95 just within its target leaves five of 100 beyond it.
* Headroom below `pause_below`: it is halved; below 0 (a target is missed) quartered. Only what was measured after
  that counts for the next decision.

Knows no clock, no engine and no request: whoever owns it says what is measured.
"""

from __future__ import annotations

import math

from adapters.traffic_settings import Priority

START = 2
"""The first limit, where `min_batch` is not more: what is not known to be bearable begins small."""

REACTION_SECONDS = 1.0
"""How long a decrease has, once no more lines than it allows are under way, before what was measured since counts."""

GROWTH_SECONDS = 1.0
"""Between two increases. In a window of 10 s, half a second of slow tokens is 5 % and moves the p95."""

STEP_SECONDS = 3.0
"""Between two steps below `full_above`. Of the few requests in so short a time the p95 is nearly the slowest, which errs
on the side of those who wait."""

FILL_SECONDS = 0.5
"""Between two doublings while nobody could be disturbed: from 1 to 128 in under four seconds."""

IN_USE = 0.75
"""Below this share of the limit under way, headroom says nothing of the limit (RFC 7661)."""

STEP_OF_CEILING = 0.05
STEP_OF_LIMIT = 0.25
"""A step is 5 % of the ceiling, so that small and large engines are filled in the same time, but at most a quarter of
the limit. Where latency is proportional to the lines under way, a quarter more cannot jump over the band between the
bounds: from 1 - 0.4 to 1 - 0.1 of a target is half as much again. Several gateways that share engines still come
to even shares: their steps are equal but for the smallest limits."""

NOTHING_MEASURED = 1.0
"""Headroom is so only where there is no evidence; that is no leave to go beyond what was borne before."""


class Adaptive:
    """The limit of the batch class. `update` it often, with what was measured since two of its times."""

    def __init__(self, priority: Priority) -> None:
        self._priority = priority
        self._goal = max(priority.min_batch, START)  # the limit, were there no ceiling
        self._ceiling = self._goal
        self._threshold = math.inf
        self._grew = True  # since the last decrease
        self._draining = False  # more are under way than the last decrease allows
        self._quiet = True
        self._borne = self._goal  # what was allowed when interactive traffic was last seen
        self._most = self._goal  # the limit, but for steps down
        self.stepped_at = -math.inf
        """When it grew last, or went a step down; what was measured before is no reason for another."""
        self.changed_at = -math.inf
        """When the last decrease had taken effect; what was measured before it is about another limit."""

    @property
    def limit(self) -> int:
        """How many batch lines may be under way."""
        return min(self._goal, self._ceiling)

    @property
    def most(self) -> int:
        """More lines than this are to be ended at once; those between `limit` and it may end by themselves."""
        return min(self._most, self._ceiling)

    def update(
        self,
        *,
        headroom: float,
        since_step: float,
        in_flight: int,
        ceiling: int,
        quiet: bool,
        now: float,
    ) -> None:
        """Decides anew. `headroom`: since `changed_at`; `since_step`: since `stepped_at` too. `in_flight` batch lines are
        under way; `ceiling` is the room of all engines that answer; `quiet`: nobody interactive for
        `priority.quiet_seconds`; `now` in seconds of any clock that only goes up.
        """
        self._ceiling = ceiling
        if not self._priority.enabled:
            self._goal = ceiling
        elif quiet:
            self._fill(now)
        elif self._quiet:
            self._make_room(in_flight, now)
        else:
            self._control(headroom, since_step, in_flight, now)

    def _fill(self, now: float) -> None:
        if not self._quiet:
            self._quiet = True
            self._borne = self._goal
        if now - self.stepped_at >= FILL_SECONDS and self._goal < self._ceiling:
            self._grow_to(min(max(1, 2 * self._goal), self._ceiling), now)

    def _make_room(self, in_flight: int, now: float) -> None:
        """Somebody is back: in a filled engine they would wait, so the limit is at once what it was beside them."""
        self._quiet = False
        self._decrease_to(min(self._goal, max(self._borne, self._floor)), in_flight, now)

    def _control(self, headroom: float, since_step: float, in_flight: int, now: float) -> None:
        if self._draining and in_flight <= self.limit:
            self._draining = False
            self.changed_at = now
        if now - self.changed_at < REACTION_SECONDS:
            return
        if headroom < self._priority.pause_below:
            self._relieve(headroom, in_flight, now)
        elif in_flight >= IN_USE * self.limit:
            if headroom < self._priority.full_above and self._grew:
                # While a decrease takes effect, what is seen is not this limit's doing.
                self._threshold = min(self._threshold, max(self.limit, 1))
            self._steer(headroom, since_step, in_flight, now)

    def _relieve(self, headroom: float, in_flight: int, now: float) -> None:
        """Fewer lines, unless those that the last decrease forbade are still to end: nothing was seen of it yet."""
        used = min(self.limit, in_flight)  # a limit that nobody came near was not what was too much
        goal = max(used // (4 if headroom < 0 else 2), self._floor)
        if self._draining or goal >= self.limit:
            return
        if self._grew:  # a second decrease in a row says nothing new of what can be borne (RFC 5681, 3.1)
            self._threshold = max(used // 2, 1)
            self._grew = False
        self._decrease_to(goal, in_flight, now)

    def _steer(self, headroom: float, since_step: float, in_flight: int, now: float) -> None:
        limit, bounds = self.limit, self._priority
        newest, is_measured = min(headroom, since_step), since_step < NOTHING_MEASURED
        is_ample = newest >= bounds.full_above
        if now - max(self.stepped_at, self.changed_at) < (GROWTH_SECONDS if is_ample else STEP_SECONDS):
            return
        step = max(1, int(min(STEP_OF_CEILING * self._ceiling, STEP_OF_LIMIT * limit)))
        if is_ample and limit < self._threshold and (is_measured or math.isfinite(self._threshold)):
            self._grow_to(int(min(max(1, 2 * limit), self._threshold, self._ceiling)), now)
        elif is_measured and newest >= bounds.middle:
            self._grow_to(min(limit + step, self._ceiling), now)
        elif since_step < bounds.middle and in_flight <= limit:
            # Not while lines beyond the limit are still to end: nothing was seen of the last step down yet.
            self._goal, self.stepped_at = max(limit - step, self._floor), now

    def _grow_to(self, goal: int, now: float) -> None:
        if goal > self.limit:
            self._goal = self._most = goal
            self._grew = True
            self.stepped_at = now

    def _decrease_to(self, goal: int, in_flight: int, now: float) -> None:
        self._goal = self._most = goal
        self._draining = in_flight > self.limit
        self.changed_at = now

    @property
    def _floor(self) -> int:
        return self._priority.min_batch
