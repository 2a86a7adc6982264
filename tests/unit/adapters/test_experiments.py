"""What people do with experiments, and what a route may not do while it has one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.changes import changing, events
from adapters.database import Database
from adapters.errors import BurnishError, Conflict, InvalidRequest, NotFound
from adapters.experiment_records import (
    LOOKS_KEPT,
    Experiment,
    ExperimentState,
    Outcome,
    insert_look,
    looks_of,
    reshare,
    shares_by_epoch,
)
from adapters.experiments import Experiments
from adapters.forget import forget_user
from adapters.jobs import Jobs, JobState, finish
from adapters.registry import Registry
from adapters.routes import Routes
from adapters.versions import VersionState
from tests.judged import stored
from tests.observed import plan, proved_versions

BASE = "base-model"


@pytest.fixture
def routes(db: Database) -> Routes:
    return Routes(db, models=("cloud/model",))


@pytest.fixture
def experiments(db: Database, routes: Routes, registry: Registry, tmp_path: Path) -> Experiments:
    """Of the route `support`, whose default is support@1; support@2 and support@3 are proved as well."""
    proved_versions(registry, tmp_path)
    return Experiments(db, routes)


def refused(attempt: Callable[..., Any], *args: Any, **more: Any) -> BurnishError:
    with pytest.raises(BurnishError) as caught:
        attempt(*args, **more)
    return caught.value


def verdict_of(experiment: Experiment) -> dict[str, Any]:
    assert experiment.verdict is not None
    return experiment.verdict


# -- to begin --------------------------------------------------------------------------------------
def test_an_experiment_begins_at_once_with_the_default_as_its_control(
    experiments: Experiments, registry: Registry, db: Database
) -> None:
    revision = registry.revision()
    made = experiments.create("support", plan("support@2", "support@3"), "anna", now=5.0)
    assert (made.state, made.control) == (ExperimentState.RUNNING, "support@1")
    assert (made.created, made.epoch, made.epoch_began, made.actor) == (5.0, 0, 5.0, "anna")
    assert made.variants == ("support@1", "support@2", "support@3")
    assert list(made.shares) == list(made.variants), "the control first"
    assert made.shares == pytest.approx(dict.fromkeys(made.variants, 1 / 3))
    assert registry.revision() > revision, "gateways must see it"
    assert registry.snapshot_rows().experiments == (made,)
    event = events(db, subject="support", limit=1)[0]
    assert (event.actor, event.action, event.detail["experiment"]) == (
        "anna", "experiment.started", "support-1",
    )  # fmt: skip
    with db.read() as connection:
        assert shares_by_epoch(connection, made.id) == {0: made.shares}


def test_what_was_begun_is_found_by_name_and_by_id(experiments: Experiments) -> None:
    made = experiments.create("support", plan(policy="adaptive"), "anna", name="first.try", now=5.0)
    assert experiments.get("first.try") == experiments.get(made.id) == made
    for name in ("nothing", "", "\0", "\ud800", "a/b"):
        error = refused(experiments.get, name)
        assert isinstance(error, NotFound)
        assert error.code == "experiment_not_found"
        assert refused(experiments.looks, name).code == "experiment_not_found"
        assert refused(experiments.stop, name, "anna").code == "experiment_not_found"
        assert refused(experiments.decide, name, BASE, "anna").code == "experiment_not_found"


def test_experiments_are_listed_the_newest_first_and_by_route(
    experiments: Experiments, routes: Routes
) -> None:
    routes.create("sales", BASE, "anna")
    first = experiments.create("support", plan(), "anna")
    other = experiments.create("sales", plan(), "anna")
    ended = experiments.stop(first.name, "anna")
    again = experiments.create("support", plan(), "anna")
    assert experiments.list() == (again, other, ended)
    assert experiments.list("support") == (again, ended)
    assert experiments.list("nothing") == ()


def test_names_are_given_by_number_or_by_hand_and_never_twice(experiments: Experiments) -> None:
    for expected in ("support-1", "support-2"):
        made = experiments.create("support", plan(), "anna")
        assert made.name == expected
        experiments.stop(made.name, "anna")
    by_hand = experiments.create("support", plan(), "anna", name="support-3")
    experiments.stop("support-3", "anna")
    assert experiments.create("support", plan(), "anna").name == "support-4"
    experiments.stop("support-4", "anna")
    for taken in ("support-1", by_hand.id):
        error = refused(experiments.create, "support", plan(), "anna", name=taken)
        assert (error.code, error.param) == ("experiment_exists", "name")
    for bad in ("", "a/b", "Ä", "x" * 64):
        assert isinstance(refused(experiments.create, "support", plan(), "a", name=bad), InvalidRequest)


def test_what_cannot_take_traffic_is_no_challenger(experiments: Experiments, registry: Registry) -> None:
    registry.set_state("support@3", VersionState.QUARANTINED, "why", "anna")
    cases = {
        "support@3": (Conflict, "version_not_ready"),
        "support@9": (NotFound, "version_not_found"),
        "nothing": (NotFound, "variant_not_found"),
    }
    for variant, (kind, code) in cases.items():
        error = refused(experiments.create, "support", plan("support@2", variant), "anna")
        assert isinstance(error, kind)
        assert (error.code, error.param) == (code, "plan.challengers")
    assert experiments.list() == ()


def test_a_base_model_and_another_engines_model_may_be_challengers(experiments: Experiments) -> None:
    made = experiments.create("support", plan(BASE, "cloud/model"), "anna")
    assert made.plan.variants == (BASE, "cloud/model")


def test_the_default_is_the_control_and_no_challenger(experiments: Experiments) -> None:
    error = refused(experiments.create, "support", plan("support@1"), "anna")
    assert (error.code, error.param) == ("invalid_value", "plan.challengers")


def test_an_experiment_needs_a_route(experiments: Experiments) -> None:
    for name in ("nothing", "\0", "support@2"):
        assert refused(experiments.create, name, plan(), "anna").code == "route_not_found"


def test_scores_that_the_route_does_not_declare_are_refused(experiments: Experiments, routes: Routes) -> None:
    asked = plan(scores=["rating", "stars"])
    error = refused(experiments.create, "support", asked, "anna")
    assert (error.code, error.param) == ("invalid_value", "plan.scores")
    assert "it knows rating" in error.message
    routes.change_policy(
        "support", {"scores": [{"name": "stars", "kind": "number", "low": 1, "high": 5}]}, "anna"
    )
    assert experiments.create("support", asked, "anna").plan.scores == ("rating", "stars")


def test_a_route_has_one_open_experiment(experiments: Experiments) -> None:
    experiments.create("support", plan(), "anna")
    error = refused(experiments.create, "support", plan("support@3"), "anna")
    assert isinstance(error, Conflict)
    assert error.code == "experiment_open"
    assert "support-1" in error.message


def test_challengers_with_shares_and_an_experiment_exclude_each_other(
    experiments: Experiments, routes: Routes
) -> None:
    routes.challenge("support", {"support@3": 0.1}, "anna")
    error = refused(experiments.create, "support", plan(), "anna")
    assert error.code == "route_challenged"
    assert "burnish routes challenge support" in error.message
    routes.challenge("support", {}, "anna")
    experiments.create("support", plan(), "anna")
    error = refused(routes.challenge, "support", {"support@3": 0.1}, "anna")
    assert error.code == "experiment_open"
    experiments.stop("support-1", "anna")
    assert routes.challenge("support", {"support@3": 0.1}, "anna").challengers


# -- to end ----------------------------------------------------------------------------------------
def test_who_stops_an_experiment_and_why_is_on_record(
    experiments: Experiments, registry: Registry, db: Database
) -> None:
    made = experiments.create("support", plan(), "anna", now=5.0)
    with db.begin() as connection:
        insert_look(connection, made.id, 6.0, {"arms": {"support@1": {"answers": 7}}})
    revision = registry.revision()
    stopped = experiments.stop(made.name, "bert", "the shop is closed", now=9.0)
    assert stopped == experiments.get(made.name)
    assert (stopped.state, stopped.ended, stopped.is_open) == (ExperimentState.ENDED, 9.0, False)
    verdict = verdict_of(stopped)
    assert (verdict["outcome"], verdict["by"], verdict["at"]) == (Outcome.STOPPED, "bert", 9.0)
    assert verdict["reasons"] == ["the shop is closed"]
    assert verdict["done"] == "all traffic to the default of support"
    assert verdict["numbers"] == {"arms": {"support@1": {"answers": 7}}}, "what was seen last"
    assert registry.revision() > revision
    assert registry.snapshot_rows().experiments == ()
    assert events(db, subject="support", limit=1)[0].action == "experiment.ended"
    assert refused(experiments.stop, made.name, "anna").code == "experiment_ended"
    assert refused(experiments.decide, made.name, "support@2", "anna").code == "experiment_ended"


def test_without_a_reason_it_says_who_stopped_it(experiments: Experiments) -> None:
    experiments.create("support", plan(), "anna")
    verdict = verdict_of(experiments.stop("support-1", "bert"))
    assert verdict["reasons"] == ["stopped by bert"]
    assert verdict["numbers"] is None, "nobody has looked yet"


def test_a_person_may_decide_for_a_challenger(experiments: Experiments, routes: Routes, db: Database) -> None:
    experiments.create("support", plan("support@2", "support@3"), "anna")
    ended = experiments.decide("support-1", "support@3", "bert", now=9.0)
    route = routes.get("support")
    assert (route.variant, route.history) == ("support@3", ("support@1",))
    verdict = verdict_of(ended)
    assert (verdict["outcome"], verdict["variant"], verdict["by"]) == (Outcome.PROMOTE, "support@3", "bert")
    assert verdict["done"] == "promoted support@3"
    assert experiments.get("support-1") == ended, "moving the route has not stopped it again"
    assert [event.action for event in events(db, subject="support", limit=2)] == [
        "route.moved",
        "experiment.ended",
    ]


def test_a_person_may_decide_for_the_control(experiments: Experiments, routes: Routes) -> None:
    experiments.create("support", plan(), "anna")
    verdict = verdict_of(experiments.decide("support-1", "support@1", "bert"))
    assert (verdict["outcome"], verdict["done"]) == (Outcome.KEEP, "support@1 stays the default")
    assert routes.get("support").history == ()


def test_only_a_variant_that_may_take_traffic_can_be_decided_for(
    experiments: Experiments, registry: Registry, routes: Routes
) -> None:
    experiments.create("support", plan(), "anna")
    error = refused(experiments.decide, "support-1", "support@3", "anna")
    assert (error.code, error.param) == ("invalid_value", "variant")
    assert "support@1, support@2" in error.message
    registry.set_state("support@2", VersionState.QUARANTINED, "why", "anna")
    assert refused(experiments.decide, "support-1", "support@2", "anna").code == "version_not_ready"
    assert experiments.get("support-1").is_open
    assert routes.get("support").variant == "support@1"


# -- the route of an open experiment ---------------------------------------------------------------
def test_a_promotion_by_a_person_ends_it(experiments: Experiments, routes: Routes) -> None:
    experiments.create("support", plan(), "anna")
    assert routes.promote("support", "support@1", "bert").variant == "support@1"
    assert experiments.get("support-1").is_open, "the default again changes nothing"
    routes.promote("support", "support@3", "bert", now=9.0)
    ended = experiments.get("support-1")
    assert (ended.state, ended.ended) == (ExperimentState.ENDED, 9.0)
    verdict = verdict_of(ended)
    assert (verdict["outcome"], verdict["by"]) == (Outcome.STOPPED, "bert")
    assert verdict["reasons"] == ["the default of support was moved to support@3"]


def test_a_rollback_by_a_person_ends_it(experiments: Experiments, routes: Routes) -> None:
    routes.promote("support", "support@3", "anna")
    experiments.create("support", plan(), "anna")
    routes.rollback("support", actor="bert")
    assert verdict_of(experiments.get("support-1"))["reasons"] == [
        "the default of support was moved to support@1"
    ]


def test_a_route_that_is_deleted_takes_it_along(experiments: Experiments, routes: Routes) -> None:
    experiments.create("support", plan(), "anna")
    routes.delete("support", "bert")
    ended = experiments.get("support-1")
    assert not ended.is_open
    assert verdict_of(ended)["reasons"] == ["its route was deleted"]


def test_what_is_done_to_another_route_leaves_it_alone(experiments: Experiments, routes: Routes) -> None:
    made = experiments.create("support", plan(), "anna")
    routes.create("sales", BASE, "anna")
    routes.promote("sales", "support@2", "anna")
    routes.delete("sales", "anna")
    assert experiments.get("support-1") == made


def test_a_score_that_counts_keeps_its_meaning(experiments: Experiments, routes: Routes) -> None:
    stars = {"name": "stars", "kind": "number", "low": 1, "high": 5}
    routes.change_policy("support", {"scores": [stars]}, "anna")
    experiments.create("support", plan(scores=["stars"]), "anna")
    for scores in ([], [{**stars, "high": 10}], [{**stars, "higher_is_better": False}]):
        error = refused(routes.change_policy, "support", {"scores": scores}, "anna")
        assert (error.code, error.param) == ("experiment_open", "policy.scores")
    assert routes.change_policy("support", {"scores": [stars, {"name": "spam"}]}, "anna").policy.score("spam")
    experiments.stop("support-1", "anna")
    assert routes.change_policy("support", {"scores": []}, "anna").policy.scores == ()


def test_a_variant_of_an_open_experiment_is_not_removed(experiments: Experiments, registry: Registry) -> None:
    experiments.create("support", plan(), "anna")
    for ref in ("support@1", "support@2"):
        assert refused(registry.begin_remove, ref, "anna").code == "version_in_use"
    assert "experiment support-1" in refused(registry.begin_remove, "support@2", "anna").message
    registry.begin_remove("support@3", "anna")
    experiments.stop("support-1", "anna")
    registry.begin_remove("support@2", "anna")


# -- a hold-back -----------------------------------------------------------------------------------
def measuring(experiments: Experiments, routes: Routes, db: Database) -> Experiment:
    """After a promotion of support@2, which the experiment itself has made."""
    made = experiments.create("support", plan(hold_back=0.1), "anna")
    verdict = {"outcome": "promote", "variant": "support@2", "reasons": [], "numbers": None}
    with changing(db) as connection:
        reshare(
            connection, made, {"support@1": 0.1, "support@2": 0.9}, "experiment", 5.0,
            state=ExperimentState.MEASURING, verdict=verdict,
        )  # fmt: skip
    routes.promote("support", "support@2", "experiment")
    return experiments.get(made.name)


def test_its_own_promotion_does_not_end_it(experiments: Experiments, routes: Routes, db: Database) -> None:
    found = measuring(experiments, routes, db)
    assert (found.state, found.promoted) == (ExperimentState.MEASURING, "support@2")


def test_after_a_promotion_only_what_was_promoted_is_compared(
    experiments: Experiments, routes: Routes, db: Database
) -> None:
    assert measuring(experiments, routes, db).challengers == ("support@2",)


@pytest.mark.parametrize("way", ["promote", "rollback", "stop", "decide"])
def test_a_person_may_end_a_hold_back(
    experiments: Experiments, routes: Routes, db: Database, way: str
) -> None:
    name = measuring(experiments, routes, db).name
    expected = "support@1"
    if way == "promote":
        expected = routes.promote("support", "support@3", "bert").variant
    elif way == "rollback":
        routes.rollback("support", actor="bert")
    elif way == "decide":
        experiments.decide(name, "support@1", "bert")
    else:
        expected = "support@2"
        experiments.stop(name, "bert")
    assert not experiments.get(name).is_open
    assert routes.get("support").variant == expected


# -- forgetting ------------------------------------------------------------------------------------
@pytest.mark.parametrize("is_control", [True, False])
def test_promise_06_a_variant_that_learned_from_a_forgotten_user_is_compared_no_more(
    experiments: Experiments,
    routes: Routes,
    registry: Registry,
    db: Database,
    tmp_path: Path,
    is_control: bool,
) -> None:
    judged = stored(db, user="u1")
    jobs = Jobs(db)
    jobs.enqueue(kind="training", route="support", payload={"start_from": None})
    job = jobs.claim("w", ("training",), 60)
    assert job is not None
    learned = _learned(db, registry, tmp_path, job.id, judged.id)
    with db.begin() as connection:
        finish(connection, job.id, job.token, state=JobState.SUCCEEDED)
    if is_control:
        routes.promote("support", learned, "anna")
    experiments.create("support", plan("support@2" if is_control else learned), "anna")
    forget_user(db, routes, "u1", "anna", run_root=tmp_path)
    ended = experiments.get("support-1")
    assert not ended.is_open
    assert verdict_of(ended)["reasons"] == ["a variant learned from a user who is to be forgotten"]
    assert registry.version(learned).state is VersionState.QUARANTINED
    assert routes.get("support").variant == "support@1"
    assert "u1" not in str(ended)


def _learned(db: Database, registry: Registry, folder: Path, job: str, completion: str) -> str:
    import sqlalchemy as sa

    from adapters import schema
    from tests.lora import TINY_CONFIG, write_lora

    values = {"digest": "d", "job_id": job, "position": 0, "row_id": "r", "split": "train"}
    with db.begin() as connection:
        connection.execute(sa.insert(schema.dataset_rows).values(**values, completion_id=completion))
    lora = write_lora(folder / "learned", TINY_CONFIG, seed=77)
    ref = registry.import_adapter("support", lora, BASE, TINY_CONFIG, "anna", origin=job).ref
    registry.set_state(ref, VersionState.PROVED, None, "reconciler")
    return ref


# -- looks -----------------------------------------------------------------------------------------
def test_looks_are_kept_and_thinned_where_they_are_old(experiments: Experiments, db: Database) -> None:
    made = experiments.create("support", plan(), "anna")
    with db.begin() as connection:
        for number in range(LOOKS_KEPT + 1):
            insert_look(connection, made.id, float(number), {"number": number})
        kept = looks_of(connection, made.id)
    times = [at for at, _ in kept]
    assert LOOKS_KEPT // 2 < len(kept) <= LOOKS_KEPT
    assert times == sorted(times)
    assert (times[0], times[-1]) == (0.0, float(LOOKS_KEPT))
    assert times[1] == 2.0, "every second one of the older half is gone"
    assert times[-LOOKS_KEPT // 2 :] == [float(n) for n in range(LOOKS_KEPT // 2 + 1, LOOKS_KEPT + 1)]
    assert experiments.looks(made.id) == experiments.looks(made.name) == kept
