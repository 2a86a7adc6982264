"""What /metrics tells of the gateway's own process: its version, memory, processor time, event loop and disk.

Owns the names of these families; those of prometheus_client (`process_*`, `python_info`) are its own.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterable

from prometheus_client import PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.metrics.families import histogram
from gateway.runtime import Runtime


class ProcessMetrics(Collector):
    """This gateway process and the disk that it writes to."""

    def __init__(self, runtime: Runtime) -> None:
        self._lag = runtime.loop_lag
        self._home = runtime.settings.home
        self._platform = (ProcessCollector(registry=None), PlatformCollector(registry=None))

    def collect(self) -> Iterable[Metric]:
        for collector in self._platform:
            yield from collector.collect()
        build = GaugeMetricFamily("burnish_build_info", "1, under the version's label.", labels=["version"])
        build.add_metric([_version()], 1)
        yield build
        yield histogram(
            "burnish_event_loop_lag_seconds", "How much later than wanted the event loop woke up.", self._lag
        )
        yield from self._disk()

    def _disk(self) -> Iterable[Metric]:
        usage = shutil.disk_usage(self._home)
        words = {"free": (usage.free, "What is left of the disk."), "size": (usage.total, "The whole disk.")}
        for name, (size, text) in words.items():
            family = GaugeMetricFamily(f"burnish_disk_{name}_bytes", text, labels=["place"])
            family.add_metric(["home"], size)
            yield family


def _version() -> str:
    try:
        return importlib.metadata.version("burnish")
    except importlib.metadata.PackageNotFoundError:  # run from its source, without being installed
        return "unknown"
