"""Datasets on record: immutable, under the job's token, and followed after their completions are gone."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from adapters import datasets, schema
from adapters.completions import Completions
from adapters.database import Database
from adapters.datasets import DatasetRecord, Datasets, completions_still_there, put_dataset
from adapters.errors import StaleWorker
from adapters.jobs import Job, Jobs, JobState, finish
from adapters.rows import Row, RowKind, Split, user_digest
from tests.judged import stored

REPORT = {"drawn": 2, "filters": [{"name": "length", "count": 1, "examples": []}]}
FIRST, SECOND = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"


def row(id: str, **more: Any) -> Row:
    return Row(id, RowKind.DEMONSTRATION, "2+2=", {"role": "assistant", "content": "4"}, **more)


ROWS = [
    (row("row_b", completion_id="chatcmpl-1", feedback_id="fb_1", user="ann"), Split.TRAIN),
    (row("row_a"), Split.HELD_OUT),
]


@pytest.fixture
def job(db: Database) -> Job:
    """A running one."""
    Jobs(db).enqueue(kind="training", route="support", payload={})
    claimed = Jobs(db).claim("w", ("training",), 60.0, now=1.0)
    assert claimed is not None
    return claimed


def put(db: Database, job: Job, digest: str = FIRST, now: float = 5.0, **more: Any) -> DatasetRecord:
    with db.begin() as connection:
        return put_dataset(connection, digest, job.id, job.route, REPORT, ROWS, now, **more)


def count(db: Database, table: sa.Table) -> int:
    with db.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def test_a_dataset_is_found_by_its_job_with_its_rows_in_order(db: Database, job: Job) -> None:
    store = Datasets(db)
    assert store.of_job(job.id) is None
    record = put(db, job, token=job.token)
    assert record == store.of_job(job.id) == DatasetRecord(FIRST, job.id, "support", 5.0, REPORT)
    first, second = store.rows(FIRST, job.id)
    assert (first.position, first.row_id, first.completion_id, first.feedback_id, first.split) == (
        0, "row_b", "chatcmpl-1", "fb_1", Split.TRAIN,
    )  # fmt: skip
    assert (second.row_id, second.completion_id, second.split) == ("row_a", None, Split.HELD_OUT)


def test_a_users_name_is_not_kept_but_its_digest_is(db: Database, job: Job) -> None:
    put(db, job)
    assert [each.user_digest for each in Datasets(db).rows(FIRST, job.id)] == [user_digest("ann"), None]


def test_the_same_dataset_again_changes_nothing(db: Database, job: Job) -> None:
    first = put(db, job)
    assert put(db, job, now=9.0) == first
    assert (count(db, schema.datasets), count(db, schema.dataset_rows)) == (1, 2)


def test_two_jobs_may_have_learned_from_the_same_rows(db: Database, job: Job) -> None:
    other = Jobs(db).enqueue(kind="training", route="sales", payload={})
    for each in (job, other):
        put(db, each)
    assert [len(Datasets(db).rows(FIRST, each.id)) for each in (job, other)] == [2, 2]


def test_rows_that_were_drawn_twice_are_both_on_record_and_the_last_are_the_jobs(
    db: Database, job: Job
) -> None:
    """Lineage follows both. Two workers on two machines may even take turns."""
    for now, digest in ((5.0, FIRST), (6.0, SECOND)):
        put(db, job, digest, now)
    latest = Datasets(db).of_job(job.id)
    assert latest is not None
    assert latest.digest == SECOND
    put(db, job, FIRST, 7.0)
    latest = Datasets(db).of_job(job.id)
    assert latest is not None
    assert (latest.digest, latest.created) == (FIRST, 7.0)
    assert (count(db, schema.datasets), count(db, schema.dataset_rows)) == (2, 4)


def test_a_dataset_without_rows_is_one(db: Database, job: Job) -> None:
    with db.begin() as connection:
        put_dataset(connection, FIRST, job.id, None, {}, [])
    assert Datasets(db).rows(FIRST, job.id) == ()


def test_promise_08_a_worker_that_lost_the_job_records_nothing(db: Database, job: Job) -> None:
    taken = Jobs(db).claim("another", ("training",), 60.0, now=100.0)
    assert taken is not None
    with pytest.raises(StaleWorker):
        put(db, job, token=job.token)
    assert count(db, schema.datasets) == 0
    put(db, taken, token=taken.token)
    with pytest.raises(StaleWorker):
        put(db, job, token=job.token)  # not even what is there


def test_promise_06_a_job_that_was_stopped_records_nothing(db: Database, job: Job) -> None:
    with db.begin() as connection:
        finish(connection, job.id, job.token, state=JobState.FAILED)
    with pytest.raises(StaleWorker):
        put(db, job, token=job.token)
    assert (count(db, schema.datasets), count(db, schema.dataset_rows)) == (0, 0)


def test_promise_06_the_rows_ids_outlive_their_completions(db: Database, job: Job) -> None:
    stored(db, id="chatcmpl-1", user="ann")
    put(db, job)
    assert Completions(db).delete("chatcmpl-1", None)
    assert Datasets(db).rows(FIRST, job.id)[0].completion_id == "chatcmpl-1"


def test_deleted_completions_are_told_from_those_that_are_there(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "IDS_AT_ONCE", 2)
    kept = [stored(db).id for _ in range(4)]
    gone = stored(db).id
    Completions(db).delete(gone, None)
    with db.read() as connection:
        assert completions_still_there(connection, [*kept, gone, "unknown"]) == set(kept)
        assert completions_still_there(connection, []) == set()
