"""Batches: their states, their leases, and that each line ends up in a file once, on both databases."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapters import batch_lines, schema
from adapters.batches import Batches, LineResult, add_usage, no_usage, put_results
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest, NotFound, StaleWorker
from adapters.files import Files, Purpose, StoredFile
from adapters.job_records import Job, JobState, Wish
from adapters.jobs import Jobs, events_after

LEASE = 30.0
NOTHING: dict[str, Any] = {"output_file": None, "error_file": None, "errors": []}


@pytest.fixture
def batches(db: Database) -> Batches:
    return Batches(db)


@pytest.fixture
def files(db: Database, tmp_path: Path) -> Files:
    return Files(db, tmp_path / "files")


def new(batches: Batches, **values: Any) -> Job:
    return batches.create(
        **{
            "input_file": "file-1",
            "endpoint": "/v1/chat/completions",
            "window": "24h",
            "window_seconds": 86400.0,
            "metadata": None,
            "key_id": None,
            "now": 1.0,
            **values,
        }
    )


def claimed(batches: Batches, now: float = 10.0, worker: str = "g1") -> Job:
    job = batches.claim(worker, LEASE, now)
    assert job is not None
    return job


def begun(batches: Batches, total: int = 3, now: float = 10.0) -> Job:
    job = claimed(batches, now)
    return batches.begin(job.id, job.token, total=total, model="support", now=now + 1)


def answered(line: int, said: str = "", is_error: bool = False) -> LineResult:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    body: dict[str, Any] = {"said": said} if is_error else {"said": said, "usage": usage}
    response = {"status_code": 400 if is_error else 200, "body": body}
    return LineResult(line, is_error, {"custom_id": f"c{line}", "response": response, "error": None})


def put(db: Database, job: Job, *results: LineResult) -> None:
    with db.begin() as connection:
        put_results(connection, job.id, job.token, results)


def placed(files: Files, text: bytes = b"{}\n") -> StoredFile:
    with files.stage() as staged:
        staged.write(text)
        return files.place(staged, "output.jsonl", Purpose.BATCH_OUTPUT, None)


def finish(batches: Batches, job: Job, state: JobState = JobState.SUCCEEDED, **values: Any) -> Job:
    return batches.finish(
        job.id, job.token, **{"state": state, "output": None, "errors": None, "progress": {}, **values}
    )


def messages(db: Database, job: Job) -> list[str]:
    return [event.message for event in events_after(db, job.id, 0)]


def kept_lines(db: Database) -> int:
    with db.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(schema.batch_lines)).scalar_one()


# -- the life of a batch ---------------------------------------------------------------------------
def test_a_batch_waits_with_what_it_was_given(batches: Batches, db: Database) -> None:
    job = new(batches, key_id="key_1", metadata={"team": "a"}, output_seconds=3600)
    assert job.id.startswith("batch_")
    assert len(job.id) == len("batch_") + 24
    assert (job.kind, job.state, job.key_id, job.metadata) == (
        "batch",
        JobState.VALIDATING,
        "key_1",
        {"team": "a"},
    )
    assert job.payload == {
        "endpoint": "/v1/chat/completions",
        "input_file": "file-1",
        "window": "24h",
        "expires": 86401.0,
        "output_seconds": 3600,
    }
    assert batches.get(job.id) == job
    assert messages(db, job) == [f"Created batch: {job.id}", "Validating input file: file-1"]


def test_a_batch_goes_from_its_file_to_its_files(batches: Batches, files: Files, db: Database) -> None:
    new(batches)
    job = begun(batches)
    assert (job.state, job.started) == (JobState.RUNNING, 10.0)
    assert job.progress == {
        "total": 3,
        "completed": 0,
        "failed": 0,
        "model": "support",
        "usage": no_usage(),
        "in_progress_at": 11.0,
    }
    put(db, job, answered(1), answered(2, is_error=True), answered(3))
    job = batches.finalizing(job.id, job.token, 20.0)
    assert (job.state, job.progress["finalizing_at"]) == (JobState.RUNNING, 20.0)
    output, errors = placed(files), placed(files)
    counts = {"completed": 2, "failed": 1}
    ended = finish(batches, job, output=output, errors=errors, progress=counts, now=21.0)
    assert (ended.state, ended.finished, ended.lease_until) == (JobState.SUCCEEDED, 21.0, None)
    assert ended.result == {"output_file": output.id, "error_file": errors.id, "errors": []}
    assert ended.progress == {**job.progress, **counts}
    assert files.get(output.id).purpose is Purpose.BATCH_OUTPUT
    assert files.get(errors.id).size_bytes == 3
    assert kept_lines(db) == 0
    assert batches.claim("g2", LEASE, 1000.0) is None
    assert messages(db, job)[2:] == [
        "Batch in progress: 3 requests",
        "Batch is finalizing",
        "The batch has successfully completed",
    ]


def test_a_bad_file_fails_the_batch_with_every_reason(batches: Batches, db: Database) -> None:
    new(batches)
    job = claimed(batches)
    problems = [
        {"code": "invalid_json_line", "line": 2, "message": "Line 2 is no JSON.", "param": None},
        {"code": "missing_required_parameter", "line": 3, "message": "No model.", "param": "body.model"},
    ]
    failed = batches.refuse(job.id, job.token, problems, 20.0)
    assert (failed.state, failed.finished, failed.result) == (
        JobState.FAILED,
        20.0,
        {**NOTHING, "errors": problems},
    )
    assert messages(db, job)[-1] == "The batch failed: Line 2 is no JSON."


def test_a_batch_that_fails_half_way_keeps_what_was_answered(
    batches: Batches, files: Files, db: Database
) -> None:
    new(batches)
    job = begun(batches)
    put(db, job, answered(1))
    gone = {"code": "file_not_found", "line": None, "message": "The file is gone.", "param": "input_file_id"}
    output = placed(files)
    failed = finish(batches, job, JobState.FAILED, output=output, problems=[gone])
    assert failed.result == {"output_file": output.id, "error_file": None, "errors": [gone]}
    assert kept_lines(db) == 0


def test_a_batch_out_of_time_has_expired(batches: Batches, db: Database) -> None:
    new(batches)
    job = begun(batches)
    expired = finish(batches, job, JobState.EXPIRED)
    assert (expired.state, expired.has_ended, expired.result) == (JobState.EXPIRED, True, NOTHING)
    assert messages(db, job)[-1] == "The batch has expired"
    with pytest.raises(ValueError, match="ends no batch"):
        finish(batches, job, JobState.RUNNING)


def test_finalizing_again_keeps_the_first_time(batches: Batches) -> None:
    new(batches)
    job = begun(batches)
    batches.finalizing(job.id, job.token, 20.0)
    again = claimed(batches, 100.0, "g2")
    assert batches.finalizing(again.id, again.token, 101.0).progress["finalizing_at"] == 20.0


# -- leases ----------------------------------------------------------------------------------------
def test_the_oldest_free_batch_is_claimed_in_the_state_it_is_in(batches: Batches) -> None:
    first, second = new(batches), new(batches)
    got = claimed(batches)
    assert (got.id, got.state, got.worker, got.token, got.lease_until) == (
        first.id,
        JobState.VALIDATING,
        "g1",
        1,
        40.0,
    )
    batches.begin(got.id, got.token, total=1, model=None, now=11.0)
    assert claimed(batches, 12.0, "g2").id == second.id
    assert batches.claim("g3", LEASE, 13.0) is None
    again = claimed(batches, 41.0, "g3")
    assert (again.id, again.state, again.token, again.started) == (first.id, JobState.RUNNING, 2, 10.0)


def test_a_batch_goes_on_however_often_its_gateway_is_lost(batches: Batches, db: Database) -> None:
    job = new(batches)
    for attempt in range(12):
        assert claimed(batches, 100.0 * (attempt + 1)).token == attempt + 1
    assert messages(db, job).count("Batch goes on: its gateway was lost") == 11


def test_heartbeats_keep_the_lease_and_lay_progress_over_progress(batches: Batches) -> None:
    new(batches)
    job = claimed(batches)
    assert batches.heartbeat(job.id, job.token, LEASE, now=35.0) is None
    assert batches.claim("g2", LEASE, 60.0) is None
    job = batches.begin(job.id, job.token, total=3, model=None, now=61.0)
    batches.heartbeat(job.id, job.token, LEASE, {"completed": 1}, 62.0)
    batches.heartbeat(job.id, job.token, LEASE, {"failed": 1}, 63.0)
    assert batches.get(job.id).progress == {**job.progress, "completed": 1, "failed": 1}
    assert batches.claim("g2", LEASE, 92.0) is None
    assert claimed(batches, 94.0, "g2").token == 2


def test_a_batch_that_is_given_back_is_taken_at_once(batches: Batches, db: Database) -> None:
    new(batches)
    job = begun(batches)
    put(db, job, answered(1))
    batches.release(job.id, job.token, 12.0)
    with pytest.raises(StaleWorker):
        batches.heartbeat(job.id, job.token, LEASE)
    again = claimed(batches, 12.0, "g2")
    assert (again.id, again.state, again.token) == (job.id, JobState.RUNNING, 2)
    assert batches.done(job.id).lines == {1}
    assert "Batch goes on: its gateway was lost" not in messages(db, job)


Write = Callable[[Batches, Database, Job], Any]

WRITES: dict[str, Write] = {
    "put_results": lambda batches, db, job: put(db, job, answered(1)),
    "heartbeat": lambda batches, db, job: batches.heartbeat(job.id, job.token, LEASE, {"completed": 9}),
    "begin": lambda batches, db, job: batches.begin(job.id, job.token, total=1, model=None),
    "refuse": lambda batches, db, job: batches.refuse(job.id, job.token, []),
    "finalizing": lambda batches, db, job: batches.finalizing(job.id, job.token),
    "finish": lambda batches, db, job: finish(batches, job),
    "release": lambda batches, db, job: batches.release(job.id, job.token),
}


def lose(batches: Batches, job: Job) -> None:
    claimed(batches, 1000.0, "other")


def give_back(batches: Batches, job: Job) -> None:
    batches.release(job.id, job.token)


def end(batches: Batches, job: Job) -> None:
    finish(batches, job)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("by", [lose, give_back, end])
def test_promise_08_who_holds_a_batch_no_more_writes_nothing(
    batches: Batches, db: Database, write: str, by: Callable[[Batches, Job], None]
) -> None:
    new(batches)
    job = claimed(batches) if write == "begin" else begun(batches)
    by(batches, job)
    before, said = batches.get(job.id), messages(db, job)
    with pytest.raises(StaleWorker):
        WRITES[write](batches, db, job)
    assert batches.get(job.id) == before
    assert messages(db, job) == said
    assert kept_lines(db) == 0


def test_promise_08_a_stale_gateway_leaves_no_file(batches: Batches, files: Files) -> None:
    new(batches)
    job = begun(batches)
    other = claimed(batches, 1000.0, "other")
    late, right = placed(files), placed(files)
    with pytest.raises(StaleWorker):
        finish(batches, job, output=late)
    with pytest.raises(NotFound):
        files.get(late.id)
    assert finish(batches, other, output=right).result == {**NOTHING, "output_file": right.id}


def test_many_gateways_claim_every_batch_once(batches: Batches) -> None:
    made = {new(batches).id for _ in range(12)}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: batches.claim(f"g{n}", LEASE, 10.0), range(24)))
    while (job := batches.claim("last", LEASE, 10.0)) is not None:  # what was locked is not waited for
        found.append(job)
    got = [job.id for job in found if job is not None]
    assert sorted(got) == sorted(made)


def test_a_batch_that_another_looks_at_keeps_no_claim_waiting(batches: Batches, db: Database) -> None:
    if db.dialect == "sqlite":
        pytest.skip("on SQLite each write is alone")
    first, second = new(batches), new(batches)
    with db.begin() as connection:
        connection.execute(sa.select(schema.jobs).where(schema.jobs.c.id == first.id).with_for_update())
        assert claimed(batches).id == second.id
    assert claimed(batches).id == first.id


# -- cancelling ------------------------------------------------------------------------------------
def test_a_batch_that_nobody_looks_at_is_cancelled_at_once(batches: Batches) -> None:
    job = batches.cancel(new(batches).id, "ann", now=5.0)
    assert (job.state, job.wish, job.finished, job.result) == (JobState.CANCELLED, None, 5.0, NOTHING)
    assert job.progress == {"cancelling_at": 5.0}
    new(batches)
    lost = claimed(batches)
    assert batches.cancel(lost.id, "ann", now=1000.0).state is JobState.CANCELLED
    assert batches.claim("g2", LEASE, 1000.0) is None


def test_a_running_batch_is_asked_to_end_and_keeps_its_files(
    batches: Batches, files: Files, db: Database
) -> None:
    new(batches)
    job = begun(batches)
    asked = batches.cancel(job.id, "ann", now=20.0)
    assert (asked.state, asked.wish, asked.progress["cancelling_at"]) == (
        JobState.RUNNING,
        Wish.CANCEL,
        20.0,
    )
    assert batches.cancel(job.id, "ann", now=21.0) == asked
    assert batches.heartbeat(job.id, job.token, LEASE, {"completed": 1}, 22.0) is Wish.CANCEL
    output = placed(files)
    ended = finish(batches, job, JobState.SUCCEEDED, output=output, now=23.0)
    assert (ended.state, ended.wish, ended.result) == (
        JobState.CANCELLED,
        None,
        {**NOTHING, "output_file": output.id},
    )
    assert (ended.progress["completed"], ended.progress["cancelling_at"]) == (1, 20.0)
    assert files.get(output.id).id == output.id
    assert messages(db, job)[-2:] == ["Batch is asked to end", "The batch has been cancelled"]


def test_a_batch_that_is_to_be_cancelled_is_taken_up_by_the_next_gateway(batches: Batches) -> None:
    new(batches)
    job = begun(batches)
    assert batches.cancel(job.id, "ann", now=1000.0).state is JobState.RUNNING
    again = claimed(batches, 1000.0, "g2")
    assert (again.id, again.wish) == (job.id, Wish.CANCEL)
    assert finish(batches, again, JobState.CANCELLED).state is JobState.CANCELLED


def test_a_batch_whose_file_is_being_looked_at_is_cancelled_by_who_does(batches: Batches) -> None:
    new(batches)
    job = claimed(batches)
    assert batches.cancel(job.id, "ann", now=11.0).state is JobState.VALIDATING
    problem = {"code": "invalid_json_line", "line": 1, "message": "Line 1 is no JSON.", "param": None}
    ended = batches.refuse(job.id, job.token, [problem])
    assert (ended.state, ended.error) == (JobState.CANCELLED, None)


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (JobState.SUCCEEDED, "completed"),
        (JobState.FAILED, "failed"),
        (JobState.EXPIRED, "expired"),
        (JobState.CANCELLED, "cancelled"),
    ],
)
def test_an_ended_batch_cannot_be_cancelled(batches: Batches, state: JobState, word: str) -> None:
    new(batches)
    job = finish(batches, begun(batches), state)
    with pytest.raises(Conflict, match=f"^Cannot cancel a batch with status '{word}'.$") as caught:
        batches.cancel(job.id, "ann")
    assert caught.value.code == "batch_state_conflict"
    assert batches.get(job.id) == job


# -- whose they are --------------------------------------------------------------------------------
def test_keys_see_their_own_batches_newest_first_and_page_by_page(batches: Batches) -> None:
    mine = [new(batches, key_id="key_1") for _ in range(5)]
    foreign = new(batches, key_id="key_2")
    page, more = batches.list("key_1", all_keys=False, limit=3)
    assert ([job.id for job in page], more) == ([job.id for job in mine[:1:-1]], True)
    rest, more = batches.list("key_1", all_keys=False, limit=3, after=page[-1].id)
    assert ([job.id for job in rest], more) == ([mine[1].id, mine[0].id], False)
    assert len(batches.list()[0]) == 6
    for id in (foreign.id, "", "batch_\x00", "batch_\ud800"):
        with pytest.raises(NotFound) as caught:
            batches.get(id, "key_1", all_keys=False)
        assert (caught.value.code, caught.value.param) == ("batch_not_found", "batch_id")
        with pytest.raises(NotFound):
            batches.cancel(id, "key_1", "key_1", all_keys=False)
        with pytest.raises(InvalidRequest, match="There is no batch"):
            batches.list("key_1", all_keys=False, after=id)


def test_batches_and_training_jobs_do_not_see_each_other(batches: Batches, db: Database) -> None:
    jobs = Jobs(db)
    training = jobs.enqueue(kind="training", route=None, payload={}, now=1.0)
    batch = new(batches)
    assert [job.id for job in batches.list()[0]] == [batch.id]
    assert [job.id for job in jobs.list()[0]] == [training.id]
    for theirs in (batches.get, lambda id: batches.cancel(id, "ann")):
        with pytest.raises(NotFound) as caught:
            theirs(training.id)
        assert caught.value.code == "batch_not_found"
    with pytest.raises(InvalidRequest):
        batches.list(after=training.id)
    assert claimed(batches).id == batch.id
    assert batches.claim("g2", LEASE, 10.0) is None


# -- lines -----------------------------------------------------------------------------------------
def test_a_line_keeps_its_first_result(batches: Batches, db: Database) -> None:
    new(batches)
    job = begun(batches)
    put(db, job, answered(2, "first"), answered(2, "at once again"))
    put(db, job, answered(1, "other"), answered(2, "later", is_error=True))
    put(db, job)
    found = batches.results(job.id, is_error=False, after=0, limit=10)
    assert found == (answered(1, "other"), answered(2, "first"))
    assert batches.results(job.id, is_error=True, after=0, limit=10) == ()


def test_results_are_read_page_by_page_in_the_order_of_their_lines(
    batches: Batches, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_lines, "PAGE_ROWS", 3)
    new(batches), new(batches)
    job, other = begun(batches), begun(batches)
    results = [answered(line, "x" * 5000 if line == 4 else "", is_error=line % 4 == 0) for line in range(10)]
    random.Random(1).shuffle(results)
    put(db, job, *results)
    put(db, other, answered(77))
    first = batches.results(job.id, is_error=False, after=-1, limit=4)
    assert [result.line for result in first] == [1, 2, 3, 5]
    rest = batches.results(job.id, is_error=False, after=5, limit=4)
    assert [result.line for result in rest] == [6, 7, 9]
    errors = batches.results(job.id, is_error=True, after=-1, limit=4)
    assert [len(result.body["response"]["body"]["said"]) for result in errors] == [0, 5000, 0]
    done = batches.done(job.id)
    assert (done.lines, done.completed, done.failed) == (frozenset(range(10)), 7, 3)
    assert (done.usage["input_tokens"], done.usage["output_tokens"], done.usage["total_tokens"]) == (
        35,
        14,
        49,
    )


def test_nothing_is_done_of_a_batch_without_results(batches: Batches) -> None:
    done = batches.done(new(batches).id)
    assert (done.lines, done.completed, done.failed, done.usage) == (frozenset(), 0, 0, no_usage())


def test_usage_adds_up_in_the_words_of_either_endpoint() -> None:
    def line(usage: Any) -> dict[str, Any]:
        return {"response": {"status_code": 200, "body": {"usage": usage}}, "error": None}

    chat = {
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    responses = {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 64},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 16},
        "total_tokens": 120,
    }
    embeddings = {"prompt_tokens": 7, "total_tokens": 7}
    bare = {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": None}
    nothing: list[dict[str, Any]] = [line(None), {"response": None, "error": {"code": "batch_expired"}}, {}]
    usage = no_usage()
    for body in (line(chat), line(responses), line(embeddings), line(bare), *nothing):
        usage = add_usage(usage, body)
    assert usage == {
        "input_tokens": 118,
        "input_tokens_details": {"cached_tokens": 72},
        "output_tokens": 25,
        "output_tokens_details": {"reasoning_tokens": 17},
        "total_tokens": 143,
    }


def test_the_lines_of_an_ended_batch_go_in_pieces_and_no_other_batchs(
    batches: Batches, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_lines, "DELETED_ROWS", 4)
    new(batches), new(batches)
    job, other = begun(batches), begun(batches)
    put(db, job, *(answered(line) for line in range(9)))
    put(db, other, *(answered(line) for line in range(5)))
    finish(batches, job)
    assert (batches.done(job.id).lines, len(batches.done(other.id).lines)) == (frozenset(), 5)
    assert batches.sweep() == 0, "a batch that runs keeps its lines"
    assert kept_lines(db) == 5


def test_lines_that_a_crash_has_left_behind_are_swept(batches: Batches, db: Database) -> None:
    new(batches)
    job = begun(batches)
    rows = [{"batch": job.id, "line": n, "is_error": False, "body": b"{}"} for n in range(7)]
    finish(batches, job)
    with db.begin() as connection:  # as a gateway leaves them that dies right after the batch's end
        connection.execute(sa.insert(schema.batch_lines), rows)
    assert batches.sweep() == 7
    assert kept_lines(db) == 0


# -- kill -9 ---------------------------------------------------------------------------------------
LINES = 400
ROUNDS = 20

#: The longest that a process lives after its first group of lines: a few batches.
LIFE_SECONDS = 0.3


def answer_for_ever(url: str, root: Path, round: int, acknowledged: Connection) -> None:
    """A gateway in a process of its own: takes up the batch that is there, else makes one. Says what is stored."""
    batch_lines.DELETED_ROWS = 40  # more moments to be killed at
    db = Database(url)
    batches, files = Batches(db), Files(db, root)
    for turn in itertools.count():
        now = 1e6 * (round + 1) + turn  # the lease of whoever was killed is over
        job = batches.claim(f"g{round}", 1000.0, now)
        if job is None:
            new(batches, now=now)
            continue
        if job.state is JobState.VALIDATING:
            job = batches.begin(job.id, job.token, total=LINES, model=None, now=now)
        todo = sorted(frozenset(range(LINES)) - batches.done(job.id).lines)
        random.Random(round).shuffle(todo)
        while todo:
            group, todo = todo[:8], todo[8:]
            # The last line of the group before is answered twice: the first answer stays.
            again = [group[0] - 1] if group[0] else []
            put(db, job, *(answered(line, f"{round}", is_error=line % 10 == 0) for line in [*again, *group]))
            acknowledged.send(("stored", job.id, group, round))
        files_of_it = [write(batches, files, job, is_error) for is_error in (False, True)]
        finish(batches, job, output=files_of_it[0], errors=files_of_it[1])
        acknowledged.send(("ended", job.id, [], round))


def write(batches: Batches, files: Files, job: Job, is_error: bool) -> StoredFile:
    """One of a batch's files, not in the database yet."""
    after = -1
    with files.stage() as staged:
        while page := batches.results(job.id, is_error=is_error, after=after, limit=50):
            staged.write(b"".join(json.dumps(result.body).encode() + b"\n" for result in page))
            after = page[-1].line
        return files.place(staged, "out.jsonl", Purpose.BATCH_OUTPUT, None)


