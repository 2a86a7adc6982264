"""The outbox: what it holds, what it drops, and that nobody waits for it."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from adapters import outbox
from adapters.outbox import GROUP, Outbox
from tests.conftest import wait_for


def test_what_is_put_is_delivered_in_order_and_in_groups() -> None:
    groups: list[list[int]] = []
    box: Outbox[int] = Outbox("test", lambda group: groups.append(group), 1000)
    for number in range(3 * GROUP + 1):
        box.put(number)
    box.close()
    assert [number for group in groups for number in group] == list(range(3 * GROUP + 1))
    assert max(len(group) for group in groups) <= GROUP
    assert box.dropped == 0


def test_one_item_alone_is_delivered_without_more_to_come() -> None:
    seen: list[int] = []
    box: Outbox[int] = Outbox("test", lambda group: seen.extend(group), 10)
    box.put(1)
    wait_for(lambda: seen == [1])
    box.close()


def test_what_finds_no_room_is_dropped_and_counted() -> None:
    is_open, taken = threading.Event(), threading.Event()
    seen: list[int] = []

    def deliver(group: list[int]) -> None:
        taken.set()
        is_open.wait(30)
        seen.extend(group)

    box: Outbox[int] = Outbox("test", deliver, 5)
    box.put(0)
    assert taken.wait(30)  # one is on its way, and five may wait
    for number in range(1, 9):
        box.put(number)
    assert box.dropped == 3
    is_open.set()
    box.close()
    assert seen == [0, 1, 2, 3, 4, 5]


def test_a_delivery_that_fails_drops_its_group_and_the_next_goes_on() -> None:
    failures = ["refused", None]
    box: Outbox[int] = Outbox("test", lambda group: failures.pop(0), 10)
    box.put(1)
    wait_for(lambda: box.dropped == 1)
    box.put(2)
    wait_for(lambda: not failures)
    box.close()
    assert box.dropped == 1


def test_a_delivery_that_raises_drops_its_group_and_none_of_its_words_reach_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def deliver(group: list[int]) -> None:
        raise ValueError("the prompt itself")

    with caplog.at_level(logging.WARNING, "burnish.outbox"):
        box: Outbox[int] = Outbox("test", deliver, 10)
        box.put(1)
        wait_for(lambda: box.dropped == 1)
        box.close()
    assert "to=test dropped=1: ValueError" in caplog.text
    assert "the prompt itself" not in caplog.text


def test_failures_are_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PERIOD_SECONDS", 0.01)
    with caplog.at_level(logging.WARNING, "burnish.outbox"):
        box: Outbox[int] = Outbox("test", lambda group: "refused", 100)
        for number in range(20):
            box.put(number)
            wait_for(lambda: not box._waiting)
        wait_for(lambda: box.dropped == 20)
        box.close()
    assert len(caplog.records) == 1


def test_closing_waits_no_longer_than_it_is_told_and_counts_what_is_left() -> None:
    release = threading.Event()
    hurried = threading.Event()
    box: Outbox[int] = Outbox("test", lambda group: release.wait(60) and None, 1000, hurry=hurried.set)
    for number in range(GROUP + 10):
        box.put(number)
    wait_for(lambda: len(box._waiting) == 10)
    began = time.monotonic()
    box.close(0.5)
    assert time.monotonic() - began < 10
    assert hurried.is_set()
    assert box.dropped == 10
    box.put(1)
    assert box.dropped == 11
    release.set()
