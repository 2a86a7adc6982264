"""Routes: public model names, and which variants answer for each. To promote is to change one row.

Owns the `routes` table: a default, the challengers that have a share of its traffic, the stack of defaults before it,
and the route's policy. Knows no request and no engine: requests in flight keep the version they began with because the
gateway's snapshot is replaced, not changed.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.changes import changing, record
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest, NotFound
from adapters.experiment_records import open_experiment_of, stop_experiment
from adapters.policy import RoutePolicy, changed_policy, parse_policy, policy_json
from adapters.versions import (
    REMEDIES,
    VersionState,
    check_name,
    is_name,
    is_ref,
    parse_ref,
)

#: How many former defaults a route remembers; the audit log remembers all.
HISTORY_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Challenger:
    """A variant that answers a share of a route's traffic beside its default."""

    variant: str
    share: float  # above 0, below 1


@dataclass(frozen=True, slots=True)
class Route:
    name: str
    variant: str  # the default: NAME@N, or a base or another engine's model
    history: tuple[str, ...]  # the defaults before it, the last one last
    created: float  # epoch seconds
    policy: RoutePolicy = field(default_factory=RoutePolicy)
    challengers: tuple[Challenger, ...] = ()  # the default has what their shares leave

    @property
    def variants(self) -> tuple[str, ...]:
        """All that may answer, the default first."""
        return (self.variant, *(challenger.variant for challenger in self.challengers))

    def promoted(self, variant: str) -> Route:
        """This route with another default, which is no challenger any more; the one it had goes on the stack."""
        history = (*self.history, self.variant)[-HISTORY_LIMIT:]
        left = tuple(each for each in self.challengers if each.variant != variant)
        return replace(self, variant=variant, history=history, challengers=left)

    def challenged(self, variant: str, share: float) -> Route:
        """This route with one more challenger, or one that has another share. Raises as `check_shares` does."""
        left = tuple(each for each in self.challengers if each.variant != variant)
        return replace(self, challengers=check_shares(self, (*left, Challenger(variant, share))))


