"""One claimed batch on its way: its file looked through, its lines asked, their answers put into files.

Owns the order, what is asked again and how often, and how a batch ends. Every line that is answered is on disk before
the next one takes its place, under the claim's token, so that a gateway that takes the batch up after a kill asks only
what has no answer yet, and one that lost its claim writes nothing (promise 8). Does not know what a line must look like
(`batch_input`), nor when it may go (`admission`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from adapters.batch_lines import LineResult, add_usage, no_usage, put_results
from adapters.batches import Batches
from adapters.errors import BurnishError, NotFound, StaleWorker, Unauthorized
from adapters.files import Files
from adapters.jobs import Job, JobState, Wish
from adapters.rows import bounded_lines
from adapters.settings import Batches as BatchSettings
from adapters.writer import Writer
from gateway import access
from gateway.access import Caller
from gateway.admission import Evicted
from gateway.batch_files import Reader, write_results
from gateway.batch_input import Line, examine
from gateway.batch_shapes import EXPIRED_LINE, error_line, result_line
from gateway.endpoints import ENDPOINTS
from gateway.gently import gently
from gateway.inference import Inference
from gateway.open_lines import OpenLines
from gateway.protocol.errors import openai_error
from gateway.routing import Snapshot
from gateway.snapshots import Snapshots
from gateway.traffic import Traffic
from gateway.visit import Answered

log = logging.getLogger("burnish.batches")

LEASE_SECONDS = 6.0
"""How soon another gateway takes up what a killed one has left."""

BEAT_SECONDS = 1.0
"""How often progress is told and wishes are heard."""

MAX_EVICTIONS = 3
"""After that a line keeps its place: it would never end otherwise."""

BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)
WAITS = frozenset({429, 503})
"""Statuses that say "not now": asked again until the batch expires. A 429 without a time to wait is for good."""

FAILS = frozenset({500, 502, 504})
"""Statuses that another try may mend; `max_attempts` of them."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What batches are worked on with."""

    batches: Batches
    files: Files
    writer: Writer
    inference: Inference
    snapshots: Snapshots
    settings: BatchSettings


@dataclass(slots=True)
class _Counts:
    completed: int = 0
    failed: int = 0
    usage: dict[str, Any] = field(default_factory=no_usage)

    def add(self, result: LineResult) -> None:
        self.failed += result.is_error
        self.completed += not result.is_error
        self.usage = add_usage(self.usage, result.body)

    def told(self) -> dict[str, Any]:
        return {"completed": self.completed, "failed": self.failed, "usage": self.usage}


