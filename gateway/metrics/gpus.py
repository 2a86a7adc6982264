"""What /metrics tells of this machine's GPUs, under the names and labels of NVIDIA's dcgm-exporter.

Owns these families: whoever runs dcgm-exporter turns them off (`metrics.gpus = false`), and dashboards see no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.gpus import Gpu
from gateway.runtime import Runtime

LABELS = ["gpu", "UUID", "device", "modelName"]

FIELDS = {
    "DCGM_FI_DEV_GPU_UTIL": ("GPU utilization (in %).", "busy_percent"),
    "DCGM_FI_DEV_MEM_COPY_UTIL": ("Memory utilization (in %).", "memory_busy_percent"),
    "DCGM_FI_DEV_FB_USED": ("Framebuffer memory used (in MiB).", "used_mib"),
    "DCGM_FI_DEV_FB_FREE": ("Framebuffer memory free (in MiB).", "free_mib"),
    "DCGM_FI_DEV_POWER_USAGE": ("Power draw (in W).", "power_watts"),
    "DCGM_FI_DEV_GPU_TEMP": ("GPU temperature (in C).", "celsius"),
}
"""DCGM's field -> dcgm-exporter's words for it, and ours."""


class GpuMetrics(Collector):
    """The GPUs of the machine that this gateway runs on."""

    def __init__(self, runtime: Runtime) -> None:
        self._reading = runtime.gpus
        self._is_on = runtime.settings.metrics.gpus

    def collect(self) -> Iterable[Metric]:
        if self._is_on:
            yield from families(self._reading.newest().standing or ())


def families(gpus: tuple[Gpu, ...]) -> Iterator[Metric]:
    """None where there is no GPU."""
    for name, (text, field) in FIELDS.items() if gpus else ():
        family = GaugeMetricFamily(name, text, labels=LABELS)
        for gpu in gpus:
            value = getattr(gpu, field)
            if value is not None:
                family.add_metric([str(gpu.index), gpu.uuid, gpu.device, gpu.model], value)
        yield family
