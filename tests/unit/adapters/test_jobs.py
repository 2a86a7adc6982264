"""The queue: leases, fencing, pausing and cancelling, on both databases and with many claimers at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adapters import jobs as queue
from adapters.batches import Batches
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest, NotFound, StaleWorker
from adapters.jobs import EventDraft, Job, Jobs, JobState, Wish

ROOT = Path(__file__).resolve().parents[3]
KINDS = ["training"]
LEASE = 30.0


@pytest.fixture
def jobs(db: Database) -> Jobs:
    return Jobs(db, max_attempts=3)


def new(jobs: Jobs, route: str | None = None, **values: Any) -> Job:
    return jobs.enqueue(**{"kind": "training", "route": route, "payload": {"n": 1}, "now": 1.0, **values})


def claimed(jobs: Jobs, now: float = 10.0, worker: str = "w1") -> Job:
    job = jobs.claim(worker, KINDS, LEASE, now)
    assert job is not None
    return job


def messages(db: Database, job: Job) -> list[str]:
    return [event.message for event in queue.events_after(db, job.id, 0)]


def test_a_job_waits_with_what_it_was_given(jobs: Jobs, db: Database) -> None:
    job = new(jobs, "support", key_id="key_1", metadata={"team": "a"})
    assert job.id.startswith("ftjob-")
    assert (job.state, job.route, job.payload, job.token, job.attempts) == (
        JobState.QUEUED,
        "support",
        {"n": 1},
        0,
        0,
    )
    assert (job.result, job.error, job.wish, job.lease_until, job.metadata) == (
        None,
        None,
        None,
        None,
        {"team": "a"},
    )
    assert jobs.get(job.id) == job
    assert messages(db, job) == [f"Created fine-tuning job: {job.id}"]


def test_enqueue_is_part_of_the_callers_transaction(db: Database, jobs: Jobs) -> None:
    with pytest.raises(RuntimeError), db.begin() as connection:
        queue.enqueue(connection, kind="training", route=None, payload={})
        raise RuntimeError
    assert jobs.list() == ((), False)


def test_the_oldest_job_of_a_known_kind_is_claimed_once(jobs: Jobs) -> None:
    new(jobs, kind="batch")
    first, second = new(jobs), new(jobs)
    got = claimed(jobs, 10.0)
    assert (got.id, got.state, got.worker, got.token, got.attempts, got.lease_until, got.started) == (
        first.id,
        JobState.RUNNING,
        "w1",
        1,
        1,
        40.0,
        10.0,
    )
    assert claimed(jobs, 11.0, "w2").id == second.id
    assert jobs.claim("w3", KINDS, LEASE, 12.0) is None


def test_a_route_has_one_running_job(jobs: Jobs, db: Database) -> None:
    first, second, other = new(jobs, "support"), new(jobs, "support"), new(jobs, "sales")
    assert [claimed(jobs).id, claimed(jobs).id] == [first.id, other.id]
    assert jobs.claim("w", KINDS, LEASE, 11.0) is None
    with db.begin() as connection:
        queue.finish(connection, first.id, 1, state=JobState.SUCCEEDED, result={}, now=12.0)
    assert claimed(jobs, 13.0).id == second.id


def test_a_route_whose_worker_was_lost_is_not_given_a_second_job(jobs: Jobs) -> None:
    paused, running = new(jobs, "support"), new(jobs, "support")
    jobs.pause(paused.id, "ann", 2.0)
    assert claimed(jobs, 10.0).id == running.id
    jobs.resume(paused.id, "ann", 11.0)
    assert claimed(jobs, 100.0).id == running.id, (
        "the older job of the route must wait until the lost one has ended"
    )


def test_a_lost_lease_makes_the_job_claimable_again(jobs: Jobs, db: Database) -> None:
    new(jobs)
    first = claimed(jobs, 10.0)
    assert jobs.claim("w2", KINDS, LEASE, 39.0) is None
    second = claimed(jobs, 41.0, "w2")
    assert (second.id, second.token, second.attempts, second.started) == (first.id, 2, 2, 10.0)
    assert messages(db, first)[1:] == ["Fine-tuning job started", "Job goes on: its worker was lost"]


def test_heartbeats_keep_a_lease(jobs: Jobs) -> None:
    new(jobs)
    job = claimed(jobs, 10.0)
    assert jobs.heartbeat(job.id, job.token, LEASE, 35.0) is None
    assert jobs.claim("w2", KINDS, LEASE, 60.0) is None
    assert claimed(jobs, 66.0, "w2").token == 2


def test_a_job_that_loses_every_worker_fails(jobs: Jobs, db: Database) -> None:
    job = new(jobs)
    for attempt in range(3):
        claimed(jobs, 10.0 + 100 * attempt)
    assert jobs.claim("w", KINDS, LEASE, 400.0) is None
    failed = jobs.get(job.id)
    assert (failed.state, failed.finished, failed.attempts) == (JobState.FAILED, 400.0, 3)
    assert failed.error == {
        "code": "worker_lost",
        "message": "The worker was lost 3 times while it ran the job.",
        "param": None,
    }
    assert messages(db, job)[-1] == "The job failed: The worker was lost 3 times while it ran the job."


Write = Callable[[Jobs, Database, Job], Any]


def _finish(jobs: Jobs, db: Database, job: Job) -> None:
    with db.begin() as connection:
        queue.finish(connection, job.id, job.token, state=JobState.SUCCEEDED, result={"x": 1})


WRITES: dict[str, Write] = {
    "heartbeat": lambda jobs, db, job: jobs.heartbeat(job.id, job.token, LEASE),
    "report": lambda jobs, db, job: jobs.report(job.id, job.token, {"step": 9}, [EventDraft("step 9")]),
    "event": lambda jobs, db, job: jobs.event(job.id, job.token, "info", "message", "hello"),
    "release": lambda jobs, db, job: jobs.release(job.id, job.token),
    "fail": lambda jobs, db, job: jobs.fail(job.id, job.token, {"code": "x", "message": "x"}),
    "finish": _finish,
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("fate", ["taken by another", "failed", "cancelled", "paused"])
def test_promise_08_a_stale_workers_every_write_is_refused(
    jobs: Jobs, db: Database, write: str, fate: str
) -> None:
    new(jobs)
    stale = claimed(jobs, 10.0)
    if fate == "taken by another":
        claimed(jobs, 41.0, "w2")
    elif fate == "failed":
        jobs.fail(stale.id, stale.token, {"code": "oom", "message": "out of memory"})
    elif fate == "cancelled":
        jobs.cancel(stale.id, "ann", now=41.0)
    else:
        jobs.pause(stale.id, "ann", now=41.0)
    before, told = jobs.get(stale.id), messages(db, stale)
    with pytest.raises(StaleWorker) as caught:
        WRITES[write](jobs, db, stale)
    assert (caught.value.status, caught.value.code) == (409, "stale_worker")
    assert (jobs.get(stale.id), messages(db, stale)) == (before, told)


def test_promise_08_what_else_was_in_a_stale_workers_transaction_is_undone(jobs: Jobs, db: Database) -> None:
    new(jobs)
    stale = claimed(jobs, 10.0)
    claimed(jobs, 41.0, "w2")
    with pytest.raises(StaleWorker), db.begin() as connection:
        queue.enqueue(connection, kind="training", route=None, payload={})
        queue.check(connection, stale.id, stale.token)
    assert len(jobs.list()[0]) == 1


def test_reports_lay_progress_over_progress_and_come_with_their_events(jobs: Jobs, db: Database) -> None:
    new(jobs)
    job = claimed(jobs)
    jobs.report(
        job.id, 1, {"stage": "train", "step": 1, "loss": 2.5}, [EventDraft("Step 1", kind="metrics")], 11.0
    )
    assert jobs.report(job.id, 1, {"step": 2, "loss": None}, now=12.0) is None
    assert jobs.get(job.id).progress == {"stage": "train", "step": 2, "at": 12.0}
    jobs.report(job.id, 1, {"stage": "evaluate", "method": "dpo"}, now=13.0)
    assert jobs.get(job.id).progress == {"stage": "evaluate", "method": "dpo", "at": 13.0}
    jobs.report(job.id, 1, {"stage": "gate"}, now=14.0)
    assert jobs.get(job.id).progress == {"stage": "gate", "method": "dpo", "at": 14.0}
    (event,) = jobs.events(job.id, kinds=["metrics"])[0]
    assert (event.message, event.at, event.level) == ("Step 1", 11.0, "info")


def test_a_waiting_job_is_paused_resumed_and_cancelled_at_once(jobs: Jobs) -> None:
    job = new(jobs)
    assert jobs.pause(job.id, "ann").state is JobState.PAUSED
    assert jobs.pause(job.id, "ann").state is JobState.PAUSED
    assert jobs.claim("w", KINDS, LEASE, 10.0) is None
    assert jobs.resume(job.id, "ann").state is JobState.QUEUED
    assert jobs.resume(job.id, "ann").state is JobState.QUEUED
    jobs.pause(job.id, "ann")
    cancelled = jobs.cancel(job.id, "ann", now=5.0)
    assert (cancelled.state, cancelled.finished) == (JobState.CANCELLED, 5.0)
    assert jobs.cancel(job.id, "ann", now=6.0) == cancelled


def test_a_running_job_is_asked_to_pause_and_its_worker_obeys(jobs: Jobs, db: Database) -> None:
    new(jobs)
    job = claimed(jobs)
    assert jobs.pause(job.id, "ann", 11.0).wish is Wish.PAUSE
    assert jobs.heartbeat(job.id, job.token, LEASE, 12.0) is Wish.PAUSE
    assert jobs.report(job.id, job.token, {}, now=12.0) is Wish.PAUSE
    paused = jobs.release(job.id, job.token, JobState.PAUSED)
    assert (paused.state, paused.wish, paused.lease_until, paused.attempts) == (
        JobState.PAUSED,
        None,
        None,
        0,
    )
    jobs.resume(job.id, "ann")
    again = claimed(jobs, 20.0)
    assert (again.token, again.attempts, again.started) == (2, 1, 10.0)
    assert messages(db, job)[-1] == "Job goes on"


def test_a_wish_to_pause_can_be_taken_back_and_a_wish_to_cancel_outweighs_it(jobs: Jobs) -> None:
    new(jobs)
    job = claimed(jobs)
    jobs.pause(job.id, "ann", 11.0)
    assert jobs.resume(job.id, "ann", 11.0).wish is None
    jobs.pause(job.id, "ann", 11.0)
    assert jobs.cancel(job.id, "ann", 11.0).wish is Wish.CANCEL
    assert jobs.resume(job.id, "ann", 11.0).wish is Wish.CANCEL
    assert jobs.release(job.id, job.token, JobState.PAUSED).state is JobState.CANCELLED


@pytest.mark.parametrize(("wish", "state"), [("pause", JobState.PAUSED), ("cancel", JobState.CANCELLED)])
def test_a_wish_is_granted_where_the_worker_is_lost(jobs: Jobs, wish: str, state: JobState) -> None:
    new(jobs)
    job = claimed(jobs, 10.0)
    getattr(jobs, wish)(job.id, "ann", now=11.0)
    assert jobs.claim("w2", KINDS, LEASE, 50.0) is None
    assert jobs.get(job.id).state is state


def test_an_ended_job_is_beyond_wishes(jobs: Jobs) -> None:
    new(jobs)
    job = claimed(jobs)
    jobs.fail(job.id, job.token, {"code": "oom", "message": "out of memory"}, now=20.0)
    for act in (jobs.pause, jobs.resume, jobs.cancel):
        with pytest.raises(Conflict, match="has failed and cannot be") as caught:
            act(job.id, "ann")
        assert caught.value.code == "job_state_conflict"


def test_giving_back_counts_as_an_attempt_unless_it_was_in_good_order(jobs: Jobs) -> None:
    job = new(jobs)
    for _ in range(5):
        jobs.release(job.id, claimed(jobs).token, counts=False)
    for _ in range(2):
        assert jobs.release(job.id, claimed(jobs).token).state is JobState.QUEUED
    failed = jobs.release(job.id, claimed(jobs).token)
    assert failed.error is not None
    assert (failed.state, failed.error["code"]) == (JobState.FAILED, "worker_lost")


def test_a_job_that_somebody_cancelled_publishes_nothing(jobs: Jobs, db: Database) -> None:
    new(jobs)
    job = claimed(jobs)
    jobs.cancel(job.id, "ann", 11.0)
    with pytest.raises(StaleWorker), db.begin() as connection:
        queue.enqueue(connection, kind="training", route=None, payload={})
        queue.finish(connection, job.id, job.token, state=JobState.SUCCEEDED, result={})
    assert len(jobs.list()[0]) == 1
    ended = jobs.fail(job.id, job.token, {"code": "gate_failed", "message": "worse"})
    assert (ended.state, ended.error) == (JobState.CANCELLED, None)


def test_workers_are_alive_while_they_ask_or_hold_a_lease(jobs: Jobs) -> None:
    assert jobs.workers(1.0) == ()
    jobs.claim("idle", KINDS, LEASE, 1.0)
    new(jobs)
    claimed(jobs, 2.0, "busy")
    assert jobs.workers(10.0) == ("busy", "idle")
    jobs.claim("idle", KINDS, LEASE, 14.0)
    assert jobs.workers(29.0) == ("busy", "idle")
    assert jobs.workers(40.0) == ()


def test_files_are_looked_through_under_a_lease_too(jobs: Jobs, db: Database) -> None:
    job = new(jobs, state=JobState.VALIDATING)
    assert jobs.claim("w", KINDS, LEASE, 10.0) is None
    first = jobs.claim_validating("gateway-1", 15.0, 10.0)
    assert first is not None
    assert (first.id, first.state, first.token) == (job.id, JobState.VALIDATING, 1)
    assert jobs.claim_validating("gateway-2", 15.0, 20.0) is None
    jobs.heartbeat(job.id, 1, 15.0, 24.0)
    assert jobs.claim_validating("gateway-2", 15.0, 30.0) is None
    second = jobs.claim_validating("gateway-2", 15.0, 40.0)
    assert second is not None
    with pytest.raises(StaleWorker):
        jobs.validated(job.id, 1)
    queued = jobs.validated(job.id, second.token, changes={"method": "dpo"})
    assert (queued.state, queued.payload, queued.attempts) == (JobState.QUEUED, {"n": 1, "method": "dpo"}, 0)
    assert messages(db, job)[-1] == "Files validated, moving job to queued state"
    assert claimed(jobs, 50.0).token == 3


def test_a_pause_and_a_cancellation_hold_while_files_are_looked_through(jobs: Jobs) -> None:
    paused, cancelled = (new(jobs, state=JobState.VALIDATING) for _ in range(2))
    for _ in (paused, cancelled):
        jobs.claim_validating("g", 15.0, 10.0)
    jobs.pause(paused.id, "ann", 11.0)
    assert jobs.validated(paused.id, 1).state is JobState.PAUSED
    assert jobs.cancel(cancelled.id, "ann", 11.0).state is JobState.CANCELLED
    with pytest.raises(StaleWorker):
        jobs.validated(cancelled.id, 1)


def test_a_file_that_ends_whoever_reads_it_fails_its_job(jobs: Jobs) -> None:
    job = new(jobs, state=JobState.VALIDATING)
    for attempt in range(3):
        assert jobs.claim_validating("g", 15.0, 100.0 * attempt)
    assert jobs.claim_validating("g", 15.0, 1000.0) is None
    assert jobs.get(job.id).state is JobState.FAILED


def test_keys_see_their_own_jobs_newest_first_and_page_by_page(jobs: Jobs) -> None:
    mine = [new(jobs, key_id="key_1", metadata={"n": str(n % 2)}) for n in range(5)]
    foreign = new(jobs, key_id="key_2")
    page, more = jobs.list("key_1", all_keys=False, limit=3)
    assert ([job.id for job in page], more) == ([job.id for job in mine[:1:-1]], True)
    rest, more = jobs.list("key_1", all_keys=False, limit=3, after=page[-1].id)
    assert ([job.id for job in rest], more) == ([mine[1].id, mine[0].id], False)
    odd, _ = jobs.list("key_1", all_keys=False, metadata={"n": "1"})
    assert [job.id for job in odd] == [mine[3].id, mine[1].id]
    assert len(jobs.list()[0]) == 6
    with pytest.raises(NotFound):
        jobs.get(foreign.id, "key_1", all_keys=False)
    with pytest.raises(InvalidRequest):
        jobs.list("key_1", all_keys=False, after=foreign.id)
    for odd_id in ("", "ftjob-\x00", "ftjob-\ud800"):
        with pytest.raises(NotFound):
            jobs.get(odd_id)


def test_events_are_paged_newest_first_and_followed_oldest_first(jobs: Jobs, db: Database) -> None:
    job = new(jobs)
    for n in range(4):
        jobs.event(job.id, None, "warn", "message", f"event {n}", {"n": n})
    page, more = jobs.events(job.id, limit=2)
    assert ([event.message for event in page], more) == (["event 3", "event 2"], True)
    rest, more = jobs.events(job.id, after=page[-1].id)
    assert ([event.data.get("n") for event in rest], more) == ([1, 0, None], False)
    assert rest[0].number is not None
    assert [event.data["n"] for event in queue.events_after(db, job.id, rest[0].number)] == [2, 3]
    with pytest.raises(InvalidRequest):
        jobs.events(job.id, after="ftevent-none")


def test_the_jobs_of_a_route_are_found(jobs: Jobs, db: Database) -> None:
    first = new(jobs, "support")
    with db.begin() as connection:
        active = queue.active_job_of(connection, "support")
        assert active is not None
        assert active.id == first.id
        assert queue.active_job_of(connection, "sales") is None
    jobs.cancel(first.id, "ann")
    with db.read() as connection:
        assert queue.active_job_of(connection, "support") is None
        latest = queue.latest_job_of(connection, "support")
    assert latest is not None
    assert latest.state is JobState.CANCELLED


def batch_of(db: Database, now: float = 1.0) -> Job:
    return Batches(db).create(
        input_file="file-1",
        endpoint="/v1/chat/completions",
        window="24h",
        window_seconds=86400.0,
        metadata=None,
        key_id=None,
        now=now,
    )


def test_a_batch_is_no_job_of_these(jobs: Jobs, db: Database) -> None:
    batch = batch_of(db)
    assert jobs.list() == ((), False)
    acts: list[Callable[[str], Any]] = [
        jobs.get,
        lambda id: jobs.pause(id, "ann"),
        lambda id: jobs.resume(id, "ann"),
        lambda id: jobs.cancel(id, "ann"),
        lambda id: jobs.event(id, None, "info", "message", "hello"),
    ]
    for act in acts:
        with pytest.raises(NotFound) as caught:
            act(batch.id)
        assert caught.value.code == "job_not_found"
    with pytest.raises(InvalidRequest):
        jobs.list(after=batch.id)
    assert jobs.claim_validating("g", LEASE, 10.0) is None
    assert jobs.claim("w", KINDS, LEASE, 10.0) is None
    assert Batches(db).get(batch.id) == batch


def test_claims_settle_no_batch_whose_gateway_was_lost(jobs: Jobs, db: Database) -> None:
    batch, batches = batch_of(db), Batches(db)
    for attempt in range(4):  # more often than a job may be lost
        assert batches.claim("g", LEASE, 10.0 + 100 * attempt) is not None
    batches.begin(batch.id, 4, total=1, model=None, now=311.0)
    held = batches.cancel(batch.id, "ann", now=312.0)
    assert jobs.claim("w", KINDS, LEASE, 1000.0) is None
    assert batches.get(batch.id) == held


def test_a_gateway_that_holds_a_batch_is_no_worker(jobs: Jobs, db: Database) -> None:
    batch_of(db)
    held = Batches(db).claim("gateway-1", LEASE, 10.0)
    assert held is not None
    Batches(db).begin(held.id, held.token, total=1, model=None, now=11.0)
    assert jobs.workers(12.0) == ()


def test_many_threads_claim_every_job_once_and_one_a_route(jobs: Jobs) -> None:
    for n in range(12):
        new(jobs, f"route-{n % 4}" if n % 3 else None)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: jobs.claim(f"w{n}", KINDS, LEASE, 10.0), range(24)))
    got = [job for job in found if job is not None]
    assert len({job.id for job in got}) == len(got)
    routes = [job.route for job in got if job.route is not None]
    assert len(routes) == len(set(routes)) == 4
    assert len([job for job in got if job.route is None]) == 4


CLAIM_ALL = """
import sys
from adapters.database import Database
from adapters.jobs import Jobs, JobState
db = Database(sys.argv[1])
jobs = Jobs(db)
print("ready", flush=True)
sys.stdin.readline()
while (job := jobs.claim(sys.argv[2], ["training"], 30.0, 10.0)) is not None:
    print(job.id, flush=True)
    jobs.fail(job.id, job.token, {"code": "done", "message": "done"}, now=11.0)
db.close()
"""


def test_two_processes_share_the_jobs_of_one_route_without_meeting(jobs: Jobs, database_url: str) -> None:
    made = {new(jobs, "support").id for _ in range(20)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM_ALL, database_url, f"w{n}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        for n in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    outputs = [worker.communicate("go\n", timeout=60)[0].split() for worker in workers]
    # A worker may stop early because the other one holds the route; who is left finishes the rest.
    while (job := jobs.claim("last", KINDS, LEASE, 20.0)) is not None:
        outputs.append([job.id])
        jobs.fail(job.id, job.token, {"code": "done", "message": "done"})
    done = [id for output in outputs for id in output]
    assert sorted(done) == sorted(made), "every job exactly once"
    assert all(jobs.get(id).attempts == 1 for id in made)
