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


def _caller(request: Request, runtime: TheRuntime, scope: Scope) -> Caller:
    headers = request.headers
    return access.authorize(
        runtime.snapshot,
        headers.get("authorization", "").encode("latin-1"),
        headers.get("x-api-key", "").encode("latin-1"),
        scope,
    )


def _anybody(request: Request, runtime: TheRuntime) -> Caller:
    return _caller(request, runtime, Scope.INFERENCE)


def _admin(request: Request, runtime: TheRuntime) -> Caller:
    return _caller(request, runtime, Scope.ADMIN)


Anybody = Annotated[Caller, Depends(_anybody)]
"""A caller with a key for inference."""

Admin = Annotated[Caller, Depends(_admin)]
"""A caller with a key for changing what is served."""
