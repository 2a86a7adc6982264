"""/metrics: what Prometheus scrapes of this gateway, read off its parts when it asks.

Owns the list of collectors and the page. Nothing here is on a request's path: the parts count in plain numbers, and the
collectors read them, in a thread of their own. Labels are classes, engines and names that resolved, so that what a
client writes makes no series. Several gateways are scraped one by one: nothing is shared in memory.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from gateway.deps import Admin, TheRuntime
from gateway.metrics import engine_page
from gateway.metrics.cost import CostMetrics
from gateway.metrics.engines import EngineMetrics
from gateway.metrics.gpus import GpuMetrics
from gateway.metrics.process import ProcessMetrics
from gateway.metrics.recording import RecordingMetrics
from gateway.metrics.records import RecordMetrics
from gateway.metrics.requests import RequestMetrics
from gateway.metrics.telemetry import TelemetryMetrics
from gateway.runtime import Runtime

router = APIRouter(tags=["health"])
router.include_router(engine_page.router)


def collectors(runtime: Runtime) -> tuple[Collector, ...]:
    """Everything that the page tells, in its order."""
    return (
        RequestMetrics(runtime),
        EngineMetrics(runtime),
        RecordingMetrics(runtime),
        ProcessMetrics(runtime),
        CostMetrics(runtime),
        RecordMetrics(runtime),
        GpuMetrics(runtime),
        TelemetryMetrics(runtime),
    )


@router.get("/metrics", include_in_schema=False)
async def metrics(runtime: TheRuntime, caller: Admin) -> Response:
    """Prometheus' text format. Needs a key of scope admin once keys are in use, as a scrape's bearer token."""
    page = await asyncio.to_thread(render, runtime)
    return Response(page, media_type=CONTENT_TYPE_LATEST)


def render(runtime: Runtime) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors(runtime):
        registry.register(collector)
    return generate_latest(registry)
