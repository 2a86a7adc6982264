"""Who may go to the engines now, who waits, and who is sent back to wait (promise 7).

Owns the places of each base model: as many as its engines take at once, by class. An interactive request takes one at
once while there is one, else it waits in a queue that is bounded in number and in time. Batch lines have as many
places as `concurrency` finds that people do not feel; when people come back, the youngest lines lose theirs. Within a
class `lanes` says who is next, so that one key's flood does not hold up another key's single request.

Lives on one event loop; a request that need not wait is not awaited. Knows neither HTTP nor what is asked.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adapters.errors import Overloaded
from adapters.settings import Settings
from gateway.concurrency import Adaptive
from gateway.engines import Engines, EngineState
from gateway.lanes import Lane, Waiter
from gateway.latency import Latencies
from gateway.traffic import Traffic

log = logging.getLogger("burnish.admission")

RESERVED_SHARE = 1 / 8
"""Of the places of a base model: never a batch's, so that an engine has a slot for a person who comes now."""

TRAINING_PLACES = 8
"""The most questions of evaluations at once: what one evaluation asks in parallel."""

LOOK_SECONDS = 0.25
"""How soon it is noticed that a client who waits has left."""

RATE_SHARE = 0.2
"""What the last tick weighs in the rate at which places come free."""

MAX_RETRY_SECONDS = 60


class Evicted(Exception):
    """The place was taken away for somebody who waits: nothing was answered, ask again."""


@dataclass(eq=False, slots=True)
class Place:
    """A request's right to be with an engine, until it is given back."""

    base: str
    traffic: Traffic
    owner: str
    evict: Callable[[], None] | None
    """Ends the request, which then gives the place back; None: it may stay."""
    is_evicted: bool = False


class _Room:
    """The places of one base model."""

    def __init__(self, settings: Settings) -> None:
        self.lanes = {traffic: Lane() for traffic in Traffic}
        self.batch = Adaptive(settings.priority)
        self.evictable: dict[Place, None] = {}  # oldest first
        self.rate = 0.0
        """Interactive places given back, a second."""
        self.given_back = 0


