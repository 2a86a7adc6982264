from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters import schema
from adapters.changes import events
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest, NotFound
from adapters.registry import Registry
from adapters.routes import HISTORY_LIMIT, Challenger, Route, Routes
from adapters.versions import VersionState
from tests.lora import TINY_CONFIG, write_lora

BASE = "base-model"


@pytest.fixture
def routes(db: Database) -> Routes:
    return Routes(db, models=("cloud/model",))


@pytest.fixture
def proved(registry: Registry, tmp_path: Path) -> list[str]:
    """Three proved versions of `support`, and so the route `support` -> support@1."""
    refs = []
    for seed in range(3):
        folder = write_lora(tmp_path / f"proved-{seed}", TINY_CONFIG, seed=seed)
        refs.append(registry.import_adapter("support", folder, BASE, TINY_CONFIG, "anna").ref)
        registry.set_state(refs[-1], VersionState.PROVED, None, "reconciler")
    return refs


def code(caught: pytest.ExceptionInfo[Conflict] | pytest.ExceptionInfo[NotFound]) -> str | None:
    return caught.value.code


def test_a_route_is_made_listed_and_deleted(routes: Routes, proved: list[str]) -> None:
    made = routes.create("assistant", BASE, "anna", now=3.0)
    assert made == Route("assistant", BASE, (), 3.0)
    assert routes.get("assistant") == made
    assert [route.name for route in routes.list()] == ["assistant", "support"]
    routes.delete("assistant", "anna")
    assert [route.name for route in routes.list()] == ["support"]
    with pytest.raises(NotFound) as caught:
        routes.delete("assistant", "anna")
    assert code(caught) == "route_not_found"


def test_a_route_may_lead_to_a_model_of_another_engine(routes: Routes, registry: Registry) -> None:
    assert routes.create("assistant", "cloud/model", "anna").variant == "cloud/model"


@pytest.mark.parametrize("variant", ["gone", "support@9", "other"])
def test_a_route_to_nothing_is_refused(routes: Routes, proved: list[str], variant: str) -> None:
    with pytest.raises(NotFound) as caught:
        routes.create("assistant", variant, "anna")
    assert caught.value.param == "variant"
    with pytest.raises(NotFound):
        routes.promote("support", variant, "anna")


@pytest.mark.parametrize("name", ["", "\0", "\ud800", "support@1", "a/b"])
def test_a_name_that_can_be_no_routes_is_not_found_and_no_failure(
    routes: Routes, proved: list[str], name: str
) -> None:
    for attempt in (lambda: routes.get(name), lambda: routes.promote(name, BASE, "anna")):
        with pytest.raises(NotFound):
            attempt()
    with pytest.raises(NotFound):
        routes.promote("support", f"\0{name}@", "anna")


def test_a_name_that_is_taken_is_refused(db: Database, routes: Routes, proved: list[str]) -> None:
    for name, reason in (("support", "route_exists"), (BASE, "name_taken")):
        with pytest.raises(Conflict) as caught:
            routes.create(name, BASE, "anna")
        assert code(caught) == reason
    with pytest.raises(Conflict, match="is the name of a model"):
        Routes(db, models=("cloud",)).create("cloud", BASE, "anna")
    with pytest.raises(InvalidRequest):
        routes.create("support@1", BASE, "anna")


def test_promise_05_to_promote_is_to_change_one_row(db: Database, routes: Routes, proved: list[str]) -> None:
    other = routes.create("other", BASE, "anna")
    tables = [t for t in schema.metadata.sorted_tables if t.name not in ("routes", "events", "registry")]

    def contents() -> list[list[sa.Row[tuple[object, ...]]]]:
        with db.read() as connection:
            return [list(connection.execute(sa.select(table))) for table in tables]

    before, logged = contents(), len(events(db))
    route = routes.promote("support", "support@2", "anna", now=7.0)
    assert (route.variant, route.history) == ("support@2", ("support@1",))
    assert routes.list() == (other, route)
    assert contents() == before
    (event,) = events(db)[: len(events(db)) - logged]
    assert (event.at, event.actor, event.action, event.subject) == (7.0, "anna", "route.promoted", "support")
    assert event.detail == {"from": "support@1", "to": "support@2"}


