"""What only grows is counted once, whatever comes late, is forgotten, or goes on in another transaction meanwhile."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from adapters import schema
from adapters.batches import Batches
from adapters.database import Database
from adapters.feedback import insert_feedback
from adapters.forget import forget_user
from adapters.job_records import finish
from adapters.jobs import Jobs, JobState
from adapters.routes import Routes
from adapters.tallies import SETTLED_SECONDS, FeedbackTally, GateTally, LostTally, Said
from tests.judged import completion
from tests.observed import word, write


def say(db: Database, value: float = 1.0, user: str = "u", route: str = "support") -> None:
    judged = completion(user=user, route=route)
    write(db, [judged], [word(judged, value)])


def told(tally: FeedbackTally, db: Database, now: float = 0.0) -> dict[str, tuple[int, float]]:
    """Count and sum by route."""
    with db.read() as connection:
        return {said.route: (said.count, said.value_sum) for said in tally.read(connection, now)}


def test_feedback_is_counted_by_route_variant_and_name(db: Database) -> None:
    a, b = completion(user="a"), completion(user="b", variant="support@2")
    write(db, [a, b], [word(a, 1.0), word(a, 0.0, user="c"), word(b, 4.5, name="stars")])
    with db.read() as connection:
        found = set(FeedbackTally().read(connection, 0.0))
    assert found == {
        Said("support", "support@1", "rating", 2, 1.0),
        Said("support", "support@2", "stars", 1, 4.5),
    }


def test_feedback_without_a_value_is_counted_and_adds_nothing(db: Database) -> None:
    judged = completion()
    with db.begin() as connection:
        insert_feedback(connection, [word(judged, 1.0)])
        connection.execute(sa.update(schema.feedback).values(value=None, name="comment"))
    assert told(FeedbackTally(), db) == {"support": (1, 0.0)}


def test_what_comes_later_is_added_to_what_was_there(db: Database) -> None:
    tally = FeedbackTally()
    say(db)
    assert told(tally, db) == {"support": (1, 1.0)}
    say(db, 0.0)
    say(db, route="sales")
    assert told(tally, db) == told(tally, db) == {"support": (2, 1.0), "sales": (1, 1.0)}
    assert told(FeedbackTally(), db) == told(tally, db), "a process that starts now counts the same"


def test_what_was_said_last_comes_last(db: Database) -> None:
    tally = FeedbackTally()
    for route in ("support", "sales", "support"):
        say(db, route=route)
    assert list(told(tally, db)) == ["sales", "support"]
    say(db, route="sales")
    assert list(told(tally, db)) == ["support", "sales"]


def test_counts_do_not_fall_when_a_user_is_forgotten(db: Database, tmp_path: Path) -> None:
    tally = FeedbackTally()
    say(db, user="anna")
    say(db, user="ben")
    assert told(tally, db) == {"support": (2, 2.0)}
    forget_user(db, Routes(db), "anna", "test", run_root=tmp_path)
    assert told(tally, db) == {"support": (2, 2.0)}
    assert told(FeedbackTally(), db) == {"support": (1, 1.0)}, "what a process that starts then has to count"
    say(db, user="cleo")
    assert told(tally, db) == {"support": (3, 3.0)}


def test_a_row_that_is_seen_after_a_higher_number_is_counted_too(db: Database) -> None:
    """As on PostgreSQL, where transactions that run beside each other commit in any order."""
    tally = FeedbackTally()
    say(db)
    assert told(tally, db, now=0.0) == {"support": (1, 1.0)}
    late = word(completion(), 1.0)
    with db.begin() as connection:
        insert_feedback(connection, [word(completion(), 1.0), late])
        hidden = connection.execute(sa.select(schema.feedback).order_by(schema.feedback.c.number)).all()[1]
        connection.execute(sa.delete(schema.feedback).where(schema.feedback.c.number == hidden.number))
    assert told(tally, db, now=1.0) == {"support": (2, 2.0)}
    with db.begin() as connection:
        connection.execute(sa.insert(schema.feedback).values(**hidden._mapping))
    assert told(tally, db, now=SETTLED_SECONDS - 1) == {"support": (3, 3.0)}
    for later in range(5):
        assert told(tally, db, now=later * SETTLED_SECONDS) == {"support": (3, 3.0)}, "each of them once"


# -- leases ----------------------------------------------------------------------------------------
def lost(tally: LostTally, db: Database) -> dict[str, int]:
    with db.read() as connection:
        return dict(tally.read(connection, 0.0))


def test_a_lease_is_lost_where_another_worker_takes_the_job_up_and_where_it_was_lost_too_often(
    db: Database,
) -> None:
    tally, jobs = LostTally(), Jobs(db, max_attempts=2)
    jobs.enqueue(kind="training", route="support", payload={}, now=1.0)
    assert lost(tally, db) == {"training": 0, "batch": 0}
    assert jobs.claim("w1", ["training"], 10.0, now=10.0)
    assert lost(tally, db)["training"] == 0
    assert jobs.claim("w2", ["training"], 10.0, now=30.0)
    assert lost(tally, db)["training"] == 1
    assert jobs.claim("w3", ["training"], 10.0, now=60.0) is None
    assert lost(tally, db) == lost(LostTally(), db) == {"training": 2, "batch": 0}


def test_a_batch_that_its_gateway_gives_back_is_not_lost(db: Database) -> None:
    batches = Batches(db)
    batches.create(
        input_file="file-1", endpoint="/v1/chat/completions", window="24h", window_seconds=1e6,
        metadata=None, key_id=None, now=1.0,
    )  # fmt: skip
    first = batches.claim("g1", 10.0, now=10.0)
    assert first
    batches.release(first.id, first.token, now=11.0)
    assert batches.claim("g2", 10.0, now=12.0)
    assert lost(LostTally(), db) == {"training": 0, "batch": 0}
    assert batches.claim("g3", 10.0, now=40.0)
    assert lost(LostTally(), db) == {"training": 0, "batch": 1}


# -- gates -----------------------------------------------------------------------------------------
def test_gates_are_counted_by_route_and_outcome_each_once(db: Database) -> None:
    jobs, tally = Jobs(db), GateTally()

    def run(route: str | None, outcome: str | None) -> None:
        jobs.enqueue(kind="training", route=route, payload={}, now=1.0)
        job = jobs.claim("w", ["training"], 10.0, now=2.0)
        assert job
        state = JobState.SUCCEEDED if outcome == "pass" else JobState.FAILED
        result = None if outcome is None else {"gate": {"outcome": outcome}, "manifest": {}}
        with db.begin() as connection:
            finish(connection, job.id, job.token, state=state, result=result, now=3.0)

    def counts() -> dict[tuple[str, str], int]:
        with db.read() as connection:
            return dict(tally.read(connection))

    assert counts() == {}
    for outcome in ("pass", "inconclusive", "pass", None):
        run("support", outcome)
    run(None, "fail")
    expected = {("support", "pass"): 2, ("support", "inconclusive"): 1, ("", "fail"): 1}
    assert counts() == counts() == expected
    run("support", "fail")
    assert counts() == {**expected, ("support", "fail"): 1}
