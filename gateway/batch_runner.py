"""The loop of one gateway that claims batches, works on several at once, and gives them back when it stops.

Owns how many are open and what becomes of one whose work failed. Does not know how a batch is worked on: `batch_work`
does. Which batch's line is next is `admission`'s affair, so that a short batch does not wait for a long one.
"""

from __future__ import annotations

import asyncio
import logging

from adapters.errors import StaleWorker
from adapters.jobs import Job
from gateway.batch_work import LEASE_SECONDS, BatchWork, Parts

log = logging.getLogger("burnish.batches")

POLL_SECONDS = 2.0
"""How soon a batch is noticed that another process made, or left."""

FAILED_SECONDS = 5.0
"""How long a batch rests whose work ended in an error of ours, before anybody takes it up again."""


class BatchRunner:
    """`wake` it when a batch was made."""

    def __init__(self, parts: Parts, name: str) -> None:
        """`name` is this gateway's."""
        self.wake = asyncio.Event()
        self._parts = parts
        self._name = name
        self._open: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        is_swept = False
        try:
            while True:
                self.wake.clear()
                try:
                    if not is_swept:
                        await asyncio.to_thread(self._parts.batches.sweep)
                        is_swept = True
                    await self._claim()
                except Exception:  # the database may be away for a while
                    log.exception("batch_claim_failed")
                try:
                    async with asyncio.timeout(POLL_SECONDS):
                        await self.wake.wait()
                except TimeoutError:
                    pass
        finally:
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)

    async def _claim(self) -> None:
        while len(self._open) < self._parts.settings.at_once:
            job = await asyncio.to_thread(self._parts.batches.claim, self._name, LEASE_SECONDS)
            if job is None:
                return
            task = asyncio.create_task(self._work(job), name=job.id)
            self._open.add(task)
            task.add_done_callback(self._close)

    def _close(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        self.wake.set()

    async def _work(self, job: Job) -> None:
        log.info("batch_claimed batch=%s token=%d state=%s", job.id, job.token, job.state)
        try:
            await BatchWork(self._parts, job).go()
        except StaleWorker:
            log.warning("batch_lost batch=%s token=%d: another gateway has it", job.id, job.token)
        except asyncio.CancelledError:  # the gateway stops
            await self._release(job)
            raise
        except Exception:
            log.exception("batch_failed batch=%s", job.id)
            await asyncio.sleep(FAILED_SECONDS)
            await self._release(job)

    async def _release(self, job: Job) -> None:
        try:
            await asyncio.to_thread(self._parts.batches.release, job.id, job.token)
        except StaleWorker:
            pass
        except Exception:  # its lease ends by itself
            log.exception("batch_not_released batch=%s", job.id)
