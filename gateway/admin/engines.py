"""/v1/engines: the engines as this gateway sees them now."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from adapters.errors import NotFound
from gateway.deps import Admin, TheRuntime
from gateway.engines import Engine
from gateway.shapes import listing

router = APIRouter(prefix="/engines", tags=["engines"])


@router.get("")
async def list_engines(runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    return listing(_shape(engine) for engine in runtime.engines.all)


@router.get("/{name}")
async def retrieve_engine(name: str, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    for engine in runtime.engines.all:
        if engine.name == name:
            return _shape(engine)
    raise NotFound(f"there is no engine {name!r}", code="engine_not_found")


def _shape(engine: Engine) -> dict[str, Any]:
    return {
        "id": engine.name,
        "object": "engine",
        "kind": engine.settings.kind,
        "model": engine.settings.served_models[0],
        "models": list(engine.settings.served_models),
        "state": engine.state.value,
        "reason": engine.reason,
        "outstanding": engine.outstanding,
        "pid": engine.process.pid if engine.process else None,
        "restarts": engine.process.restarts if engine.process else None,
        "last_exit": engine.process.last_exit if engine.process else None,
        # Served names end in the digest, which is the engine's affair.
        "adapters": sorted(served.rpartition(".")[0] for served in engine.held),
    }
