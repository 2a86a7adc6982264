"""What FastAPI's routes are given: the runtime, and the caller with the scope that the route needs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from adapters.keys import Scope
from gateway import access
from gateway.access import Caller
from gateway.runtime import Runtime


def _runtime(request: Request) -> Runtime:
    runtime = request.app.state.runtime
    assert isinstance(runtime, Runtime)
    return runtime


TheRuntime = Annotated[Runtime, Depends(_runtime)]


async def _caller(request: Request, runtime: TheRuntime, scope: Scope) -> Caller:
    authorization, api_key = (
        request.headers.get(name, "").encode("latin-1") for name in ("authorization", "x-api-key")
    )
    return await runtime.snapshots.decide(
        lambda snapshot: access.authorize(snapshot, authorization, api_key, scope)
    )


async def _anybody(request: Request, runtime: TheRuntime) -> Caller:
    return await _caller(request, runtime, Scope.INFERENCE)


async def _admin(request: Request, runtime: TheRuntime) -> Caller:
    return await _caller(request, runtime, Scope.ADMIN)


Anybody = Annotated[Caller, Depends(_anybody)]
"""A caller with a key for inference."""

Admin = Annotated[Caller, Depends(_admin)]
"""A caller with a key for changing what is served."""