class Admission:
    """The places of one gateway process."""

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        latencies: Latencies,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is the one that `latencies` go by."""
        self._settings = settings
        self._engines = engines
        self._latencies = latencies
        self._clock = clock
        self._rooms = {base: _Room(settings) for base in settings.models}
        self._ticked_at = clock()
        self.peers_headroom = 1.0
        """The least that other gateways on the same engines have told."""
        self.headroom = 1.0
        """Of all gateways, as of the last tick."""
        self.refused: Counter[Traffic] = Counter()
        self.evicted = 0

    async def enter(
        self,
        base: str,
        traffic: Traffic,
        owner: str,
        *,
        evict: Callable[[], None] | None = None,
        is_gone: Callable[[], bool] = lambda: False,
    ) -> Place | None:
        """A place for one request, to be given back by `leave`; None where whoever asks has left meanwhile.

        Raises Overloaded for an interactive request that would wait too long; the others wait for as long as it takes.
        """
        room = self._rooms[base]
        lane = room.lanes[traffic]
        if lane.queued or lane.running >= self._limit(base, room, traffic):
            if not await self._wait(base, room, traffic, owner, is_gone):
                return None
        else:
            lane.begin(owner)
        place = Place(base, traffic, owner, evict)
        if evict is not None:
            room.evictable[place] = None
        elif traffic is Traffic.INTERACTIVE:
            self._make_way(base, room)
        return place

    def leave(self, place: Place) -> None:
        """Gives the place back: whoever is next has it."""
        room = self._rooms[place.base]
        room.evictable.pop(place, None)
        self._end(room, place.traffic, place.owner)
        self._fill(place.base, room)

    def tick(self) -> None:
        """Fits the batch class's places to the latency that people have; several times a second."""
        now = self._clock()
        seconds, self._ticked_at = max(now - self._ticked_at, 1e-3), now
        self.headroom = min(self._latencies.headroom(), self.peers_headroom)
        is_quiet = self._latencies.quiet_for() > self._settings.priority.quiet_seconds
        for base, room in self._rooms.items():
            room.rate += RATE_SHARE * (room.given_back / seconds - room.rate)
            room.given_back = 0
            newest = self._latencies.headroom(since=room.batch.changed_at)
            since_step = self._latencies.headroom(since=max(room.batch.changed_at, room.batch.stepped_at))
            room.batch.update(
                headroom=min(newest, self.peers_headroom),
                since_step=min(since_step, self.peers_headroom),
                in_flight=room.lanes[Traffic.BATCH].running,
                ceiling=self._ceiling(base),
                quiet=is_quiet and self.peers_headroom >= 1.0,
                now=now,
            )
            self._shrink(room)
            self._fill(base, room)

    @property
    def lines_wait(self) -> bool:
        """Whether batch lines wait for a place, so that training is to leave them what there is."""
        return any(room.lanes[Traffic.BATCH].queued for room in self._rooms.values())

    def report(self) -> dict[str, Any]:
        """By base model and class: under way, waiting, and how many there may be."""
        return {
            base: {
                traffic.value: {
                    "running": lane.running,
                    "waiting": lane.queued,
                    "limit": self._limit(base, room, traffic),
                }
                for traffic, lane in room.lanes.items()
            }
            for base, room in self._rooms.items()
        }

    # -- how many ----------------------------------------------------------------------------------
    def _limit(self, base: str, room: _Room, traffic: Traffic) -> int:
        match traffic:
            case Traffic.INTERACTIVE:
                return self._capacity(base)
            case Traffic.BATCH:
                return min(room.batch.limit, self._ceiling(base), self._left_by_people(base, room))
            case Traffic.TRAINING:
                share = min(1.0, max(0.0, self.headroom)) if self._settings.priority.enabled else 1.0
                # Never none: an evaluation's questions have their own patience, and end a run when it is over.
                return 1 + int((TRAINING_PLACES - 1) * share)

    def _left_by_people(self, base: str, room: _Room) -> int:
        """Of the places, so that all together are no more than the engines take; `min_batch` come on top of them."""
        capacity = self._capacity(base)
        if not self._settings.priority.enabled:
            return capacity
        return max(self._settings.priority.min_batch, capacity - room.lanes[Traffic.INTERACTIVE].running)

    def _capacity(self, base: str) -> int:
        """What the engines that are up take at once; of those that are not, where none is: they may come back."""
        able = [engine for engine in self._engines.all if base in engine.settings.served_models]
        up = [engine for engine in able if engine.state is EngineState.UP] or able
        return max(1, sum(engine.settings.max_concurrent for engine in up))

    def _ceiling(self, base: str) -> int:
        """The most places of the batch class."""
        capacity = self._capacity(base)
        if not self._settings.priority.enabled:
            return capacity
        return max(1, capacity - math.ceil(capacity * RESERVED_SHARE))

    # -- waiting -----------------------------------------------------------------------------------
    async def _wait(
        self, base: str, room: _Room, traffic: Traffic, owner: str, is_gone: Callable[[], bool]
    ) -> bool:
        """Whether there is a place now; False: whoever asked has left. Raises Overloaded."""
        lane = room.lanes[traffic]
        loop = asyncio.get_running_loop()
        waiter = Waiter(owner, loop.create_future())
        until = math.inf
        if traffic is Traffic.INTERACTIVE:
            self._make_room_to_wait(room, owner)
            until = loop.time() + self._settings.admission.max_wait_seconds
        lane.push(waiter)
        self._fill(base, room)
        # A batch's line has nobody who could leave, and there are many of them.
        look = None if traffic is Traffic.BATCH else LOOK_SECONDS
        try:
            while not waiter.admitted.done() and not is_gone() and loop.time() < until:
                await asyncio.wait((waiter.admitted,), timeout=look and min(look, until - loop.time()))
        except asyncio.CancelledError:
            self._give_up(base, room, traffic, waiter)
            raise
        if waiter.admitted.done():
            waiter.admitted.result()  # raises what a flood was answered with
            return True
        lane.remove(waiter)
        if is_gone():
            return False
        raise self._overloaded(room)

    def _give_up(self, base: str, room: _Room, traffic: Traffic, waiter: Waiter) -> None:
        """The task that waits is cancelled, perhaps in the moment in which it was admitted."""
        if waiter.admitted.done() and waiter.admitted.exception() is None:
            self._end(room, traffic, waiter.owner)
            self._fill(base, room)
        room.lanes[traffic].remove(waiter)

    def _make_room_to_wait(self, room: _Room, owner: str) -> None:
        """A queue that is full drops whoever has most in it, unless that is the newcomer. Raises Overloaded."""
        lane, most = room.lanes[Traffic.INTERACTIVE], self._settings.admission.max_waiting
        own = len(lane.waiting.get(owner, ()))
        # Little's law: whoever is behind so many waits about so long. Only one's own flood counts against oneself.
        would_wait = own / room.rate if room.rate > 0 else 0.0
        if would_wait > self._settings.admission.max_wait_seconds or most == 0:
            raise self._overloaded(room)
        if lane.queued < most:
            return
        greediest = lane.greediest()
        if len(lane.waiting[greediest]) <= own + 1:
            raise self._overloaded(room)
        last = lane.waiting[greediest][-1]
        lane.remove(last)
        if not last.admitted.done():
            last.admitted.set_exception(self._overloaded(room))

    def _overloaded(self, room: _Room) -> Overloaded:
        lane = room.lanes[Traffic.INTERACTIVE]
        self.refused[Traffic.INTERACTIVE] += 1
        seconds = lane.queued / room.rate if room.rate > 0 else self._settings.admission.max_wait_seconds
        return Overloaded(
            "The engines are busy and enough requests wait already. Please try again later.",
            retry_after_seconds=max(1, min(MAX_RETRY_SECONDS, round(seconds))),
        )

    def _fill(self, base: str, room: _Room) -> None:
        """Gives what places there are to those who wait, each class after the one before it."""
        for traffic, lane in room.lanes.items():
            while lane.queued and lane.running < self._limit(base, room, traffic):
                waiter = lane.pop()
                if not waiter.admitted.done():  # else: it has been refused, or cancelled
                    lane.begin(waiter.owner)
                    waiter.admitted.set_result(None)

    def _end(self, room: _Room, traffic: Traffic, owner: str) -> None:
        room.lanes[traffic].end(owner)
        room.given_back += traffic is Traffic.INTERACTIVE

    # -- sending back ------------------------------------------------------------------------------
    def _make_way(self, base: str, room: _Room) -> None:
        """A person has come: were the engines over-full with batch lines, the youngest one goes."""
        if not self._settings.priority.enabled:
            return
        running = room.lanes[Traffic.INTERACTIVE].running + room.lanes[Traffic.BATCH].running
        if running > self._capacity(base):
            self._evict(room, 1)

    def _shrink(self, room: _Room) -> None:
        """Lines beyond `most` go at once: it falls only where people wait too long, or have come back."""
        beyond = room.lanes[Traffic.BATCH].running - room.batch.most
        if beyond > 0 and self._settings.priority.enabled:
            self._evict(room, beyond)

    def _evict(self, room: _Room, count: int) -> None:
        # Those that are sent back already are among the ones under way until they have given their place back.
        count -= sum(place.is_evicted for place in room.evictable)
        for place in reversed(tuple(room.evictable)):
            if count <= 0:
                return
            if not place.is_evicted and place.evict is not None:
                place.is_evicted = True
                place.evict()
                self.evicted += 1
                count -= 1