def test_promoting_the_default_again_changes_nothing(
    routes: Routes, registry: Registry, proved: list[str]
) -> None:
    revision = registry.revision()
    assert routes.promote("support", "support@1", "anna").history == ()
    assert registry.revision() == revision


@pytest.mark.parametrize("state", [VersionState.FAILED, VersionState.QUARANTINED, VersionState.STAGED])
def test_promise_04_a_version_that_is_not_proved_is_not_promoted(
    routes: Routes, registry: Registry, proved: list[str], tmp_path: Path, state: VersionState
) -> None:
    folder = write_lora(tmp_path / "new", TINY_CONFIG, seed=99)
    ref = registry.import_adapter("support", folder, BASE, TINY_CONFIG, "anna").ref
    registry.set_state(ref, state, "the canary saw no difference", "reconciler")
    for attempt in (
        lambda: routes.promote("support", ref, "anna"),
        lambda: routes.create("new", ref, "anna"),
    ):
        with pytest.raises(Conflict) as caught:
            attempt()
        assert code(caught) == "version_not_ready"
        assert f"{ref} is {state}" in caught.value.message
        assert state is VersionState.STAGED or "the canary saw no difference" in caught.value.message
    assert routes.get("support").variant == "support@1"


def test_rolling_back_undoes_promotes_one_by_one(routes: Routes, proved: list[str]) -> None:
    routes.promote("support", "support@2", "anna")
    routes.promote("support", "support@3", "anna")
    assert routes.rollback("support", actor="anna").variant == "support@2"
    assert routes.rollback("support", actor="anna") == routes.get("support")
    assert (routes.get("support").variant, routes.get("support").history) == ("support@1", ())
    with pytest.raises(Conflict) as caught:
        routes.rollback("support", actor="anna")
    assert code(caught) == "nothing_to_roll_back"


def test_rolling_back_to_a_named_default_drops_what_came_after(routes: Routes, proved: list[str]) -> None:
    routes.promote("support", "support@2", "anna")
    routes.promote("support", "support@3", "anna")
    route = routes.rollback("support", "support@1", "anna")
    assert (route.variant, route.history) == ("support@1", ())
    with pytest.raises(Conflict) as caught:
        routes.rollback("support", "support@3", "anna")
    assert code(caught) == "not_in_history"


def test_rolling_back_passes_over_versions_that_may_not_take_traffic(
    routes: Routes, registry: Registry, proved: list[str]
) -> None:
    routes.promote("support", "support@2", "anna")
    routes.promote("support", "support@3", "anna")
    registry.set_state("support@2", VersionState.QUARANTINED, "learnt from a user who left", "anna")
    with pytest.raises(Conflict, match="support@2 is quarantined"):
        routes.rollback("support", "support@2", "anna")
    assert routes.rollback("support", actor="anna").variant == "support@1"


def test_rolling_back_never_ends_where_it_began(
    routes: Routes, registry: Registry, proved: list[str]
) -> None:
    routes.promote("support", "support@2", "anna")
    routes.promote("support", "support@1", "anna")
    registry.set_state("support@2", VersionState.QUARANTINED, None, "anna")
    with pytest.raises(Conflict) as caught:
        routes.rollback("support", actor="anna")
    assert code(caught) == "nothing_to_roll_back"


Step = tuple[str, int]
steps = st.lists(st.tuples(st.sampled_from(["promote", "rollback", "rollback to"]), st.integers(1, 3)))


def model(stack: list[str], step: Step) -> list[str] | None:
    """The stack of defaults after a step, while all versions are proved; None: the step must be refused."""
    action, ref = step[0], f"support@{step[1]}"
    former = stack[:-1]
    match action:
        case "promote":
            return stack if stack[-1] == ref else [*stack, ref]
        case "rollback":
            return former or None
        case _:
            return former[: len(former) - former[::-1].index(ref)] if ref in former else None


