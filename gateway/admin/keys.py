"""/v1/keys: make API keys, list them, limit them, end them. A secret is shown once, by the answer that makes it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from adapters.keys import MAX_LIMIT, Scope
from gateway.admin.bodies import Body, BoundedRoute
from gateway.admin.changes import actor, change
from gateway.deps import Admin, TheRuntime
from gateway.shapes import key_shape, listing

router = APIRouter(prefix="/keys", tags=["keys"], route_class=BoundedRoute)


Limit = Annotated[int, Field(strict=True, ge=0, le=MAX_LIMIT)]


class Limits(Body):
    """Null: what the settings say; 0: no limit."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrent_requests: Limit | None = None


class NewKey(Body):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    scopes: Annotated[list[Scope], Field(min_length=1)]
    records: bool = True
    limits: Limits = Limits()


class ChangedKey(Body):
    limits: Limits


@router.get("")
async def list_keys(runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """All keys, revoked ones too."""
    return listing(key_shape(key) for key in await asyncio.to_thread(runtime.keys.list))


@router.post("", status_code=201)
async def create_key(body: NewKey, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    key, secret = await change(
        runtime,
        runtime.keys.create,
        body.name,
        body.scopes,
        actor(caller),
        records=body.records,
        limits=body.limits.model_dump(),
    )
    return {**key_shape(key), "secret": secret}


@router.patch("/{key_id}")
async def change_key(key_id: str, body: ChangedKey, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """Other limits for a key in use; those that are not named stay as they are."""
    named = body.limits.model_dump(exclude_unset=True)
    return key_shape(await change(runtime, runtime.keys.change_limits, key_id, named, actor(caller)))


@router.delete("/{key_id}")
async def revoke_key(key_id: str, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """Ends a key for ever."""
    return key_shape(await change(runtime, runtime.keys.revoke, key_id, actor(caller)))
