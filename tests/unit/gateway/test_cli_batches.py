"""`burnish batches`, as a person and a script meet it. The test itself is the gateway."""

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

from adapters.batches import Batches
from adapters.database import Database
from adapters.files import Files, Purpose, StoredFile
from adapters.jobs import Job, JobState
from adapters.placements import Placements
from gateway.cli.batch_watch import SPEED_SECONDS, Speed
from tests.command import Command
from tests.migrated import migrated

CHAT = "/v1/chat/completions"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def db(home: Path) -> Iterator[Database]:
    database = migrated(home / "burnish.db")
    yield database
    database.close()


@pytest.fixture
def batches(db: Database) -> Batches:
    return Batches(db)


@pytest.fixture
def files(db: Database, home: Path) -> Files:
    return Files(db, home / "files")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return written(tmp_path / "in.jsonl", [request(str(n)) for n in range(10)])


def request(custom_id: str, url: str = CHAT) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m", "messages": []}}


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def run(home: Path, *arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    return Command(home, "batches").run(*arguments, status=status)


def start(home: Path, *arguments: str | Path, **streams: Any) -> subprocess.Popen[str]:
    return Command(home, "batches").start(*arguments, **streams)


def wait_for(check: Callable[[], Any], seconds: float = 20.0) -> Any:
    until = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < until, "not in time"
        time.sleep(0.05)
    return value


def taken(batches: Batches, total: int = 10) -> Job:
    job = wait_for(lambda: batches.claim("test", 60.0))
    return batches.begin(job.id, job.token, total=total, model="m")


def placed(files: Files, text: bytes) -> StoredFile:
    with files.stage() as staged:
        staged.write(text)
        return files.place(staged, "output.jsonl", Purpose.BATCH_OUTPUT, None)


def end(
    batches: Batches, job: Job, state: JobState, output: StoredFile | None, errors: StoredFile | None = None
) -> Job:
    told = {"completed": 9, "failed": 1}
    return batches.finish(job.id, job.token, state=state, output=output, errors=errors, progress=told)


def test_a_batch_is_made_of_a_file_and_left_to_a_gateway(
    home: Path, batches: Batches, files: Files, data: Path
) -> None:
    done = run(
        home,
        *("create", data, "--window", "90m", "--metadata", "team=a", "--metadata", "note=x=y"),
    )
    (job,) = batches.list()[0]
    assert done.stdout == f"{job.id}\n"
    assert "no gateway is running" in done.stderr
    assert f"burnish batches watch {job.id}" in done.stderr
    assert (job.state, job.key_id, job.metadata) == (
        JobState.VALIDATING,
        None,
        {"team": "a", "note": "x=y"},
    )
    assert (job.payload["endpoint"], job.payload["window"]) == (CHAT, "90m")
    assert job.payload["expires"] == pytest.approx(job.created + 5400)
    assert files.path(job.payload["input_file"]).read_bytes() == data.read_bytes()
    assert files.get(job.payload["input_file"]).purpose is Purpose.BATCH


def test_a_gateway_that_runs_is_not_missed(home: Path, db: Database, data: Path) -> None:
    Placements(db).heartbeat("gateway-1", "http://127.0.0.1:1")
    assert "no gateway" not in run(home, "create", data).stderr


def test_bad_lines_are_all_named_and_nothing_is_made(
    home: Path, batches: Batches, files: Files, data: Path
) -> None:
    bad = written(data.with_name("bad.jsonl"), [request("a"), "{nope\n", request("b"), request("a")])
    done = run(home, "create", bad, status=1)
    lines = done.stderr.splitlines()
    assert lines[1].startswith(f"{bad}: line 2: the line is not JSON")
    assert lines[2].startswith(f"{bad}: line 4: `custom_id` is that of line 1")
    assert lines[3] == f"burnish: 2 problems in {bad}; no batch was made"
    assert batches.list() == ((), False)
    assert files.list() == ((), False)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["create"], 2, "Missing argument"),
        (["create", "NONE"], 1, "No such file"),
        (["create", "DATA", "--endpoint", "/v1/messages"], 2, "is none of /v1/chat/completions"),
        (["create", "DATA", "--endpoint", "/v1/embeddings"], 1, "10 problems"),
        (["create", "DATA", "--window", "31d"], 2, "from 1s to 30d"),
        (["create", "DATA", "--metadata", "team"], 2, "NAME=VALUE"),
        (["create", "DATA", "--metadata", f"team={'x' * 600}"], 1, "512"),
        (["create", "DATA", "--output", "x"], 2, "--output goes with --watch"),
        (["show", "batch_none"], 1, "batch_none"),
        (["watch", "batch_none"], 1, "batch_none"),
        (["cancel", "batch_none"], 1, "batch_none"),
        (["results", "batch_none"], 1, "batch_none"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    home: Path, data: Path, arguments: list[str], status: int, words: str
) -> None:
    paths = {"DATA": str(data), "NONE": str(data.with_name("none"))}
    done = run(home, *(paths.get(argument, argument) for argument in arguments), status=status)
    assert done.stderr.splitlines()[-1].startswith("burnish: ")
    assert words in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_a_file_may_be_as_large_as_the_settings_say(home: Path, data: Path) -> None:
    config = home / "burnish.toml"
    home.mkdir(exist_ok=True)
    config.write_text("[batches]\nmax_file_bytes = 100\n")
    done = Command(home).run("--config", config, "batches", "create", data, status=1)
    assert "may have 100" in done.stderr


