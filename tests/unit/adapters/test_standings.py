"""How things stand, as the tables of real databases say it, and that saying it stays cheap."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapters import schema
from adapters.batches import Batches
from adapters.database import Database
from adapters.experiment_records import ExperimentState
from adapters.experiments import Experiments
from adapters.job_records import finish
from adapters.jobs import EventDraft, Job, Jobs, JobState
from adapters.looks import Looks
from adapters.placements import Placements
from adapters.registry import Registry
from adapters.routes import Routes
from adapters.standings import SHOWN_ENDED, SHOWN_SECONDS, ExperimentStanding, Guardrail, Standing, Standings
from adapters.versions import VersionState
from tests.observed import crowd, plan, proved_versions

CONTROL, A, B = "support@1", "support@2", "support@3"
NOW = 10_000.0


@pytest.fixture
def read(db: Database) -> Callable[..., Standing]:
    standings = Standings(db)
    return lambda now=NOW: standings.read(now)


def claimed(jobs: Jobs, route: str | None = "support", now: float = 100.0) -> Job:
    jobs.enqueue(kind="training", route=route, payload={}, now=now - 50)
    job = jobs.claim("w1", ["training"], 60.0, now=now)
    assert job is not None
    return job


def ended(db: Database, job: Job, state: JobState = JobState.SUCCEEDED) -> None:
    with db.begin() as connection:
        finish(connection, job.id, job.token, state=state, result={}, now=500.0)


def batch(batches: Batches) -> Job:
    return batches.create(
        input_file="file-1", endpoint="/v1/chat/completions", window="24h", window_seconds=1e6,
        metadata=None, key_id=None, now=300.0,
    )  # fmt: skip


def test_an_empty_database_has_nothing_to_tell(read: Callable[..., Standing]) -> None:
    standing = read()
    assert (standing.feedback, standing.experiments, standing.jobs, standing.runs) == ((), (), (), ())
    assert (dict(standing.gates), standing.open_batches, dict(standing.versions)) == ({}, (), {})
    assert (standing.workers, standing.gateways) == (0, 0)


# -- jobs ------------------------------------------------------------------------------------------
def test_jobs_are_counted_by_kind_and_state_with_the_age_of_the_oldest(
    db: Database, read: Callable[..., Standing]
) -> None:
    jobs = Jobs(db)
    ended(db, claimed(jobs, "sales"))
    claimed(jobs, "support", now=400.0)
    jobs.enqueue(kind="training", route="support", payload={}, now=600.0)
    jobs.enqueue(kind="training", route="legal", payload={}, now=700.0)
    batch(Batches(db))
    found = {(one.kind, one.state): (one.count, one.age_seconds) for one in read(1000.0).jobs}
    assert found == {
        ("training", JobState.SUCCEEDED): (1, None),
        ("training", JobState.RUNNING): (1, 600.0),  # since it was taken up
        ("training", JobState.QUEUED): (2, 400.0),
        ("batch", JobState.VALIDATING): (1, 700.0),
    }


def test_open_batches_are_told_with_their_progress_and_ended_ones_are_not(
    db: Database, read: Callable[..., Standing]
) -> None:
    batches = Batches(db)
    over, open_one = batch(batches), batch(batches)
    batches.cancel(over.id, "anna")
    job = batches.claim("g", 60.0, now=400.0)
    assert job is not None
    batches.begin(job.id, job.token, total=10, model="m")
    batches.heartbeat(job.id, job.token, 60.0, {"completed": 6, "failed": 1})
    (found,) = read().open_batches
    assert (found.id, found.progress["completed"], found.progress["failed"]) == (open_one.id, 6, 1)


# -- runs ------------------------------------------------------------------------------------------
def test_a_run_under_way_tells_its_stage_and_its_numbers(db: Database, read: Callable[..., Standing]) -> None:
    jobs = Jobs(db)
    job = claimed(jobs)
    told = {
        "stage": "train",
        "step": 3,
        "total_steps": 9,
        "loss": 1.5,
        "resting": True,
        "paused_seconds": 2.5,
    }
    jobs.report(job.id, job.token, {**told, "method": "dpo", "eta_seconds": 7.0})
    (run,) = read().runs
    assert (run.route, run.stage) == ("support", "train")
    assert run.numbers == {
        "step": 3.0, "total_steps": 9.0, "loss": 1.5, "resting": 1.0, "paused_seconds": 2.5, "eta_seconds": 7.0,
    }  # fmt: skip


def test_losses_stay_when_the_stage_that_told_them_is_over_and_when_the_run_has_ended(
    db: Database, read: Callable[..., Standing]
) -> None:
    jobs = Jobs(db)
    job = claimed(jobs)
    steps: list[dict[str, Any]] = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0},
        {"step": 2, "validation_loss": 1.2},
    ]
    for step in steps:
        event = EventDraft("a step", kind="metrics", data=step)
        jobs.report(job.id, job.token, {"stage": "train", **step}, [event])
    jobs.report(job.id, job.token, {"stage": "evaluate"})
    (run,) = read().runs
    assert (run.stage, run.numbers) == ("evaluate", {"loss": 1.0, "validation_loss": 1.2})
    ended(db, job)
    for _ in range(2):
        (run,) = read().runs
        assert (run.stage, run.numbers) == (None, {"loss": 1.0, "validation_loss": 1.2})
    jobs.enqueue(kind="training", route="support", payload={}, now=600.0)
    assert len(read().runs) == 1, "one that waits has learned nothing yet"


def test_each_route_has_its_latest_run_or_the_one_under_way(
    db: Database, read: Callable[..., Standing]
) -> None:
    jobs = Jobs(db)
    older = claimed(jobs, "support")
    jobs.pause(older.id, "anna")
    ended(db, claimed(jobs, "support"))
    ended(db, claimed(jobs, None))
    jobs.resume(older.id, "anna")
    again = jobs.claim("w2", ["training"], 60.0, now=700.0)
    assert again is not None
    jobs.report(again.id, again.token, {"stage": "train", "loss": 0.5})
    assert {run.route: (run.stage, run.numbers) for run in read().runs} == {
        "": (None, {}),
        "support": ("train", {"loss": 0.5}),
    }


# -- versions, who is alive ------------------------------------------------------------------------
def test_versions_are_counted_by_state_and_the_living_are_counted(
    db: Database, registry: Registry, tmp_path: Path, read: Callable[..., Standing]
) -> None:
    refs = proved_versions(registry, tmp_path, 3)
    registry.set_state(refs[2], VersionState.QUARANTINED, "by hand", "anna")
    Jobs(db).claim("w1", ["training"], 60.0, now=NOW - 1)
    Placements(db).heartbeat("g1", "http://a", now=NOW - 1)
    Placements(db).heartbeat("g2", "http://b", now=NOW - 60)
    standing = read()
    assert dict(standing.versions) == {"proved": 2, "quarantined": 1}
    assert (standing.workers, standing.gateways) == (1, 1)


# -- experiments -----------------------------------------------------------------------------------
class World:
    """The route `support` with an experiment between its default and two versions."""

    def __init__(self, db: Database, registry: Registry, folder: Path) -> None:
        proved_versions(registry, folder)
        self.db, self.standings = db, Standings(db)
        self.experiments = Experiments(db, Routes(db))
        self.looks = Looks(db, Routes(db))

    def begin(self, *challengers: str, **parts: Any) -> None:
        self.experiments.create("support", plan(*challengers, **parts), "anna", now=2000.0)

    def like(self, variant: str, liked: int, of: int = 200, **more: Any) -> None:
        crowd(self.db, self.experiments.get("support-1"), variant, of, liked=liked, **more)

    def look(self, now: float = 2100.0) -> None:
        self.looks.look_at_all(now)

    def now(self, at: float = 2100.0) -> ExperimentStanding:
        (standing,) = self.standings.read(at).experiments
        return standing


@pytest.fixture
def world(db: Database, registry: Registry, tmp_path: Path) -> World:
    return World(db, registry, tmp_path)


def test_an_experiment_that_nobody_has_looked_at_has_shares_and_no_estimates(world: World) -> None:
    world.begin(A)
    found = world.now()
    assert (found.name, found.route, found.state) == ("support-1", "support", ExperimentState.RUNNING)
    assert (found.shares, found.units) == ({CONTROL: 0.5, A: 0.5}, {CONTROL: 0, A: 0})
    assert (found.means, found.differences, found.guardrails, found.verdict) == ((), (), (), None)
    assert found.is_ratio_broken is False


def test_estimates_and_bounds_are_those_of_the_newest_look(world: World) -> None:
    world.begin(A)
    world.like(CONTROL, liked=90, repetition=0.25)
    world.like(A, liked=110)
    world.look()
    found = world.now()
    assert found.units == {CONTROL: 200, A: 200}
    means = {(one.variant, one.metric): one for one in found.means}
    assert means[CONTROL, "rating"].mean == pytest.approx(0.45)
    assert means[CONTROL, "repetition"].mean == pytest.approx(0.25)
    assert means[CONTROL, "repetition"].low is None
    (gap,) = found.differences
    assert (gap.variant, gap.metric, gap.mean) == (A, "rating", pytest.approx(0.1))
    assert gap.low is not None
    assert gap.high is not None
    assert gap.low < gap.mean < gap.high
    assert {one.is_breached for one in found.guardrails} == {False}


def test_a_verdict_is_told_and_an_ended_experiment_stays_for_a_day(world: World) -> None:
    world.begin(A, on_promote="act")
    world.like(CONTROL, liked=60)
    world.like(A, liked=180)
    world.look()
    found = world.now()
    assert (found.state, found.verdict) == (ExperimentState.ENDED, "promote")
    assert [gap.variant for gap in found.differences] == [A], "the numbers of its verdict"
    assert world.standings.read(2100.0 + SHOWN_SECONDS + 1).experiments == ()


def test_a_stopped_challengers_breach_is_told_for_as_long_as_the_experiment_is(world: World) -> None:
    world.begin(A, B)
    for variant in (CONTROL, B):
        world.like(variant, liked=100)
    world.like(A, liked=100, error=1.0)
    world.look()
    assert world.experiments.get("support-1").dropped.keys() == {A}
    for variant in (CONTROL, B):
        world.like(variant, liked=100, name="more")
    world.look(2200.0)
    found = world.now(2200.0)
    assert found.state is ExperimentState.RUNNING
    assert Guardrail(A, "error_rate", True) in found.guardrails
    assert Guardrail(B, "error_rate", False) in found.guardrails
    assert len(found.guardrails) == len(set(found.guardrails))


def test_a_broken_split_is_told(world: World) -> None:
    world.begin(A)
    world.like(CONTROL, liked=5, of=300)
    world.like(A, liked=5, of=10)
    world.look()
    found = world.now()
    assert found.is_ratio_broken
    assert found.verdict == "stopped: sample ratio"


def test_of_ended_experiments_only_the_newest_are_shown(world: World) -> None:
    for number in range(SHOWN_ENDED + 5):
        world.begin(A)
        world.experiments.stop(f"support-{number + 1}", "anna", now=3000.0 + number)
    world.begin(A)
    names = [one.name for one in world.standings.read(4000.0).experiments]
    assert len(names) == SHOWN_ENDED + 1
    assert names[:2] == [f"support-{SHOWN_ENDED + 6}", f"support-{SHOWN_ENDED + 5}"]


# -- its cost --------------------------------------------------------------------------------------
def test_nothing_asks_for_completions_and_what_is_large_is_asked_by_an_index(
    db: Database, read: Callable[..., Standing]
) -> None:
    """Of the queries of every reading but the first, as the database itself plans them."""
    if db.dialect != "sqlite":
        pytest.skip("plans of small tables on PostgreSQL are scans")
    jobs = Jobs(db)
    ended(db, claimed(jobs))
    claimed(jobs)
    read()
    asked: list[tuple[str, Any]] = []
    with db.read() as connection:
        engine = connection.engine

    def listen(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", listen)
    try:
        read()
    finally:
        sa.event.remove(engine, "before_cursor_execute", listen)
    assert len(asked) > 10
    for statement, parameters in asked:
        if not statement.startswith("SELECT"):
            continue
        with db.read() as connection:
            plan_rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
        for step in (str(row[-1]) for row in plan_rows):
            assert "completions" not in step, statement
            assert not re.match(r"SCAN (feedback|job_events|experiment_looks|observations)", step), statement


@pytest.mark.alone  # it compares times
def test_what_was_counted_once_is_not_counted_again(db: Database) -> None:
    """By the time it takes: each reading takes a small part of the first one's, which reads all there is."""
    rows = [
        {
            "id": f"fb_{n}", "created": 1.0, "completion_id": f"c{n}", "name": "rating", "value": 1.0, "metadata": {},
            "route": "support", "variant": "support@1", "unit": f"u{n}", "source": "api",
        }
        for n in range(50_000)
    ]  # fmt: skip
    done = [
        {
            "id": f"ftjob-{n}", "kind": "training", "route": "support", "state": "failed", "payload": {}, "progress": {},
            "result": {"gate": {"outcome": "fail"}, "text": "x" * 4000}, "token": 1, "attempts": 1, "created": 1.0,
            "metadata": {},
        }
        for n in range(2000)
    ]  # fmt: skip
    with db.begin() as connection:
        connection.execute(sa.insert(schema.feedback), rows)
        connection.execute(sa.insert(schema.jobs), done)
    standings = Standings(db)
    seconds = []
    for _ in range(6):
        began = time.monotonic()
        standing = standings.read(NOW)
        seconds.append(time.monotonic() - began)
        assert standing.feedback[0].count == 50_000
        assert standing.gates == {("support", "fail"): 2000}
    assert min(seconds[1:]) < seconds[0] / 2, seconds
