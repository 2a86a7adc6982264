"""Who listens to the record hears of every completion, and can cost nobody a record."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.completions import Completion, Completions, Status
from adapters.database import Database
from adapters.settings import Recording
from adapters.writer import Writer
from gateway.access import ANYBODY
from gateway.endpoints import ENDPOINTS, Call
from gateway.recorder import Recorder
from gateway.routing import Target
from tests.migrated import migrated

ANSWER: dict[str, Any] = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}}]}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = migrated(tmp_path / "burnish.db")
    yield database
    database.close()


@pytest.fixture
def writer(db: Database) -> Iterator[Writer]:
    writer = Writer(db, 100)
    yield writer
    writer.close()


def call(number: int, **asked: Any) -> Call:
    body = {"messages": [{"role": "user", "content": "hello"}], **asked}
    target = Target("chat", "base", None, ())
    return Call(ENDPOINTS["/v1/chat/completions"], f"req_{number}", ANYBODY, target, dict(body), body)


async def test_listeners_hear_of_every_completion_in_the_writers_thread(writer: Writer) -> None:
    heard: list[tuple[str, Status, int]] = []

    def listen(completion: Completion) -> None:
        heard.append((completion.id, completion.status, threading.get_ident()))

    recorder = Recorder(writer, Recording(), listeners=(listen,))
    await recorder.complete(recorder.begin(call(1)), {"id": "one", **ANSWER})
    await recorder.fail(recorder.begin(call(2)), Status.ERROR, "engine_failed")
    recorder.abandon(recorder.begin(call(3)), "client_left")
    await recorder.complete(recorder.begin(call(4, store=False)), {"id": "four", **ANSWER})
    await asyncio.to_thread(writer.close)
    assert [each[:2] for each in heard] == [
        ("one", Status.COMPLETE),
        ("req_2", Status.ERROR),
        ("req_3", Status.INCOMPLETE),
    ], "what is not wanted on record is nobody's to hear of"
    assert threading.get_ident() not in {each[2] for each in heard}


async def test_a_listener_that_fails_costs_no_record_and_no_other_listener(
    db: Database, writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def fail(completion: Completion) -> None:
        raise RuntimeError("a bug")

    recorder = Recorder(writer, Recording(), listeners=(fail, lambda completion: heard.append(completion.id)))
    await recorder.complete(recorder.begin(call(1)), {"id": "one", **ANSWER})
    assert [c.id for c in Completions(db).list(None, all_keys=True)[0]] == ["one"]
    assert heard == ["one"]
    assert recorder.lost == 0
    assert "listener_failed completion=one" in caplog.text
