from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapters import schema
from adapters.changes import events
from adapters.completions import Completion, insert_completions
from adapters.database import Database
from adapters.errors import NotFound, StaleWorker
from adapters.feedback import Draft, Feedback, give
from adapters.forget import Forgotten, Moved, forget_user, spread
from adapters.jobs import Job, Jobs, JobState, check, finish
from adapters.registry import Registry
from adapters.responses import ResponseStore, StoredResponse
from adapters.routes import Routes
from adapters.rows import user_digest
from adapters.versions import VersionState
from tests.judged import completion, stored
from tests.lora import TINY_CONFIG, write_lora

BASE = "base-model"
REPORT = {"kept": 9, "filters": [{"name": "length", "count": 1, "examples": ["text"]}], "examples": ["text"]}


@pytest.fixture
def routes(db: Database) -> Routes:
    return Routes(db)


class World:
    """Jobs that learned from completions, and versions made by jobs."""

    def __init__(self, db: Database, registry: Registry, routes: Routes, home: Path) -> None:
        self.db, self.registry, self.routes, self.home = db, registry, routes, home
        self.jobs = Jobs(db)
        self.run_root = home / "runs"
        self._seed = 0

    def job(
        self,
        *learned: Completion | Feedback,
        start_from: str | None = None,
        route: str = "support",
        ended: bool = True,
        recorded: bool = True,
        users: tuple[str, ...] = (),
    ) -> Job:
        """A job whose dataset has these rows, and whose folder their text."""
        payload = {"source": {"kind": "feedback", "route": route}, "start_from": start_from}
        made = self.jobs.enqueue(kind="training", route=route, payload=payload)
        running = self.jobs.claim("w", ("training",), 600)
        assert running is not None
        assert running.id == made.id
        with self.db.begin() as connection:
            if recorded:
                connection.execute(
                    sa.insert(schema.datasets).values(
                        digest="d", job_id=made.id, route=route, created=0.0, report=REPORT
                    )
                )
            for position, row in enumerate([*learned, *users]):
                values: dict[str, Any] = {"completion_id": None, "feedback_id": None, "user_digest": None}
                if isinstance(row, str):
                    values["user_digest"] = user_digest(row)
                else:
                    values["completion_id" if isinstance(row, Completion) else "feedback_id"] = row.id
                connection.execute(
                    sa.insert(schema.dataset_rows).values(
                        digest="d", job_id=made.id, position=position, row_id="r", split="train", **values
                    )
                )
            if ended:
                finish(connection, made.id, running.token, state=JobState.SUCCEEDED)
        dataset = self.run_root / made.id / "dataset"
        dataset.mkdir(parents=True)
        (dataset / "train.jsonl").write_text("text")
        (dataset / "report.json").write_text("text")
        (dataset.parent / "evaluation.jsonl").write_text("text")
        (dataset.parent / "manifest.json").write_text("{}")
        return running if not ended else self.jobs.get(made.id)

    def version(self, name: str, origin: str = "import", state: VersionState = VersionState.PROVED) -> str:
        self._seed += 1
        folder = write_lora(self.home / f"lora-{self._seed}", TINY_CONFIG, seed=self._seed)
        ref = self.registry.import_adapter(name, folder, BASE, TINY_CONFIG, "a", origin=origin).ref
        if state is not VersionState.STAGED:
            self.registry.set_state(ref, state, None, "reconciler")
        return ref

    def state(self, ref: str) -> VersionState:
        return self.registry.version(ref).state

    def forget(self, user: str, **more: Any) -> Forgotten:
        return forget_user(self.db, self.routes, user, "anna", run_root=self.run_root, **more)

    def count(self, table: sa.Table) -> int:
        with self.db.read() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


@pytest.fixture
def world(db: Database, registry: Registry, routes: Routes, tmp_path: Path) -> World:
    return World(db, registry, routes, tmp_path)


def said(db: Database, draft: Draft, **more: Any) -> Feedback:
    with db.begin() as connection:
        return give(connection, draft, None, **more)[0]


