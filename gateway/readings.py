"""A reading of something that may be slow, or away: the records, the GPUs. What was read last is there at once.

Owns that there is one reader at most, that it reads no more often than it should, and that nobody waits for it long. Does
not know what is read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 1.0
"""How long somebody who asks waits for a reading that is under way; then the last one must do."""

STALE_SECONDS = 60.0
"""How long what was read last stands while nothing newer can be read: dashboards should not gap for one slow reading."""

log = logging.getLogger("burnish.readings")


@dataclass(frozen=True, slots=True)
class Newest(Generic[T]):
    value: T | None  # None: nothing was ever read
    age_seconds: float  # since it was read; without a value, since somebody could have

    @property
    def standing(self) -> T | None:
        """The value, as long as it may be taken for the present one."""
        return self.value if self.age_seconds < STALE_SECONDS else None


class Reading(Generic[T]):
    """What `read` last returned. For any number of threads."""

    def __init__(
        self,
        name: str,
        read: Callable[[], T],
        every_seconds: float,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """`name` is for the log and the thread."""
        self._name = name
        self._read = read
        self._every_seconds = every_seconds
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None
        self._began = -every_seconds
        self._value: T | None = None
        self._at = time.monotonic()

    def newest(self) -> Newest[T]:
        """Reads anew where it is time to. A reading that fails is logged, and tried again when it is time."""
        with self._lock:
            if self._reader is None and time.monotonic() - self._began >= self._every_seconds:
                self._began = time.monotonic()
                # A daemon: a database that never answers must not keep the process from ending.
                self._reader = threading.Thread(target=self._go, name=f"read {self._name}", daemon=True)
                self._reader.start()
            reader = self._reader
        if reader is not None:
            reader.join(self._patience_seconds)
        with self._lock:
            return Newest(self._value, time.monotonic() - self._at)

    def _go(self) -> None:
        try:
            value = self._read()
        except Exception:
            log.exception("reading_failed of=%s", self._name)
        else:
            with self._lock:
                self._value, self._at = value, time.monotonic()
        finally:
            with self._lock:
                self._reader = None
