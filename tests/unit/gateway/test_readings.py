"""One reader at a time, no more often than it should be, and nobody waits for it long."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from gateway.readings import STALE_SECONDS, Newest, Reading
from tests.conftest import wait_for


def test_what_was_read_last_is_told_until_it_is_time_again() -> None:
    readings = iter(range(10))
    reading = Reading("numbers", lambda: next(readings), every_seconds=3600)
    assert [reading.newest().value for _ in range(3)] == [0, 0, 0]
    often = Reading("numbers", lambda: next(readings), every_seconds=0)
    assert [often.newest().value for _ in range(3)] == [1, 2, 3]


def test_many_who_ask_at_once_are_answered_by_one_reading() -> None:
    reads: list[int] = []

    def read() -> int:
        reads.append(1)
        time.sleep(0.1)
        return len(reads)

    reading = Reading("numbers", read, every_seconds=3600)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: reading.newest().value, range(8)))
    assert found == [1] * 8
    assert len(reads) == 1


def test_nobody_waits_long_for_a_reading_and_no_second_one_begins_beside_it() -> None:
    go_on, reads = threading.Event(), []

    def read() -> str:
        reads.append(1)
        go_on.wait(30)
        return "read"

    reading = Reading("numbers", read, every_seconds=0, patience_seconds=0.05)
    began = time.monotonic()
    assert [reading.newest().value for _ in range(3)] == [None] * 3
    assert time.monotonic() - began < 10
    assert len(reads) == 1
    go_on.set()
    wait_for(lambda: reading.newest().value == "read")


def test_while_nothing_can_be_read_the_last_value_grows_older_and_then_another_try_is_made() -> None:
    answers: list[str | Exception] = ["first", OSError("away"), OSError("away"), "second"]

    def read() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    reading = Reading("words", read, every_seconds=0)
    first = reading.newest()
    ages = [reading.newest(), reading.newest()]
    assert [one.value for one in (first, *ages)] == ["first"] * 3
    assert first.age_seconds < ages[0].age_seconds < ages[1].age_seconds
    second = reading.newest()
    assert second.value == "second"
    assert second.age_seconds < ages[1].age_seconds + 1


def test_what_is_too_old_is_not_taken_for_the_present() -> None:
    assert Newest("value", STALE_SECONDS - 1).standing == "value"
    assert Newest("value", STALE_SECONDS + 1).standing is None
