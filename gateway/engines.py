"""The engines as this gateway sees them: their state, what they hold, and which of them takes a request.

Owns the runtime state of each engine and the choice among them. Does not talk to them: `health` does, and tells
what it heard; `inference` tells how its requests fared. Lives on one event loop.

    STARTING ──answers──> SYNCING ──holds its adapters──> UP ──fails──> EJECTED ──answers──> SYNCING

The choice follows consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2018), over a ranking
by highest random weight (Thaler and Ravishankar, 1998): one conversation stays on one engine, where its prefix
is cached, unless that engine has more than `LOAD_BOUND` times its share; then the next in rank takes it.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from adapters.buckets import Buckets
from adapters.engine_settings import EngineSettings
from adapters.settings import Health
from gateway.routing import Target
from gateway.supervisor import SupervisedEngine
from gateway.upstream import Pool

LOAD_BOUND = 1.25
"""The most an engine may carry, times the mean: 1 balances perfectly, infinity keeps every prefix at home."""

LOAD_BOUNDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class EngineState(StrEnum):
    STARTING = "starting"
    SYNCING = "syncing"
    UP = "up"
    EJECTED = "ejected"


@dataclass(eq=False)
class Engine:
    """One engine. `held` are the served names of the adapter versions it has loaded and been checked for."""

    settings: EngineSettings
    pool: Pool
    process: SupervisedEngine | None = None
    state: EngineState = EngineState.STARTING
    reason: str | None = None
    held: frozenset[str] = frozenset()
    outstanding: int = 0
    by_adapter: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    ejections: int = 0
    boot: int = 0
    eject_until: float = 0.0
    ejected: int = 0
    """How often it ever was; `ejections` are those that its wait goes by."""
    load_seconds: Buckets = field(default_factory=lambda: Buckets(LOAD_BOUNDS))
    """Of each adapter that it loaded."""
    load_failures: int = 0
    by_target: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Requests under way, by base model and the name that was asked for."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        return self.settings.name

    def __post_init__(self) -> None:
        self.salt = hashlib.blake2b(self.name.encode(), digest_size=16).digest()

    @property
    def takes_adapters(self) -> bool:
        return self.settings.takes_adapters

    def served(self, target: Target) -> str:
        """The name this engine knows the target by."""
        return target.served or self.settings.upstream_model or target.base

    def can_answer(self, target: Target) -> bool:
        """Whether it serves the target's base model and holds its adapter. Says nothing of its health."""
        if target.base not in self.settings.served_models:
            return False
        return target.served is None or target.served in self.held


class Engines:
    """All engines of a gateway."""

    def __init__(self, engines: Iterable[Engine], health: Health) -> None:
        self.all = tuple(engines)
        self._health = health
        self.changed = asyncio.Event()
        """Set, and replaced by a new one, whenever an engine comes up or holds more than before."""

    def pick(self, target: Target, affinity: bytes, tried: Iterable[Engine] = ()) -> Engine | None:
        """The engine for a request of `affinity` (the conversation's beginning), or None if none can take it.

        `tried` are the engines that failed this request already; one of them is picked only when nothing else is left.
        """
        able = [e for e in self.all if e.state is EngineState.UP and e.can_answer(target)]
        fresh = [e for e in able if e not in tried] or able
        if len(fresh) < 2:
            return fresh[0] if fresh else None
        bound = math.ceil(LOAD_BOUND * (sum(e.outstanding for e in fresh) + 1) / len(fresh))
        within = [e for e in fresh if e.outstanding < bound]
        if affinity and within:
            return max(within, key=lambda e: hashlib.blake2b(affinity, salt=e.salt, digest_size=8).digest())
        return min(fresh, key=lambda e: e.outstanding)

    def could(self, target: Target) -> bool:
        """Whether an engine that serves the target's base model is on its way up, so that waiting may help."""
        coming = (EngineState.STARTING, EngineState.SYNCING)
        return any(e.state in coming and target.base in e.settings.served_models for e in self.all)

    def begin(self, engine: Engine, target: Target) -> None:
        """A request is given to the engine."""
        engine.outstanding += 1
        engine.by_target[target.base, target.name] += 1
        if target.served:
            engine.by_adapter[target.served] += 1

    def end(self, engine: Engine, target: Target) -> None:
        """A request has left the engine."""
        engine.outstanding -= 1
        asked = (target.base, target.name)
        engine.by_target[asked] -= 1
        if not engine.by_target[asked]:
            del engine.by_target[asked]
        if target.served:
            engine.by_adapter[target.served] -= 1
            if not engine.by_adapter[target.served]:
                del engine.by_adapter[target.served]
                engine.wake.set()

    def succeeded(self, engine: Engine) -> None:
        """The engine gave a whole answer (an error of the client's is one)."""
        engine.failures = 0
        if engine.ejections and time.monotonic() > engine.eject_until + self._health.backoff_max_seconds:
            engine.ejections = 0

    def failed(self, engine: Engine, reason: str, *, at_once: bool = False) -> None:
        """The engine gave no usable answer. Ejects it `at_once`, or after enough of these in a row.

        The last engine that is up for its model is ejected `at_once` only: a request that breaks every engine
        must not take the model away from everybody.
        """
        engine.failures += 1
        if engine.state is not EngineState.UP:
            return
        if at_once or (engine.failures >= self._health.failures_to_eject and self._has_peer(engine)):
            self.eject(engine, reason)

    def _has_peer(self, engine: Engine) -> bool:
        models = set(engine.settings.served_models)
        return any(
            e is not engine and e.state is EngineState.UP and models <= set(e.settings.served_models)
            for e in self.all
        )

    def eject(self, engine: Engine, reason: str) -> None:
        """No request goes to the engine until it has answered again; the wait doubles each time."""
        wait = self._health.backoff_initial_seconds * 2 ** min(engine.ejections, 16)
        engine.state = EngineState.EJECTED
        engine.reason = reason
        engine.ejections += 1
        engine.ejected += 1
        engine.eject_until = time.monotonic() + min(wait, self._health.backoff_max_seconds)
        engine.held = frozenset()
        engine.wake.set()

    def lost_adapter(self, engine: Engine, served: str) -> None:
        """The engine does not know an adapter it should hold: it has been restarted behind our back."""
        engine.held -= {served}
        if engine.state is EngineState.UP:
            engine.state = EngineState.SYNCING
            engine.reason = "it lost an adapter"
        engine.wake.set()

    def up(self, engine: Engine) -> None:
        """The engine answers and holds what it should."""
        engine.state, engine.reason, engine.failures = EngineState.UP, None, 0
        self.announce()

    def announce(self) -> None:
        """Wakes the requests that wait for an engine."""
        self.changed.set()
        self.changed = asyncio.Event()
