"""Following a batch: a progress bar on a terminal, plain lines where nobody watches, until it has ended.

Owns what is shown and when. Does not change a batch; Ctrl-C ends the following and nothing else.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adapters.batches import Batches
from adapters.jobs import Job
from gateway.batch_shapes import status_of
from gateway.cli import terminal
from gateway.cli.records import Records
from gateway.imports import a_gateway_is_alive

POLL_SECONDS = 0.5

NO_GATEWAY = "no gateway is running, so nothing is answered yet; start one: burnish serve"

NO_GATEWAY_SECONDS = 3.0
"""How long a batch may stand still before it is said that nobody is there: a gateway looks every two seconds."""

SPEED_SECONDS = 15.0
"""Over how long the speed is taken: progress is told once a second, and answers come in bursts."""

TOLD_SECONDS = 10.0
"""Between two plain lines of one status."""


class Speed:
    """Lines a second, of late."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, now: float, done: int) -> None:
        self._seen.append((now, done))
        while now - self._seen[0][0] > SPEED_SECONDS:
            self._seen.popleft()

    @property
    def per_second(self) -> float:
        """0 while it cannot be told."""
        (began, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - began) if now > began else 0.0


def watched(records: Records, id: str) -> Job:
    """The batch once it has ended. Raises NotFound, and KeyboardInterrupt after saying how to follow it again."""
    try:
        with _display() as show:
            return _until_ended(records, id, show)
    except KeyboardInterrupt:
        terminal.note(
            f"the batch goes on; follow it: burnish batches watch {id}; end it: burnish batches cancel {id}"
        )
        raise


def done_of(job: Job) -> str:
    """Lines done, of how many: "12/80"."""
    return f"{_done(job)}/{job.progress['total']}" if "total" in job.progress else ""


def stage(job: Job, per_second: float) -> str:
    """Where the batch is, in one line: "in_progress 12/80, 1 failed, 3.4 lines/s, 0:00:20 left"."""
    parts = [f"{status_of(job)} {done_of(job)}".rstrip()]
    failed, left = job.progress.get("failed", 0), job.progress.get("total", 0) - _done(job)
    if failed:
        parts.append(f"{failed} failed")
    if per_second > 0 and not job.has_ended:
        parts.append(f"{per_second:.1f} lines/s")
        if left:
            parts.append(f"{terminal.duration(left / per_second)} left")
    return ", ".join(parts)


def _done(job: Job) -> int:
    return int(job.progress.get("completed", 0) + job.progress.get("failed", 0))


Show = Callable[[Job, float], None]


def _until_ended(records: Records, id: str, show: Show) -> Job:
    batches, speed = Batches(records.db), Speed()
    began, is_said = time.monotonic(), False
    while True:
        job = batches.get(id)
        now = time.monotonic()
        speed.see(now, _done(job))
        show(job, speed.per_second)
        if job.has_ended:
            return job
        if now - began > NO_GATEWAY_SECONDS and not is_said and not a_gateway_is_alive(records.placements):
            terminal.note(NO_GATEWAY)
            is_said = True
        time.sleep(POLL_SECONDS)


@contextmanager
def _display() -> Iterator[Show]:
    if not sys.stderr.isatty():
        yield _Lines().show
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("waiting", total=None)

        def show(job: Job, per_second: float) -> None:
            progress.update(
                task,
                description=stage(job, per_second),
                total=job.progress.get("total"),
                completed=_done(job),
            )

        yield show


class _Lines:
    """A line whenever the batch comes to another status, and now and then in between, where something was done."""

    def __init__(self) -> None:
        self._told: tuple[str, int] | None = None
        self._at = 0.0

    def show(self, job: Job, per_second: float) -> None:
        now, told = time.monotonic(), (status_of(job), _done(job))
        is_new = self._told is None or told[0] != self._told[0]
        if is_new or (told != self._told and now - self._at > TOLD_SECONDS):
            terminal.note(f"{terminal.moment(time.time())}  {stage(job, per_second)}")
            self._told, self._at = told, now