def test_a_batch_is_followed_to_its_answers_in_plain_lines(
    home: Path, batches: Batches, files: Files, data: Path
) -> None:
    answers = data.with_name("out.jsonl")
    following = start(home, "create", data, "--watch", "--output", answers)
    job = taken(batches)
    batches.heartbeat(job.id, job.token, 60.0, {"completed": 4})
    time.sleep(1.2)
    end(batches, job, JobState.SUCCEEDED, placed(files, b'{"a": 1}\n'))
    out, told = following.communicate(timeout=30)
    (ended,) = batches.list()[0]
    assert ended.result is not None
    assert following.returncode == 0, told
    assert out == f"{job.id}  completed  answers {ended.result['output_file']}\n"
    assert answers.read_bytes() == b'{"a": 1}\n'
    assert "in_progress" in told
    assert "completed 10/10, 1 failed" in told
    assert "\x1b" not in told


def test_a_terminal_shows_the_batch_as_it_goes(
    home: Path, batches: Batches, files: Files, data: Path
) -> None:
    ours, theirs = pty.openpty()
    following = start(home, "create", data, "--watch", stderr=theirs)
    os.close(theirs)
    job = taken(batches)
    shown, told = "", 1
    while "lines/s" not in shown:
        batches.heartbeat(job.id, job.token, 60.0, {"completed": told, "failed": 1})
        told = min(told + 1, 8)
        shown += os.read(ours, 4096).decode(errors="replace")
    assert "/10, 1 failed" in shown
    end(batches, job, JobState.SUCCEEDED, placed(files, b"{}\n"))
    assert "completed" in following.communicate(timeout=30)[0]
    os.close(ours)
    assert following.returncode == 0


def test_ctrl_c_leaves_the_batch_going_and_says_what_to_do(home: Path, batches: Batches, data: Path) -> None:
    following = start(home, "create", data, "--watch")
    job = taken(batches)
    time.sleep(1.0)
    following.send_signal(signal.SIGINT)
    _, told = following.communicate(timeout=30)
    assert following.returncode == 130
    assert f"burnish batches watch {job.id}" in told
    assert f"burnish batches cancel {job.id}" in told
    found = batches.get(job.id)
    assert (found.state, found.wish) == (JobState.RUNNING, None)


def test_nobody_to_answer_is_said_while_waiting(home: Path, batches: Batches, data: Path) -> None:
    following = start(home, "create", data, "--watch")
    assert following.stderr is not None
    for line in following.stderr:
        if "no gateway is running" in line:
            break
    (job,) = batches.list()[0]
    batches.cancel(job.id, "test")
    assert following.wait(30) == 1


