"""Experiments as rows, read and written inside a caller's transaction.

Owns the mapping between the tables `experiments`, `experiment_epochs` and `experiment_looks` and their dataclasses.
Begins no transaction and decides nothing: `experiments` and `looks` do.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.changes import record
from adapters.errors import NotFound
from adapters.plans import Plan, Policy, parse_plan, plan_json

#: How many looks an experiment keeps: enough for a plot, and for whoever wants to know how it went.
LOOKS_KEPT = 1000


class ExperimentState(StrEnum):
    RUNNING = "running"
    AWAITING = "awaiting"  # its verdict is to promote, and a person is to say so
    MEASURING = "measuring"  # promoted; a small share of the former default goes on being compared
    ENDED = "ended"


OPEN = frozenset(ExperimentState) - {ExperimentState.ENDED}


class Outcome(StrEnum):
    PROMOTE = "promote"
    KEEP = "keep"
    GUARDRAIL = "stopped by guardrail"
    SAMPLE_RATIO = "stopped: sample ratio"
    INCONCLUSIVE = "inconclusive"
    STOPPED = "stopped by a person"


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    variant: str | None  # that is promoted, or was stopped last
    reasons: tuple[str, ...]
    rule: str


@dataclass(frozen=True, slots=True)
class Experiment:
    id: str  # exp_<24 hex>
    name: str
    route: str
    state: ExperimentState
    plan: Plan
    control: str  # the route's default when it began
    shares: dict[str, float] = field(hash=False)  # of the traffic now, the control first; they add up to 1
    dropped: dict[str, str] = field(hash=False)  # challengers that a guardrail has stopped, and why
    epoch: int  # counts the changes of the shares
    epoch_began: float
    salt: str  # keys the hash that splits the traffic: no client can choose its variant
    verdict: dict[str, Any] | None = field(hash=False)  # see `verdict_json`
    actor: str  # who began it: a person, or a job
    created: float  # epoch seconds
    ended: float | None = None

    @property
    def is_open(self) -> bool:
        return self.state in OPEN

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.control, *self.plan.variants)

    @property
    def words_by_epoch(self) -> bool:
        """Whether only what was said of answers under the present shares is compared.

        Where shares change by a schedule, whatever changes with time would be taken for a difference of the variants:
        most of a canary's answers are late ones, and most of the control's are early.
        """
        return self.plan.policy is Policy.CANARY or self.state is ExperimentState.MEASURING

    @property
    def answers_by_epoch(self) -> bool:
        """The same of how answers went. An adaptive split moves so often that words must be counted over all epochs:
        it takes for granted that taste does not drift, and the docs say so."""
        return self.words_by_epoch or self.plan.policy is Policy.ADAPTIVE

    @property
    def promoted(self) -> str | None:
        """What it has made the route's default while it measures on."""
        is_measuring = self.state is ExperimentState.MEASURING and self.verdict is not None
        return self.verdict["variant"] if is_measuring and self.verdict else None

    @property
    def challengers(self) -> tuple[str, ...]:
        """Those still compared: that no guardrail has stopped; after a promotion, what was promoted alone."""
        if self.promoted is not None:
            return (self.promoted,)
        return tuple(variant for variant in self.plan.variants if variant not in self.dropped)


def verdict_json(
    verdict: Verdict, numbers: Mapping[str, Any] | None, by: str, at: float, done: str
) -> dict[str, Any]:
    """The record of a verdict: the outcome, the rule, the numbers, the time, who gave it, and what was done."""
    return {
        "outcome": verdict.outcome.value,
        "variant": verdict.variant,
        "reasons": list(verdict.reasons),
        "rule": verdict.rule,
        "by": by,
        "at": at,
        "done": done,
        "numbers": None if numbers is None else dict(numbers),
    }


def new_experiment(name: str, route: str, control: str, plan: Plan, actor: str, now: float) -> Experiment:
    given = plan.first_shares()
    shares = {control: 1.0 - math.fsum(given.values()), **given}
    return Experiment(
        id=f"exp_{secrets.token_hex(12)}",
        name=name,
        route=route,
        state=ExperimentState.RUNNING,
        plan=plan,
        control=control,
        shares=shares,
        dropped={},
        epoch=0,
        epoch_began=now,
        salt=secrets.token_hex(16),
        verdict=None,
        actor=actor,
        created=now,
    )


def insert_experiment(connection: Connection, experiment: Experiment) -> None:
    values = {**_changeable(experiment), **_fixed(experiment)}
    connection.execute(sa.insert(schema.experiments).values(**values))
    _insert_epoch(connection, experiment)
    detail = {
        "experiment": experiment.name,
        "shares": experiment.shares,
        "policy": experiment.plan.policy.value,
    }
    _record(connection, experiment, "experiment.started", detail, experiment.actor, experiment.created)


def reshare(
    connection: Connection,
    experiment: Experiment,
    shares: Mapping[str, float],
    actor: str,
    now: float,
    **changes: Any,
) -> Experiment:
    """Other shares from now on, which begin another epoch; and other changes with them."""
    changed = replace(experiment, shares=dict(shares), epoch=experiment.epoch + 1, epoch_began=now, **changes)
    update_experiment(connection, changed, "experiment.reshared", {"shares": changed.shares}, actor, now)
    _insert_epoch(connection, changed)
    return changed


def end_experiment(
    connection: Connection, experiment: Experiment, verdict: Mapping[str, Any], actor: str, now: float
) -> Experiment:
    """With its verdict on record; its traffic is the route's own again."""
    ended = replace(experiment, state=ExperimentState.ENDED, verdict=dict(verdict), ended=now)
    update_experiment(connection, ended, "experiment.ended", {"verdict": ended.verdict}, actor, now)
    return ended


