"""From what is seen to what is done: once, whoever looks, and only if the experiment is still as it was seen."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapters import schema
from adapters.changes import changing, events
from adapters.database import Database
from adapters.experiment_records import (
    Experiment,
    ExperimentState,
    Outcome,
    reshare,
    shares_by_epoch,
    update_experiment,
)
from adapters.experiments import Experiments
from adapters.looks import ACTOR, Looks, act, current, see
from adapters.registry import Registry
from adapters.routes import Routes
from adapters.verdicts import Look
from adapters.versions import VersionState
from tests.observed import answer, crowd, plan, proved_versions, write

CONTROL, A, B = "support@1", "support@2", "support@3"
BEGAN = 2000.0


class World:
    """The route `support` with its default support@1, and two more versions that are proved."""

    def __init__(self, db: Database, registry: Registry) -> None:
        self.db, self.registry = db, registry
        self.routes = Routes(db)
        self.experiments = Experiments(db, self.routes)
        self.looks = Looks(db, self.routes)
        self._now = BEGAN

    def begin(self, *challengers: str, **parts: Any) -> Experiment:
        return self.experiments.create("support", plan(*challengers, **parts), "anna", now=BEGAN)

    def look(self, later: float = 100.0) -> tuple[Experiment, ...]:
        """A look so many seconds after the one before."""
        self._now += later
        return self.looks.look_at_all(self._now)

    def now(self, name: str = "support-1") -> Experiment:
        return self.experiments.get(name)

    def like(self, experiment: Experiment, variant: str, of: int = 200, liked: int = 0, **more: Any) -> None:
        crowd(self.db, experiment, variant, of, liked=liked, **more)

    def better(self, experiment: Experiment, variant: str = A) -> None:
        self.like(experiment, CONTROL, liked=60)
        self.like(experiment, variant, liked=180)

    def break_(self, experiment: Experiment, variant: str, of: int = 200) -> None:
        """The same people come again, and get errors."""
        self.like(experiment, variant, of=of, told=False, error=1.0)


@pytest.fixture
def world(db: Database, registry: Registry, tmp_path: Path) -> World:
    proved_versions(registry, tmp_path)
    return World(db, registry)


def verdict_of(experiment: Experiment) -> dict[str, Any]:
    assert experiment.verdict is not None
    return experiment.verdict


# -- what follows from a verdict -------------------------------------------------------------------
def test_the_winner_is_promoted_where_the_plan_says_act(world: World, db: Database) -> None:
    made = world.begin(on_promote="act")
    world.better(made)
    revision = world.registry.revision()
    (ended,) = world.look()
    assert ended == world.now()
    assert (ended.state, ended.ended) == (ExperimentState.ENDED, BEGAN + 100)
    route = world.routes.get("support")
    assert (route.variant, route.history) == (A, (CONTROL,))
    verdict = verdict_of(ended)
    assert (verdict["outcome"], verdict["variant"], verdict["by"]) == (Outcome.PROMOTE, A, ACTOR)
    assert (verdict["at"], verdict["done"]) == (BEGAN + 100, f"promoted {A}")
    assert verdict["numbers"]["arms"][A]["scores"]["rating"]["voices"] == 200
    assert world.registry.revision() > revision
    told = [(event.actor, event.action) for event in events(db, subject="support", limit=2)]
    assert told == [(ACTOR, "route.moved"), (ACTOR, "experiment.ended")]


def test_a_promotion_waits_for_a_person_where_the_plan_says_ask(world: World, db: Database) -> None:
    made = world.begin()
    world.better(made)
    revision = world.registry.revision()
    (waiting,) = world.look()
    assert (waiting.state, waiting.is_open) == (ExperimentState.AWAITING, True)
    assert world.routes.get("support").variant == CONTROL
    assert verdict_of(waiting)["done"] == (f"waits for a person: burnish experiments decide support-1 {A}")
    assert world.registry.revision() > revision
    assert events(db, subject="support", limit=1)[0].action == "experiment.awaiting"
    assert world.look() == (), "it is not said twice"
    decided = world.experiments.decide("support-1", A, "bert")
    assert world.routes.get("support").variant == A
    assert verdict_of(decided)["reasons"] == verdict_of(waiting)["reasons"]
    assert verdict_of(decided)["numbers"] == verdict_of(waiting)["numbers"]


def test_the_control_that_is_better_is_kept(world: World) -> None:
    made = world.begin(on_promote="act")
    world.like(made, CONTROL, liked=180)
    world.like(made, A, liked=60)
    (ended,) = world.look()
    verdict = verdict_of(ended)
    assert (verdict["outcome"], verdict["done"]) == (Outcome.KEEP, f"all traffic to {CONTROL}")
    assert world.routes.get("support").history == ()


def test_a_breach_is_stopped_and_says_why(world: World) -> None:
    made = world.begin()
    world.like(made, CONTROL)
    world.break_(made, A)
    (ended,) = world.look()
    verdict = verdict_of(ended)
    assert (verdict["outcome"], verdict["variant"]) == (Outcome.GUARDRAIL, A)
    assert "error_rate is +100.0%" in verdict["reasons"][0]
    assert world.routes.get("support").variant == CONTROL


def test_of_several_only_the_one_that_breaches_is_dropped(world: World, db: Database) -> None:
    made = world.begin(A, B)
    for variant in (CONTROL, B):
        world.like(made, variant, liked=100)
    world.break_(made, A)
    (changed,) = world.look()
    assert (changed.state, changed.epoch) == (ExperimentState.RUNNING, 1)
    assert changed.epoch_began == BEGAN + 100
    assert "error_rate" in changed.dropped[A]
    assert changed.shares == pytest.approx({CONTROL: 1 / 2, B: 1 / 2})
    assert changed.challengers == (B,)
    with db.read() as connection:
        assert shares_by_epoch(connection, made.id) == {0: made.shares, 1: changed.shares}
    assert events(db, subject="support", limit=1)[0].action == "experiment.reshared"
    assert world.look() == ()
    assert world.registry.snapshot_rows().experiments == (changed,)


def test_what_a_person_is_asked_to_promote_is_not_waited_for_once_it_breaches(world: World) -> None:
    made = world.begin(A, B)
    world.better(made)
    world.like(made, B, liked=60)
    assert world.look()[0].state is ExperimentState.AWAITING
    world.break_(made, A)
    (changed,) = world.look()
    assert (changed.state, changed.verdict) == (ExperimentState.RUNNING, None)
    assert list(changed.dropped) == [A]


def test_while_a_person_is_awaited_another_may_be_dropped(world: World) -> None:
    made = world.begin(A, B)
    world.better(made)
    world.like(made, B, liked=60)
    (waiting,) = world.look()
    world.break_(made, B)
    (changed,) = world.look()
    assert (changed.state, changed.verdict) == (ExperimentState.AWAITING, waiting.verdict)
    assert list(changed.dropped) == [B]


def test_a_canary_goes_up_the_steps_to_its_promotion(world: World) -> None:
    made = world.begin(policy="canary", on_promote="act", steps=[0.1, 0.5])
    assert made.shares == pytest.approx({CONTROL: 0.9, A: 0.1})
    world.like(made, CONTROL, of=90, liked=60)
    world.like(made, A, of=10, liked=8)
    (grown,) = world.look()
    assert grown.shares == pytest.approx({CONTROL: 0.5, A: 0.5})
    assert world.look(1000) == (), "nobody has been answered at this step"
    world.like(grown, CONTROL, of=10, liked=5, name="later")
    world.like(grown, A, of=10, liked=8, name="later")
    (ended,) = world.look()
    assert verdict_of(ended)["outcome"] == Outcome.PROMOTE
    assert world.routes.get("support").variant == A


def test_adaptive_traffic_moves(world: World) -> None:
    made = world.begin(policy="adaptive")
    world.like(made, CONTROL, of=30, liked=12)
    world.like(made, A, of=30, liked=20)
    (moved,) = world.look()
    assert moved.epoch == 1
    assert moved.shares[A] > 0.9
    assert sum(moved.shares.values()) == pytest.approx(1.0)


def test_a_horizon_comes_without_any_traffic(world: World) -> None:
    world.begin(horizon_seconds=50)
    (ended,) = world.look(51)
    assert verdict_of(ended)["outcome"] == Outcome.INCONCLUSIVE


# -- a hold-back -----------------------------------------------------------------------------------
def promoted(world: World) -> Experiment:
    made = world.begin(on_promote="act", hold_back=0.1, hold_back_seconds=1000)
    world.better(made)
    (measuring,) = world.look()
    return measuring


def test_a_hold_back_goes_on_measuring_and_then_ends(world: World) -> None:
    measuring = promoted(world)
    assert (measuring.state, measuring.promoted) == (ExperimentState.MEASURING, A)
    assert measuring.shares == pytest.approx({CONTROL: 0.1, A: 0.9})
    assert world.routes.get("support").variant == A
    assert world.now() == measuring, "its own promotion has not stopped it"
    assert world.look(900) == ()
    (ended,) = world.look(200)
    verdict = verdict_of(ended)
    assert (verdict["outcome"], verdict["done"]) == (Outcome.PROMOTE, f"all traffic to {A}")
    assert world.routes.get("support").history == (CONTROL,)


@pytest.mark.parametrize("how", ["worse", "breach"])
def test_a_promotion_that_proves_wrong_is_rolled_back(world: World, how: str) -> None:
    measuring = promoted(world)
    if how == "worse":
        world.like(measuring, A, of=1500, name="later")
        world.like(measuring, CONTROL, of=160, liked=80, name="later")
    else:
        world.like(measuring, CONTROL, of=8, liked=4, name="later")
        world.break_(measuring, A, of=60)
    (ended,) = world.look()
    route = world.routes.get("support")
    assert (route.variant, route.history) == (CONTROL, ())
    assert verdict_of(ended)["done"] == f"rolled back to {CONTROL}"
    assert verdict_of(ended)["outcome"] == (Outcome.KEEP if how == "worse" else Outcome.GUARDRAIL)
    assert not world.now().is_open


def test_there_is_no_way_back_to_a_control_that_may_not_serve(world: World) -> None:
    measuring = promoted(world)
    world.registry.set_state(CONTROL, VersionState.QUARANTINED, "why", "anna")
    world.like(measuring, CONTROL, of=8, liked=4, name="later")
    world.break_(measuring, A, of=60)
    (ended,) = world.look()
    assert world.routes.get("support").variant == A
    assert verdict_of(ended)["done"].startswith(f"{A} stays the default: {CONTROL} is quarantined")


# -- what has changed meanwhile --------------------------------------------------------------------
def test_promise_04_what_was_quarantined_meanwhile_is_not_promoted(world: World) -> None:
    made = world.begin(on_promote="act")
    world.better(made)
    world.registry.set_state(A, VersionState.QUARANTINED, "the canary", "anna")
    (waiting,) = world.look()
    assert waiting.state is ExperimentState.AWAITING
    assert f"waits for a person: {A} is quarantined" in verdict_of(waiting)["done"]
    assert world.routes.get("support").variant == CONTROL
    assert world.look() == ()


def seen_of(world: World, experiment: Experiment) -> Look:
    seen = see(world.db, experiment, BEGAN + 1)
    assert seen is not None
    assert seen.does_something
    return seen


def _ended(world: World, experiment: Experiment) -> None:
    world.experiments.stop(experiment.name, "bert")


def _reshared(world: World, experiment: Experiment) -> None:
    with changing(world.db) as connection:
        reshare(connection, experiment, experiment.shares, "another", BEGAN)


def _awaiting(world: World, experiment: Experiment) -> None:
    from dataclasses import replace

    waiting = replace(experiment, state=ExperimentState.AWAITING)
    with changing(world.db) as connection:
        update_experiment(connection, waiting, "experiment.awaiting", {}, "another", BEGAN)


def _promoted_by_hand(world: World, experiment: Experiment) -> None:
    world.routes.promote("support", B, "bert")


@pytest.mark.parametrize("happens", [_ended, _reshared, _awaiting, _promoted_by_hand])
def test_a_look_at_what_has_changed_since_does_nothing(
    world: World, happens: Callable[[World, Experiment], None]
) -> None:
    made = world.begin(on_promote="act")
    world.better(made)
    seen = seen_of(world, made)
    happens(world, made)
    before, route = world.now(), world.routes.get("support")
    revision = world.registry.revision()
    with changing(world.db) as connection:
        assert act(connection, world.routes, made, seen, BEGAN + 2) is None
    assert (world.now(), world.routes.get("support")) == (before, route)
    assert world.registry.revision() == revision
    assert world.experiments.looks(made.name) == ()


def test_two_gateways_that_look_at_the_same_time_act_once(world: World, db: Database) -> None:
    made = world.begin(on_promote="act", hold_back=0.1)
    world.better(made)
    found: list[Experiment] = []
    together = threading.Barrier(4)

    def gateway() -> None:
        looks = Looks(db, Routes(db))
        together.wait()
        found.extend(looks.look_at_all(BEGAN + 1))

    threads = [threading.Thread(target=gateway) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.state for each in found] == [ExperimentState.MEASURING]
    route = world.routes.get("support")
    assert (route.variant, route.history) == (A, (CONTROL,))
    assert world.now().epoch == 1
    actions = [event.action for event in events(db, subject="support")]
    assert (actions.count("experiment.reshared"), actions.count("route.moved")) == (1, 1)


def test_an_experiment_whose_route_or_score_is_gone_disturbs_no_other(world: World, db: Database) -> None:
    """Neither can be by our own doing; whoever edits a database by hand must not stop all experiments."""
    broken = world.begin(on_promote="act")
    world.routes.create("sales", CONTROL, "anna")
    other = world.experiments.create("sales", plan(on_promote="act"), "anna", now=BEGAN)
    for experiment in (broken, other):
        world.better(experiment)
    table = schema.experiments
    for change in ({"route": "gone"}, {"plan": {"challengers": {A: None}, "scores": ["gone"]}}):
        with db.begin() as connection:
            connection.execute(sa.update(table).where(table.c.id == broken.id).values(**change))
        assert see(db, world.now(), BEGAN + 1) is None
        assert current(db, world.now(), BEGAN + 1) is None
        with db.begin() as connection:
            connection.execute(sa.update(table).where(table.c.id == broken.id).values(route="support"))
    assert [each.name for each in world.look()] == [other.name]
    assert world.routes.get("sales").variant == A


# -- when it is looked, and what is kept -----------------------------------------------------------
def kept(world: World) -> list[float]:
    return [at for at, _ in world.experiments.looks("support-1")]


def test_looks_are_kept_while_there_is_more_to_see(world: World) -> None:
    made = world.begin()
    world.look()
    assert kept(world) == [], "there was nothing to see"
    for variant in (CONTROL, A):
        world.like(made, variant, of=100, liked=50)
    world.look()
    world.look()
    assert kept(world) == [BEGAN + 200]
    write(world.db, [answer(made, CONTROL, "one more")])
    world.look()
    assert kept(world) == [BEGAN + 200], "one in a hundred changes no plot"
    for variant in (CONTROL, A):
        world.like(made, variant, of=100, liked=50, name="more")
    world.look()
    assert kept(world) == [BEGAN + 200, BEGAN + 500]
    (_, body) = world.experiments.looks("support-1")[-1]
    assert body["arms"][A]["answers"] == 200
    json.dumps(body, allow_nan=False)


def test_without_anything_new_nobody_looks(world: World, db: Database) -> None:
    made = world.begin()
    statements: list[str] = []
    engine = db._engine
    sa.event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    def looked(now: float) -> bool:
        statements.clear()
        world.looks.look_at_all(now)
        return any("GROUP BY" in statement for statement in statements)

    assert looked(BEGAN)
    assert not looked(BEGAN + 1)
    write(db, [answer(made, CONTROL, "u1")])
    assert looked(BEGAN + 1.5)
    assert not looked(BEGAN + 1.9)
    assert looked(BEGAN + 2), "some rules wait for time alone"


def test_a_person_sees_the_numbers_of_the_verdict_of_what_has_ended(world: World, db: Database) -> None:
    made = world.begin(on_promote="act")
    world.better(made)
    fresh = current(db, made, BEGAN + 1)
    assert fresh is not None
    assert fresh["arms"][A]["units"] == 200
    (ended,) = world.look()
    world.like(made, A, name="late")
    assert current(db, ended, BEGAN + 1000) == verdict_of(ended)["numbers"]
