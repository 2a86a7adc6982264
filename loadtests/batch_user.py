"""Locust's user who has no hurry: uploads a file of requests, makes a batch of it, and waits until it has ended.

A share of the batches is cancelled on the way, and so is what goes on when the run ends. Does not read the results.
"""

from __future__ import annotations

import time
from typing import Any

import gevent
import orjson

from loadtests.asking import Told, call
from loadtests.figures import Act
from loadtests.users import BurnishUser
from loadtests.workload import CHAT

POLL_SECONDS = 0.5
ENDED = ("completed", "failed", "expired", "cancelled")
BOUNDARY = "burnish-loadtest"


class BatchUser(BurnishUser):
    """One batch after another, each to one model."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._open: set[str] = set()

    def on_stop(self) -> None:
        """What it has begun is not to load the server after the run."""
        for id in tuple(self._open):
            self._cancel(id)

    def act(self, due: float) -> None:
        number = next(self.numbers)
        model, chance = self.plan.model(number), self.plan.chance(number)
        told = self._upload(model)
        if told.error is None:
            order = {"input_file_id": told.json["id"], "endpoint": CHAT, "completion_window": "24h"}
            told = self._call("POST", "/v1/batches", json=order)
        if told.error is not None:
            self._tell_batch(model, due, told.error)
            return
        is_cancelled = chance.random() < self.plan.options.cancel_share
        self._follow(told.json["id"], model, due, is_cancelled)

    def _follow(self, id: str, model: str, due: float, is_cancelled: bool) -> None:
        """Until it has ended, or the run has."""
        self._open.add(id)
        done = failed = 0
        while True:
            told = self._call("GET", f"/v1/batches/{id}", name="/v1/batches/{id}")
            if told.error is not None:
                self._tell_batch(model, due, told.error)
                return
            counts = told.json.get("request_counts") or {}
            so_far = counts.get("completed", 0), counts.get("failed", 0)
            self.plan.measurement.add_lines(model, so_far[0] - done, so_far[1] - failed, self.plan.now)
            done, failed = so_far
            if told.json["status"] in ENDED:
                self._open.discard(id)
                self._tell_batch(model, due, _problem(told.json, is_cancelled))
                return
            if self.plan.is_over:
                self._cancel(id)
                return
            if is_cancelled and done > 0:
                self._cancel(id)
            gevent.sleep(POLL_SECONDS)

    def _upload(self, model: str) -> Told:
        lines = []
        for _ in range(self.plan.options.batch_lines):
            asked = self.plan.question(model)
            body = self.plan.body(asked, streams=False)
            line = {"custom_id": asked.mark, "method": "POST", "url": CHAT, "body": body}
            lines.append(orjson.dumps(line))
        form = _form(b"\n".join(lines) + b"\n")
        headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
        return self._call("POST", "/v1/files", data=form, headers=headers)

    def _cancel(self, id: str) -> None:
        """Once; one that has ended meanwhile says so, and that is no error."""
        if id in self._open:
            self._open.discard(id)
            self._call("POST", f"/v1/batches/{id}/cancel", name="/v1/batches/{id}/cancel")

    def _call(
        self,
        method: str,
        path: str,
        *,
        name: str | None = None,
        headers: dict[str, str] | None = None,
        **content: Any,
    ) -> Told:
        all_headers = {**self.plan.headers, **(headers or {})}
        return call(self.client, method, path, all_headers, name=name or path, **content)

    def _tell_batch(self, model: str, due: float, error: str | None) -> None:
        self.plan.tell(Act.BATCH, model, due, due, time.monotonic(), error=error)


def _problem(batch: dict[str, Any], is_cancelled: bool) -> str | None:
    """What is wrong with a batch that has ended, beside its failed lines; a cancelled one may end as it likes."""
    if batch["status"] == "completed" or (is_cancelled and batch["status"] == "cancelled"):
        return None
    return f"a batch is {batch['status']}"


def _form(lines: bytes) -> bytes:
    """A multipart form of `purpose` and `file`."""
    head = (
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="lines.jsonl"\r\n'
        f"content-type: application/jsonl\r\n\r\n"
    )
    return head.encode() + lines + f"\r\n--{BOUNDARY}--\r\n".encode()
