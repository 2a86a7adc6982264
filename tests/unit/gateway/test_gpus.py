"""GPUs by NVML: none where there is no NVML; and a stand-in for its library, in C, in a real process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scraped import Page

ROOT = Path(__file__).resolve().parents[3]

SCRAPE = """
from prometheus_client import CollectorRegistry, generate_latest
from gateway.gpus import Gpus
from gateway.metrics.gpus import families

class Found:
    def collect(self):
        return families(Gpus().read())

registry = CollectorRegistry()
registry.register(Found())
print(generate_latest(registry).decode(), end="")
"""

SOURCE = r"""
#include <string.h>

typedef struct { unsigned int gpu, memory; } utilization;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned long long total, free, used; } memory_v1;

enum { SUCCESS = 0, NOT_SUPPORTED = 3, LOST = 15 };
static int gpus[2] = {0, 1};
static int is_lost(void *device) { return GPUS > 1 && device == &gpus[1]; }

int nvmlInitWithFlags(unsigned int flags) { return INIT; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return "as the stand-in has it"; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = GPUS; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = &gpus[index]; return SUCCESS; }
int nvmlDeviceGetName(void *device, char *name, unsigned int length) { strncpy(name, "NVIDIA Stand-in", length); return SUCCESS; }
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned int length) {
    strncpy(uuid, device == &gpus[0] ? "GPU-0000" : "GPU-0001", length); return SUCCESS;
}
int nvmlDeviceGetMinorNumber(void *device, unsigned int *minor) { *minor = device == &gpus[0] ? 3 : 4; return SUCCESS; }
int nvmlDeviceGetUtilizationRates(void *device, utilization *rates) {
    if (is_lost(device)) return LOST;
    rates->gpu = 87; rates->memory = 41; return SUCCESS;
}
#ifdef MEMORY_V2
int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *memory) {
    if (is_lost(device)) return LOST;
    memory->used = 1024ull << 20; memory->free = 512ull << 20; memory->reserved = 256ull << 20; return SUCCESS;
}
#endif
int nvmlDeviceGetMemoryInfo(void *device, memory_v1 *memory) {
    if (is_lost(device)) return LOST;
    memory->used = 1280ull << 20; memory->free = 512ull << 20; return SUCCESS;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) { return NOT_SUPPORTED; }
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *celsius) {
    if (is_lost(device)) return LOST;
    *celsius = 61; return SUCCESS;
}
"""


def printed(folder: Path, *, gpus: int, init: int = 0, memory_v2: bool = True) -> Page:
    """What a process finds that loads the stand-in in NVML's place."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "nvml.c").write_text(SOURCE)
    defines = [f"-DGPUS={gpus}", f"-DINIT={init}", *(["-DMEMORY_V2"] if memory_v2 else [])]
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", *defines, "-o", target, folder / "nvml.c"], check=True)
    return found_by({**os.environ, "LD_LIBRARY_PATH": str(folder)})


def found_by(environ: dict[str, str]) -> Page:
    done = subprocess.run(
        [sys.executable, "-c", SCRAPE],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return Page(done.stdout)


FIRST = {"gpu": "0", "UUID": "GPU-0000", "device": "nvidia3", "modelName": "NVIDIA Stand-in"}


def test_a_gpu_has_dcgms_names_and_labels(tmp_path: Path) -> None:
    page = printed(tmp_path, gpus=1)
    told = {sample.name: sample.value for sample in page.samples}
    assert told == {
        "DCGM_FI_DEV_GPU_UTIL": 87,
        "DCGM_FI_DEV_MEM_COPY_UTIL": 41,
        "DCGM_FI_DEV_FB_USED": 1024,
        "DCGM_FI_DEV_FB_FREE": 512,
        "DCGM_FI_DEV_GPU_TEMP": 61,
    }, "what it cannot say, its power, is left out"
    assert all(sample.labels == FIRST for sample in page.samples)


def test_a_gpu_that_fell_off_the_bus_says_nothing_and_the_other_goes_on(tmp_path: Path) -> None:
    page = printed(tmp_path, gpus=2)
    assert {sample.labels["UUID"] for sample in page.samples} == {"GPU-0000"}
    assert page["DCGM_FI_DEV_GPU_UTIL"] == 87


def test_an_old_driver_tells_memory_in_its_old_way(tmp_path: Path) -> None:
    page = printed(tmp_path, gpus=1, memory_v2=False)
    assert page["DCGM_FI_DEV_FB_USED"] == 1280


def test_a_driver_that_is_not_loaded_is_no_gpu(tmp_path: Path) -> None:
    assert printed(tmp_path, gpus=1, init=9).samples == []


def test_the_command_prints_what_it_finds(tmp_path: Path) -> None:
    printed(tmp_path, gpus=1)
    environ = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "gateway.gpus"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "NVIDIA Stand-in" in done.stdout
    assert done.stderr == ""


def test_without_nvml_there_are_no_series_and_no_error() -> None:
    if shutil.which("nvidia-smi") is not None:
        pytest.skip("this machine has NVML")
    assert found_by(dict(os.environ)).samples == []
