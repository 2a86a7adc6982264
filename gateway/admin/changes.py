"""How an admin route changes the records: in a thread, under the caller's name, and true at once in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from gateway.access import Caller
from gateway.runtime import Runtime

P = ParamSpec("P")
T = TypeVar("T")


def actor(caller: Caller) -> str:
    """Who it was, for the audit log."""
    return f"key:{caller.key_id}" if caller.key_id else "api"


async def change(runtime: Runtime, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Writes, and returns once the next request to this gateway goes by what was written."""
    written = await asyncio.to_thread(write, *args, **kwargs)
    await runtime.snapshots.reload()
    return written
