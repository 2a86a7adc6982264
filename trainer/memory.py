"""A process and its descendants: which they are, how much memory they hold, and whether the kernel has killed for lack
of it.

Reads /proc and the control group; where they are missing, nothing is known and nothing is limited.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

GIB = 1 << 30
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def limit_bytes(gib: float | None) -> int | None:
    return None if gib is None else round(gib * GIB)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and all its descendants."""
    return sum(_resident(one) for one in (pid, *descendants(pid)))


def own_bytes() -> int:
    """Resident memory of this process."""
    return _resident(os.getpid())


def kernel_kills(control_group: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes of this control group the kernel has killed for lack of memory; 0 where it does not say."""
    for name in ("memory.events", "memory/memory.oom_control"):
        with contextlib.suppress(OSError, ValueError):
            for line in (control_group / name).read_text().splitlines():
                word, _, count = line.partition(" ")
                if word == "oom_kill":
                    return int(count)
    return 0


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    return 0


def descendants(pid: int) -> Iterator[int]:
    """The processes that it has started, and those that they have."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                yield child
                yield from descendants(child)
