"""/metrics: what Prometheus scrapes of this gateway, read off its parts when it asks.

Owns the names and labels of the families. Nothing here is on a request's path: `latency` and `admission` count, and
this reads. Labels are classes, base models and names that resolved, so that what a client writes makes no series.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.deps import Admin, TheRuntime
from gateway.runtime import Runtime

router = APIRouter(tags=["health"])


@router.get("/metrics", include_in_schema=False)
async def metrics(runtime: TheRuntime, caller: Admin) -> Response:
    """Prometheus' text format. Needs a key of scope admin once keys are in use, as a scrape's bearer token."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Traffic(runtime))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Traffic(Collector):
    """The three classes: how many, how long, how many may be under way."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterable[Metric]:
        yield from self._requests()
        yield from self._times()
        yield from self._places()

    def _requests(self) -> Iterable[Metric]:
        begun = CounterMetricFamily(
            "burnish_requests", "Requests that were let in, by class.", labels=["class"]
        )
        for traffic, count in self._runtime.latencies.begun().items():
            begun.add_metric([traffic.value], count)
        yield begun
        admission = self._runtime.admission
        refused = CounterMetricFamily(
            "burnish_overloaded", "Requests refused since too many waited.", labels=["class"]
        )
        for traffic, count in admission.refused.items():
            refused.add_metric([traffic.value], count)
        yield refused
        yield CounterMetricFamily(
            "burnish_evicted", "Batch lines sent back to wait, for interactive requests.", admission.evicted
        )
        yield GaugeMetricFamily(
            "burnish_headroom",
            "1 less the worst interactive p95 over its target; below 0 where one is missed.",
            admission.headroom,
        )

    def _times(self) -> Iterable[Metric]:
        labels = ["class", "route"]
        families = {
            "ttft": HistogramMetricFamily(
                "burnish_time_to_first_token_seconds",
                "From a streamed request to its first token.",
                labels=labels,
            ),
            "itl": HistogramMetricFamily(
                "burnish_inter_token_latency_seconds", "Between two pieces of a stream.", labels=labels
            ),
        }
        for found in self._runtime.latencies.histograms():
            buckets = [(_bound(bound), count) for bound, count in found.buckets]
            families[found.kind].add_metric([found.traffic.value, found.route], buckets, found.sum_seconds)
        yield from families.values()

    def _places(self) -> Iterable[Metric]:
        words = {
            "running": "Requests under way.",
            "waiting": "Requests that wait for a place.",
            "limit": "How many may be under way.",
        }
        for name, text in words.items():
            family = GaugeMetricFamily(f"burnish_places_{name}", text, labels=["class", "base_model"])
            for base, lanes in self._runtime.admission.report().items():
                for traffic, lane in lanes.items():
                    family.add_metric([traffic, base], lane[name])
            yield family


def _bound(seconds: float) -> str:
    return "+Inf" if seconds == float("inf") else repr(seconds)
