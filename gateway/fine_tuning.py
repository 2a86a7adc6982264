"""/v1/fine_tuning/jobs: OpenAI's fine-tuning, from an uploaded file or from a route's feedback.

Owns the HTTP surface. A key sees the jobs that it made; an admin's key sees all. What a job is ordered with is
`gateway.orders`' affair, how it looks `gateway.job_shapes`', and a worker does the work.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field

from adapters.errors import Forbidden, InvalidRequest
from adapters.hyperparameters import check_hyperparameters
from adapters.jobs import TRAINING, EventDraft, Job, JobState
from adapters.triggers import enqueue_route_training
from gateway.access import Caller
from gateway.admin import refuse_foreign_pages
from gateway.admin.bodies import Body, BoundedRoute
from gateway.admin.changes import actor
from gateway.deps import Anybody, TheRuntime
from gateway.job_shapes import checkpoint_shape, event_id, event_shape, job_shape
from gateway.orders import MAX_SEED, Order
from gateway.protocol import checks
from gateway.runtime import Runtime
from gateway.shapes import page

METADATA_FILTER = re.compile(r"metadata\[([^\]\"\\]{1,64})\]")

router = APIRouter(
    prefix="/v1/fine_tuning/jobs",
    tags=["fine-tuning"],
    dependencies=[Depends(refuse_foreign_pages)],
    route_class=BoundedRoute,
)


class MethodParameters(Body):
    hyperparameters: dict[str, Any] | None = None


class Method(Body):
    """OpenAI's `method`, which also knows `kto` and `auto` here."""

    type: Literal["supervised", "dpo", "kto", "auto"]
    supervised: MethodParameters | None = None
    dpo: MethodParameters | None = None
    kto: MethodParameters | None = None
    auto: MethodParameters | None = None


class WandB(Body):
    project: Annotated[str, Field(min_length=1)]
    name: str | None = None
    entity: str | None = None
    tags: list[str] | None = None


class Integration(Body):
    type: Literal["wandb"]
    wandb: WandB


class NewJob(Body):
    model: str | None = None
    training_file: str | None = Field(None, description="empty or null together with `route`: its feedback")
    validation_file: str | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    metadata: dict[str, str] | None = None
    method: Method | None = None
    hyperparameters: dict[str, Any] | None = None
    integrations: list[Integration] | None = None
    route: str | None = Field(None, description="trains from this route's feedback, or for it from a file")
    gate: Literal["require", "report"] = "require"
    release: Literal["promote", "challenge", "experiment", "ask"] | None = None
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] | None = None
    quantization: Literal["nf4"] | None = None


@router.post("")
async def create_job(body: NewJob, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    """A new job: its files are looked through in the background, then it waits for a worker."""
    metadata = checks.plain_metadata(body.metadata)
    make = _from_file if body.training_file else _from_feedback
    job = await asyncio.to_thread(make, runtime, body, metadata, caller)
    runtime.validation.wake.set()
    return job_shape(job)


@router.get("")
async def list_jobs(
    request: Request,
    runtime: TheRuntime,
    caller: Anybody,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=100),
) -> dict[str, Any]:
    """The caller's jobs, newest first; `metadata[key]=value` keeps those that have it."""
    jobs, has_more = await asyncio.to_thread(
        runtime.jobs.list,
        caller.key_id,
        all_keys=caller.is_admin,
        metadata=_metadata_filter(request),
        after=after,
        limit=limit,
    )
    await _catch_up(runtime, jobs)
    return page([job_shape(job) for job in jobs], has_more)