@pytest.mark.parametrize("state", [JobState.EXPIRED, JobState.CANCELLED])
def test_a_batch_that_ended_before_its_time_is_a_failed_command(
    home: Path, batches: Batches, files: Files, data: Path, state: JobState
) -> None:
    id = run(home, "create", data).stdout.strip()
    job = taken(batches)
    end(batches, job, state, placed(files, b"{}\n"))
    done = run(home, "watch", id, status=1)
    assert done.stderr.splitlines()[-1] == (
        f"burnish: {id} is {state.value}, 10/10 lines done; what was answered: burnish batches results {id}"
    )
    assert json.loads(run(home, "watch", id, "--json", status=1).stdout)["status"] == state.value


def test_a_batch_of_a_bad_file_says_what_is_wrong_in_it(home: Path, batches: Batches, data: Path) -> None:
    id = run(home, "create", data).stdout.strip()
    job = wait_for(lambda: batches.claim("test", 60.0))
    problems = [
        {"code": "invalid_url", "line": line, "message": "wrong", "param": "url"} for line in (3, 5, 8)
    ]
    batches.refuse(job.id, job.token, problems)
    told = run(home, "watch", id, status=1).stderr.splitlines()[-1]
    assert told == (
        f"burnish: {id} failed: line 3: wrong (invalid_url); and 2 more: burnish batches show {id}"
    )
    shown = run(home, "show", id).stdout
    for line in (3, 5, 8):
        assert f"line {line}: wrong (invalid_url)" in shown


def test_results_are_printed_or_written_and_errors_apart(
    home: Path, batches: Batches, files: Files, data: Path
) -> None:
    id = run(home, "create", data).stdout.strip()
    job = taken(batches)
    assert "follow it" in run(home, "results", id, status=1).stderr
    end(batches, job, JobState.SUCCEEDED, placed(files, b'{"good": 1}\n'), placed(files, b'{"bad": 1}\n'))
    assert run(home, "results", id).stdout == '{"good": 1}\n'
    assert run(home, "results", id, "--errors").stdout == '{"bad": 1}\n'
    target = data.with_name("errors.jsonl")
    assert run(home, "results", id, "--errors", "--output", target).stdout == ""
    assert target.read_text() == '{"bad": 1}\n'


def test_a_batch_without_answers_says_where_its_errors_are(
    home: Path, batches: Batches, files: Files, data: Path
) -> None:
    id = run(home, "create", data).stdout.strip()
    end(batches, taken(batches), JobState.SUCCEEDED, None, placed(files, b"{}\n"))
    assert "has no answered lines; see --errors" in run(home, "results", id, status=1).stderr


def test_batches_are_listed_shown_and_cancelled(home: Path, batches: Batches, data: Path) -> None:
    ids = [run(home, "create", data).stdout.strip() for _ in range(2)]
    listed = run(home, "list").stdout
    assert all(id in listed for id in ids)
    page = json.loads(run(home, "list", "--limit", "1", "--json").stdout)
    assert ([batch["id"] for batch in page["data"]], page["has_more"]) == ([ids[1]], True)
    job = taken(batches)
    batches.heartbeat(job.id, job.token, 60.0, {"completed": 3, "failed": 1})
    shown = run(home, "show", ids[0]).stdout
    assert "in_progress" in shown
    assert "4/10" in shown
    assert run(home, "cancel", ids[0]).stdout == f"{ids[0]}  cancelling\n"
    assert json.loads(run(home, "cancel", ids[1], "--json").stdout)["status"] == "cancelled"
    refused = run(home, "cancel", ids[1], status=1)
    assert refused.stderr == "burnish: Cannot cancel a batch with status 'cancelled'.\n"


def test_the_speed_is_that_of_late() -> None:
    speed = Speed()
    speed.see(100.0, 0)
    assert speed.per_second == 0.0
    speed.see(101.0, 10)
    assert speed.per_second == 10.0
    for second in range(102, 102 + int(SPEED_SECONDS) + 1):
        speed.see(float(second), 10)
    assert speed.per_second == 0.0