@dataclass
class Acknowledged:
    stored: dict[tuple[str, int], int] = field(
        default_factory=dict
    )  # (batch, line) -> latest round that it can be of
    ended: set[str] = field(default_factory=set)

    def take(self, pipe: Connection) -> None:
        """All that a dead process has said."""
        try:
            while pipe.poll():
                action, id, lines, round = pipe.recv()
                if action == "ended":
                    self.ended.add(id)
                for line in lines:
                    self.stored.setdefault((id, line), round)
        except EOFError:  # the pipe is read to its end
            return


def kill_at_a_random_moment(url: str, root: Path, round: int, said: Acknowledged) -> None:
    processes = multiprocessing.get_context("forkserver")  # imports once: each process starts in milliseconds
    processes.set_forkserver_preload(["adapters.batches"])
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=answer_for_ever, args=(url, root, round, theirs))
    process.start()
    theirs.close()
    assert ours.poll(60), "the process has not stored anything"
    time.sleep(random.Random(round).uniform(0, LIFE_SECONDS))
    process.kill()
    process.join()
    said.take(ours)
    ours.close()


@pytest.fixture
def reopened(db: Database, database_url: str) -> Iterator[Database]:
    """A database that one process after another was killed on, opened anew."""
    db.close()
    database = Database(database_url)
    yield database
    database.close()