def perform(routes: Routes, name: str, step: Step) -> Route:
    action, ref = step[0], f"support@{step[1]}"
    if action == "promote":
        return routes.promote(name, ref, "anna")
    return routes.rollback(name, ref if action == "rollback to" else None, "anna")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_promotes_and_rollbacks_are_a_stack(routes: Routes, proved: list[str], steps: list[Step]) -> None:
    route, stack = routes.create("stack", BASE, "anna"), [BASE]
    for step in steps:
        after = model(stack, step)
        if after is None:
            with pytest.raises(Conflict):
                perform(routes, "stack", step)
        else:
            route, stack = perform(routes, "stack", step), after
        assert routes.get("stack") == route
        assert [*route.history, route.variant] == stack
    routes.delete("stack", "anna")


def test_a_route_forgets_only_its_oldest_defaults() -> None:
    route = Route("r", "m0", (), 0.0)
    for index in range(1, HISTORY_LIMIT + 11):
        route = route.promoted(f"m{index}")
    assert len(route.history) == HISTORY_LIMIT
    assert (route.history[0], route.history[-1]) == ("m10", f"m{HISTORY_LIMIT + 9}")


# -- challengers -----------------------------------------------------------------------------------
def test_challengers_get_shares_and_the_default_keeps_the_rest(
    routes: Routes, proved: list[str], db: Database
) -> None:
    route = routes.challenge("support", {"support@3": 0.05, "support@2": 0.1}, "anna")
    assert route.challengers == (Challenger("support@2", 0.1), Challenger("support@3", 0.05))
    assert routes.get("support") == route
    assert route.variants == ("support@1", "support@2", "support@3")
    revision = routes.challenge("support", {"support@2": 0.1, "support@3": 0.05}, "anna")
    assert revision == route, "the same again changes nothing"
    told = events(db)[0]
    assert told.action == "route.challenged"
    assert told.detail["challengers"] == {"support@2": 0.1, "support@3": 0.05}
    assert routes.challenge("support", {}, "anna").challengers == ()


@pytest.mark.parametrize(
    "shares",
    [
        {"support@2": 0.0},
        {"support@2": 1.0},
        {"support@2": -0.1},
        {"support@2": float("nan")},
        {"support@1": 0.1},
        {"support@2": 0.6, "support@3": 0.4},
    ],
)
def test_shares_that_cannot_be_are_refused(
    routes: Routes, proved: list[str], shares: dict[str, float]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        routes.challenge("support", shares, "anna")
    assert caught.value.param == "challengers"
    assert routes.get("support").challengers == ()


def test_promise_04_only_a_proved_version_can_be_a_challenger(
    routes: Routes, registry: Registry, proved: list[str]
) -> None:
    registry.set_state("support@2", VersionState.QUARANTINED, "why", "anna")
    with pytest.raises(Conflict) as caught:
        routes.challenge("support", {"support@2": 0.1}, "anna")
    assert code(caught) == "version_not_ready"
    with pytest.raises(NotFound):
        routes.challenge("support", {"support@9": 0.1}, "anna")


def test_a_challenger_that_is_promoted_is_none_any_more(routes: Routes, proved: list[str]) -> None:
    routes.challenge("support", {"support@2": 0.1, "support@3": 0.2}, "anna")
    route = routes.promote("support", "support@2", "anna")
    assert (route.variant, route.challengers) == ("support@2", (Challenger("support@3", 0.2),))


def test_a_rollback_sends_everybody_back(routes: Routes, proved: list[str]) -> None:
    routes.promote("support", "support@2", "anna")
    routes.challenge("support", {"support@3": 0.2}, "anna")
    route = routes.rollback("support", actor="anna")
    assert (route.variant, route.challengers) == ("support@1", ())
    assert routes.get("support").challengers == ()


def test_a_challenger_is_not_removed_while_it_has_a_share(
    routes: Routes, registry: Registry, proved: list[str]
) -> None:
    routes.challenge("support", {"support@2": 0.2}, "anna")
    with pytest.raises(Conflict) as caught:
        registry.begin_remove("support@2", "anna")
    assert code(caught) == "version_in_use"
    routes.challenge("support", {}, "anna")
    registry.begin_remove("support@2", "anna")
