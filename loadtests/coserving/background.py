"""A batch and a training run as a client orders them: begun, counted, ended, over HTTP.

Both are made so long that they outlast the measurement, and are cancelled after it. Knows nothing of the interactive
requests beside them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import orjson

from loadtests.learning import questions, rows
from loadtests.workload import CHAT, Ask, body

POLL_SECONDS = 0.5
BEGIN_SECONDS = 600.0
"""A run imports, reads its rows and makes its first step; on two cores beside a busy engine that takes minutes."""
END_SECONDS = 180.0
"""A cancelled run ends after its step, a cancelled batch after the lines that it is in."""

MOST_LINES = 50_000
"""Of one batch: what the gateway takes by default. There are as many batches as it takes."""

HELD_OUT_ROWS = 16
"""The fewest that a validation file may have is ten: it is evaluated between steps, where no token is trained on."""
EPOCHS = 50
OVER = ("completed", "succeeded", "failed", "expired", "cancelled")


@dataclass(frozen=True, slots=True)
class Reading:
    """What had been done at a time of time.monotonic's clock: lines of a batch, or steps of a run."""

    at: float
    done: int
    failed: int
    size: float  # of what is counted: the mean tokens of a step; 1 for a line
    is_over: bool


class Background(Protocol):
    async def begin(self) -> None:
        """Until it works: its first line, or its first step, is done. Raises RuntimeError."""

    async def read(self) -> Reading: ...

    async def end(self) -> None:
        """Cancels it; until nothing of it runs any more. Raises RuntimeError."""


class Batch:
    """One batch, or several where the lines are too many for one."""

    def __init__(self, http: httpx.AsyncClient, model: str, asks: Sequence[Ask], mark: str) -> None:
        self._http = http
        self._model = model
        self._asks = asks
        self._mark = mark
        self._ids: list[str] = []

    async def begin(self) -> None:
        for first in range(0, len(self._asks), MOST_LINES):
            lines = [self._line(number) for number in range(first, min(first + MOST_LINES, len(self._asks)))]
            file = await _upload(self._http, b"\n".join(lines) + b"\n", "batch")
            made = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
            self._ids.append((await _told(self._http.post("/v1/batches", json=made)))["id"])
        await _until(self._works, BEGIN_SECONDS, "the batch has not begun")

    async def read(self) -> Reading:
        batches = [await _told(self._http.get(f"/v1/batches/{id}")) for id in self._ids]
        counts = [batch.get("request_counts") or {} for batch in batches]
        done, failed = (sum(count.get(name, 0) for count in counts) for name in ("completed", "failed"))
        # A batch with no line left may be a while at its files: it disturbs nobody any more.
        has_lines = done + failed < len(self._asks) and any(batch["status"] not in OVER for batch in batches)
        return Reading(time.monotonic(), done, failed, 1.0, is_over=not has_lines)

    async def end(self) -> None:
        for id in self._ids:
            answer = await self._http.post(f"/v1/batches/{id}/cancel")
            if answer.status_code != 409:  # it was over already
                answer.raise_for_status()
        await _until(self._has_ended, END_SECONDS, "the batch does not end")

    async def _works(self) -> bool:
        reading = await self.read()
        if reading.is_over or (reading.failed and not reading.done):
            batch = await _told(self._http.get(f"/v1/batches/{self._ids[0]}"))
            raise RuntimeError(f"the batch did not work: {batch['status']} {batch.get('errors')}, {reading}")
        return reading.done > 0

    async def _has_ended(self) -> bool:
        batches = [await _told(self._http.get(f"/v1/batches/{id}")) for id in self._ids]
        return all(batch["status"] in OVER for batch in batches)

    def _line(self, number: int) -> bytes:
        asked = body(self._asks[number], self._model, f"{self._mark}{number:06d}", streams=False)
        return orjson.dumps({"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": asked})


class Training:
    """One supervised run on the task of `loadtests.learning`."""

    def __init__(self, http: httpx.AsyncClient, model: str, row_count: int, batch_size: int) -> None:
        self._http = http
        self._model = model
        self._row_count = row_count
        self._batch_size = batch_size
        self._id = ""

    async def begin(self) -> None:
        count = self._row_count + HELD_OUT_ROWS
        asked = questions(1, count, [f"user-{number}" for number in range(count)])
        parts = (asked[: self._row_count], asked[self._row_count :])
        files = [await _upload(self._http, rows(part, "supervised").encode(), "fine-tune") for part in parts]
        parameters = {"n_epochs": EPOCHS, "batch_size": self._batch_size, "early_stopping_patience": 0}
        order = {
            "model": self._model,
            "training_file": files[0],
            "validation_file": files[1],
            "method": {"type": "supervised", "supervised": {"hyperparameters": parameters}},
            "seed": 1,
            "gate": "report",
        }
        self._id = (await _told(self._http.post("/v1/fine_tuning/jobs", json=order)))["id"]
        await _until(self._works, BEGIN_SECONDS, "the training run has made no step")

    async def read(self) -> Reading:
        job = await self._job()
        progress = job["progress"]
        has_steps = job["status"] not in OVER and progress.get("stage") in (None, "dataset", "train")
        step = progress.get("step", 0)
        return Reading(time.monotonic(), step, 0, tokens_a_step(progress), is_over=not has_steps)

    async def end(self) -> None:
        (await self._http.post(f"/v1/fine_tuning/jobs/{self._id}/cancel")).raise_for_status()
        # Its status is `cancelled` at once, its end comes with that of its process.
        await _until(self._has_finished, END_SECONDS, "the training run does not end")

    async def _works(self) -> bool:
        reading = await self.read()
        if reading.is_over:
            job = await self._job()
            raise RuntimeError(f"the training run did not last: {job['status']} {job['error']}")
        return reading.done > 0

    async def _has_finished(self) -> bool:
        return (await self._job())["finished_at"] is not None

    async def _job(self) -> dict[str, Any]:
        return await _told(self._http.get(f"/v1/fine_tuning/jobs/{self._id}"))


def tokens_a_step(progress: dict[str, Any]) -> float:
    """The mean tokens of an optimizer step, from what a run tells of itself; 0 before its first.

    It tells the tokens a second since it began, and the seconds left at its pace so far: that is its seconds a step
    times the steps that are left.
    """
    if "tokens_per_second" not in progress:
        return 0.0
    tokens_per_second, seconds_left = float(progress["tokens_per_second"]), float(progress["eta_seconds"])
    return tokens_per_second * seconds_left / max(1, int(progress["total_steps"]) - int(progress["step"]))


async def _upload(http: httpx.AsyncClient, content: bytes, purpose: str) -> str:
    sent = http.post("/v1/files", files={"file": ("rows.jsonl", content)}, data={"purpose": purpose})
    return str((await _told(sent))["id"])


async def _told(asked: Awaitable[httpx.Response]) -> dict[str, Any]:
    """The JSON of an answer. Raises RuntimeError for an error."""
    answer = await asked
    if not answer.is_success:
        raise RuntimeError(
            f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text[:500]}"
        )
    told: dict[str, Any] = answer.json()
    return told


async def _until(check: Callable[[], Awaitable[bool]], seconds: float, problem: str) -> None:
    until = time.monotonic() + seconds
    while not await check():
        if time.monotonic() > until:
            raise RuntimeError(f"{problem} within {seconds:.0f} s")
        await asyncio.sleep(POLL_SECONDS)
