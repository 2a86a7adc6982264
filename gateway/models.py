"""GET /v1/models: routes, adapter versions and base models as OpenAI's clients list them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from adapters.errors import NotFound
from gateway.deps import Anybody, TheRuntime
from gateway.routing import Model, Snapshot

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    """Every name that can answer now."""
    return {"object": "list", "data": [_shape(model) for model in runtime.snapshot.models]}


@router.get("/{model:path}")
async def retrieve_model(model: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    """One of them; its name may hold `@`, `/` and `:`."""
    return _shape(await runtime.snapshots.decide(lambda snapshot: _find(snapshot, model)))


def _find(snapshot: Snapshot, model: str) -> Model:
    for known in snapshot.models:
        if known.id == model:
            return known
    raise NotFound(
        f"The model '{model}' does not exist or you do not have access to it.",
        param="model",
        code="model_not_found",
    )


def _shape(model: Model) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "burnish",
        "kind": model.kind,
        "parent": model.parent,
    }
