"""`burnish worker`: claims training jobs one after another and runs each in a child process of its own.

Owns the claim, its lease, the child and the child's limits. Does not know what a run does: `trainer.run` does, in the
child, so that what ends a run (out of memory, a kill, a bug of a library) is that run's end and nothing else's.

    SIGTERM, SIGINT   the child saves a checkpoint after its current step and the job goes back to the queue
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from adapters import keeper
from adapters.database import Database
from adapters.errors import BurnishError, StaleWorker
from adapters.jobs import Job, Jobs, JobState
from adapters.settings import Settings, load_settings
from trainer import memory
from trainer.scheduling import thread_limits, threads_of

log = logging.getLogger("burnish.worker")

KIND = "training"

RUN_COMMAND = (sys.executable, "-m", "trainer.run")

POLL_SECONDS = 1.0
"""How often an idle worker looks for a job."""

WATCH_SECONDS = 0.5
"""How often a running child is looked at."""

GRACE_SECONDS = 60.0
"""How long a child has, when the worker is asked to stop, to finish its step and save a checkpoint."""


class Worker:
    """One worker: at most one run at a time, for as long as nobody stops it."""

    def __init__(self, settings: Settings, db: Database, command: Sequence[str] = RUN_COMMAND) -> None:
        """`command` is called with the job's id and the claim's token."""
        self.name = f"worker-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._settings = settings
        self._command = command
        self._jobs = Jobs(db, max_attempts=settings.training.max_attempts)
        self._stop = threading.Event()

    def stop(self) -> None:
        """Asks the worker to end: the run it is in goes back to the queue."""
        self._stop.set()

    def run(self) -> None:
        """Until `stop`."""
        log.info("worker_started worker=%s", self.name)
        while not self._stop.is_set():
            job = self._claim()
            if job is None:
                self._stop.wait(POLL_SECONDS)
            else:
                self._work(job)
        log.info("worker_stopped worker=%s", self.name)

    def _claim(self) -> Job | None:
        try:
            return self._jobs.claim(self.name, (KIND,), self._settings.training.lease_seconds, time.time())
        except Exception:  # the database may be away for a while
            log.exception("claim_failed worker=%s", self.name)
            return None

    def _work(self, job: Job) -> None:
        """Runs one claimed job in a child, holding its lease all the while."""
        log.info("run_started job=%s token=%d attempt=%d", job.id, job.token, job.attempts)
        child = Child(self._settings, job, self._command)
        try:
            while child.wait(WATCH_SECONDS) is None:
                self._keep(job, child)
        except StaleWorker:
            log.warning("job_lost job=%s token=%d: another worker has it", job.id, job.token)
        finally:
            child.kill()
        self._settle(job, child)

    def _keep(self, job: Job, child: Child) -> None:
        """Renews the lease, and ends the child where it must not go on. Raises StaleWorker."""
        if self._stop.is_set():
            child.ask_to_stop(GRACE_SECONDS)
        child.enforce_memory()
        if time.monotonic() < child.next_heartbeat:
            return
        child.next_heartbeat = time.monotonic() + self._settings.training.lease_seconds / 4
        try:
            self._jobs.heartbeat(job.id, job.token, self._settings.training.lease_seconds)
        except StaleWorker:
            raise
        except Exception:  # the lease outlives a few missed beats
            log.exception("heartbeat_failed job=%s", job.id)

    def _settle(self, job: Job, child: Child) -> None:
        """A child that ended in good order has said in the database how; for one that did not, this does."""
        try:
            now = self._jobs.get(job.id)
            if now.state is not JobState.RUNNING or now.token != job.token:
                log.info("run_ended job=%s state=%s", job.id, now.state)
                return
            if child.out_of_memory is not None:
                error = {"code": "out_of_memory", "message": child.out_of_memory, "param": None}
                self._jobs.fail(job.id, job.token, error)
            elif self._stop.is_set():
                self._jobs.release(job.id, job.token, counts=False)
            else:
                self._retry(now, child)
        except BurnishError as error:
            log.warning("settle_refused job=%s: %s", job.id, error.message)

    def _retry(self, job: Job, child: Child) -> None:
        how = child.ending()
        log.warning("run_died job=%s attempt=%d: %s", job.id, job.attempts, how)
        if job.attempts >= self._settings.training.max_attempts:
            message = f"the run died {job.attempts} times, the last time so: {how}"
            self._jobs.fail(job.id, job.token, {"code": "run_died", "message": message, "param": None})
            return
        self._jobs.event(
            job.id, job.token, "warn", "message", f"The run died ({how}); it is taken up again where it was."
        )
        self._jobs.release(job.id, job.token)


class Child:
    """The process of one run, under a keeper: it does not outlive the worker, nor anything outlive it."""

    def __init__(self, settings: Settings, job: Job, command: Sequence[str]) -> None:
        self.out_of_memory: str | None = None
        self.next_heartbeat = 0.0
        self._limit_bytes = memory.limit_bytes(settings.training.memory_gib)
        self._kills_before = memory.kernel_kills()
        self._kill_at: float | None = None
        self._folder = settings.run_root / job.id
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._log = self._folder / "run.log"
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(keeper.__file__)), *command, job.id, str(job.token)],
                stdin=subprocess.PIPE,  # never written: its end tells the keeper that we are gone
                stdout=output,
                stderr=output,
                env={**os.environ, **thread_limits(threads_of(settings.training.threads))},
                start_new_session=True,
            )

    def wait(self, seconds: float) -> int | None:
        """The exit status, or None if the child still runs after `seconds`."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def ask_to_stop(self, grace_seconds: float) -> None:
        """SIGTERM once; kills it when the grace is over."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + grace_seconds
            self._process.send_signal(signal.SIGTERM)
        elif time.monotonic() > self._kill_at:
            self.kill()

    def enforce_memory(self) -> None:
        """Ends a child that holds more memory than the settings allow."""
        if self._limit_bytes is None:
            return
        used = memory.resident_bytes(self._process.pid)
        if used > self._limit_bytes:
            self.out_of_memory = (
                f"the run used {used / memory.GIB:.1f} GiB, more than training.memory_gib allows "
                f"({self._limit_bytes / memory.GIB:.1f} GiB); use a smaller batch_size or max_length"
            )
            self.kill()

    def kill(self) -> None:
        """Ends the child and all it started, now; one that has ended is fine."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()  # the keeper kills everything and ends itself
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        status = self._process.returncode
        if status == 128 + signal.SIGKILL and memory.kernel_kills() > self._kills_before:
            self.out_of_memory = (
                "the kernel ended the run for lack of memory; use a smaller batch_size or max_length"
            )

    def ending(self) -> str:
        """How the child ended and the last line it wrote, for a person."""
        status = self._process.returncode
        how = f"killed by {signal.Signals(status - 128).name}" if status > 128 else f"exit code {status}"
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{how}: {lines[-1][:300]}" if lines and status != 128 + signal.SIGKILL else how


def main() -> int:
    """`python -m trainer.worker`: the settings come from the environment, as everywhere."""
    settings = load_settings(None, os.environ)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    db = Database(settings.database)
    db.upgrade()
    worker = Worker(settings, db)

    def on_signal(number: int, frame: FrameType | None) -> None:
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        worker.run()
    finally:
        db.close()
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except BurnishError as error:
        print(f"burnish worker: {error.message}", file=sys.stderr)
        raise SystemExit(1) from None