@router.get("/{fine_tuning_job_id}")
async def retrieve_job(fine_tuning_job_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    job = await _job(runtime, fine_tuning_job_id, caller)
    await _catch_up(runtime, [job])
    return job_shape(job)


@router.post("/{fine_tuning_job_id}/cancel")
async def cancel_job(fine_tuning_job_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    """Ends a job: from now on it publishes nothing."""
    job = await _job(runtime, fine_tuning_job_id, caller)
    return job_shape(await asyncio.to_thread(runtime.jobs.cancel, job.id, actor(caller)))


@router.post("/{fine_tuning_job_id}/pause")
async def pause_job(fine_tuning_job_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    """Pauses a job; a running one after its current step, at a checkpoint."""
    job = await _job(runtime, fine_tuning_job_id, caller)
    return job_shape(await asyncio.to_thread(runtime.jobs.pause, job.id, actor(caller)))


@router.post("/{fine_tuning_job_id}/resume")
async def resume_job(fine_tuning_job_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    """Lets a paused job go on where it was."""
    job = await _job(runtime, fine_tuning_job_id, caller)
    return job_shape(await asyncio.to_thread(runtime.jobs.resume, job.id, actor(caller)))


@router.get("/{fine_tuning_job_id}/events")
async def list_job_events(
    fine_tuning_job_id: str,
    runtime: TheRuntime,
    caller: Anybody,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=100),
) -> dict[str, Any]:
    """What has happened to the job, newest first."""
    job = await _job(runtime, fine_tuning_job_id, caller)
    events, has_more = await asyncio.to_thread(runtime.jobs.events, job.id, after=after, limit=limit)
    return page([event_shape(event) for event in events], has_more)


@router.get("/{fine_tuning_job_id}/checkpoints")
async def list_job_checkpoints(
    fine_tuning_job_id: str,
    runtime: TheRuntime,
    caller: Anybody,
    after: str | None = None,
    limit: int = Query(10, ge=1, le=100),
) -> dict[str, Any]:
    """The job's checkpoints, newest first."""
    job = await _job(runtime, fine_tuning_job_id, caller)
    last = event_id(after) if after is not None else None
    events, has_more = await asyncio.to_thread(
        runtime.jobs.events, job.id, kinds=["checkpoint"], after=last, limit=limit
    )
    return page([checkpoint_shape(job, event) for event in events], has_more)


def order_of(body: NewJob) -> Order:
    """Raises InvalidRequest for hyper-parameters that are none, or out of their bounds."""
    method = body.method.type if body.method else "auto"
    parameters = getattr(body.method, method) if body.method else None
    if parameters is not None and parameters.hyperparameters is not None:
        hyperparameters = check_hyperparameters(
            parameters.hyperparameters, f"method.{method}.hyperparameters"
        )
    else:  # OpenAI's older place for them
        hyperparameters = check_hyperparameters(body.hyperparameters or {})
    integrations = [integration.model_dump() for integration in body.integrations or ()]
    trackers = [*(body.report_to or ["tensorboard"]), *(integration["type"] for integration in integrations)]
    return Order(
        model=body.model,
        training_file=body.training_file or None,
        validation_file=body.validation_file or None,
        route=body.route,
        suffix=body.suffix,
        method=method,
        hyperparameters=hyperparameters,
        seed=body.seed,
        gate=body.gate,
        release=body.release,
        report_to=tuple(dict.fromkeys(trackers)),
        quantization=body.quantization,
        integrations=tuple(integrations),
    )


def _from_file(runtime: Runtime, body: NewJob, metadata: dict[str, str], caller: Caller) -> Job:
    if body.model is None:
        raise InvalidRequest("'model' is a required property", param="model", code="invalid_value")
    order = order_of(body)
    for param in ("training_file", "validation_file"):
        id = getattr(order, param)
        if id is not None:
            runtime.orders.check_file(id, param, caller.key_id, caller.is_admin)
    payload = runtime.orders.payload(order, actor(caller), caller.is_admin)
    return runtime.jobs.enqueue(
        kind=TRAINING,
        route=order.route,
        payload=payload,
        key_id=caller.key_id,
        metadata=metadata,
        state=JobState.VALIDATING,
        events=[EventDraft(f"Validating training file: {order.training_file}")],
    )


def _from_feedback(runtime: Runtime, body: NewJob, metadata: dict[str, str], caller: Caller) -> Job:
    if body.route is None:
        raise InvalidRequest(
            "'training_file' is a required property, or 'route' for training from its feedback",
            param="training_file",
            code="invalid_value",
        )
    if not caller.is_admin:
        raise Forbidden("'route' needs a key of the scope 'admin'.", param="route")
    for param in ("validation_file", "suffix", "integrations"):
        if getattr(body, param):
            raise InvalidRequest(f"'{param}' goes with a training file.", param=param, code="invalid_value")
    route = runtime.routes.get(body.route)
    overrides = runtime.orders.overrides(order_of(body), route)
    with runtime.db.begin() as connection:
        return enqueue_route_training(
            connection,
            route,
            "on demand",
            caller.key_id,
            actor(caller),
            time.time(),
            metadata=metadata,
            **overrides,
        )


async def _catch_up(runtime: Runtime, jobs: Iterable[Job]) -> None:
    """Whoever reads here that a job has succeeded may ask its model at once."""
    if any(job.state is JobState.SUCCEEDED for job in jobs):
        await runtime.snapshots.catch_up()


async def _job(runtime: Runtime, id: str, caller: Caller) -> Job:
    return await asyncio.to_thread(runtime.jobs.get, id, caller.key_id, caller.is_admin)


def _metadata_filter(request: Request) -> dict[str, str]:
    wanted = {}
    for name, value in request.query_params.items():
        if found := METADATA_FILTER.fullmatch(name):
            wanted[found[1]] = value
        elif name.startswith("metadata["):
            raise InvalidRequest(
                f"There is no metadata key {name[9:-1]!r}.", param="metadata", code="invalid_value"
            )
    return wanted
