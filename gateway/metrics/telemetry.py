"""Of traces and Langfuse: what did not arrive there. Only where they are enabled."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.runtime import Runtime


class TelemetryMetrics(Collector):
    """The outboxes of one gateway process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterable[Metric]:
        told = {"traces": self._runtime.traces, "langfuse": self._runtime.generations}
        if not any(told.values()):
            return
        dropped = CounterMetricFamily(
            "burnish_telemetry_dropped",
            "Requests, completions and feedback that traces and Langfuse did not hear of.",
            labels=["to"],
        )
        for name, outbox in told.items():
            if outbox is not None:
                dropped.add_metric([name], outbox.dropped)
        yield dropped
