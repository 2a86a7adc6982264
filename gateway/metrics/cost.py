"""What /metrics tells of cost: the engines' hours, and what they cost on whose account."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.runtime import Runtime


class CostMetrics(Collector):
    """What this gateway process has to count of its engines' cost."""

    def __init__(self, runtime: Runtime) -> None:
        self._costs = runtime.costs

    def collect(self) -> Iterable[Metric]:
        hours = CounterMetricFamily(
            "burnish_engine_hours", "Hours that the engine was there to be asked.", labels=["engine"]
        )
        for engine, count in self._costs.engine_hours.items():
            hours.add_metric([engine], count)
        yield hours
        cost = CounterMetricFamily(
            "burnish_cost",
            "What the engines cost, shared out by requests under way; an empty route is their idle time.",
            labels=["base_model", "route", "currency"],
        )
        for (base, route), spent in self._costs.spent.copy().items():
            cost.add_metric([base, route, self._costs.currency], spent)
        yield cost