class BatchWork:
    """One batch, from its claim to its end or to the loss of its claim."""

    def __init__(self, parts: Parts, job: Job) -> None:
        self._parts = parts
        self._job = job
        self._endpoint = ENDPOINTS[job.payload["endpoint"]]
        self._counts = _Counts()
        self._answered: set[int] = set()
        self._is_counted = False
        self._ending: JobState | None = None
        self._problems: list[dict[str, Any]] = []
        self._lost = False
        self._open = OpenLines(lambda: self._is_over)
        self._caller: tuple[Snapshot, Caller] | None = None

    async def go(self) -> None:
        """Raises StaleWorker where another has the batch by now. Cancelled, it leaves the batch to be released."""
        self._heed(self._job.wish)
        beat = asyncio.create_task(self._beat(), name=f"beat {self._job.id}")
        try:
            if self._job.state is JobState.VALIDATING and not await self._validate():
                return
            await self._answer_lines()
            await self._finalize()
        finally:
            beat.cancel()

    # -- the claim ---------------------------------------------------------------------------------
    async def _beat(self) -> None:
        """Holds the lease, tells how far it is, hears what is wished, sees the time pass."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            told = self._counts.told() if self._is_counted else None
            try:
                wish = await asyncio.to_thread(
                    self._parts.batches.heartbeat, self._job.id, self._job.token, LEASE_SECONDS, told
                )
            except StaleWorker:
                self._lose()
                return
            except Exception:  # the database may be away for a while; the lease outlives a few beats
                log.exception("batch_heartbeat_failed batch=%s", self._job.id)
                continue
            self._heed(wish)

    def _heed(self, wish: Wish | None) -> None:
        if wish is Wish.CANCEL:
            self._end(JobState.CANCELLED)
        elif time.time() >= self._job.payload["expires"]:
            self._end(JobState.EXPIRED)

    def _lose(self) -> None:
        self._lost = True
        self._open.look()

    def _end(self, state: JobState) -> None:
        """No more lines are asked, and those under way are given up."""
        self._ending = self._ending or state
        self._open.look()

    # -- validating --------------------------------------------------------------------------------
    async def _validate(self) -> bool:
        """Whether the file is sound; the batch has failed if not."""
        job = self._job
        try:
            path = await asyncio.to_thread(self._parts.files.path, job.payload["input_file"])
            found = await asyncio.to_thread(self._examine, path)
        except (NotFound, FileNotFoundError):
            await asyncio.to_thread(self._parts.batches.refuse, job.id, job.token, [_file_gone(job)])
            return False
        if found.problems:
            problems = [
                {"code": p.code, "line": p.line, "message": p.message, "param": p.param}
                for p in found.problems
            ]
            await asyncio.to_thread(self._parts.batches.refuse, job.id, job.token, problems)
            return False
        begin = functools.partial(self._parts.batches.begin, total=found.total, model=found.model)
        self._job = await asyncio.to_thread(begin, job.id, job.token)
        self._is_counted = True
        return True

    def _examine(self, path: Path) -> Any:
        with path.open("rb") as stream:
            lines = gently(bounded_lines(stream), self._go_on)
            return examine(lines, self._endpoint.path, self._parts.settings.max_lines)

    def _go_on(self) -> None:
        """Between two rests of a thread. Raises StaleWorker where it must not."""
        if self._lost:
            raise StaleWorker(f"Batch {self._job.id} is another gateway's by now.")

    # -- the lines ---------------------------------------------------------------------------------
    async def _answer_lines(self) -> None:
        """Returns once every line has its answer, or no more are to be asked. Raises StaleWorker."""
        await self._resume()
        try:
            path = await asyncio.to_thread(self._parts.files.path, self._job.payload["input_file"])
            lines = await asyncio.to_thread(Reader, path, frozenset(self._answered))
        except (NotFound, FileNotFoundError):
            if len(self._answered) < self._job.progress["total"]:
                self._problems = [_file_gone(self._job)]
                self._end(JobState.FAILED)
            return
        try:
            with contextlib.closing(lines):
                while not self._is_over and (page := await asyncio.to_thread(lines.page)):
                    for line, size in page:
                        await self._open.until_room()
                        if self._is_over:
                            break
                        self._open.add(self._line(line), size)
                await self._open.until_none()
        finally:
            await self._open.give_up()
        self._go_on()

    async def _resume(self) -> None:
        if not self._is_counted:
            done = await asyncio.to_thread(self._parts.batches.done, self._job.id)
            self._answered = set(done.lines)
            self._counts = _Counts(done.completed, done.failed, dict(done.usage))
            self._is_counted = True

    async def _count_again(self) -> None:
        """Of the lines that were given up some were on their way to the disk."""
        await self._parts.writer.submit_soon(lambda connection: None)  # they are there before this is
        self._is_counted = False
        await self._resume()

    @property
    def _is_over(self) -> bool:
        return self._lost or self._ending is not None

    async def _line(self, line: Line) -> None:
        """One line from its turn to its answer on disk."""
        answered = await self._ask(line)
        body = orjson.loads(answered.body)
        is_error = answered.status >= 400
        told = result_line(line.custom_id, answered.status, answered.request_id, body)
        await self._keep([LineResult(line.number, is_error, told)])

    async def _ask(self, line: Line) -> Answered:
        """The line's answer, asked again where that may help."""
        raw = orjson.dumps(line.body)
        tries = failures = evictions = 0
        while True:
            try:
                answered = await self._parts.inference.ask(
                    self._endpoint,
                    raw,
                    caller=await self._caller_now(),
                    traffic=Traffic.BATCH,
                    owner=self._job.id,
                    may_be_evicted=evictions < MAX_EVICTIONS,
                )
            except Evicted:
                evictions += 1
                continue
            except Unauthorized as error:  # the key was revoked: so are the batch's rights
                return Answered(error.status, "", orjson.dumps(openai_error(error)), None)
            failures += answered.status in FAILS
            waits = answered.status in WAITS and answered.retry_after_seconds is not None
            if not waits and not (answered.status in FAILS and failures < self._parts.settings.max_attempts):
                return answered
            backoff = BACKOFF_SECONDS[min(tries, len(BACKOFF_SECONDS) - 1)]
            await asyncio.sleep(max(backoff, answered.retry_after_seconds or 0.0))
            tries += 1

    async def _caller_now(self) -> Caller:
        """Whoever ordered the batch, with the rights that their key has now. Raises Unauthorized."""
        return await self._parts.snapshots.decide(self._caller_of)

    def _caller_of(self, snapshot: Snapshot) -> Caller:
        if self._caller is None or self._caller[0] is not snapshot:
            self._caller = snapshot, access.caller_of(snapshot, self._job.key_id)
        return self._caller[1]

    async def _keep(self, results: list[LineResult]) -> None:
        """On disk when it returns. Raises StaleWorker."""
        put = functools.partial(put_results, id=self._job.id, token=self._job.token, results=results)
        while True:
            try:
                await self._parts.writer.submit_soon(put)
                break
            except StaleWorker:
                self._lose()
                raise
            except BurnishError as error:  # the database cannot write now: the answer is not thrown away
                log.warning("batch_line_not_written batch=%s: %s", self._job.id, error.message)
                await asyncio.sleep(BEAT_SECONDS)
        for result in results:
            self._answered.add(result.line)
            self._counts.add(result)

    # -- the end -----------------------------------------------------------------------------------
    async def _finalize(self) -> None:
        """Its files, and its end, in one transaction. Raises StaleWorker."""
        batches, id, token = self._parts.batches, self._job.id, self._job.token
        state = self._ending or JobState.SUCCEEDED
        await asyncio.to_thread(batches.finalizing, id, token)
        if self._ending is not None:
            await self._count_again()
        if state is JobState.EXPIRED:
            await self._tell_expired()
        write = functools.partial(write_results, batches, self._parts.files, self._job, self._go_on)
        files = await asyncio.to_thread(write)
        finish = functools.partial(
            batches.finish,
            state=state,
            output=files[False],
            errors=files[True],
            progress=self._counts.told(),
            problems=self._problems,
        )
        try:
            ended = await asyncio.to_thread(finish, id, token)
        except BaseException:
            for file in files.values():
                if file is not None:
                    self._parts.files.discard(file.id)
            raise
        log.info("batch_ended batch=%s state=%s", id, ended.state)

    async def _tell_expired(self) -> None:
        """An error line for each line that was not answered in time; without the file nobody knows their names."""
        try:
            path = await asyncio.to_thread(self._parts.files.path, self._job.payload["input_file"])
            lines = await asyncio.to_thread(Reader, path, frozenset(self._answered))
        except (NotFound, FileNotFoundError):
            self._problems = [_file_gone(self._job)]
            return
        with contextlib.closing(lines):
            while page := await asyncio.to_thread(lines.page):
                told = [
                    LineResult(line.number, True, error_line(line.custom_id, *EXPIRED_LINE))
                    for line, _ in page
                ]
                await self._keep(told)


def _file_gone(job: Job) -> dict[str, Any]:
    message = f"The input file {job.payload['input_file']} is not there any more."
    return {"code": "file_not_found", "line": None, "message": message, "param": "input_file_id"}
