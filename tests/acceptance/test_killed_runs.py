"""Promise 8 for training runs: whatever is killed or stopped, and when, the job ends once and publishes once.

Real processes over the fake engine; what happens to them, and where, is in killed_run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa

from adapters import schema
from adapters.files import Files
from adapters.jobs import JobState
from adapters.records import find_versions
from adapters.routes import find_route
from adapters.versions import VersionState
from tests.acceptance.workshop import (
    HARD,
    STEPS,
    TOLERANT,
    Accidents,
    SteadyClient,
    Workshop,
    always,
    teach,
    workshop,
)
from tests.conftest import MODEL, is_alive, state_of, wait_for
from trainer.memory import descendants

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LEASE_SECONDS = 4.0

# In the order in which a run comes by them.
KILLS = (
    *("drawn", "recorded", "step", "checkpoint", "saved", "trained", "copying", "renamed"),
    *("imported", "loading", "evaluating", "publishing", "published"),
)

UNHEARD = ("gateways", "workers", "completions")
"""Tables in which others write all the while: that they are alive, and what visitors ask."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    config = f"{TOLERANT}lease_seconds = {LEASE_SECONDS}\nmax_attempts = {len(KILLS)}\n"
    with workshop(tmp_path_factory.mktemp("killed") / "home", config) as made:
        teach(made.engine, better=["undisturbed", "killed@2", "orphaned", "stale", "late"], tied=["killed@1"])
        yield made


@pytest.fixture(scope="module")
def undisturbed(shop: Workshop) -> str:
    """The digest of what comes of the same rows, recipe and seed when nothing happens."""
    job = shop.order("undisturbed")
    with shop.worker():
        assert shop.until_ended(job.id).fine_tuned_model == "undisturbed@1", shop.log_of(job.id)
    (version,) = shop.versions_of(job.id)
    return version.digest


# -- what is true all the while --------------------------------------------------------------------
def whole(shop: Workshop, job_id: str, route: str, new: str, old: str = MODEL) -> Callable[[], None]:
    """That the job, its one version and the route are, at any moment, all before the publication or all after it."""

    def look() -> None:
        with shop.db.read() as connection:
            job = connection.execute(sa.select(schema.jobs).where(schema.jobs.c.id == job_id)).one()
            states = [v.state for v in find_versions(connection, removed=True) if v.origin == job_id]
            default = find_route(connection, route)
        assert default is not None
        if job.state == JobState.SUCCEEDED.value:
            assert (states, default.variant) == ([VersionState.PROVED], new)
        else:
            assert job.state in (JobState.VALIDATING.value, JobState.QUEUED.value, JobState.RUNNING.value)
            assert states in ([], [VersionState.CANDIDATE])
            assert default.variant == old

    return look


def kept_from_clients(shop: Workshop, route: str, ref: str) -> Callable[[], None]:
    """That nobody is answered by the version, or sees it, while the route's default is still the old one."""
    client = shop.client

    def look() -> None:
        listed = ref in {model.id for model in client.models.list()}
        try:
            client.chat.completions.create(
                model=ref, messages=[{"role": "user", "content": "x"}], max_tokens=4
            )
        except openai.NotFoundError:
            answers = False
        else:
            answers = True
        assert not (listed or answers) or shop.default(route) == ref

    return look


def nothing_is_left_over(shop: Workshop) -> None:
    """After a sweep the folders hold what is on record, and nothing else."""
    shop.registry.sweep(older_than_seconds=0.0)
    files = Files(shop.db, shop.server.home / "files")
    files.sweep(0.0)
    used = {version.digest for version in shop.registry.versions()}
    assert shop.registry.artifacts.digests() == used
    assert all(shop.registry.artifacts.verify(digest) for digest in used)
    assert list((shop.server.home / "artifacts" / ".staging").iterdir()) == []
    with shop.db.read() as connection:
        ids = set(connection.execute(sa.select(schema.files.c.id)).scalars())
    assert {file.name for file in (shop.server.home / "files").glob("file-*")} == ids


