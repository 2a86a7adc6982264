"""What the engines cost, and on whose account: the price of an hour, shared out by who has requests under way.

Owns the engine-hours and their cost by base model and route; the time that an engine idles is on the account of no
route, `""`. An engine costs whether it answers or not. An engine of ours is all ours; one at a URL is shared by all
gateways of the database, so that each counts its part and their sum is the whole. Knows neither Prometheus nor tokens.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from adapters.settings import Settings
from gateway.engines import Engine, Engines
from gateway.labels import Labels

COUNT_SECONDS = 1.0
"""Between two looks at who has requests under way: those that begin and end in between are seen as often as they are
long."""

IDLE = ""
HOUR_SECONDS = 3600.0


class Costs:
    """The engines' cost, as far as one gateway process has to count it."""

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        labels: Labels,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engines = engines
        self._labels = labels
        self._clock = clock
        self._counted_at = clock()
        self._prices = {engine: _price_per_hour(engine, settings) for engine in engines.all}
        self.currency = settings.costs.currency
        self.gateways = 1
        """Those that share the engines at URLs, this one among them."""
        self.engine_hours: dict[str, float] = {engine.name: 0.0 for engine in engines.all}
        self.spent: dict[tuple[str, str], float] = {}
        """By base model and route, in the currency; of engines that have a price."""

    def count(self) -> None:
        """Shares out the time since the last count by who has requests under way now."""
        now = self._clock()
        hours, self._counted_at = (now - self._counted_at) / HOUR_SECONDS, now
        for engine in self._engines.all:
            ours = hours if engine.process is not None else hours / max(1, self.gateways)
            self.engine_hours[engine.name] += ours
            if self._prices[engine] > 0:
                self._charge(engine, ours * self._prices[engine])

    def _charge(self, engine: Engine, cost: float) -> None:
        under_way = Counter(engine.by_target)
        whole = under_way.total()
        if not whole:
            self._add(engine.settings.served_models[0], IDLE, cost)
        for (base, route), count in under_way.items():
            self._add(base, self._labels.of_route(route), cost * count / whole)

    def _add(self, base: str, route: str, cost: float) -> None:
        if (base, route) not in self.spent:
            self._forget()
        self.spent[base, route] = self.spent.get((base, route), 0.0) + cost

    def _forget(self) -> None:
        """Drops the routes that have made room for others."""
        for key in [key for key in self.spent if self._labels.of_route(key[1]) != key[1]]:
            del self.spent[key]


def _price_per_hour(engine: Engine, settings: Settings) -> float:
    own = engine.settings.price_per_hour
    return settings.costs.engine_hour if own is None else own
