"""vLLM's max_loras: how many distinct adapters are in use at once. Requests for one more wait their turn."""

from __future__ import annotations

import asyncio
from collections import Counter


class AdapterSlots:
    """The base model needs no slot; requests for one adapter share one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.waiting: list[str] = []
        """The adapters of the requests that wait."""
        self._in_use: Counter[str] = Counter()
        self._turns: list[asyncio.Future[None]] = []

    @property
    def used(self) -> tuple[str, ...]:
        """The adapters in use, in alphabetical order."""
        return tuple(sorted(self._in_use))

    async def take(self, adapter: str) -> None:
        self.waiting.append(adapter)
        try:
            while adapter not in self._in_use and len(self._in_use) >= self.size:
                turn = asyncio.get_running_loop().create_future()
                self._turns.append(turn)
                await turn
        finally:
            self.waiting.remove(adapter)
        self._in_use[adapter] += 1

    def give_back(self, adapter: str) -> None:
        self._in_use[adapter] -= 1
        if self._in_use[adapter]:
            return
        del self._in_use[adapter]
        turns, self._turns = self._turns, []
        for turn in turns:
            if not turn.done():
                turn.set_result(None)
