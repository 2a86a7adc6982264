"""Observations live and die with their completion, those of its shadow too."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from adapters import schema
from adapters.completions import Completion, Completions
from adapters.database import Database
from adapters.measuring import observe
from adapters.observations import Assignment, Observation, insert_shadow
from adapters.packed import unpack
from adapters.writer import Writer
from tests.judged import completion, stored

OWN = Assignment("exp_1", 0, "support@1", "req_1")
SHADOWED = replace(OWN, variant="support@2")


def observed(db: Database, id: str = "chatcmpl-1", **more: Any) -> Completion:
    made = completion(id=id, **more)
    return stored(db, id=id, **more, observation=observe(made, OWN, at_fault=True))


def shadow(of: str, id: str = "shd_1") -> Observation:
    made = replace(observe(completion(user="ada"), SHADOWED, at_fault=True), id=id)
    return replace(made, shadow_of=of, output={"choices": []})


def put_shadow(db: Database, of: str, id: str = "shd_1") -> bool:
    with db.begin() as connection:
        return insert_shadow(connection, shadow_of=of, make=lambda: shadow(of, id))


def rows(db: Database) -> list[Any]:
    table = schema.observations
    with db.read() as connection:
        return list(connection.execute(sa.select(table).order_by(table.c.number)))


def test_a_shadow_is_kept_beside_the_completion_with_its_answer(db: Database) -> None:
    observed(db, user="ada")
    assert put_shadow(db, "chatcmpl-1")
    own, other = rows(db)
    assert (own.id, own.variant, own.shadow_of, own.output) == ("chatcmpl-1", "support@1", None, None)
    assert (other.id, other.variant, other.shadow_of) == ("shd_1", "support@2", "chatcmpl-1")
    assert own.unit == other.unit == "user:ada"
    assert unpack(other.output) == {"choices": []}


def test_of_a_completion_that_is_gone_nothing_is_kept_nor_even_measured(db: Database) -> None:
    def measure() -> Observation:
        raise AssertionError("measured all the same")

    with db.begin() as connection:
        assert not insert_shadow(connection, shadow_of="chatcmpl-gone", make=measure)
    assert rows(db) == []


def test_completions_take_their_shadows_with_them(db: Database) -> None:
    for number in (1, 2, 3):
        observed(db, f"chatcmpl-{number}", created=float(number))
        put_shadow(db, f"chatcmpl-{number}", f"shd_{number}")
    assert Completions(db).delete("chatcmpl-1", None)
    assert [row.id for row in rows(db)] == ["chatcmpl-2", "shd_2", "chatcmpl-3", "shd_3"]
    assert Completions(db).purge(2.5, 2.5) == 1
    assert [row.id for row in rows(db)] == ["chatcmpl-3", "shd_3"]


def test_whoever_deletes_a_completion_waits_for_its_shadow_and_then_finds_it(db: Database) -> None:
    observed(db)
    deleting = threading.Thread(target=Completions(db).delete, args=("chatcmpl-1", None))
    with db.begin() as connection:
        assert insert_shadow(connection, shadow_of="chatcmpl-1", make=lambda: shadow("chatcmpl-1"))
        deleting.start()
        deleting.join(0.3)
        assert deleting.is_alive(), "it did not wait"
    deleting.join(10)
    assert rows(db) == []


def test_a_shadow_of_the_same_group_finds_its_completion(db: Database) -> None:
    writer = Writer(db, 100)
    writer.put(lambda: completion(id="chatcmpl-1"))
    kept = writer.submit(
        lambda connection: insert_shadow(
            connection, shadow_of="chatcmpl-1", make=lambda: shadow("chatcmpl-1")
        )
    )
    assert kept.result(10) is True
    writer.close()


@pytest.mark.parametrize("name", ["error", "log_total", "refused", "repetition"])
def test_what_was_measured_is_read_back_as_it_was(db: Database, name: str) -> None:
    made = observed(db)
    assert made.observation is not None
    assert getattr(rows(db)[0], name) == getattr(made.observation, name)
