"""What /metrics tells of the record: how much waits to be written, how long a commit takes, what was lost."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.metrics.families import histogram
from gateway.runtime import Runtime


class RecordingMetrics(Collector):
    """The writer and the recorder of this gateway process."""

    def __init__(self, runtime: Runtime) -> None:
        self._writer = runtime.writer
        self._recorder = runtime.recorder

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "burnish_recording_queue",
            "Completions and feedback that wait to be written.",
            self._writer.waiting,
        )
        yield histogram(
            "burnish_recording_commit_seconds",
            "From a transaction's beginning until it is on disk.",
            self._writer.commit_seconds,
        )
        yield GaugeMetricFamily(
            "burnish_recording_failing", "1 while the database cannot be written.", self._writer.failing
        )
        yield CounterMetricFamily(
            "burnish_recording_lost", "Completions that could not be written.", self._recorder.lost
        )
