"""The lines of one batch that are being asked: bounded in number and in bytes, and given up together.

Owns their tasks. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from adapters.errors import StaleWorker
from gateway.batch_files import OPEN_BYTES

OPEN_LINES = 256
"""Lines of one batch that wait for their place, are asked, or wait to be asked again."""

log = logging.getLogger("burnish.batches")


class OpenLines:
    """Used on one event loop, by one who adds lines and waits."""

    def __init__(self, is_over: Callable[[], bool]) -> None:
        """`is_over`: whether no more are to be asked. Whoever makes it so calls `look`."""
        self._is_over = is_over
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._failure: BaseException | None = None
        self._is_given_up = False
        self._changed = asyncio.Event()

    def look(self) -> None:
        """Whoever waits looks again whether it is over."""
        self._changed.set()

    def add(self, line: Coroutine[Any, Any, None], size: int) -> None:
        """A line of so many bytes, from its turn to its answer on disk."""
        task = asyncio.create_task(line)
        self._tasks.add(task)
        self._bytes += size

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._bytes -= size
            if not task.cancelled() and (failure := task.exception()) is not None:
                self._fail(failure)
            self._changed.set()

        task.add_done_callback(ended)

    async def until_room(self) -> None:
        """Returns once there is room for one more, or it is over. Raises what a line has failed with."""
        await self._until(lambda: len(self._tasks) < OPEN_LINES and self._bytes <= OPEN_BYTES)

    async def until_none(self) -> None:
        """Returns once all are done, or it is over. Raises what a line has failed with."""
        await self._until(lambda: not self._tasks)

    async def give_up(self) -> None:
        """Ends what is under way: it has no answer, and is asked by whoever goes on."""
        self._is_given_up = True
        left = tuple(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _until(self, is_enough: Callable[[], bool]) -> None:
        while self._failure is None and not is_enough() and not self._is_over():
            self._changed.clear()
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    def _fail(self, failure: BaseException) -> None:
        """The first failure ends the batch's work; another, or one of lines that nobody needs any more, is only told."""
        if self._failure is None and not self._is_given_up and not self._is_over():
            self._failure = failure
        elif not isinstance(failure, StaleWorker):
            log.warning("batch_line_failed: %s", type(failure).__name__)
