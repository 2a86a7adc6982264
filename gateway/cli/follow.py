"""Following a job: a live display on a terminal, plain lines where nobody watches, until it has ended.

Owns what is shown and when. Does not start or change a job; Ctrl-C ends the following and nothing else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from adapters.database import Database
from adapters.errors import BurnishError
from adapters.jobs import Job, JobEvent, Jobs, JobState, events_after
from gateway.cli import terminal
from gateway.job_shapes import status_of

POLL_SECONDS = 0.5

NO_WORKER = "no worker is running, so nothing is trained yet; start one: burnish serve (or burnish worker)"

NO_WORKER_SECONDS = 3.0
"""How long a waiting job may wait before it is said that nobody is there: a worker asks each second."""


class Display(Protocol):
    def event(self, event: JobEvent) -> None: ...

    def job(self, job: Job) -> None: ...


def follow(db: Database, id: str) -> Job:
    """The job once it has ended. Raises NotFound, and KeyboardInterrupt after saying how to follow it again."""
    jobs = Jobs(db)
    try:
        with _display() as display:
            return _until_ended(db, jobs, id, display)
    except KeyboardInterrupt:
        terminal.note(
            f"the job goes on; follow it: burnish jobs watch {id}; end it: burnish jobs cancel {id}"
        )
        raise


def refuse_unsuccessful(job: Job) -> None:
    """Raises the reason of a job that made no model."""
    if job.state is JobState.SUCCEEDED:
        return
    if job.error is not None:
        raise BurnishError(f"{job.id} failed: {job.error['message']} ({job.error['code']})")
    raise BurnishError(f"{job.id} is {status_of(job)}; it made no model")


def stage(job: Job) -> str:
    """Where the job is, in one line: "train 12/80, loss 0.613, 0:01:20 left"."""
    progress = job.progress
    if job.state is not JobState.RUNNING:
        return status_of(job)
    parts = [str(progress.get("stage", "starting"))]
    if progress.get("total_steps"):
        parts[0] += f" {progress.get('step', 0)}/{progress['total_steps']}"
    if isinstance(progress.get("loss"), int | float):
        parts.append(f"loss {progress['loss']:.3f}")
    if isinstance(progress.get("eta_seconds"), int | float):
        parts.append(f"{terminal.duration(progress['eta_seconds'])} left")
    if job.wish is not None:
        parts.append(f"asked to {job.wish.value}")
    return ", ".join(parts)


def _until_ended(db: Database, jobs: Jobs, id: str, display: Display) -> Job:
    seen, began, said_no_worker = 0, time.monotonic(), False
    while True:
        job = jobs.get(id)
        for event in events_after(db, id, seen):
            display.event(event)
            seen = event.number or seen
        display.job(job)
        if job.has_ended:
            return job
        waits = job.state is JobState.QUEUED and time.monotonic() - began > NO_WORKER_SECONDS
        if waits and not said_no_worker and not jobs.workers():
            terminal.note(NO_WORKER)
            said_no_worker = True
        time.sleep(POLL_SECONDS)


@contextmanager
def _display() -> Iterator[Display]:
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("waiting", total=None)

        class Live:
            def event(self, event: JobEvent) -> None:
                if event.kind == "message":
                    progress.console.print(event.message, markup=False, highlight=False)

            def job(self, job: Job) -> None:
                total, step = job.progress.get("total_steps"), job.progress.get("step", 0)
                progress.update(task, description=stage(job), total=total, completed=step)

        yield Live()


class _Lines:
    """A line an event, and a line whenever the job comes to another stage."""

    def __init__(self) -> None:
        self._stage: str | None = None

    def event(self, event: JobEvent) -> None:
        terminal.note(f"{terminal.moment(event.at)}  {event.message}")

    def job(self, job: Job) -> None:
        stage = str(job.progress.get("stage")) if job.state is JobState.RUNNING else None
        if stage is not None and stage != self._stage:
            terminal.note(f"{terminal.moment(job.progress.get('at', job.created))}  stage: {stage}")
        self._stage = stage