# -- the run is killed -----------------------------------------------------------------------------
def test_promise_08_a_run_killed_at_every_stage_publishes_once_what_it_would_have_published(
    shop: Workshop, undisturbed: str, tmp_path: Path
) -> None:
    accidents = Accidents(tmp_path, tuple(f"{point}:kill" for point in KILLS))
    files = result_files(shop)
    shop.server.add_adapter("killed")  # what serves meanwhile
    # Nothing loads the candidate until a run was killed that waited for it.
    shop.engine.set(fault="close_before_headers", fault_paths=["/v1/load_lora_adapter"])
    with SteadyClient(shop.client, "killed", HARD) as visitor:
        job = shop.order("killed", extra_body={"route": "killed"})
        with (
            always(whole(shop, job.id, "killed", "killed@2", "killed@1")),
            always(kept_from_clients(shop, "killed", "killed@2")),
            shop.worker(accidents),
        ):
            wait_for(
                lambda: accidents.happened("loading:kill") or shop.job(job.id).has_ended,
                1200,
                lambda: shop.log_of(job.id),
            )
            shop.engine.set(fault=None)
            done = shop.until_ended(job.id, 900)
            assert done.status == "succeeded", shop.log_of(job.id)
            wait_for(lambda: visitor.adapters[-1] == "killed@2", 20)
    assert [point for point in KILLS if not accidents.happened(f"{point}:kill")] == []
    assert shop.job(job.id).attempts == len(KILLS), "the last one had published"
    events = shop.events(job.id)
    assert sum(event.startswith("The run died (killed by SIGKILL") for event in events) == len(KILLS) - 1
    assert events.count("The job has successfully completed") == 1
    (version,) = shop.versions_of(job.id)
    assert (version.ref, version.state, version.digest) == ("killed@2", VersionState.PROVED, undisturbed)
    assert done.fine_tuned_model == "killed@2"
    assert result_files(shop) - files == set(done.result_files)
    assert visitor.failures == []
    assert visitor.adapters == ["killed@1", "killed@2"]
    nothing_is_left_over(shop)


def result_files(shop: Workshop) -> set[str]:
    return {file.id for file in shop.client.files.list(purpose="fine-tune-results")}


# -- the worker is killed --------------------------------------------------------------------------
def test_promise_08_a_killed_workers_run_dies_with_it_and_another_worker_goes_on_from_its_checkpoint(
    shop: Workshop, undisturbed: str, tmp_path: Path
) -> None:
    accidents = Accidents(tmp_path, ("step:wait",))
    shop.make_route("orphaned")
    job = shop.order("orphaned", extra_body={"route": "orphaned"})
    with (
        SteadyClient(shop.client, "orphaned", HARD) as visitor,
        always(whole(shop, job.id, "orphaned", "orphaned@1")),
    ):
        with shop.worker(accidents) as worker:
            wait_for(lambda: len(accidents.steps) > 2, 120, lambda: shop.log_of(job.id))
            processes = [*descendants(worker.pid)]
            worker.kill()
            wait_for(lambda: not any(map(is_alive, processes)), 30)
        assert shop.job(job.id).state is JobState.RUNNING, "until its lease is over"
        with shop.worker(Accidents(tmp_path)):
            done = shop.until_ended(job.id)
            assert done.status == "succeeded", shop.log_of(job.id)
            wait_for(lambda: visitor.adapters[-1] == "orphaned@1", 20)
    assert "Job goes on: its worker was lost" in shop.events(job.id)
    first, second = accidents.attempts
    assert second == list(range(second[0], STEPS + 1))
    assert second[0] - 1 in (2, 4, 6), "it goes on after a checkpoint"
    assert second[0] - 1 >= first[-1] - 2, "the last one"
    (version,) = shop.versions_of(job.id)
    assert (version.state, version.digest) == (VersionState.PROVED, undisturbed)
    assert visitor.failures == []
    assert visitor.adapters == ["base", "orphaned@1"]


