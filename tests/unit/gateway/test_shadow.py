"""Shadow traffic in one process: whose turn it is, what the challenger is asked, and what is left of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from adapters import schema
from adapters.completions import Status
from adapters.database import Database
from adapters.engine_settings import EngineSettings
from adapters.observations import Assignment
from adapters.settings import Health
from adapters.writer import Writer
from gateway.access import ANYBODY
from gateway.endpoints import ENDPOINTS, Call
from gateway.engines import Engine, Engines, EngineState
from gateway.recorder import Record
from gateway.routing import Shadow, Target
from gateway.shadow import PRIORITY, Shadows, in_shadow, is_drawn
from gateway.upstream import Pool
from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, free_port
from tests.migrated import migrated

HEALTH = Health(hold_seconds=0.0, max_attempts=2, total_timeout_seconds=20.0, first_byte_timeout_seconds=5.0)
TARGET = Target("support", MODEL, None, ())
CHAT = "/v1/chat/completions"


def shadow(**more: Any) -> Shadow:
    values: dict[str, Any] = {"share": 1.0, "at_once": 2, "requests": 100}
    return Shadow("challenger", TARGET, **{**values, **more})


def call(number: int = 0, path: str = CHAT, body: dict[str, Any] | None = None, **more: Any) -> Call:
    asked = body or {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    values: dict[str, Any] = {
        "assignment": Assignment("exp_1", 3, "control", f"user:u{number}"),
        "shadow": shadow(),
    }
    return Call(
        ENDPOINTS[path],
        f"req_{number}",
        ANYBODY,
        TARGET,
        dict(asked),
        {**asked, "user": f"u{number}"},
        **{**values, **more},
    )


# -- whose turn it is ------------------------------------------------------------------------------
@given(st.text("0123456789abcdef", min_size=1, max_size=32), st.floats(0, 1))
def test_a_requests_turn_is_the_same_however_often_it_is_asked(id: str, share: float) -> None:
    assert is_drawn("exp_1", id, share) == is_drawn("exp_1", id, share)
    assert is_drawn("exp_1", id, 1.0)
    assert not is_drawn("exp_1", id, 0.0)


def test_the_share_is_kept_and_experiments_draw_by_themselves() -> None:
    one = {n for n in range(10_000) if is_drawn("exp_1", f"req_{n}", 0.1)}
    other = {n for n in range(10_000) if is_drawn("exp_2", f"req_{n}", 0.1)}
    assert 880 <= len(one) <= 1120  # four standard deviations
    assert 50 <= len(one & other) <= 150
    assert one <= {n for n in range(10_000) if is_drawn("exp_1", f"req_{n}", 0.2)}


# -- what is asked ---------------------------------------------------------------------------------
def test_the_challenger_is_asked_the_same_and_the_clients_call_stays_as_it_was() -> None:
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.3,
        "n": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "request_id": "mine",
        "kv_transfer_params": {"do_remote_prefill": True},
    }
    own = call(body=body)
    copied = in_shadow(own, shadow())
    assert copied.body == {"messages": body["messages"], "temperature": 0.3, "n": 1}
    assert not copied.streams
    assert (copied.assignment and copied.assignment.variant, copied.shadow, copied.control) == (
        "challenger",
        None,
        None,
    )
    assert own.body == body
    assert own.assignment is not None
    assert own.assignment.variant == "control"


# -- the challenger's answers ----------------------------------------------------------------------
@dataclass
class Trial:
    """Shadows over one engine, and a record of calls that were answered."""

    shadows: Shadows
    engine: Engine
    fake: FakeEngine
    writer: Writer
    db: Database

    async def answered(self, made: Call, status: Status = Status.COMPLETE) -> Record:
        """The record of a call that its own variant has answered."""
        record = Record(made, wanted=True)
        answer = {"id": f"chatcmpl-{made.request_id}", "choices": []}
        await self.writer.put_soon(record.settle(status, answer, None, None))
        return record

    async def follow(self, made: Call, status: Status = Status.COMPLETE) -> None:
        self.shadows.follow(made, await self.answered(made, status))

    async def over(self) -> None:
        """Until no shadow goes on."""
        async with asyncio.timeout(10):
            while self.shadows.active:
                await asyncio.sleep(0.01)

    def rows(self) -> list[Any]:
        table = schema.observations
        query = sa.select(table).where(table.c.shadow_of.is_not(None)).order_by(table.c.number)
        with self.db.read() as connection:
            return list(connection.execute(query))

    def asked(self) -> list[dict[str, Any]]:
        return [request["body"] for request in self.fake.requests()]


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeEngine]:
    with FakeEngine(MODEL) as engine:
        yield engine


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = migrated(tmp_path / "burnish.db")
    yield database
    database.close()


@pytest.fixture
async def trial(fake: FakeEngine, db: Database) -> AsyncIterator[Trial]:
    fake.reset()
    engine = _engine("e0", fake.url)
    writer = Writer(db, 100)
    made = Trial(Shadows(Engines([engine], HEALTH), writer, HEALTH), engine, fake, writer, db)
    yield made
    await made.shadows.stop()
    engine.pool.close()
    await asyncio.to_thread(writer.close)


def _engine(name: str, url: str, kind: Any = "vllm") -> Engine:
    where = {} if kind == "supervised" else {"url": url}
    engine = Engine(EngineSettings(name=name, kind=kind, model=MODEL, **where), Pool(url))
    engine.state = EngineState.UP
    return engine


async def test_an_answer_is_recorded_as_the_challengers(trial: Trial) -> None:
    await trial.follow(call(7))
    await trial.over()
    (row,) = trial.rows()
    assert (row.shadow_of, row.variant, row.unit, row.epoch) == (
        "chatcmpl-req_7",
        "challenger",
        "user:u7",
        3,
    )
    assert row.error == 0.0
    assert trial.engine.outstanding == 0


@pytest.mark.parametrize("status", [Status.ERROR, Status.INCOMPLETE])
async def test_only_whole_answers_have_a_shadow(trial: Trial, status: Status) -> None:
    await trial.follow(call(1), status)
    trial.shadows.follow(call(2), Record(call(2), wanted=False))
    await trial.follow(call(3, "/v1/messages"))
    await trial.follow(call(4, assignment=None))
    await trial.follow(call(5, shadow=shadow(share=0.0)))
    assert trial.shadows.active == 0
    assert trial.asked() == []


async def test_what_comes_while_the_challenger_is_busy_is_skipped(trial: Trial) -> None:
    trial.fake.set(ttft_seconds=0.3)
    for number in range(10):
        await trial.follow(call(number))
    assert trial.shadows.active == 2
    await trial.over()
    assert len(trial.rows()) == len(trial.asked()) == 2
    await trial.follow(call(11))
    await trial.over()
    assert len(trial.rows()) == 3


async def test_two_experiments_have_a_budget_each(trial: Trial) -> None:
    for experiment in ("exp_1", "exp_2"):
        for number in range(5):
            given = Assignment(experiment, 0, "control", f"user:{number}")
            made = call(number, assignment=given, shadow=shadow(requests=3))
            made.request_id = f"req_{experiment}_{number}"
            await trial.follow(made)
            await trial.over()
    assert sorted(row.experiment for row in trial.rows()) == ["exp_1"] * 3 + ["exp_2"] * 3


async def test_what_left_nothing_on_record_costs_nothing_of_the_budget(trial: Trial) -> None:
    one = shadow(requests=1)
    gone = await trial.answered(call(1, shadow=one))
    with trial.db.begin() as connection:
        connection.execute(sa.delete(schema.completions))
    trial.shadows.follow(call(1, shadow=one), gone)
    await trial.over()
    assert trial.rows() == []
    for number in (2, 3):
        await trial.follow(call(number, shadow=one))
        await trial.over()
    assert [row.shadow_of for row in trial.rows()] == ["chatcmpl-req_2"]


@pytest.mark.parametrize(
    "fault", ["refuse", "close_before_headers", "html_200", "garbage_http", "truncated_json"]
)
async def test_a_failure_is_the_challengers_error_and_ejects_no_engine(trial: Trial, fault: str) -> None:
    trial.fake.set(fault=fault)
    for number in range(5):
        await trial.follow(call(number))
        await trial.over()
    assert [(row.error, row.output, row.log_total) for row in trial.rows()] == [(1.0, None, None)] * 5
    assert (trial.engine.state, trial.engine.failures, trial.engine.outstanding) == (EngineState.UP, 0, 0)


async def test_a_shadows_answer_hides_no_failure_of_the_engine(trial: Trial) -> None:
    trial.engine.failures = 2
    await trial.follow(call(1))
    await trial.over()
    assert trial.engine.failures == 2


async def test_another_engine_is_tried_as_for_a_client(fake: FakeEngine, db: Database) -> None:
    fake.reset()
    dead, well = _engine("dead", f"http://127.0.0.1:{free_port()}"), _engine("well", fake.url)
    writer = Writer(db, 100)
    trial = Trial(Shadows(Engines([dead, well], HEALTH), writer, HEALTH), well, fake, writer, db)
    for number in range(8):
        body = {"messages": [{"role": "user", "content": f"conversation {number}"}], "max_tokens": 2}
        await trial.follow(call(number, body=body))
        await trial.over()
    assert [row.error for row in trial.rows()] == [0.0] * 8
    assert dead.state is EngineState.UP
    for engine in (dead, well):
        engine.pool.close()
    writer.close()


async def test_where_no_engine_can_answer_that_is_the_challengers_error(trial: Trial) -> None:
    trial.engine.state = EngineState.EJECTED
    await trial.follow(call(1))
    await trial.over()
    assert [row.error for row in trial.rows()] == [1.0]


@pytest.mark.parametrize(("kind", "priority"), [("supervised", PRIORITY), ("vllm", None), ("openai", None)])
async def test_it_waits_behind_everybody_on_an_engine_that_is_known_to_schedule_so(
    fake: FakeEngine, db: Database, kind: str, priority: int | None
) -> None:
    fake.reset()
    engine, writer = _engine("e", fake.url, kind), Writer(db, 100)
    trial = Trial(Shadows(Engines([engine], HEALTH), writer, HEALTH), engine, fake, writer, db)
    await trial.follow(call(1))
    await trial.over()
    assert trial.asked()[0].get("priority") == priority
    engine.pool.close()
    writer.close()


async def test_stopping_ends_what_goes_on_and_records_nothing(
    trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    trial.fake.set(fault="hang")
    await trial.follow(call(1))
    await asyncio.to_thread(trial.fake.wait_for, active=1)
    began = time.monotonic()
    with caplog.at_level(logging.DEBUG):
        await trial.shadows.stop()
    assert time.monotonic() - began < 1
    assert trial.shadows.active == 0
    await asyncio.to_thread(trial.fake.wait_for, active=0)
    assert trial.rows() == []
    assert not [entry for entry in caplog.records if entry.levelno >= logging.ERROR]


async def test_a_bug_of_ours_is_logged_and_harms_nothing_else(
    trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    broken = call(1)
    broken.body["bias"] = object()  # no JSON
    await trial.follow(broken)
    await trial.over()
    assert "shadow_failed experiment=exp_1 request=req_1" in caplog.text
    await trial.follow(call(2))
    await trial.over()
    assert len(trial.rows()) == 1


async def test_a_database_that_is_away_costs_a_warning(
    trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    record = await trial.answered(call(1))
    await asyncio.to_thread(trial.writer.close)
    trial.shadows.follow(call(1), record)
    await trial.over()
    assert "shadow_not_recorded experiment=exp_1" in caplog.text
    assert not [entry for entry in caplog.records if entry.levelno >= logging.ERROR]


async def test_one_of_several_answers_is_not_compared_in_length(trial: Trial) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "n": 2}
    await trial.follow(call(1, body=body))
    await trial.over()
    (row,) = trial.rows()
    assert (row.error, row.log_length, row.log_total) == (0.0, None, None)
    assert row.repetition == 0.0
