"""The open loop: requests come by chance at a rate, whoever has been answered, as strangers' requests do.

Locust's users wait for an answer before they ask again, and so does `constant_throughput`: a slow server gets less load,
and its queue is never seen. Here one Locust user does nothing but start each act at its own time, in a greenlet of its own,
and all latencies count from that time. Does not know what the acts are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, ClassVar

import gevent
from gevent.pool import Group
from locust.exception import StopUser

from loadtests.shapes import Shape
from loadtests.users import BurnishUser
from loadtests.workload import arrivals, drawn

MOST_AT_ONCE = 20_000
"""Connections. What would need more is not a server that keeps up."""

SLICE_SECONDS = 0.2
"""A longer wait is slept in parts, so that the end of the run is seen."""


class ArrivalsUser(BurnishUser):
    """Does the acts of `kinds`, each as often as its weight says, at the times of the shape."""

    kinds: ClassVar[dict[type[BurnishUser], float]]
    shape: ClassVar[Shape]

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._group_of_acts = Group()
        self._actors: dict[str, BurnishUser] = {}
        for kind in self.kinds:
            kind.concurrency = MOST_AT_ONCE
            self._actors[kind.__name__] = kind(environment)

    def on_stop(self) -> None:
        self._group_of_acts.kill()
        for actor in self._actors.values():
            actor.on_stop()

    def act(self, due: float) -> None:
        """All arrivals, and then the answers that are still to come: each act has its own limit of time."""
        weights = {kind.__name__: weight for kind, weight in self.kinds.items()}
        for number, at in enumerate(self._times()):
            if not self._reached(at):
                break
            actor = self._actors[drawn(self.plan.chance(number), weights)]
            self._group_of_acts.spawn(actor.act, at)
        self._group_of_acts.join()
        raise StopUser

    def _times(self) -> Iterator[float]:
        """On time.monotonic's clock."""
        for units in arrivals(self.plan.options.seed):
            at = self.shape.when(units)
            if at is None:
                return
            yield self.plan.begin + at

    def _reached(self, due: float) -> bool:
        """Sleeps until then. False: the run was ended before."""
        while (left := due - time.monotonic()) > 0 and not self.plan.is_over:
            gevent.sleep(min(left, SLICE_SECONDS))
        return not self.plan.is_over