def test_promise_08_kill_9_of_who_answers_a_batch_loses_no_line_and_doubles_none(
    reopened: Database, database_url: str, tmp_path: Path
) -> None:
    said, root = Acknowledged(), tmp_path / "files"
    batches, files = Batches(reopened), Files(reopened, root)
    whole = set[str]()
    for round in range(ROUNDS):
        kill_at_a_random_moment(database_url, root, round, said)
        for job in batches.list(limit=10_000)[0]:
            if job.id not in whole:  # an ended batch is read once: nothing changes it
                check_whole(job, batches, files, said)
                whole |= {job.id} if job.has_ended else set()
    jobs, _ = batches.list(limit=10_000)
    assert said.ended <= {job.id for job in jobs if job.has_ended}
    assert len(said.ended) >= 3
    batches.sweep()
    unfinished = [job.id for job in jobs if not job.has_ended]
    assert len(unfinished) <= 1
    assert kept_lines(reopened) == sum(len(batches.done(id).lines) for id in unfinished)


def check_whole(job: Job, batches: Batches, files: Files, said: Acknowledged) -> None:
    """Each line that was stored is there once, as it was first; an ended batch has all of them in its files."""
    if job.has_ended:
        assert job.result is not None
        bodies = [
            json.loads(line)
            for name in ("output_file", "error_file")
            for line in files.path(job.result[name]).read_bytes().splitlines()
        ]
    else:
        bodies = [
            result.body
            for is_error in (False, True)
            for result in batches.results(job.id, is_error=is_error, after=-1, limit=LINES)
        ]
    found = {int(body["custom_id"][1:]): int(body["response"]["body"]["said"]) for body in bodies}
    assert len(found) == len(bodies), "a line is there twice"
    assert not job.has_ended or sorted(found) == list(range(LINES))
    for (id, line), round in said.stored.items():
        if id == job.id:
            assert found[line] <= round
