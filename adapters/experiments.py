"""Experiments: begun, listed, stopped and decided by people, and by what training publishes.

Owns what may be begun and what a person may say. The looks in between, and what they lead to, are `looks`. A route has
one experiment at a time; while it is open, its shares split the route's traffic in place of the route's own.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy.engine import Connection

from adapters.changes import changing
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest
from adapters.experiment_records import (
    Experiment,
    ExperimentState,
    Outcome,
    Verdict,
    all_experiments,
    end_experiment,
    existing_experiment,
    find_experiment,
    insert_experiment,
    looks_of,
    new_experiment,
    newest_look,
    open_experiment_of,
    stop_experiment,
    verdict_json,
)
from adapters.plans import Plan
from adapters.policy import RoutePolicy, Score
from adapters.routes import Route, Routes, existing_route, move_route
from adapters.versions import check_name, is_name


class Experiments:
    """The experiments of a database. `routes` knows which variants may take traffic."""

    def __init__(self, db: Database, routes: Routes) -> None:
        self._db = db
        self._routes = routes

    def create(
        self, route: str, plan: Plan, actor: str, *, name: str | None = None, now: float | None = None
    ) -> Experiment:
        """Begins at once. Raises NotFound for an unknown route or variant, InvalidRequest,
        Conflict(code="experiment_open" | "experiment_exists" | "route_challenged" | "version_not_ready")."""
        at = time.time() if now is None else now
        with changing(self._db) as connection:
            found = existing_route(connection, route)
            for variant in plan.variants:
                self._routes.check_variant(connection, variant, param="plan.challengers")
            return begin(connection, found, plan, actor, at, name=name)

    def list(self, route: str | None = None) -> tuple[Experiment, ...]:
        """The newest first."""
        # A name outside the grammar may hold what a database cannot compare, such as NUL.
        if route is not None and not is_name(route):
            return ()
        with self._db.read() as connection:
            return all_experiments(connection, route)

    def get(self, name: str) -> Experiment:
        """By name or id. Raises NotFound(code="experiment_not_found")."""
        with self._db.read() as connection:
            return existing_experiment(connection, name)

    def looks(self, name: str) -> tuple[tuple[float, dict[str, Any]], ...]:
        """(at, what was seen), the oldest first. Raises NotFound."""
        with self._db.read() as connection:
            return looks_of(connection, existing_experiment(connection, name).id)

    def stop(self, name: str, actor: str, reason: str = "", now: float | None = None) -> Experiment:
        """Ends it without a decision: all traffic goes to the route's default.

        Raises NotFound, Conflict(code="experiment_ended").
        """
        at = time.time() if now is None else now
        with changing(self._db) as connection:
            experiment = _open(existing_experiment(connection, name))
            return stop_experiment(connection, experiment, actor, reason or f"stopped by {actor}", at)

    def decide(self, name: str, variant: str, actor: str, now: float | None = None) -> Experiment:
        """A person's decision: `variant` becomes, or stays, the route's default, and the experiment ends.

        Raises NotFound, InvalidRequest, Conflict(code="experiment_ended" | "version_not_ready").
        """
        at = time.time() if now is None else now
        with changing(self._db) as connection:
            experiment = _open(existing_experiment(connection, name))
            if variant not in experiment.variants:
                known = ", ".join(experiment.variants)
                raise InvalidRequest(
                    f"{variant!r} is no variant of {experiment.name!r}: {known}",
                    param="variant",
                    code="invalid_value",
                )
            self._routes.check_variant(connection, variant)
            route = existing_route(connection, experiment.route)
            is_kept = variant == route.variant
            outcome = Outcome.KEEP if is_kept else Outcome.PROMOTE
            reasons, numbers = _found_before(connection, experiment)
            verdict = Verdict(outcome, variant, reasons, f"decided by {actor}")
            done = f"{variant} stays the default" if is_kept else f"promoted {variant}"
            told = verdict_json(verdict, numbers, actor, at, done)
            ended = end_experiment(connection, experiment, told, actor, at)
            if not is_kept:
                move_route(connection, route, route.promoted(variant), actor, at)
            return ended


# -- in the caller's `changing` transaction --------------------------------------------------------
def begin(
    connection: Connection, route: Route, plan: Plan, actor: str, now: float, *, name: str | None = None
) -> Experiment:
    """An experiment on a route; the caller has checked that its variants may take traffic.

    Raises InvalidRequest, Conflict(code="experiment_open" | "experiment_exists" | "route_challenged").
    """
    known = open_experiment_of(connection, route.name)
    if known is not None:
        raise Conflict(
            f"route {route.name!r} has an experiment already: {known.name!r} ({known.state}). Stop or decide it first",
            code="experiment_open",
        )
    if route.challengers:
        raise Conflict(
            f"route {route.name!r} has challengers; end their shares first: burnish routes challenge {route.name}",
            code="route_challenged",
        )
    if route.variant in plan.variants:
        raise InvalidRequest(
            f"{route.variant} is the default of {route.name!r}, and so the control",
            param="plan.challengers",
            code="invalid_value",
        )
    scores_of(plan, route.policy)
    experiment = new_experiment(_name(connection, route, name), route.name, route.variant, plan, actor, now)
    insert_experiment(connection, experiment)
    return experiment


def scores_of(plan: Plan, policy: RoutePolicy) -> tuple[Score, ...]:
    """The plan's scores as its route declares them, the deciding one first. Raises InvalidRequest."""
    return tuple(declared_score(policy, name, "plan.scores") for name in plan.scores)


def declared_score(policy: RoutePolicy, name: str, param: str) -> Score:
    """Raises InvalidRequest."""
    score = policy.score(name)
    if score is None:
        known = ", ".join(policy.score_names)
        raise InvalidRequest(
            f"the route declares no score {name!r}; it knows {known}", param=param, code="invalid_value"
        )
    return score


def _open(experiment: Experiment) -> Experiment:
    if not experiment.is_open:
        raise Conflict(f"experiment {experiment.name!r} has ended", code="experiment_ended")
    return experiment


def _found_before(
    connection: Connection, experiment: Experiment
) -> tuple[tuple[str, ...], dict[str, Any] | None]:
    """What a person decides on: reasons and numbers of the verdict that waits for them, else what was seen last."""
    if experiment.state is ExperimentState.AWAITING and experiment.verdict is not None:
        return tuple(experiment.verdict["reasons"]), experiment.verdict["numbers"]
    return (), newest_look(connection, experiment.id)


def _name(connection: Connection, route: Route, name: str | None) -> str:
    """The given name, or the route's with the next free number."""
    if name is not None:
        if find_experiment(connection, check_name(name)) is not None:
            raise Conflict(f"there is an experiment {name!r} already", param="name", code="experiment_exists")
        return name
    taken = {each.name for each in all_experiments(connection)}
    return next(f"{route.name}-{n}" for n in range(1, len(taken) + 2) if f"{route.name}-{n}" not in taken)