# -- rows ------------------------------------------------------------------------------------------
def test_a_users_rows_go_and_others_stay(db: Database, world: World) -> None:
    own, others = stored(db, user="u1"), stored(db, user="u2")
    again = stored(db, user="u2")
    draft = Draft(own.id, value=1)
    said(db, draft, idempotency_key="k")
    said(db, Draft(others.id, value=1, user="u1"))  # their word on another's
    kept = said(db, Draft(others.id, value=0))
    said(db, Draft(again.id, preferred_over=own.id))
    done = world.forget("u1")
    assert (done.completions, done.feedback) == (1, 3)
    with db.read() as connection:
        completions = connection.execute(sa.select(schema.completions.c.id)).scalars().all()
        feedback = connection.execute(sa.select(schema.feedback.c.id)).scalars().all()
    assert set(completions) == {others.id, again.id}
    assert feedback == [kept.id]
    assert world.count(schema.idempotency) == 0
    with pytest.raises(NotFound):
        said(db, draft, idempotency_key="k")


def test_kept_responses_of_a_users_recorded_requests_go_too(db: Database, world: World) -> None:
    responses = ResponseStore(db)
    for id, user in (("resp_1", "u1"), ("resp_2", "u2")):
        stored(db, id=id, user=user, endpoint="/v1/responses")
        responses.put(StoredResponse(id, 0.0, None, [], {"id": id}))
    assert world.forget("u1").responses == 1
    assert responses.get("resp_1", None) is None
    assert responses.get("resp_2", None) is not None


def test_forgetting_somebody_unknown_changes_nothing(db: Database, world: World) -> None:
    stored(db, user="u1")
    before = world.registry.revision()
    assert world.forget("nobody") == Forgotten(user_digest("nobody"), 0, 0, 0, (), (), (), (), ())
    assert world.registry.revision() == before
    assert world.count(schema.completions) == 1


# -- what learned from them ------------------------------------------------------------------------
def test_promise_06_what_learned_from_a_user_is_quarantined_and_routes_move_off_it(
    db: Database, world: World
) -> None:
    first = world.version("support")
    judged = stored(db, user="u1")
    second = world.version("support", world.job(judged).id)
    third = world.version("support", world.job(start_from=second).id)  # went on from it
    unrelated = world.version("sales", world.job(stored(db, user="u2"), route="sales").id)
    for ref in (second, third):
        world.routes.promote("support", ref, "anna")
    done = world.forget("u1")
    assert done.versions == done.quarantined == (second, third)
    assert done.routes == (Moved("support", third, first),)
    assert [world.state(ref) for ref in (first, second, third, unrelated)] == [
        VersionState.PROVED, VersionState.QUARANTINED, VersionState.QUARANTINED, VersionState.PROVED,
    ]  # fmt: skip
    route = world.routes.get("support")
    assert (route.variant, route.history) == (first, ())
    assert world.registry.version(second).reason == "learned from a user whose data was forgotten"


def test_promise_06_without_a_fit_former_default_a_route_goes_to_the_base_model(
    db: Database, world: World
) -> None:
    bad = world.version("support")
    judged = stored(db, user="u1")
    learned = world.version("support", world.job(judged).id)
    world.routes.promote("support", learned, "anna")
    world.registry.set_state(bad, VersionState.QUARANTINED, "bad", "anna")
    assert world.forget("u1").routes == (Moved("support", learned, BASE),)
    assert world.routes.get("support").variant == BASE


def test_what_learned_from_a_users_feedback_on_anothers_completion_is_found(
    db: Database, world: World
) -> None:
    word = said(db, Draft(stored(db, user="u2").id, value=0, user="u1"))
    ref = world.version("support", world.job(word).id)
    assert world.forget("u1").quarantined == (ref,)


def test_rows_are_found_by_user_where_completions_are_gone_or_never_were(db: Database, world: World) -> None:
    ref = world.version("support", world.job(users=("u1", "u2")).id)
    assert world.forget("u1").quarantined == (ref,)
    with db.read() as connection:
        left = connection.execute(sa.select(schema.dataset_rows.c.user_digest)).scalars().all()
    assert set(left) == {None, user_digest("u2")}


def test_the_same_files_under_another_name_have_learned_the_same(db: Database, world: World) -> None:
    ref = world.version("support", world.job(stored(db, user="u1")).id)
    twin = world.registry.import_adapter("twin", world.home / "lora-1", BASE, TINY_CONFIG, "anna").ref
    assert world.forget("u1").quarantined == (ref, twin)