# -- the stale -------------------------------------------------------------------------------------
def test_promise_08_stale_runs_that_wake_up_after_another_worker_has_finished_change_nothing(
    shop: Workshop, undisturbed: str, tmp_path: Path
) -> None:
    shop.make_route("stale")
    job = shop.order("stale", extra_body={"route": "stale"})
    with always(whole(shop, job.id, "stale", "stale@1")), contextlib.ExitStack() as workers:
        sleepers = []
        for planned in ("step:stop", "proved:stop"):
            worker = workers.enter_context(shop.worker(Accidents(tmp_path, (planned,))))
            sleepers.append(asleep(worker, shop, job.id))
        with shop.worker():
            done = shop.until_ended(job.id)
            assert done.status == "succeeded", shop.log_of(job.id)
        before = everything(shop, job.id)
        for sleeper in sleepers:
            os.kill(sleeper, signal.SIGCONT)
            wait_for(lambda pid=sleeper: not is_alive(pid), 60)  # type: ignore[misc]
            assert everything(shop, job.id) == before
        assert shop.log_of(job.id).count(f"claim_lost job={job.id}") == len(sleepers)
    assert everything(shop, job.id) == before, "their workers have nothing to say either"
    (version,) = shop.versions_of(job.id)
    assert (version.state, version.digest) == (VersionState.PROVED, undisturbed)
    assert shop.job(job.id).attempts == 3


def test_promise_08_a_stale_run_of_a_cancelled_job_imports_nothing(shop: Workshop, tmp_path: Path) -> None:
    job = shop.order("late")
    with shop.worker(Accidents(tmp_path, ("copying:stop",))) as worker:
        sleeper = asleep(worker, shop, job.id)
        wait_for(lambda: (shop.job(job.id).lease_until or 0) < time.time(), 30)
        assert shop.client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        before = everything(shop, job.id)
        os.kill(sleeper, signal.SIGCONT)
        wait_for(lambda: not is_alive(sleeper), 60)
        assert everything(shop, job.id) == before
        assert f"claim_lost job={job.id}" in shop.log_of(job.id)
    assert shop.versions_of(job.id) == []
    nothing_is_left_over(shop)


def asleep(worker: subprocess.Popen[bytes], shop: Workshop, job_id: str) -> int:
    """Waits until the worker's run stands still, and stops its keeper and the worker too; the run's process.

    Just after the worker has renewed its lease, so that it does not stand still in a transaction: that would be the
    end of every other write.
    """

    def stopped() -> list[int]:
        return [pid for pid in descendants(worker.pid) if state_of(pid) == "T"]

    (run,) = wait_for(stopped, 300, lambda: shop.log_of(job_id))
    lease = shop.job(job_id).lease_until
    wait_for(lambda: shop.job(job_id).lease_until != lease)
    for pid in (worker.pid, *descendants(worker.pid)):
        os.kill(pid, signal.SIGSTOP)
    return int(run)


def everything(shop: Workshop, job_id: str) -> dict[str, Any]:
    """All that is on record and on disk, so that any write shows: by table, and by file its time and its digest."""
    found: dict[str, Any] = {}
    with shop.db.read() as connection:
        for table in schema.metadata.sorted_tables:
            if table.name not in UNHEARD:
                found[table.name] = sorted(map(repr, connection.execute(sa.select(table))))
    home = shop.server.home
    folders = (home / "cards", home / "artifacts", home / "files", home / "runs" / job_id)
    for file in (file for folder in folders for file in folder.rglob("*") if file.is_file()):
        if file.name != "run.log" and not {"tensorboard", ".staging"} & set(file.parts):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            found[str(file.relative_to(home))] = (file.stat().st_mtime_ns, digest)
    return found