class Routes:
    """The routes of a database. `models`: names that engines answer to without being in the registry."""

    def __init__(self, db: Database, models: Collection[str] = ()) -> None:
        self._db = db
        self._models = frozenset(models)

    def list(self) -> tuple[Route, ...]:
        with self._db.read() as connection:
            return all_routes(connection)

    def get(self, name: str) -> Route:
        """Raises NotFound(code="route_not_found")."""
        with self._db.read() as connection:
            return existing_route(connection, name)

    def create(self, name: str, variant: str, actor: str, now: float | None = None) -> Route:
        """A new route. Raises InvalidRequest, NotFound for an unknown variant, Conflict if the name is taken or
        the version is not proved."""
        route = Route(check_name(name), variant, (), time.time() if now is None else now)
        with changing(self._db) as connection:
            if find_route(connection, name) is not None:
                raise Conflict(f"there is a route {name!r} already; promote it instead", code="route_exists")
            if name in self._models or _is_base_model(connection, name):
                raise Conflict(f"{name!r} is the name of a model", param="name", code="name_taken")
            self.check_variant(connection, variant)
            insert_route(connection, route, actor)
        return route

    def delete(self, name: str, actor: str, now: float | None = None) -> None:
        """Takes the public name away; its versions stay. Raises NotFound."""
        with changing(self._db) as connection:
            route = existing_route(connection, name)
            _stop_experiment(connection, name, None, "its route was deleted", actor, now)
            connection.execute(sa.delete(schema.routes).where(schema.routes.c.name == name))
            _record(connection, "route.deleted", name, {"variant": route.variant}, actor, now)

    def promote(self, name: str, variant: str, actor: str, now: float | None = None) -> Route:
        """Makes `variant` the default. Promoting the default again changes nothing.

        Raises NotFound, Conflict(code="version_not_ready") with the version's state and the remedy.
        """
        with changing(self._db) as connection:
            route = existing_route(connection, name)
            self.check_variant(connection, variant)
            if route.variant == variant:
                return route
            return _change(connection, "route.promoted", route, route.promoted(variant), actor, now)

    def rollback(
        self, name: str, to: str | None = None, actor: str = "unknown", now: float | None = None
    ) -> Route:
        """Back to the last former default that differs and may take traffic, or to the last time it was `to`.

        All traffic goes there: challengers lose their shares. Raises NotFound,
        Conflict(code="nothing_to_roll_back" | "not_in_history" | "version_not_ready").
        """
        with changing(self._db) as connection:
            route = existing_route(connection, name)
            index = self._rollback_index(connection, route, to)
            variant, history = route.history[index], route.history[:index]
            after = replace(route, variant=variant, history=history, challengers=())
            return _change(connection, "route.rolled_back", route, after, actor, now)

    def challenge(
        self, name: str, shares: Mapping[str, float], actor: str, now: float | None = None
    ) -> Route:
        """Gives these variants, and no others, shares of the traffic beside the default; none: the default has all.

        Raises NotFound, InvalidRequest, Conflict(code="version_not_ready" | "experiment_open").
        """
        with changing(self._db) as connection:
            route = existing_route(connection, name)
            _refuse_open_experiment(connection, name)
            wanted = tuple(Challenger(variant, share) for variant, share in sorted(shares.items()))
            after = replace(route, challengers=check_shares(route, wanted))
            for challenger in wanted:
                self.check_variant(connection, challenger.variant, param="challengers")
            if after == route:
                return route
            return _change(connection, "route.challenged", route, after, actor, now)

    def set_policy(self, name: str, policy: RoutePolicy, actor: str, now: float | None = None) -> Route:
        """Another policy as a whole; the same again changes nothing. Raises NotFound, Conflict(code="experiment_open")
        where an open experiment counts a score that would be another."""
        with changing(self._db) as connection:
            return _declare(connection, existing_route(connection, name), policy, actor, now)

    def change_policy(self, name: str, change: Any, actor: str, now: float | None = None) -> Route:
        """The given parts of a policy (see `changed_policy`). Raises as `set_policy`, InvalidRequest."""
        with changing(self._db) as connection:
            route = existing_route(connection, name)
            return _declare(connection, route, changed_policy(route.policy, change), actor, now)

    def without(self, connection: Connection, route: Route, unfit: Collection[str], base_model: str) -> Route:
        """What the route becomes where some variants must serve no more: without them as challengers, and where one is
        its default, on the newest former default that is not `unfit` and may take traffic, else on the base model.
        Writes nothing: `move_route` does."""
        left = tuple(each for each in route.challengers if each.variant not in unfit)
        route = replace(route, challengers=left)
        if route.variant not in unfit:
            return route
        for index in range(len(route.history) - 1, -1, -1):
            former = route.history[index]
            if former not in unfit and self._may_take_traffic(connection, former):
                return replace(route, variant=former, history=route.history[:index])
        return route.promoted(base_model)

    def _rollback_index(self, connection: Connection, route: Route, to: str | None) -> int:
        indexes = range(len(route.history) - 1, -1, -1)
        if to is not None:
            index = next((i for i in indexes if route.history[i] == to), None)
            if index is None:
                raise Conflict(
                    f"{to!r} is not a former default of {route.name!r}; promote it instead",
                    param="to",
                    code="not_in_history",
                )
            self.check_variant(connection, to, param="to")
            return index
        # A former default may have been quarantined or removed since: the person who rolls back wants one that works.
        for index in indexes:
            if route.history[index] != route.variant and self._may_take_traffic(
                connection, route.history[index]
            ):
                return index
        raise Conflict(
            f"{route.name!r} has no former default that may take traffic; promote a version instead",
            code="nothing_to_roll_back",
        )

    def _may_take_traffic(self, connection: Connection, variant: str) -> bool:
        try:
            self.check_variant(connection, variant)
        except (NotFound, Conflict):
            return False
        return True

    def check_variant(self, connection: Connection, variant: str, param: str = "variant") -> None:
        """Whether it may take traffic, in the caller's transaction. Raises NotFound, Conflict(code="version_not_ready")."""
        if not is_ref(variant):
            if variant in self._models or _is_base_model(connection, variant):
                return
            raise NotFound(
                f"{variant!r} is neither an adapter version (NAME@N) nor a model of an engine",
                param=param,
                code="variant_not_found",
            )
        state, reason = _version_state(connection, variant, param)
        if state is not VersionState.PROVED:
            because = f" ({reason})" if reason else ""
            raise Conflict(
                f"{variant} is {state}{because} and may not take traffic: {REMEDIES[state]}",
                param=param,
                code="version_not_ready",
            )


def all_routes(connection: Connection) -> tuple[Route, ...]:
    query = sa.select(schema.routes).order_by(schema.routes.c.name)
    return tuple(_route(row) for row in connection.execute(query))


def find_route(connection: Connection, name: str) -> Route | None:
    row = connection.execute(sa.select(schema.routes).where(schema.routes.c.name == name)).one_or_none()
    return None if row is None else _route(row)


def insert_route(connection: Connection, route: Route, actor: str) -> None:
    """A new row and its event, in the caller's transaction. The caller has checked name and variant."""
    connection.execute(
        sa.insert(schema.routes).values(
            name=route.name,
            variant=route.variant,
            history=list(route.history),
            challengers=shares_of(route),
            policy=policy_json(route.policy),
            created=route.created,
        )
    )
    _record(connection, "route.created", route.name, {"variant": route.variant}, actor, route.created)


