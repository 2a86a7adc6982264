"""A look at an experiment: gather, judge, and do what the verdict says, in one transaction.

Owns what follows from a verdict: traffic, promotions and roll-backs. Any process may look, and several may at once: what
a look found is done only if the experiment is still as it was seen. Decides nothing itself (`verdicts`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.engine import Connection

from adapters.changes import changing
from adapters.database import Database
from adapters.errors import Conflict, NotFound
from adapters.evidence import gather, newest
from adapters.experiment_records import (
    Experiment,
    ExperimentState,
    Outcome,
    Verdict,
    end_experiment,
    find_experiment,
    insert_look,
    open_experiments,
    reshare,
    update_experiment,
    verdict_json,
)
from adapters.experiments import scores_of
from adapters.plans import OnPromote
from adapters.routes import Route, Routes, existing_route, find_route, move_route
from adapters.verdicts import Look, look, look_json, without

ACTOR = "experiment"
"""Who acts, in the audit log."""

LOOK_GROWTH = 1.02
"""A look is kept when there is so much more evidence than at the one kept before: a plot needs no more."""


CLOCK_SECONDS = 2.0
"""Without new evidence it is looked again after so long, for the rules that wait for time alone."""

RESTS = 5.0
"""Times as long as a look has taken nobody looks again: however much evidence there is, a sixth of one core is enough."""


class Looks:
    """Looks at the open experiments of a database, over and over. Not for several threads at once."""

    def __init__(self, db: Database, routes: Routes) -> None:
        self._db = db
        self._routes = routes
        self._seen: dict[str, tuple[Any, ...]] = {}
        self._kept: dict[tuple[str, int], int] = {}  # by experiment and epoch
        self._rests_until: dict[str, float] = {}

    def look_at_all(self, now: float) -> tuple[Experiment, ...]:
        """Looks at each that may have something new to say; those that were changed by it.

        Raises ExceptionGroup once all have had their turn.
        """
        with self._db.read() as connection:
            experiments = open_experiments(connection)
            fresh = [each for each in experiments if self._is_new(connection, each, now)]
        changed, failures = [], []
        for experiment in fresh:
            try:
                changed.append(self._look_at(experiment, now))
            except Exception as error:  # one that cannot be looked at keeps no other waiting
                failures.append(error)
        if failures:
            raise ExceptionGroup("experiments could not be looked at", failures)
        return tuple(experiment for experiment in changed if experiment is not None)

    def _is_new(self, connection: Connection, experiment: Experiment, now: float) -> bool:
        """Whether evidence has come, or so much time has passed that a rule may wait for it alone."""
        if now < self._rests_until.get(experiment.id, now):
            return False
        sign = (
            *newest(connection, experiment),
            experiment.epoch,
            experiment.state,
            int(now // CLOCK_SECONDS),
        )
        if self._seen.get(experiment.id) == sign:
            return False
        self._seen[experiment.id] = sign
        return True

    def _look_at(self, experiment: Experiment, now: float) -> Experiment | None:
        began = time.monotonic()
        seen = see(self._db, experiment, now)
        self._rests_until[experiment.id] = now + RESTS * (time.monotonic() - began)
        if seen is None:
            return None
        units = sum(
            arm["answers"] + sum(s["voices"] for s in arm["scores"].values()) for arm in seen.arms.values()
        )
        grown = units > LOOK_GROWTH * self._kept.get((experiment.id, experiment.epoch), 0)
        if not (seen.does_something or grown):
            return None
        self._kept[experiment.id, experiment.epoch] = units
        with changing(self._db) as connection:
            return act(connection, self._routes, experiment, seen, now)


def see(db: Database, experiment: Experiment, now: float) -> Look | None:
    """What there is to see; None where the route or one of its scores is gone."""
    with db.read() as connection:
        route = find_route(connection, experiment.route)
        if route is None or any(route.policy.score(name) is None for name in experiment.plan.scores):
            return None
        evidence = gather(connection, experiment, scores_of(experiment.plan, route.policy))
    return look(experiment, evidence, now)


def current(db: Database, experiment: Experiment, now: float) -> dict[str, Any] | None:
    """What there is to see, for people: of an ended experiment the numbers of its verdict, else a fresh look.

    None where the route or one of its scores is gone.
    """
    if not experiment.is_open and experiment.verdict is not None:
        numbers: dict[str, Any] | None = experiment.verdict["numbers"]
        if numbers is not None:
            return numbers
    seen = see(db, experiment, now)
    return None if seen is None else look_json(seen)


def act(
    connection: Connection, routes: Routes, seen_of: Experiment, seen: Look, now: float
) -> Experiment | None:
    """Keeps a look and does what it says, in the caller's `changing` transaction; None where there was nothing to do.

    An experiment that has changed since it was looked at is left alone: what was seen was another's.
    """
    experiment = find_experiment(connection, seen_of.id)
    if experiment is None or (experiment.state, experiment.epoch) != (seen_of.state, seen_of.epoch):
        return None
    insert_look(connection, experiment.id, now, look_json(seen))
    if seen.verdict is not None:
        return _conclude(connection, routes, experiment, seen, seen.verdict, now)
    if seen.drop:
        return _drop(connection, experiment, seen.drop, now)
    if seen.shares is not None:
        return reshare(connection, experiment, seen.shares, ACTOR, now)
    return None


def _drop(connection: Connection, experiment: Experiment, drop: Mapping[str, str], now: float) -> Experiment:
    """Without these challengers; a verdict that waits for a person to promote one of them is none any more."""
    changes: dict[str, Any] = {"dropped": {**experiment.dropped, **drop}}
    if experiment.verdict is not None and experiment.verdict["variant"] in drop:
        changes |= {"state": ExperimentState.RUNNING, "verdict": None}
    return reshare(connection, experiment, without(experiment, changes["dropped"]), ACTOR, now, **changes)


def _conclude(
    connection: Connection, routes: Routes, experiment: Experiment, seen: Look, verdict: Verdict, now: float
) -> Experiment:
    if experiment.state is ExperimentState.MEASURING:
        return _end_hold_back(connection, routes, experiment, seen, verdict, now)
    if verdict.outcome is not Outcome.PROMOTE:
        done = f"all traffic to {experiment.control}"
        return end_experiment(connection, experiment, _told(verdict, seen, now, done), ACTOR, now)
    if experiment.plan.on_promote is OnPromote.ASK:
        assert verdict.variant is not None
        done = f"waits for a person: burnish experiments decide {experiment.name} {verdict.variant}"
        return _await(connection, experiment, _told(verdict, seen, now, done), now)
    return _promote(connection, routes, experiment, seen, verdict, now)


def _promote(
    connection: Connection, routes: Routes, experiment: Experiment, seen: Look, verdict: Verdict, now: float
) -> Experiment:
    assert verdict.variant is not None
    route = existing_route(connection, experiment.route)
    try:
        routes.check_variant(connection, verdict.variant)
    except (Conflict, NotFound) as error:
        done = f"waits for a person: {error.message}"
        return _await(connection, experiment, _told(verdict, seen, now, done), now)
    hold_back = experiment.plan.hold_back
    if not hold_back:
        done = f"promoted {verdict.variant}"
        ended = end_experiment(connection, experiment, _told(verdict, seen, now, done), ACTOR, now)
        move_route(connection, route, route.promoted(verdict.variant), ACTOR, now)
        return ended
    done = f"promoted {verdict.variant}; {hold_back:.1%} go on to {experiment.control}"
    shares = {experiment.control: hold_back, verdict.variant: 1 - hold_back}
    told = _told(verdict, seen, now, done)
    measuring = reshare(
        connection, experiment, shares, ACTOR, now, state=ExperimentState.MEASURING, verdict=told
    )
    move_route(connection, route, route.promoted(verdict.variant), ACTOR, now)
    return measuring


def _end_hold_back(
    connection: Connection, routes: Routes, experiment: Experiment, seen: Look, verdict: Verdict, now: float
) -> Experiment:
    """The promotion stands, or is taken back."""
    route = existing_route(connection, experiment.route)
    if verdict.outcome in (Outcome.PROMOTE, Outcome.SAMPLE_RATIO):
        done = f"all traffic to {route.variant}"
        return end_experiment(connection, experiment, _told(verdict, seen, now, done), ACTOR, now)
    try:
        routes.check_variant(connection, experiment.control)
    except (Conflict, NotFound) as error:
        done = f"{route.variant} stays the default: {error.message}"
        return end_experiment(connection, experiment, _told(verdict, seen, now, done), ACTOR, now)
    done = f"rolled back to {experiment.control}"
    ended = end_experiment(connection, experiment, _told(verdict, seen, now, done), ACTOR, now)
    move_route(connection, route, _rolled_back(route, experiment.control), ACTOR, now)
    return ended


def _rolled_back(route: Route, control: str) -> Route:
    """The control was the default before the promotion, and has answered its share ever since."""
    history = route.history[:-1] if route.history and route.history[-1] == control else route.history
    return replace(route, variant=control, history=history)


def _await(connection: Connection, experiment: Experiment, verdict: dict[str, Any], now: float) -> Experiment:
    awaiting = replace(experiment, state=ExperimentState.AWAITING, verdict=verdict)
    update_experiment(connection, awaiting, "experiment.awaiting", {"verdict": verdict}, ACTOR, now)
    return awaiting


def _told(verdict: Verdict, seen: Look, now: float, done: str) -> dict[str, Any]:
    return verdict_json(verdict, look_json(seen), ACTOR, now, done)
