"""Looking through the files of new training jobs, in the background: queued if every line is sound, else failed.

Owns the rules of a file as a whole (its purpose was checked when the job was made; enough rows, nothing wrong in any
line) and the loop. A job is looked through under a lease, so that one whose gateway was killed is taken up by the
next gateway that is there. Does not know what a line must hold: `adapters.rows` does.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from adapters.errors import NotFound, StaleWorker
from adapters.files import Files
from adapters.jobs import Job, Jobs
from adapters.rows import Checked, bounded_lines, examine
from gateway.gently import gently

log = logging.getLogger("burnish.validation")

MIN_ROWS = 10
"""OpenAI's rule for training files."""

LEASE_SECONDS = 15.0
HEARTBEAT_SECONDS = 3.0

POLL_SECONDS = 5.0
"""How soon a job of a gateway that was killed is noticed, once its lease has ended."""


class Stopped(Exception):
    """The gateway is stopping; the job's lease will end, and another takes it up."""


class Validation:
    """The loop of one gateway. `wake` it when a job was made."""

    def __init__(self, jobs: Jobs, files: Files, name: str) -> None:
        self.wake = asyncio.Event()
        self._jobs = jobs
        self._files = files
        self._name = name
        self._stopping = threading.Event()

    async def run(self) -> None:
        try:
            while True:
                self.wake.clear()
                try:
                    while await asyncio.to_thread(self._one):
                        pass
                except Exception:  # the database may be away for a while
                    log.exception("validation_failed")
                try:
                    async with asyncio.timeout(POLL_SECONDS):
                        await self.wake.wait()
                except TimeoutError:
                    pass
        finally:
            self._stopping.set()  # the thread would otherwise go on to the end of the file

    def _one(self) -> bool:
        """Looks through the files of one job, if there is one."""
        if self._stopping.is_set():
            return False
        job = self._jobs.claim_validating(self._name, LEASE_SECONDS)
        if job is None:
            return False
        try:
            error, changes = self._verdict(job)
            self._jobs.validated(job.id, job.token, changes=changes, error=error)
        except Stopped:
            return False
        except StaleWorker:
            log.info("validation_ended_otherwise job=%s", job.id)
        return True

    def _verdict(self, job: Job) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """What is wrong, or how the payload changes."""
        source, method = job.payload["source"], job.payload["method"]
        training = self._examine(job, source["training_file"], method)
        error = file_error(training, "training_file", MIN_ROWS)
        if error is None and source.get("validation_file"):
            error = file_error(
                self._examine(job, source["validation_file"], method), "validation_file", least=1
            )
        told = training.method if training is not None else None
        return error, {"method": told} if method == "auto" and told else {}

    def _examine(self, job: Job, file_id: str, method: str) -> Checked | None:
        """None: the file is not there any more."""
        try:
            with self._files.path(file_id).open("rb") as stream:
                return examine(self._gently(job, bounded_lines(stream)), method)
        except (NotFound, FileNotFoundError):
            return None

    def _gently(self, job: Job, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The lines, with a heartbeat now and then, and rests. Raises StaleWorker, Stopped."""
        beat = time.monotonic()

        def go_on() -> None:
            nonlocal beat
            if self._stopping.is_set():
                raise Stopped
            if time.monotonic() - beat > HEARTBEAT_SECONDS:
                self._jobs.heartbeat(job.id, job.token, LEASE_SECONDS)
                beat = time.monotonic()

        return gently(lines, go_on)


def file_error(found: Checked | None, param: str, least: int) -> dict[str, Any] | None:
    """The job's error for a file as it was found; None for a sound one."""
    if found is None:
        return _error(f"invalid_{param}", "The file is not there any more.", param)
    if found.problem_count:
        return _error(f"invalid_{param}", f"The file is not sound: {found.explain()}.", param)
    rows = found.rows.total()
    if rows < least:
        words = (
            f"The file has {rows} {'example' if rows == 1 else 'examples'}, but must have at least {least}."
        )
        return _error("invalid_n_examples", words, param)
    return None


def _error(code: str, message: str, param: str) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param}
