"""/v1/events: the audit log, newest first."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Query

from adapters import changes
from gateway.deps import Admin, TheRuntime
from gateway.shapes import event_shape, listing

router = APIRouter(prefix="/events", tags=["events"])


@router.get("")
async def list_events(
    runtime: TheRuntime, caller: Admin, subject: str | None = None, limit: int = Query(100, ge=1, le=1000)
) -> dict[str, Any]:
    """Who changed what, of one subject (NAME@N, a route's name, a key's id) or of all."""
    events = await asyncio.to_thread(changes.events, runtime.db, subject=subject, limit=limit + 1)
    return listing([event_shape(event) for event in events[:limit]], has_more=len(events) > limit)
