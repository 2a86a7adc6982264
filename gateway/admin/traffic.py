"""/v1/traffic: what each class of traffic has and waits for, in this gateway, now."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from gateway.deps import Admin, TheRuntime

router = APIRouter(prefix="/traffic", tags=["traffic"])


@router.get("")
async def retrieve_traffic(runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """Latency against its targets over the window, and the places of each base model by class."""
    admission = runtime.admission
    return {
        "object": "traffic",
        **runtime.latencies.report(),
        "headroom": admission.headroom,
        "peers_headroom": admission.peers_headroom,
        "places": admission.report(),
        "overloaded": admission.refused.total(),
        "evicted": admission.evicted,
    }
