"""When a route's feedback makes a training job, and what that job is asked to do.

Decides from the route's policy, its feedback and its last jobs, inside the caller's transaction: the click that makes
the policy's number full and the job it makes are one commit. Does not train and does not know how.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from adapters import schema
from adapters.completions import Status
from adapters.errors import BurnishError, Conflict, NotFound
from adapters.feedback import Feedback
from adapters.jobs import EventDraft, Job, active_job_of, enqueue, latest_job_of
from adapters.records import adapter_base, existing_version, find_base_model
from adapters.routes import Route, all_routes, find_route
from adapters.versions import VersionState, is_ref

TRAINING = "training"

#: What the audit log and the job say of one that nobody asked for.
TRIGGER = "trigger"

#: What an answer must be to be learned from, in any way but by its correction.
ANSWERED = (Status.COMPLETE, Status.IMPORTED)


@dataclass(frozen=True, slots=True)
class Watermark:
    """Up to where the route's last run from feedback has looked."""

    number: int  # of the feedback
    at: float | None  # epoch seconds; None: there was no run


def usable(feedback: Feedback, status: Status = Status.COMPLETE) -> bool:
    """Whether a run can learn from it; `status` is the completion's. A cut-off answer can only be corrected."""
    if feedback.demonstration is not None:
        return True
    return status in ANSWERED and (feedback.value is not None or feedback.preferred_over is not None)


def training_due(connection: Connection, route: Route, now: float) -> str | None:
    """Why the route should train now; None: it should not."""
    policy = route.policy.training
    if not policy.enabled or active_job_of(connection, route.name) is not None:
        return None
    last = latest_job_of(connection, route.name)
    if last is not None and last.finished is not None and now < last.finished + policy.cooldown_seconds:
        return None
    mark = _watermark(connection, route.name)
    new, first = _new_rows(connection, route.name, mark.number)
    if new >= policy.min_new_rows:
        return f"{new} completions with new feedback"
    if new and first is not None and policy.every_seconds is not None:
        waited = now - (first if mark.at is None else mark.at)
        if waited >= policy.every_seconds:
            return f"{new} completions with new feedback after {waited:.0f} seconds"
    return None


def maybe_enqueue(connection: Connection, route_name: str, now: float) -> Job | None:
    """The job that is due for a route by its policy, if one is. In the caller's transaction, and never its failure:
    a route that cannot be trained as it stands makes no job, and says why to whoever asks for one by hand."""
    route = find_route(connection, route_name)
    if route is None:
        return None
    reason = training_due(connection, route, now)
    if reason is None:
        return None
    try:
        return enqueue_route_training(connection, route, reason, None, TRIGGER, now)
    except BurnishError:  # raised before anything is written
        return None


def due_by_time(connection: Connection, now: float) -> tuple[str, ...]:
    """The routes that should train now though no feedback has just arrived: a pause is over, or a period."""
    return tuple(
        route.name for route in all_routes(connection) if training_due(connection, route, now) is not None
    )


def enqueue_route_training(
    connection: Connection,
    route: Route,
    reason: str,
    key_id: str | None,
    actor: str,
    now: float,
    *,
    metadata: Mapping[str, str] | None = None,
    **overrides: Any,
) -> Job:
    """A training job from the route's feedback, by its policy; `overrides` replace parts of the payload.

    Raises Conflict(code="training_active") while a job of the route is open, and where it cannot be trained.
    """
    _hold(connection, route)
    active = active_job_of(connection, route.name)
    if active is not None:
        raise Conflict(
            f"Route {route.name!r} has a job already: {active.id} ({active.state}). Wait for it, or cancel it.",
            code="training_active",
        )
    payload = _payload(connection, route, actor)
    unknown = overrides.keys() - payload.keys()
    if unknown:
        raise TypeError(f"no part of a training payload: {', '.join(sorted(unknown))}")
    because = EventDraft(f"Training route {route.name}: {reason}")
    return enqueue(
        connection,
        kind=TRAINING,
        route=route.name,
        payload={**payload, **overrides},
        key_id=key_id,
        metadata=metadata,
        events=(because,),
        now=now,
    )


def _payload(connection: Connection, route: Route, actor: str) -> dict[str, Any]:
    base, start_from = _beginning(connection, route)
    known = adapter_base(connection, route.name)
    if known not in (None, base):
        raise Conflict(
            f"Adapter {route.name!r} is for base model {known!r}, and the route stands on {base!r}. "
            f"Promote {known!r} or a version of it first, or train another route.",
            code="adapter_base_mismatch",
        )
    policy = route.policy.training
    return {
        "source": {"kind": "feedback", "route": route.name, "since": None},
        "adapter": route.name,
        "route": route.name,
        "base_model": base,
        "start_from": start_from,
        "method": policy.method.value,
        "hyperparameters": dict(policy.hyperparameters),
        "seed": secrets.randbelow(2**31),
        "suffix": None,
        "gate": "require",
        "release": policy.release.value,
        "actor": actor,
        "report_to": ["tensorboard"],
        "quantization": None,
        "integrations": [],
        "watermark": _newest(connection, route.name),
    }


def _beginning(connection: Connection, route: Route) -> tuple[str, str | None]:
    """The base model that the route stands on, and the version that a run goes on from, if there is one."""
    if not is_ref(route.variant):
        return route.variant, None
    version = existing_version(connection, route.variant)
    return version.base_model, version.ref if version.state is VersionState.PROVED else None


def _hold(connection: Connection, route: Route) -> None:
    """Until this transaction ends no other makes a job of the route: PostgreSQL waits here, SQLite has at its begin."""
    table = schema.routes
    held = sa.select(table.c.name).where(table.c.name == route.name).with_for_update()
    if connection.execute(held).one_or_none() is not None:
        return
    if find_base_model(connection, route.name) is not None:
        raise Conflict(
            f"{route.name!r} is the name of a base model, so no adapter can have it. Make a route and train that: "
            f"burnish routes create NAME {route.name}",
            code="name_taken",
        )
    raise NotFound(f"there is no route {route.name!r}", code="route_not_found")


def _watermark(connection: Connection, route: str) -> Watermark:
    """Of the newest job that learned from feedback, however it ended: what did not work once is not tried again
    until there is something new."""
    jobs = schema.jobs
    query = (
        sa.select(jobs.c.payload, jobs.c.created)
        .where(jobs.c.route == route, jobs.c.payload["source"]["kind"].as_string() == "feedback")
        .order_by(jobs.c.number.desc())
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    return Watermark(0, None) if row is None else Watermark(row.payload.get("watermark") or 0, row.created)


def _newest(connection: Connection, route: str) -> int:
    table = schema.feedback
    query = sa.select(sa.func.max(table.c.number)).where(table.c.route == route)
    return int(connection.execute(query).scalar_one() or 0)


def _new_rows(connection: Connection, route: str, after_number: int) -> tuple[int, float | None]:
    """How many completions have usable feedback after that number, and when the first of it came. See `usable`."""
    said, asked = schema.feedback, schema.completions
    judged = sa.or_(said.c.value.is_not(None), said.c.preferred_over.is_not(None))
    is_usable = sa.or_(
        said.c.demonstration.is_not(sa.null()),
        judged & asked.c.status.in_([status.value for status in ANSWERED]),
    )
    query = (
        sa.select(sa.func.count(sa.distinct(said.c.completion_id)), sa.func.min(said.c.created))
        .select_from(said.join(asked, asked.c.id == said.c.completion_id))
        .where(said.c.route == route, said.c.number > after_number, is_usable)
    )
    row = connection.execute(query).one()
    return int(row[0]), row[1]
