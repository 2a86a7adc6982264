"""What /metrics tells of the engines, as this gateway sees them: their state, what they carry, what went wrong.

Owns the names and labels of these families. What an engine tells of itself is elsewhere (`/metrics/engines`).
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.engines import EngineState
from gateway.metrics.families import add_histogram
from gateway.runtime import Runtime

ENGINE = ["engine"]


class EngineMetrics(Collector):
    """The engines of this gateway process."""

    def __init__(self, runtime: Runtime) -> None:
        self._engines = runtime.engines.all
        self._tally = runtime.tally

    def collect(self) -> Iterable[Metric]:
        yield from self._states()
        yield from self._loads()
        yield from self._troubles()

    def _states(self) -> Iterable[Metric]:
        up = GaugeMetricFamily(
            "burnish_engine_up", "Whether the engine takes requests.", labels=["engine", "base_model"]
        )
        states = GaugeMetricFamily(
            "burnish_engine_state", "1 for the state that it is in.", labels=["engine", "state"]
        )
        for engine in self._engines:
            now = engine.state
            for base in engine.settings.served_models:
                up.add_metric([engine.name, base], now is EngineState.UP)
            for state in EngineState:
                states.add_metric([engine.name, state.value], now is state)
        yield from (up, states)

    def _loads(self) -> Iterable[Metric]:
        outstanding = GaugeMetricFamily(
            "burnish_engine_outstanding", "Requests that it was given and has not answered.", labels=ENGINE
        )
        adapters = GaugeMetricFamily(
            "burnish_engine_adapters", "Adapter versions that it holds.", labels=ENGINE
        )
        seconds = HistogramMetricFamily(
            "burnish_adapter_load_seconds", "What it took to load an adapter.", labels=ENGINE
        )
        failures = CounterMetricFamily(
            "burnish_adapter_load_failures",
            "Adapters that it would not or could not load, or did not answer with.",
            labels=ENGINE,
        )
        for engine in self._engines:
            outstanding.add_metric([engine.name], engine.outstanding)
            if engine.takes_adapters:
                adapters.add_metric([engine.name], len(engine.held))
                add_histogram(seconds, [engine.name], engine.load_seconds)
                failures.add_metric([engine.name], engine.load_failures)
        yield from (outstanding, adapters, seconds, failures)

    def _troubles(self) -> Iterable[Metric]:
        ejections = CounterMetricFamily(
            "burnish_engine_ejections", "How often it was taken out of the choice.", labels=ENGINE
        )
        restarts = CounterMetricFamily(
            "burnish_engine_restarts", "How often its process was started anew.", labels=ENGINE
        )
        retries = CounterMetricFamily(
            "burnish_engine_retries",
            "Requests that it failed and that were tried again, here or elsewhere.",
            labels=ENGINE,
        )
        for engine in self._engines:
            ejections.add_metric([engine.name], engine.ejected)
            retries.add_metric([engine.name], self._tally.retries[engine.name])
            if engine.process is not None:
                restarts.add_metric([engine.name], engine.process.restarts)
        yield from (ejections, restarts, retries)
