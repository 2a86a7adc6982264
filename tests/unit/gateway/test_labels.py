"""A bounded number of pairs of route and variant have series of their own."""

from __future__ import annotations

from gateway.labels import FORGET_SECONDS, LOOK_SECONDS, NOWHERE, OTHER, Labels


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_comes_when_there_is_no_more_room_is_told_together() -> None:
    labels = Labels(2)
    assert [labels.of("chat", f"support@{n}") for n in (1, 2, 3)] == [
        ("chat", "support@1"),
        ("chat", "support@2"),
        OTHER,
    ]
    assert labels.of("chat", "support@1") == ("chat", "support@1"), "who has series keeps them"
    assert ("chat", "support@3") not in labels
    assert OTHER in labels


def test_what_was_refused_before_it_was_known_has_its_place_in_a_full_house() -> None:
    labels = Labels(1)
    labels.of("chat", "support@1")
    assert labels.of(*NOWHERE) == NOWHERE
    assert labels.of_route("") == ""


def test_a_route_is_known_by_any_of_its_variants() -> None:
    labels = Labels(2)
    assert labels.of_route("new") == "new", "there is room"
    labels.of("chat", "support@1")
    labels.of("chat", "support@2")
    assert (labels.of_route("chat"), labels.of_route("new")) == ("chat", "other")


def test_pairs_that_nobody_asks_for_make_room_after_an_hour() -> None:
    clock = Clock()
    labels = Labels(2, clock)
    labels.of("stays", "support@1")
    labels.of("goes", "support@1")
    clock.now += FORGET_SECONDS - 1
    labels.of("stays", "support@1")
    assert labels.of("new", "support@1") == OTHER, "it was asked for within the hour"
    clock.now += LOOK_SECONDS
    assert labels.of("new", "support@1") == ("new", "support@1")
    assert ("goes", "support@1") not in labels
    assert ("stays", "support@1") in labels


def test_a_flood_of_names_makes_no_series_and_keeps_those_that_are_there() -> None:
    labels = Labels(500)
    for number in range(500):
        labels.of(f"route-{number}", "base")
    told = {labels.of(f"pinned@{number}", f"pinned@{number}") for number in range(10_000)}
    assert told == {OTHER}
    assert ("route-0", "base") in labels