def test_a_removed_version_still_leads_to_what_went_on_from_it(db: Database, world: World) -> None:
    world.version("support")
    gone = world.version("support", world.job(stored(db, user="u1")).id)
    child = world.version("support", world.job(start_from=gone).id)
    world.registry.begin_remove(gone, "anna")
    world.registry.finish_remove(gone, "anna")
    done = world.forget("u1")
    assert done.versions == (gone, child)
    assert done.quarantined == (child,)
    assert world.state(gone) is VersionState.REMOVED


@pytest.mark.parametrize("recorded", [True, False])
def test_a_run_in_progress_is_stopped_and_its_worker_refused(
    db: Database, world: World, recorded: bool
) -> None:
    """Also one that is just drawing its rows: which they are is not on record yet."""
    judged = stored(db, user="u1")
    job = world.job(judged, ended=False, recorded=recorded)
    if not recorded:
        with db.begin() as connection:
            connection.execute(sa.delete(schema.dataset_rows))
    other = world.job(stored(db, user="u2", route="sales"), route="sales", ended=False)
    done = world.forget("u1")
    assert done.stopped == (job.id,)
    stopped = world.jobs.get(job.id)
    assert stopped.state is JobState.FAILED
    assert stopped.error is not None
    assert stopped.error["code"] == "data_forgotten"
    with pytest.raises(StaleWorker), db.begin() as connection:
        check(connection, job.id, job.token)
    assert world.jobs.get(other.id).state is JobState.RUNNING


def test_the_text_in_run_folders_goes_and_the_manifest_stays(db: Database, world: World) -> None:
    job, other = world.job(stored(db, user="u1")), world.job(stored(db, user="u2"))
    world.forget("u1")
    assert [file.name for file in (world.run_root / job.id).rglob("*.json*")] == ["manifest.json"]
    assert len(list((world.run_root / other.id).rglob("*.json*"))) == 4
    with db.read() as connection:
        query = sa.select(schema.datasets.c.job_id, schema.datasets.c.report)
        reports = {row.job_id: row.report for row in connection.execute(query)}
    assert reports[job.id] == {"kept": 9, "filters": [{"name": "length", "count": 1}]}
    assert reports[other.id] == REPORT


def test_a_dry_run_says_the_same_and_does_nothing(db: Database, world: World) -> None:
    world.version("support")
    judged = stored(db, user="u1")
    job = world.job(judged)
    learned = world.version("support", job.id)
    world.routes.promote("support", learned, "anna")
    told = world.forget("u1", dry_run=True)
    assert world.state(learned) is VersionState.PROVED
    assert world.routes.get("support").variant == learned
    assert world.count(schema.completions) == 1
    assert list((world.run_root / job.id).rglob("*.jsonl"))
    assert world.forget("u1") == told
    assert world.forget("u1").completions == 0


def test_the_audit_log_does_not_name_the_user(db: Database, world: World) -> None:
    stored(db, user="anna@example.com")
    world.forget("anna@example.com")
    event = events(db, limit=1)[0]
    assert event.action == "user.forgotten"
    assert event.subject == f"user:{user_digest('anna@example.com')}"
    assert "anna@example.com" not in str(event)


def test_feedback_that_is_given_meanwhile_is_not_left_behind(db: Database, world: World) -> None:
    judged = [completion(user="u1") for _ in range(20)]
    with db.begin() as connection:
        insert_completions(connection, judged)

    def judge() -> None:
        for one in judged:
            try:
                said(db, Draft(one.id, value=1))
            except NotFound:
                return

    threads = [threading.Thread(target=judge) for _ in range(3)]
    for thread in threads:
        thread.start()
    world.forget("u1")
    for thread in threads:
        thread.join()
    assert world.count(schema.feedback) == 0


def test_descent_goes_through_any_number_of_runs(world: World) -> None:
    refs = [world.version("support")]
    refs += [world.version("support", f"ftjob-{n}") for n in range(5)]
    versions = world.registry.versions()
    starts = {f"ftjob-{n}": refs[n] for n in range(5)}
    jobs, learned = spread({"ftjob-2"}, starts, versions)
    assert jobs == {"ftjob-2", "ftjob-3", "ftjob-4"}
    assert [version.ref for version in learned] == refs[3:]
