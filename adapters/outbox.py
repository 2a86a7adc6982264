"""An outbox: what is to be told to somebody elsewhere, handed on in groups by one thread, and never waited for.

Owns the bound and the thread: `put` costs a request an append; what finds no room, and what cannot be delivered, is
dropped and counted, and said in the log once a minute at most. Does not know what is delivered, nor to whom.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger("burnish.outbox")

GROUP = 64
"""Items of one delivery."""

PERIOD_SECONDS = 1.0
"""How long an item waits for others, at most; a full group does not wait."""

LOG_SECONDS = 60.0
CLOSE_SECONDS = 2.0

T = TypeVar("T")


class Outbox(Generic[T]):
    """Items on their way. `dropped` counts those that did not arrive; `name` is what the log calls it."""

    def __init__(
        self,
        name: str,
        deliver: Callable[[list[T]], str | None],
        max_queue: int,
        *,
        hurry: Callable[[], None] = lambda: None,
    ) -> None:
        """`deliver` is called in the outbox's thread; it returns what went wrong, in words that may be logged, or None.
        `hurry` ends what it waits for, if it can; it is called once, while closing."""
        self._name = name
        self._deliver = deliver
        self._max_queue = max_queue
        self._hurry = hurry
        self._waiting: deque[T] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._counting = threading.Lock()
        self.dropped = 0
        self._told = 0
        self._told_at = -LOG_SECONDS
        self._why = ""
        self._thread = threading.Thread(target=self._run, name=f"outbox {name}", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Hands over, from any thread. Never waits and never raises."""
        waiting = len(self._waiting)
        if waiting >= self._max_queue or self._closing:
            self._drop(1, "too many wait" if not self._closing else "it is closed")
            return
        self._waiting.append(item)
        if waiting + 1 == GROUP:
            self._wake.set()

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Delivers what waits, as far as that takes no longer than `seconds`; the rest is dropped."""
        self._closing = True
        self._wake.set()
        self._thread.join(seconds * 0.75)
        if self._thread.is_alive():
            self._hurry()
            self._thread.join(seconds * 0.25)
        self._drop(len(self._waiting), "there was no time left")
        self._waiting.clear()

    def _drop(self, count: int, why: str) -> None:
        with self._counting:
            self.dropped += count
            self._why = why if count else self._why

    # -- the thread ------------------------------------------------------------------------------------
    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._wake.wait(PERIOD_SECONDS)
            self._wake.clear()
            is_last = self._closing
            while self._waiting:
                self._hand_on()
            self._say()

    def _hand_on(self) -> None:
        group = self._take()
        try:
            failure = self._deliver(group)
        except Exception as error:  # its words may hold what is delivered
            failure = type(error).__name__
        if failure is not None:
            self._drop(len(group), failure)
            self._say()

    def _take(self) -> list[T]:
        group: list[T] = []
        while self._waiting and len(group) < GROUP:
            try:
                group.append(self._waiting.popleft())
            except IndexError:  # closed meanwhile, which has emptied it
                break
        return group

    def _say(self) -> None:
        """Tells of what was dropped since it was told of last."""
        now = time.monotonic()
        if self.dropped == self._told or now - self._told_at < LOG_SECONDS:
            return
        log.warning("telemetry_dropped to=%s dropped=%d: %s", self._name, self.dropped, self._why)
        self._told, self._told_at = self.dropped, now
