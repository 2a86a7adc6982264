"""vLLM's max_loras: how many distinct adapters are in use at once. Requests for one more wait their turn."""

from __future__ import annotations

import asyncio
from collections import Counter


class AdapterSlots:
    """The base model needs no slot; requests for one adapter share one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._in_use: Counter[str] = Counter()
        self._waiting: list[asyncio.Future[None]] = []

    async def take(self, adapter: str) -> None:
        while adapter not in self._in_use and len(self._in_use) >= self._size:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self._in_use[adapter] += 1

    def give_back(self, adapter: str) -> None:
        self._in_use[adapter] -= 1
        if self._in_use[adapter]:
            return
        del self._in_use[adapter]
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
