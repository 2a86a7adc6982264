"""What the collectors have in common: histograms out of counted buckets. Knows prometheus_client and no part of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prometheus_client.core import HistogramMetricFamily

from adapters.buckets import Buckets


def add_histogram(family: HistogramMetricFamily, labels: Sequence[str], measured: Buckets) -> None:
    """Adds what was measured to a family, under these labels."""
    buckets: list[tuple[str, float]] = [(_bound(bound), count) for bound, count in measured.cumulative()]
    family.add_metric(labels, buckets, measured.total)


def histogram(name: str, text: str, measured: Buckets) -> HistogramMetricFamily:
    """A family of one histogram, without labels."""
    family = HistogramMetricFamily(name, text, labels=())
    add_histogram(family, (), measured)
    return family


def _bound(bound: float) -> str:
    return "+Inf" if bound == math.inf else repr(bound)
