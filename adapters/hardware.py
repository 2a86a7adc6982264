"""What this machine computes with, told without torch: the engine and the trainer choose a number format by it."""

from __future__ import annotations

import os
from pathlib import Path


def has_bfloat16_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU computes in bfloat16 itself (AVX-512 BF16 or AMX)."""
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16"})


def usable_cores() -> int:
    """Of this process: what its affinity mask allows."""
    return len(os.sched_getaffinity(0))
