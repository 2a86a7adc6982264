"""The worker with cheap real children: whatever ends a run is that run's end, and nothing else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.database import Database
from adapters.jobs import Job, Jobs, JobState
from adapters.settings import Settings
from tests.migrated import migrated
from trainer.worker import Worker

PAYLOAD: dict[str, Any] = {}

FINISHES = """
import os, sys, time
from adapters.database import Database
from adapters.jobs import JobState, finish
db = Database(os.environ["TEST_DATABASE"])
with db.begin() as connection:
    finish(connection, sys.argv[1], int(sys.argv[2]), state=JobState.SUCCEEDED, result={"token": int(sys.argv[2])})
"""

DIES = "import sys; print('ValueError: no such thing', file=sys.stderr); sys.exit(3)"

SLEEPS = """
import os, sys, time
from pathlib import Path
Path(os.environ["TEST_PIDS"]).open("a").write(f"{os.getpid()}\\n")
time.sleep(600)
"""

POLITE = SLEEPS.replace("import os", "import os, signal").replace(
    "time.sleep", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\ntime.sleep"
)

GREEDY = """
import time
held = bytearray(600_000_000)
held[::4096] = b"x" * len(held[::4096])
time.sleep(600)
"""

WORKER = """
import os, sys
from pathlib import Path
from adapters.database import Database
from adapters.settings import Settings
from trainer.worker import Worker
settings = Settings(home=Path(sys.argv[1]))
Worker(settings, Database(settings.database), (sys.executable, "-c", sys.argv[2])).run()
"""


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    training = {"lease_seconds": 2.0, "max_attempts": 2}
    return Settings.model_validate({"home": tmp_path / "home", "training": training})


@pytest.fixture
def db(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    database = migrated(settings.home / "burnish.db")
    monkeypatch.setenv("TEST_DATABASE", settings.database)
    monkeypatch.setenv("TEST_PIDS", str(settings.home / "pids"))
    yield database
    database.close()


@pytest.fixture
def start(settings: Settings, db: Database) -> Iterator[Callable[..., Worker]]:
    """Starts a worker, in a thread of this process, whose runs are the given program."""
    running: list[tuple[Worker, threading.Thread]] = []

    def begin(program: str, with_settings: Settings = settings) -> Worker:
        worker = Worker(with_settings, db, (sys.executable, "-c", program))
        thread = threading.Thread(target=worker.run)
        thread.start()
        running.append((worker, thread))
        return worker

    yield begin
    for worker, thread in running:
        worker.stop()
        thread.join(30)
        assert not thread.is_alive()


def queued(db: Database, route: str = "support") -> Job:
    return Jobs(db).enqueue(kind="training", route=route, payload=PAYLOAD)


def pids(settings: Settings) -> list[int]:
    file = settings.home / "pids"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def ended(db: Database, job: Job) -> Job | None:
    now = Jobs(db).get(job.id)
    return now if now.has_ended else None


def test_a_run_that_finishes_its_job_is_left_alone(db: Database, start: Callable[..., Worker]) -> None:
    job = queued(db)
    start(FINISHES)
    done = until(lambda: ended(db, job))
    assert (done.state, done.attempts, done.result) == (JobState.SUCCEEDED, 1, {"token": 1})


def test_promise_08_a_run_that_dies_is_taken_up_again_and_fails_in_the_end_with_its_reason(
    db: Database, start: Callable[..., Worker]
) -> None:
    job = queued(db)
    start(DIES)
    done = until(lambda: ended(db, job))
    assert (done.state, done.attempts) == (JobState.FAILED, 2)
    assert done.error is not None
    assert done.error["code"] == "run_died"
    assert "exit code 3: ValueError: no such thing" in done.error["message"]


def test_a_run_that_takes_too_much_memory_fails_with_that_reason_and_the_next_one_runs(
    settings: Settings, db: Database, start: Callable[..., Worker]
) -> None:
    greedy = queued(db)
    bounded = settings.model_copy(
        update={"training": settings.training.model_copy(update={"memory_gib": 0.25})}
    )
    start(GREEDY, bounded)
    failed = until(lambda: ended(db, greedy))
    assert failed.error is not None
    assert failed.error["code"] == "out_of_memory"
    assert "training.memory_gib" in failed.error["message"]
    assert failed.attempts == 1


def test_promise_07_no_library_of_a_run_takes_more_threads_than_the_settings_allow(
    settings: Settings, db: Database, start: Callable[..., Worker]
) -> None:
    job = queued(db)
    bounded = settings.model_copy(update={"training": settings.training.model_copy(update={"threads": 3})})
    start(FINISHES.replace('{"token": int(sys.argv[2])}', "dict(os.environ)"), bounded)
    done = until(lambda: ended(db, job))
    assert done.result is not None
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    assert {done.result[name] for name in names} == {"3"}


def test_a_lease_is_kept_for_as_long_as_the_run_takes(
    settings: Settings, db: Database, start: Callable[..., Worker]
) -> None:
    job = queued(db)
    start(SLEEPS)
    until(lambda: pids(settings))
    time.sleep(settings.training.lease_seconds * 1.5)
    now = Jobs(db).get(job.id)
    assert (now.state, now.token) == (JobState.RUNNING, 1)
    assert Jobs(db).claim("another", ("training",), 2.0) is None


def test_promise_08_a_worker_that_lost_its_job_ends_its_run(
    settings: Settings, db: Database, start: Callable[..., Worker]
) -> None:
    job = queued(db)
    start(SLEEPS)
    (pid,) = until(lambda: pids(settings))
    late = time.time() + settings.training.lease_seconds + 60  # as if this worker had been asleep
    taken = Jobs(db).claim("another", ("training",), 600.0, late)
    assert taken is not None
    assert taken.token == 2
    until(lambda: not alive(pid))
    assert Jobs(db).get(job.id).worker == "another"


def test_promise_08_a_killed_worker_leaves_no_run_behind_and_another_takes_the_job_up(
    settings: Settings, db: Database, start: Callable[..., Worker]
) -> None:
    job = queued(db)
    # The settings of this process: a lease of 30 s, so that what is seen below is the kill and not the lease's end.
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(settings.home), SLEEPS], env=os.environ)
    (pid,) = until(lambda: pids(settings))
    worker.kill()
    worker.wait()
    until(lambda: not alive(pid))
    taken = Jobs(db).claim("another", ("training",), 2.0, time.time() + 31)
    assert taken is not None
    assert (taken.id, taken.token) == (job.id, 2)


def test_a_stopped_worker_puts_its_job_back(
    settings: Settings, db: Database, start: Callable[..., Worker]
) -> None:
    job = queued(db)
    worker = start(POLITE)
    (pid,) = until(lambda: pids(settings))
    worker.stop()
    until(lambda: Jobs(db).get(job.id).state is JobState.QUEUED)
    assert not alive(pid)


def test_the_worker_stops_on_sigterm(settings: Settings, db: Database) -> None:
    environment = {**os.environ, "BURNISH_HOME": str(settings.home)}
    worker = subprocess.Popen(
        [sys.executable, "-m", "trainer.worker"], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert worker.stderr is not None
    assert "worker_started" in worker.stderr.readline()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
