"""/v1/users: forget an end user, and what has learned from them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter

from adapters.forget import forget_user
from gateway.admin.changes import actor, change
from gateway.deps import Admin, TheRuntime
from gateway.shapes import forgotten_shape

router = APIRouter(prefix="/users", tags=["users"])


@router.delete("/{user:path}")
async def delete_user(user: str, runtime: TheRuntime, caller: Admin, dry_run: bool = False) -> dict[str, Any]:
    """Deletes the user's rows, quarantines the versions that learned from them and moves routes off these."""
    run_root = runtime.settings.run_root
    if dry_run:
        told = await asyncio.to_thread(
            forget_user, runtime.db, runtime.routes, user, actor(caller), run_root=run_root, dry_run=True
        )
    else:
        told = await change(
            runtime, forget_user, runtime.db, runtime.routes, user, actor(caller), run_root=run_root
        )
    return forgotten_shape(user, told, dry_run=dry_run)
