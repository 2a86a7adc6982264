from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from adapters.completions import Completion, Status
from adapters.database import Database
from adapters.errors import Conflict, NotFound
from adapters.feedback import Draft, Feedback, give
from adapters.jobs import Job, Jobs, JobState, finish
from adapters.policy import parse_policy
from adapters.registry import Registry
from adapters.routes import Route, Routes
from adapters.triggers import (
    due_by_time,
    enqueue_route_training,
    maybe_enqueue,
    training_due,
    usable,
)
from adapters.versions import VersionState
from tests.judged import stored
from tests.lora import TINY_CONFIG, write_lora

BASE = "base-model"
NOW = 10_000.0


@pytest.fixture
def routes(db: Database, registry: Registry) -> Routes:
    """With the route `support` -> BASE, which trains after three rows."""
    routes = Routes(db, models=("cloud/model",))
    routes.create("support", BASE, "anna", now=0.0)
    declare(routes)
    return routes


@pytest.fixture
def proved(registry: Registry, tmp_path: Path) -> str:
    ref = registry.import_adapter(
        "helper", write_lora(tmp_path / "helper", TINY_CONFIG), BASE, TINY_CONFIG, "a"
    ).ref
    registry.set_state(ref, VersionState.PROVED, None, "reconciler")
    return ref


def declare(routes: Routes, **training: Any) -> Route:
    policy = {"enabled": True, "min_new_rows": 3, "cooldown_seconds": 600, **training}
    return routes.set_policy("support", parse_policy({"training": policy}), "anna")


def judge(db: Database, at: float = NOW, judged: Completion | None = None, **parts: Any) -> Job | None:
    """As the gateway does it: the feedback, and the job that it makes due."""
    draft = Draft((judged or stored(db)).id, **(parts or {"value": 1}))
    with db.begin() as connection:
        give(connection, draft, None, now=at)
        return maybe_enqueue(connection, "support", at)


def due(db: Database, routes: Routes, at: float) -> str | None:
    with db.read() as connection:
        return training_due(connection, routes.get("support"), at)


def end(db: Database, at: float, state: JobState = JobState.SUCCEEDED) -> None:
    """Runs the open job to its end."""
    jobs = Jobs(db)
    job = jobs.claim("w", ("training",), 60, at)
    assert job is not None
    with db.begin() as connection:
        finish(connection, job.id, job.token, state=state, now=at)


def feedback(**parts: Any) -> Feedback:
    values: dict[str, Any] = dict.fromkeys(Feedback.__slots__, None)
    return Feedback(**{**values, "unit": "u", "metadata": {}, **parts})


# -- what a run can learn from ---------------------------------------------------------------------
@pytest.mark.parametrize(
    ("parts", "status", "expected"),
    [
        ({"value": 0.0}, Status.COMPLETE, True),
        ({"value": 1.0}, Status.IMPORTED, True),
        ({"value": 1.0}, Status.INCOMPLETE, False),
        ({"value": 1.0}, Status.ERROR, False),
        ({"preferred_over": "x"}, Status.COMPLETE, True),
        ({"preferred_over": "x"}, Status.INCOMPLETE, False),
        ({"demonstration": {"role": "assistant"}}, Status.ERROR, True),
        ({"comment": "hm"}, Status.COMPLETE, False),
    ],
)
def test_a_cut_off_answer_can_only_be_corrected(
    parts: dict[str, Any], status: Status, expected: bool
) -> None:
    assert usable(feedback(**parts), status) is expected


# -- by the number of rows -------------------------------------------------------------------------
def test_the_row_that_makes_the_number_full_makes_the_job(db: Database, routes: Routes) -> None:
    assert [judge(db), judge(db)] == [None, None]
    job = judge(db)
    assert job is not None
    assert (job.kind, job.route, job.state, job.key_id) == ("training", "support", JobState.QUEUED, None)
    assert job.payload["source"] == {"kind": "feedback", "route": "support", "since": None}
    assert job.payload["adapter"] == "support"
    assert (job.payload["base_model"], job.payload["start_from"]) == (BASE, None)
    assert (job.payload["method"], job.payload["release"], job.payload["gate"]) == (
        "auto", "promote", "require",
    )  # fmt: skip
    words = [event.message for event in Jobs(db).events(job.id)[0]]
    assert any("3 completions with new feedback" in word for word in words)


def test_a_route_has_one_open_job(db: Database, routes: Routes) -> None:
    made = [judge(db) for _ in range(9)]
    assert len([job for job in made if job]) == 1


def test_nothing_is_made_where_training_is_off(db: Database, routes: Routes) -> None:
    declare(routes, enabled=False)
    assert [judge(db) for _ in range(4)] == [None] * 4
    assert judge(db, judged=stored(db, route=BASE)) is None  # no route at all


def test_comments_repeats_and_ratings_of_cut_off_answers_do_not_count(db: Database, routes: Routes) -> None:
    one = stored(db)
    assert [judge(db, judged=one) for _ in range(5)] == [None] * 5
    assert [judge(db, comment="hm") for _ in range(5)] == [None] * 5
    cut = [stored(db, status=Status.INCOMPLETE) for _ in range(5)]
    assert [judge(db, judged=judged) for judged in cut] == [None] * 5
    assert judge(db, judged=cut[0], demonstration="Paris") is None
    assert judge(db) is not None


