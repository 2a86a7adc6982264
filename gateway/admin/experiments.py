"""/v1/experiments: comparisons of a route's variants, begun, looked at, stopped and decided; and estimates from the log.

Knows no statistics: what there is to see is `looks`' word, what was logged is `estimates`'.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter
from pydantic import FiniteFloat, field_validator

from adapters.database import Database
from adapters.estimates import estimate, estimate_json
from adapters.experiments import Experiments
from adapters.looks import current
from adapters.plans import parse_plan
from gateway.admin.bodies import Body, BoundedRoute
from gateway.admin.changes import actor, change
from gateway.deps import Admin, TheRuntime
from gateway.shapes import experiment_shape, listing

router = APIRouter(prefix="/experiments", tags=["experiments"], route_class=BoundedRoute)


class NewExperiment(Body):
    """`plan`: what is compared and by what rule; what it leaves out has its default."""

    route: str
    plan: dict[str, Any]
    name: str | None = None


class Stop(Body):
    reason: str = ""


class Decision(Body):
    """`variant`: the control, or a challenger."""

    variant: str


class Question(Body):
    """`target`: the probability of each variant, or the name of one; `since`: epoch seconds."""

    route: str
    target: dict[str, FiniteFloat]
    score: str = "rating"
    alpha: FiniteFloat = 0.05
    since: FiniteFloat | None = None

    @field_validator("target", mode="before")
    @classmethod
    def _of_one(cls, value: Any) -> Any:
        return {value: 1.0} if isinstance(value, str) else value


@router.get("")
async def list_experiments(runtime: TheRuntime, caller: Admin, route: str | None = None) -> dict[str, Any]:
    """The newest first, without what there is to see of each."""
    found = await asyncio.to_thread(runtime.experiments.list, route)
    return listing(experiment_shape(experiment) for experiment in found)


@router.post("", status_code=201)
async def create_experiment(body: NewExperiment, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """Begins at once."""
    plan = parse_plan(body.plan, "plan")
    create = runtime.experiments.create
    return experiment_shape(await change(runtime, create, body.route, plan, actor(caller), name=body.name))


@router.post("/estimate")
async def estimate_value(body: Question, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """What a variant would score, from what the route's experiments have logged; or why the log cannot say."""
    found = await asyncio.to_thread(
        estimate, runtime.db, body.route, body.target, score=body.score, alpha=body.alpha, since=body.since
    )
    return estimate_json(found)


@router.get("/{name}")
async def retrieve_experiment(
    name: str, runtime: TheRuntime, caller: Admin, looks: bool = False
) -> dict[str, Any]:
    """By name or id, with what there is to see of it now; with `looks` also what was seen before."""
    return await asyncio.to_thread(_seen, runtime.db, runtime.experiments, name, looks)


@router.post("/{name}/stop")
async def stop_experiment(
    name: str, runtime: TheRuntime, caller: Admin, body: Stop | None = None
) -> dict[str, Any]:
    """Ends it without a decision: all traffic goes to the route's default."""
    reason = body.reason if body is not None else ""
    return experiment_shape(await change(runtime, runtime.experiments.stop, name, actor(caller), reason))


@router.post("/{name}/decide")
async def decide_experiment(name: str, body: Decision, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """A person's decision: the variant becomes, or stays, the route's default, and the experiment ends."""
    decide = runtime.experiments.decide
    return experiment_shape(await change(runtime, decide, name, body.variant, actor(caller)))


def _seen(db: Database, experiments: Experiments, name: str, with_looks: bool) -> dict[str, Any]:
    experiment = experiments.get(name)
    shape = experiment_shape(experiment, current(db, experiment, time.time()))
    if with_looks:
        shape["looks"] = [{"at": at, **body} for at, body in experiments.looks(experiment.id)]
    return shape