def move_route(connection: Connection, before: Route, after: Route, actor: str, now: float) -> None:
    """Another default or other challengers, in the caller's `changing` transaction. The caller has checked them."""
    _change(connection, "route.moved", before, after, actor, now)


def _change(
    connection: Connection, action: str, before: Route, after: Route, actor: str, now: float | None
) -> Route:
    if before.variant != after.variant:
        why = f"the default of {before.name} was moved to {after.variant}"
        _stop_experiment(connection, before.name, after.variant, why, actor, now)
    connection.execute(
        sa.update(schema.routes)
        .where(schema.routes.c.name == before.name)
        .values(variant=after.variant, history=list(after.history), challengers=shares_of(after))
    )
    detail: dict[str, Any] = {"from": before.variant, "to": after.variant}
    if before.challengers != after.challengers:
        detail["challengers"] = shares_of(after)
    _record(connection, action, before.name, detail, actor, now)
    return after


def _refuse_open_experiment(connection: Connection, route: str) -> None:
    known = open_experiment_of(connection, route)
    if known is not None:
        raise Conflict(
            f"experiment {known.name!r} splits the traffic of {route!r}: burnish experiments stop {known.name}",
            code="experiment_open",
        )


def _refuse_other_scores(connection: Connection, before: Route, policy: RoutePolicy) -> None:
    """What an open experiment counts must mean tomorrow what it meant when it was said."""
    known = open_experiment_of(connection, before.name)
    for score in () if known is None else known.plan.scores:
        if known is not None and policy.score(score) != before.policy.score(score):
            raise Conflict(
                f"experiment {known.name!r} counts score {score!r}: burnish experiments stop {known.name}",
                param="policy.scores",
                code="experiment_open",
            )


def _stop_experiment(
    connection: Connection, route: str, default: str | None, why: str, actor: str, now: float | None
) -> None:
    """A comparison with a default that is none any more is moot; but what an experiment has itself promoted is not."""
    known = open_experiment_of(connection, route)
    if known is None or (known.promoted is not None and known.promoted == default):
        return
    stop_experiment(connection, known, actor, why, time.time() if now is None else now)


def shares_of(route: Route) -> dict[str, float]:
    return {challenger.variant: challenger.share for challenger in route.challengers}


def check_shares(route: Route, challengers: tuple[Challenger, ...]) -> tuple[Challenger, ...]:
    """The challengers themselves, if the route may have them. Raises InvalidRequest."""
    for challenger in challengers:
        if not 0 < challenger.share < 1:
            raise _bad_shares(f"the share of {challenger.variant} must be above 0 and below 1")
        if challenger.variant == route.variant:
            raise _bad_shares(f"{challenger.variant} is the default of {route.name!r}, which has the rest")
    if sum(challenger.share for challenger in challengers) >= 1:
        raise _bad_shares("the shares must leave something for the default: together they must be below 1")
    return challengers


def _bad_shares(problem: str) -> InvalidRequest:
    return InvalidRequest(problem, param="challengers", code="invalid_value")


def _declare(
    connection: Connection, before: Route, policy: RoutePolicy, actor: str, now: float | None
) -> Route:
    if policy == before.policy:
        return before
    _refuse_other_scores(connection, before, policy)
    declared = policy_json(policy)
    table = schema.routes
    connection.execute(sa.update(table).where(table.c.name == before.name).values(policy=declared))
    _record(connection, "route.policy_changed", before.name, {"policy": declared}, actor, now)
    return replace(before, policy=policy)


def _record(
    connection: Connection, action: str, name: str, detail: dict[str, Any], actor: str, now: float | None
) -> None:
    at = time.time() if now is None else now
    record(connection, actor=actor, action=action, subject=name, detail=detail, now=at)


def existing_route(connection: Connection, name: str) -> Route:
    """Raises NotFound(code="route_not_found")."""
    # A name outside the grammar may hold what a database cannot even compare, such as NUL.
    route = find_route(connection, name) if is_name(name) else None
    if route is None:
        raise NotFound(f"there is no route {name!r}", code="route_not_found")
    return route


def _is_base_model(connection: Connection, name: str) -> bool:
    return name in connection.execute(sa.select(schema.base_models.c.name)).scalars().all()


def _version_state(connection: Connection, ref: str, param: str) -> tuple[VersionState, str | None]:
    name, number = parse_ref(ref)
    table = schema.versions
    query = sa.select(table.c.state, table.c.reason).where(table.c.name == name, table.c.number == number)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"there is no adapter version {ref}", param=param, code="version_not_found")
    return VersionState(row.state), row.reason


def _route(row: Row[Any]) -> Route:
    challengers = tuple(Challenger(variant, share) for variant, share in sorted(row.challengers.items()))
    policy = parse_policy(row.policy)
    return Route(row.name, row.variant, tuple(row.history), row.created, policy, challengers)
