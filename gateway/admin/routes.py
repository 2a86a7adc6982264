"""/v1/routes: public model names, promote and roll back, and what a route declares."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter

from gateway.admin.bodies import Body, BoundedRoute
from gateway.admin.changes import actor, change
from gateway.deps import Admin, TheRuntime
from gateway.shapes import listing, route_shape

router = APIRouter(prefix="/routes", tags=["routes"], route_class=BoundedRoute)


class NewRoute(Body):
    name: str
    variant: str


class Change(Body):
    """`policy`: the parts to change; null puts one back to its default."""

    policy: dict[str, Any]


class Challengers(Body):
    """The shares of the traffic, by variant; all of them."""

    challengers: dict[str, float]


class Promotion(Body):
    variant: str


class Rollback(Body):
    to: str | None = None


@router.get("")
async def list_routes(runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    return listing(route_shape(route) for route in await asyncio.to_thread(runtime.routes.list))


@router.post("", status_code=201)
async def create_route(body: NewRoute, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    return route_shape(await change(runtime, runtime.routes.create, body.name, body.variant, actor(caller)))


@router.get("/{name}")
async def retrieve_route(name: str, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    return route_shape(await asyncio.to_thread(runtime.routes.get, name))


@router.patch("/{name}")
async def change_route(name: str, body: Change, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """Changes the given parts of the route's policy."""
    return route_shape(await change(runtime, runtime.routes.change_policy, name, body.policy, actor(caller)))


@router.delete("/{name}")
async def delete_route(name: str, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """Takes the public name away; its versions stay."""
    await change(runtime, runtime.routes.delete, name, actor(caller))
    return {"id": name, "object": "route", "deleted": True}


@router.post("/{name}/promote")
async def promote(name: str, body: Promotion, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """Makes the variant the route's default; requests in flight keep the one they began with."""
    return route_shape(await change(runtime, runtime.routes.promote, name, body.variant, actor(caller)))


@router.put("/{name}/challengers")
async def challenge(name: str, body: Challengers, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """Gives variants shares of the traffic beside the default; those not named lose theirs."""
    challenge = runtime.routes.challenge
    return route_shape(await change(runtime, challenge, name, body.challengers, actor(caller)))


@router.post("/{name}/rollback")
async def rollback(
    name: str, runtime: TheRuntime, caller: Admin, body: Rollback | None = None
) -> dict[str, Any]:
    """Back to the last former default that may take traffic, or to the last time it was `to`."""
    to = body.to if body is not None else None
    return route_shape(await change(runtime, runtime.routes.rollback, name, to, actor(caller)))