def test_after_a_run_it_rests_and_then_counts_from_there(db: Database, routes: Routes) -> None:
    for _ in range(3):
        judge(db)
    end(db, NOW + 100)
    assert [judge(db, NOW + 150) for _ in range(2)] == [None] * 2
    assert judge(db, NOW + 699) is None  # three rows, but the pause is not over
    assert due(db, routes, NOW + 701) is not None
    with db.begin() as connection:
        assert due_by_time(connection, NOW + 699) == ()
        assert due_by_time(connection, NOW + 701) == ("support",)
        assert maybe_enqueue(connection, "support", NOW + 701) is not None


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_what_did_not_work_is_not_tried_again_until_there_is_something_new(
    db: Database, routes: Routes, state: JobState
) -> None:
    for _ in range(3):
        judge(db)
    end(db, NOW + 100, state)
    assert due(db, routes, NOW + 10_000) is None


def test_a_run_from_a_file_does_not_use_feedback_up(db: Database, routes: Routes) -> None:
    judge(db), judge(db)
    Jobs(db).enqueue(kind="training", route="support", payload={"source": {"kind": "file"}}, now=NOW)
    assert judge(db) is None  # the route is busy
    end(db, NOW)
    assert due(db, routes, NOW + 601) is not None


# -- by time ---------------------------------------------------------------------------------------
def test_a_period_counts_from_the_first_new_row_and_then_from_run_to_run(
    db: Database, routes: Routes
) -> None:
    declare(routes, every_seconds=1000, cooldown_seconds=0)
    assert due(db, routes, NOW * 10) is None  # nothing new
    judge(db, NOW)
    assert due(db, routes, NOW + 999) is None
    assert due(db, routes, NOW + 1000) is not None
    with db.begin() as connection:
        assert maybe_enqueue(connection, "support", NOW + 1000) is not None
    end(db, NOW + 1100)
    assert due(db, routes, NOW + 9000) is None
    judge(db, NOW + 1200)
    assert due(db, routes, NOW + 1999) is None
    assert due(db, routes, NOW + 2000) is not None


# -- what the job is asked -------------------------------------------------------------------------
def order(db: Database, route: Route, **overrides: Any) -> Job:
    with db.begin() as connection:
        return enqueue_route_training(connection, route, "by hand", "key_a", "key:key_a", NOW, **overrides)


def test_the_policy_says_how_and_the_default_is_gone_on_from(
    db: Database, routes: Routes, proved: str
) -> None:
    routes.promote("support", proved, "anna")
    route = declare(routes, method="dpo", release="ask", hyperparameters={"rank": 8, "beta": 0.2})
    payload = order(db, route).payload
    assert payload["start_from"] == proved
    assert payload["base_model"] == BASE
    assert (payload["method"], payload["release"]) == ("dpo", "ask")
    assert payload["hyperparameters"] == {"rank": 8, "beta": 0.2}
    assert isinstance(payload["seed"], int)
    assert payload["actor"] == "key:key_a"


def test_a_quarantined_default_is_not_gone_on_from(
    db: Database, registry: Registry, routes: Routes, proved: str
) -> None:
    route = routes.promote("support", proved, "anna")
    registry.set_state(proved, VersionState.QUARANTINED, None, "anna")
    assert order(db, route).payload["start_from"] is None


def test_who_orders_may_say_otherwise(db: Database, routes: Routes) -> None:
    with pytest.raises(TypeError):
        order(db, routes.get("support"), methd="kto")
    job = order(db, routes.get("support"), method="kto", seed=7, metadata={"why": "test"})
    assert (job.payload["method"], job.payload["seed"], job.key_id) == ("kto", 7, "key_a")
    assert job.metadata == {"why": "test"}


def test_a_second_order_names_the_open_job(db: Database, routes: Routes) -> None:
    first = order(db, routes.get("support"))
    with pytest.raises(Conflict) as caught:
        order(db, routes.get("support"))
    assert caught.value.code == "training_active"
    assert first.id in caught.value.message


def test_a_base_model_is_trained_by_a_route_of_its_own(db: Database, routes: Routes) -> None:
    with pytest.raises(Conflict) as caught:
        order(db, Route(BASE, BASE, (), 0.0))
    assert caught.value.code == "name_taken"
    assert f"burnish routes create NAME {BASE}" in caught.value.message
    with pytest.raises(NotFound):
        order(db, Route("gone", BASE, (), 0.0))


def test_a_route_whose_adapter_is_for_another_base_makes_no_job_and_says_why(
    db: Database, registry: Registry, routes: Routes, tmp_path: Path
) -> None:
    registry.register_base("other-model", None)
    registry.import_adapter(
        "support", write_lora(tmp_path / "s", TINY_CONFIG), "other-model", TINY_CONFIG, "anna"
    )
    assert [judge(db) for _ in range(5)] == [None] * 5
    with pytest.raises(Conflict) as caught:
        order(db, routes.get("support"))
    assert caught.value.code == "adapter_base_mismatch"


def test_of_many_transactions_at_once_one_makes_the_job(db: Database, routes: Routes) -> None:
    judge(db), judge(db)
    made: list[Job | None] = []
    threads = [threading.Thread(target=lambda: made.append(judge(db))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    assert len([job for job in made if job]) == 1
