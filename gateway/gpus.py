"""The GPUs of this machine, as NVIDIA's management library (NVML) tells of them.

Owns NVML: it is loaded once, and where it is not there or finds no GPU there are none. A GPU that falls off the bus, or
cannot say something, says nothing of it, and keeps nothing from the others. Knows no engine and no metric's name.
`python -m gateway.gpus` prints what it finds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

GPU_SECONDS = 1.0
"""Between two readings: NVML's own figures are means over up to a second."""

MIB = 1024 * 1024

log = logging.getLogger("burnish.gpus")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU now. None: it does not say."""

    index: int  # NVML's, by the place on the bus
    uuid: str
    device: str  # "nvidia0": its name under /dev
    model: str
    busy_percent: float | None  # of the time in which a kernel ran
    memory_busy_percent: float | None  # of the time in which memory was read or written
    used_mib: float | None
    free_mib: float | None
    power_watts: float | None
    celsius: float | None


@dataclass(frozen=True, slots=True)
class _Found:
    """A GPU that NVML knew at the start."""

    handle: Any
    index: int
    uuid: str
    device: str
    model: str


class Gpus:
    """Reads them, again and again. Not for several threads at once."""

    def __init__(self) -> None:
        self._nvml: ModuleType | None = None
        self._found: tuple[_Found, ...] | None = None

    def read(self) -> tuple[Gpu, ...]:
        """Every GPU that NVML found when this was first called."""
        if self._found is None:
            self._found = self._find()
        return tuple(self._read_one(found) for found in self._found)

    def _find(self) -> tuple[_Found, ...]:
        try:
            import pynvml  # 50 ms, which a machine without GPUs need not spend at the start
        except ImportError:
            return ()
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            log.info("no_nvml: %s", error)
            return ()
        self._nvml = pynvml
        count = self._ask(pynvml.nvmlDeviceGetCount) or 0
        found = (self._find_one(index) for index in range(count))
        return tuple(one for one in found if one is not None)

    def _find_one(self, index: int) -> _Found | None:
        assert self._nvml is not None
        handle = self._ask(self._nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            return None
        minor = self._ask(self._nvml.nvmlDeviceGetMinorNumber, handle)
        return _Found(
            handle,
            index,
            uuid=self._ask(self._nvml.nvmlDeviceGetUUID, handle) or "",
            device=f"nvidia{index if minor is None else minor}",
            model=self._ask(self._nvml.nvmlDeviceGetName, handle) or "",
        )

    def _read_one(self, found: _Found) -> Gpu:
        nvml, handle = self._nvml, found.handle
        assert nvml is not None
        busy = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = self._memory(nvml, handle)
        milliwatts = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        return Gpu(
            index=found.index,
            uuid=found.uuid,
            device=found.device,
            model=found.model,
            busy_percent=None if busy is None else busy.gpu,
            memory_busy_percent=None if busy is None else busy.memory,
            used_mib=None if memory is None else memory.used / MIB,
            free_mib=None if memory is None else memory.free / MIB,
            power_watts=None if milliwatts is None else milliwatts / 1000,
            celsius=self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        )

    def _memory(self, nvml: ModuleType, handle: Any) -> Any:
        """Without what the driver keeps for itself, which old drivers count as used."""
        newer = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
        return newer if newer is not None else self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)

    def _ask(self, question: Callable[..., Any], *about: Any) -> Any:
        """None where this GPU cannot say, or is gone."""
        assert self._nvml is not None
        try:
            return question(*about)
        except self._nvml.NVMLError as error:
            log.debug("nvml_does_not_say question=%s: %s", question.__name__, error)
            return None


if __name__ == "__main__":
    for gpu in Gpus().read():
        print(gpu)
