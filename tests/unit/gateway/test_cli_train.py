"""`burnish train` and `burnish jobs`, as a person and a script meet them. The test itself is the worker."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters import jobs as queue
from adapters.batches import Batches
from adapters.database import Database
from adapters.files import Files
from adapters.jobs import EventDraft, Job, Jobs, JobState
from adapters.routes import Routes
from tests.command import Command
from tests.migrated import migrated

BASE = "smollm2-135m-instruct"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def db(home: Path) -> Iterator[Database]:
    database = migrated(home / "burnish.db")
    yield database
    database.close()


@pytest.fixture
def jobs(db: Database) -> Jobs:
    return Jobs(db)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return written(tmp_path / "train.jsonl", [{"prompt": f"{n}?", "completion": f"{n}!"} for n in range(12)])


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def run(home: Path, *arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    return Command(home).run(*arguments, status=status)


def start(home: Path, *arguments: str | Path, **streams: Any) -> subprocess.Popen[str]:
    return Command(home).start(*arguments, **streams)


def wait_for(check: Callable[[], Any], seconds: float = 20.0) -> Any:
    until = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < until, "not in time"
        time.sleep(0.05)
    return value


def taken(jobs: Jobs) -> Job:
    job = wait_for(lambda: jobs.claim("test", ["training"], 60.0))
    assert isinstance(job, Job)
    return job


def test_a_job_is_made_of_files_and_left_to_a_worker(
    home: Path, jobs: Jobs, db: Database, data: Path
) -> None:
    more = written(data.with_name("more.jsonl"), ['\ufeff{"instruction": "a", "output": "b"}'])
    done = run(
        home,
        *("train", "--data", data, "--data", more, "--route", "support", "--epochs", "3", "--rank", "8"),
        *("--validation", data, "--gate", "report", "--seed", "5", "--no-wait"),
    )
    (job,) = jobs.list()[0]
    assert done.stdout == f"{job.id}\n"
    assert "no worker is running" in done.stderr
    assert f"burnish jobs watch {job.id}" in done.stderr
    assert (job.state, job.route, job.key_id) == (JobState.QUEUED, "support", None)
    payload = job.payload
    assert (payload["adapter"], payload["base_model"], payload["method"]) == ("support", BASE, "supervised")
    assert payload["hyperparameters"] == {"n_epochs": 3, "rank": 8}
    assert (payload["gate"], payload["seed"], payload["release"]) == ("report", 5, "promote")
    assert payload["actor"].startswith("cli:")
    files = Files(db, home / "files")
    assert len(files.path(payload["source"]["training_file"]).read_bytes().splitlines()) == 13
    assert files.path(payload["source"]["validation_file"]).read_bytes() == data.read_bytes()


def test_bad_lines_are_all_named_and_nothing_is_made(
    home: Path, jobs: Jobs, db: Database, data: Path
) -> None:
    rows = data.read_text().splitlines(keepends=True)
    bad = written(data.with_name("bad.jsonl"), [rows[0], "{nope\n", rows[1], '{"prompt": "a"}\n'])
    done = run(home, "train", "--data", data, "--data", bad, "--route", "support", status=1)
    lines = done.stderr.splitlines()
    assert lines[1].startswith(f"{bad}: line 2: the line is not JSON")
    assert lines[2] == f"{bad}: line 4: `completion` must be a string"
    assert lines[3] == "burnish: 2 bad lines; nothing was started"
    assert jobs.list() == ((), False)
    assert Files(db, home / "files").list() == ((), False)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["train"], 2, "say what to learn from"),
        (["train", "--data", "DATA"], 2, "say what the result is called"),
        (["train", "a", "--route", "b"], 2, "two routes"),
        (["train", "a", "--name", "b"], 2, "--name go with --data"),
        (["train", "a", "--base", "x", "--start-from", "y@1"], 2, "leave --base out"),
        (["train", "nowhere"], 1, "there is no route 'nowhere'"),
        (["train", "--data", "NONE", "--route", "a"], 1, "No such file"),
        (["train", "--data", "DATA", "--route", "A B"], 1, "is not a valid name"),
        (["train", "--data", "DATA", "--route", "a", "--epochs", "99"], 1, "from 1 to 50"),
        (["train", "--data", "DATA", "--route", "a", "--base", "x"], 1, "cannot be trained"),
        (["train", "--data", "DATA", "--route", "a", "--start-from", "x@1"], 1, "no adapter version x@1"),
        (["train", "--data", "DATA", "--route", "a", "--method", "dpo"], 1, "12 bad lines"),
        (["train", "--data", "FEW", "--route", "a"], 1, "has 2 examples, but must have at least 10"),
        (["jobs", "show", "ftjob-none"], 1, "Could not find"),
        (["jobs", "cancel", "ftjob-none"], 1, "Could not find"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    home: Path, data: Path, arguments: list[str], status: int, words: str
) -> None:
    few = written(data.with_name("few.jsonl"), [{"prompt": "a", "completion": "b"}] * 2)
    paths = {"DATA": str(data), "FEW": str(few), "NONE": str(data.with_name("none"))}
    done = run(home, *(paths.get(argument, argument) for argument in arguments), status=status)
    assert done.stderr.splitlines()[-1].startswith("burnish: ")
    assert words in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_a_run_is_followed_to_its_model_in_plain_lines(
    home: Path, jobs: Jobs, db: Database, data: Path
) -> None:
    following = start(home, "train", "--data", data, "--route", "support")
    job = taken(jobs)
    jobs.report(job.id, job.token, {"stage": "train", "step": 1, "total_steps": 2}, [EventDraft("Step 1/2")])
    time.sleep(1.2)
    with db.begin() as connection:
        result = {"fine_tuned_model": "support@1"}
        queue.finish(connection, job.id, job.token, state=JobState.SUCCEEDED, result=result)
    out, told = following.communicate(timeout=30)
    assert (following.returncode, out) == (0, "support@1\n")
    for words in (
        f"Created fine-tuning job: {job.id}",
        "Fine-tuning job started",
        "stage: train",
        "Step 1/2",
    ):
        assert words in told
    assert "\x1b" not in told


def test_a_failed_run_is_a_failed_command_with_the_reason_in_one_line(
    home: Path, jobs: Jobs, data: Path
) -> None:
    following = start(home, "train", "--data", data, "--route", "support")
    job = taken(jobs)
    jobs.fail(job.id, job.token, {"code": "gate_failed", "message": "worse than the incumbent"})
    out, told = following.communicate(timeout=30)
    assert (following.returncode, out) == (1, "")
    assert told.splitlines()[-1] == f"burnish: {job.id} failed: worse than the incumbent (gate_failed)"


def test_ctrl_c_leaves_the_job_running_and_says_what_to_do(home: Path, jobs: Jobs, data: Path) -> None:
    following = start(home, "train", "--data", data, "--route", "support")
    job = taken(jobs)
    time.sleep(1.0)
    following.send_signal(signal.SIGINT)
    _, told = following.communicate(timeout=30)
    assert following.returncode == 130
    assert f"burnish jobs watch {job.id}" in told
    assert f"burnish jobs cancel {job.id}" in told
    assert jobs.get(job.id).state is JobState.RUNNING
    assert jobs.get(job.id).wish is None


def test_nobody_to_do_the_work_is_said_while_waiting(home: Path, jobs: Jobs, data: Path) -> None:
    following = start(home, "train", "--data", data, "--route", "support")
    assert following.stderr is not None
    for line in following.stderr:
        if "no worker is running" in line:
            break
    (job,) = jobs.list()[0]
    jobs.cancel(job.id, "test")
    assert following.wait(30) == 1


def test_a_terminal_shows_the_run_as_it_goes(home: Path, jobs: Jobs, db: Database, data: Path) -> None:
    ours, theirs = pty.openpty()
    following = start(home, "train", "--data", data, "--route", "support", stderr=theirs)
    os.close(theirs)
    job = taken(jobs)
    jobs.report(
        job.id, job.token, {"stage": "train", "step": 3, "total_steps": 9, "loss": 0.5, "eta_seconds": 75}
    )
    shown = ""
    while "train 3/9, loss 0.500, 0:01:15 left" not in shown:
        shown += os.read(ours, 4096).decode(errors="replace")
    with db.begin() as connection:
        queue.finish(
            connection, job.id, job.token, state=JobState.SUCCEEDED, result={"fine_tuned_model": "s@1"}
        )
    assert following.communicate(timeout=30)[0] == "s@1\n"
    os.close(ours)
    assert following.returncode == 0


def test_a_route_is_trained_from_its_feedback(home: Path, jobs: Jobs, db: Database) -> None:
    Routes(db, [BASE]).create("support", BASE, "test")
    made = json.loads(run(home, "train", "support", "--method", "kto", "--no-wait", "--json").stdout)
    (job,) = jobs.list()[0]
    assert (made["id"], made["route"], made["training_file"]) == (job.id, "support", "")
    assert (job.payload["source"]["kind"], job.payload["method"]) == ("feedback", "kto")
    assert job.id in run(home, "train", "support", status=1).stderr


def test_batches_are_no_jobs_of_this_command(home: Path, db: Database) -> None:
    batch = Batches(db).create(
        input_file="file-1",
        endpoint="/v1/chat/completions",
        window="24h",
        window_seconds=86400.0,
        metadata=None,
        key_id=None,
    )
    assert json.loads(run(home, "jobs", "list", "--json").stdout)["data"] == []
    for verb in ("show", "pause", "cancel"):
        assert "Could not find" in run(home, "jobs", verb, batch.id, status=1).stderr
    assert Batches(db).get(batch.id) == batch


def test_jobs_are_listed_shown_paused_resumed_and_cancelled(home: Path, jobs: Jobs, data: Path) -> None:
    run(home, "train", "--data", data, "--route", "support", "--no-wait")
    (job,) = jobs.list()[0]
    listed = run(home, "jobs", "list").stdout
    assert job.id in listed
    assert "supervised" in listed
    assert json.loads(run(home, "jobs", "list", "--route", "other", "--json").stdout)["data"] == []
    shown = run(home, "jobs", "show", job.id).stdout
    assert BASE in shown
    assert f"Created fine-tuning job: {job.id}" in shown
    assert run(home, "jobs", "pause", job.id).stdout == f"{job.id}  paused\n"
    assert run(home, "jobs", "resume", job.id).stdout == f"{job.id}  queued\n"
    taken(jobs)
    assert run(home, "jobs", "pause", job.id).stdout == f"{job.id}  running (asked to pause)\n"
    cancelled = json.loads(run(home, "jobs", "cancel", job.id, "--json").stdout)
    assert cancelled["status"] == "cancelled"
    jobs.release(job.id, 1)
    refused = run(home, "jobs", "resume", job.id, status=1)
    assert refused.stderr == f"burnish: Job {job.id} has been cancelled and cannot be resumed.\n"
    ended = run(home, "jobs", "watch", job.id, status=1)
    assert ended.stderr.splitlines()[-1] == f"burnish: {job.id} is cancelled; it made no model"
