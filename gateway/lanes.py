"""Who of one class is under way and who waits, and whose turn is next. Knows neither limits nor time.

Whoever has the fewest requests under way is next, among equals whose turn it is: max-min fairness (Bertsekas & Gallager,
Data Networks, 1992, §6.5).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Waiter:
    owner: str
    admitted: asyncio.Future[None]


@dataclass(slots=True)
class Lane:
    """One class of one base model: who is under way, who waits."""

    running: int = 0
    queued: int = 0
    by_owner: Counter[str] = field(default_factory=Counter)
    waiting: dict[str, deque[Waiter]] = field(default_factory=dict)

    def begin(self, owner: str) -> None:
        self.running += 1
        self.by_owner[owner] += 1

    def end(self, owner: str) -> None:
        self.running -= 1
        self.by_owner[owner] -= 1
        if not self.by_owner[owner]:
            del self.by_owner[owner]

    def push(self, waiter: Waiter) -> None:
        self.waiting.setdefault(waiter.owner, deque()).append(waiter)
        self.queued += 1

    def pop(self) -> Waiter:
        """Of whoever has the fewest under way; among equals, whose turn it is."""
        owner = min(self.waiting, key=lambda owner: self.by_owner[owner])
        queue = self.waiting.pop(owner)
        waiter = queue.popleft()
        if queue:
            self.waiting[owner] = queue  # behind the others
        self.queued -= 1
        return waiter

    def remove(self, waiter: Waiter) -> None:
        """Fine where it does not wait any more."""
        queue = self.waiting.get(waiter.owner)
        if queue is None or waiter not in queue:
            return
        queue.remove(waiter)
        self.queued -= 1
        if not queue:
            del self.waiting[waiter.owner]

    def greediest(self) -> str:
        return max(self.waiting, key=lambda owner: len(self.waiting[owner]))