def stop_experiment(
    connection: Connection, experiment: Experiment, actor: str, reason: str, now: float
) -> Experiment:
    """Ends it without a decision, for what a person, or a change of the route, has made moot."""
    verdict = Verdict(Outcome.STOPPED, None, (reason,), "a person's word")
    done = f"all traffic to the default of {experiment.route}"
    told = verdict_json(verdict, newest_look(connection, experiment.id), actor, now, done)
    return end_experiment(connection, experiment, told, actor, now)


def update_experiment(
    connection: Connection,
    experiment: Experiment,
    action: str,
    detail: Mapping[str, Any],
    actor: str,
    now: float,
) -> None:
    """What has changed, with its event: gateways see it by the registry's revision."""
    table = schema.experiments
    change = sa.update(table).where(table.c.id == experiment.id).values(**_changeable(experiment))
    connection.execute(change)
    _record(connection, experiment, action, {"experiment": experiment.name, **detail}, actor, now)


def find_experiment(connection: Connection, name: str) -> Experiment | None:
    """By its name or its id."""
    table = schema.experiments
    query = sa.select(table).where(sa.or_(table.c.name == name, table.c.id == name))
    row = connection.execute(query).one_or_none() if name.isprintable() else None
    return None if row is None else _experiment(row)


def existing_experiment(connection: Connection, name: str) -> Experiment:
    """Raises NotFound(code="experiment_not_found")."""
    found = find_experiment(connection, name)
    if found is None:
        raise NotFound(f"there is no experiment {name!r}", code="experiment_not_found")
    return found


def all_experiments(connection: Connection, route: str | None = None) -> tuple[Experiment, ...]:
    """The newest first; of one route if named."""
    table = schema.experiments
    query = sa.select(table).order_by(table.c.number.desc())
    if route is not None:
        query = query.where(table.c.route == route)
    return tuple(_experiment(row) for row in connection.execute(query))


def open_experiments(connection: Connection) -> tuple[Experiment, ...]:
    """Those that have traffic. A route has one at most."""
    table = schema.experiments
    query = sa.select(table).where(table.c.state != ExperimentState.ENDED.value).order_by(table.c.number)
    return tuple(_experiment(row) for row in connection.execute(query))


def open_experiment_of(connection: Connection, route: str) -> Experiment | None:
    return next((each for each in open_experiments(connection) if each.route == route), None)


def shares_by_epoch(connection: Connection, experiment: str) -> dict[int, dict[str, float]]:
    table = schema.experiment_epochs
    query = sa.select(table.c.epoch, table.c.shares).where(table.c.experiment == experiment)
    return {row.epoch: row.shares for row in connection.execute(query)}


# -- looks -----------------------------------------------------------------------------------------
def insert_look(connection: Connection, experiment: str, at: float, body: Mapping[str, Any]) -> None:
    """Keeps a look. Once there are too many, every second one of the older half goes."""
    table = schema.experiment_looks
    connection.execute(sa.insert(table).values(experiment=experiment, at=at, body=dict(body)))
    of_it = sa.select(table.c.number).where(table.c.experiment == experiment).order_by(table.c.number)
    numbers = connection.execute(of_it).scalars().all()
    if len(numbers) > LOOKS_KEPT:
        some = numbers[1 : LOOKS_KEPT // 2 : 2]
        connection.execute(sa.delete(table).where(table.c.number.in_(some)))


def looks_of(connection: Connection, experiment: str) -> tuple[tuple[float, dict[str, Any]], ...]:
    """(at, body), the oldest first."""
    table = schema.experiment_looks
    query = (
        sa.select(table.c.at, table.c.body).where(table.c.experiment == experiment).order_by(table.c.number)
    )
    return tuple((row.at, row.body) for row in connection.execute(query))


def newest_look(connection: Connection, experiment: str) -> dict[str, Any] | None:
    """What was seen last; None where there was nothing to see yet."""
    table = schema.experiment_looks
    query = sa.select(table.c.body).where(table.c.experiment == experiment)
    body: dict[str, Any] | None = connection.execute(
        query.order_by(table.c.number.desc()).limit(1)
    ).scalar_one_or_none()
    return body


# -- rows ------------------------------------------------------------------------------------------
def _record(
    connection: Connection,
    experiment: Experiment,
    action: str,
    detail: Mapping[str, Any],
    actor: str,
    now: float,
) -> None:
    record(connection, actor=actor, action=action, subject=experiment.route, detail=detail, now=now)


def _insert_epoch(connection: Connection, experiment: Experiment) -> None:
    values = {
        "experiment": experiment.id,
        "epoch": experiment.epoch,
        "at": experiment.epoch_began,
        "shares": experiment.shares,
    }
    connection.execute(sa.insert(schema.experiment_epochs).values(**values))


def _fixed(experiment: Experiment) -> dict[str, Any]:
    names = ("id", "name", "route", "control", "salt", "actor", "created")
    return {**{name: getattr(experiment, name) for name in names}, "plan": plan_json(experiment.plan)}


def _changeable(experiment: Experiment) -> dict[str, Any]:
    names = ("dropped", "epoch", "epoch_began", "verdict", "ended")
    values = {name: getattr(experiment, name) for name in names}
    return {**values, "state": experiment.state.value, "arms": experiment.shares}


def _experiment(row: Row[Any]) -> Experiment:
    return Experiment(
        id=row.id,
        name=row.name,
        route=row.route,
        state=ExperimentState(row.state),
        plan=parse_plan(row.plan),
        control=row.control,
        shares=row.arms,
        dropped=row.dropped,
        epoch=row.epoch,
        epoch_began=row.epoch_began,
        salt=row.salt,
        verdict=row.verdict,
        actor=row.actor,
        created=row.created,
        ended=row.ended,
    )
