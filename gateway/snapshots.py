"""The snapshot that requests go by, and how it is kept new.

Read by everybody, and swapped here alone, whenever the registry's revision has changed, whoever changed it (this process,
the CLI, a trainer). A request waits for the registry only where it names what the snapshot does not know: a key that was
made a moment ago, or a model. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from typing import TypeVar

from adapters.errors import NotFound, Unauthorized
from adapters.registry import Registry
from gateway import routing
from gateway.routing import Snapshot

T = TypeVar("T")

log = logging.getLogger("burnish.snapshots")

REFRESH_SECONDS = 0.2
"""How soon a change made by another process is seen by whoever knew what was before."""

GATHER_SECONDS = 0.01
"""How long a look at the registry waits for more who need it: whoever guesses keys or names costs no more looks."""


PATIENCE_SECONDS = 2.0
"""How long a request waits for a look; a database that is away may take minutes to say so."""


class Snapshots:
    """Used on one event loop."""

    def __init__(self, registry: Registry, models: Collection[str], on_change: Callable[[], None]) -> None:
        """`on_change` is called after each swap."""
        self.current = routing.EMPTY
        self._registry = registry
        self._models = models
        self._on_change = on_change
        self._stale = asyncio.Event()
        self._look: asyncio.Task[None] | None = None
        """The next look, which those who need one wait for together; it has not read anything yet."""
        self._reading = asyncio.Lock()

    async def decide(self, rule: Callable[[Snapshot], T]) -> T:
        """What a rule says of the snapshot; where it knows no such key or model, of the registry as it is now.

        Raises what the rule raises. A registry that cannot be read in time leaves what was said first.
        """
        try:
            return rule(self.current)
        except (Unauthorized, NotFound):
            known = self.current
            with contextlib.suppress(Exception):  # `follow` says so, and once however many ask
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self.catch_up()
            if self.current is known:
                raise
        return rule(self.current)

    async def catch_up(self) -> None:
        """Sees what other processes have changed until now, without waiting for the next look."""
        if self._look is None:
            self._look = asyncio.create_task(self._look_once(), name="look at the registry")
        await asyncio.shield(self._look)

    async def reload(self) -> None:
        """Swaps the snapshot for the registry's newest. Requests that began keep theirs."""
        rows = await asyncio.to_thread(self._registry.snapshot_rows)
        if rows.revision > self.current.revision:
            self.current = routing.build(rows, self._models)
            self._on_change()

    async def follow(self) -> None:
        """Looks at the registry for as long as the process lives."""
        while True:
            try:
                await self.catch_up()
            except Exception:  # the database may be away for a while; what is known goes on being served
                log.exception("registry_unreadable")
            try:
                async with asyncio.timeout(REFRESH_SECONDS):
                    await self._stale.wait()
                self._stale.clear()
            except TimeoutError:
                pass

    def is_stale(self) -> None:
        """This process has changed something: look soon. Waits for nothing."""
        self._stale.set()

    async def _look_once(self) -> None:
        async with self._reading:
            await asyncio.sleep(GATHER_SECONDS)
            self._look = None  # whoever comes from here on needs a later one
            if await asyncio.to_thread(self._registry.revision) != self.current.revision:
                await self.reload()
