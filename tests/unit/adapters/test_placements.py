from __future__ import annotations

import pytest

from adapters.database import Database
from adapters.placements import Gateway, Placement, Placements, PlacementState, lowest_headroom
from adapters.registry import Registry


@pytest.fixture
def placements(db: Database) -> Placements:
    return Placements(db)


def test_the_last_word_of_an_engine_is_kept(placements: Placements) -> None:
    placements.put("gpu", "support@2", PlacementState.LOADING, now=1.0)
    said = placements.put("gpu", "support@2", PlacementState.FAILED, "no free slot", now=2.0)
    assert said == Placement("gpu", "support", 2, PlacementState.FAILED, "no free slot", 2.0)
    assert said.ref == "support@2"
    assert placements.list() == (said,)


def test_placements_are_listed_by_engine_and_by_version(placements: Placements) -> None:
    for engine in ("b", "a"):
        for ref in ("support@10", "support@9"):
            placements.put(engine, ref, PlacementState.PROVED)
    assert [(p.engine, p.ref) for p in placements.list()] == [
        ("a", "support@9"),
        ("a", "support@10"),
        ("b", "support@9"),
        ("b", "support@10"),
    ]
    assert [p.ref for p in placements.list(engine="a")] == ["support@9", "support@10"]
    assert [p.engine for p in placements.list(ref="support@9")] == ["a", "b"]


def test_an_unloaded_version_and_a_gone_engine_are_forgotten(placements: Placements) -> None:
    for engine in ("a", "b"):
        placements.put(engine, "support@1", PlacementState.PROVED)
        placements.put(engine, "support@2", PlacementState.PROVED)
    placements.remove("a", "support@1")
    placements.remove("a", "support@1")
    placements.forget_engine("b")
    assert [(p.engine, p.ref) for p in placements.list()] == [("a", "support@2")]


def test_what_is_does_not_move_what_ought_to_be(registry: Registry, placements: Placements) -> None:
    revision = registry.revision()
    placements.put("gpu", "support@1", PlacementState.PROVED)
    placements.heartbeat("g1", "http://127.0.0.1:8000")
    assert registry.revision() == revision


def test_gateways_live_as_long_as_their_heartbeats(placements: Placements) -> None:
    placements.heartbeat("g1", "http://a", now=100.0)
    placements.heartbeat("g2", "http://b", now=105.0)
    placements.heartbeat("g1", "http://a2", now=110.0)
    assert placements.live_gateways(5.0, now=110.0) == (
        Gateway("g1", "http://a2", 110.0),
        Gateway("g2", "http://b", 105.0),
    )
    assert [g.id for g in placements.live_gateways(4.0, now=110.0)] == ["g1"]
    placements.leave("g1")
    assert [g.id for g in placements.live_gateways(60.0, now=110.0)] == ["g2"]


def test_promise_07_the_gateway_with_the_least_headroom_counts(db: Database, placements: Placements) -> None:
    placements.heartbeat("g1", "http://a", headroom=0.8, now=100.0)
    placements.heartbeat("g2", "http://b", headroom=-0.5, now=100.0)
    placements.heartbeat("g3", "http://c", now=100.0)  # it does not measure
    assert placements.headroom(6.0, now=101.0) == -0.5
    with db.read() as connection:
        assert lowest_headroom(connection, 6.0, 101.0) == -0.5
    placements.heartbeat("g2", "http://b", headroom=0.9, now=102.0)
    assert placements.headroom(6.0, now=102.0) == 0.8
    placements.leave("g1")
    assert placements.headroom(6.0, now=102.0) == 0.9


def test_promise_07_lines_wait_where_they_wait_at_any_gateway_that_is_alive(placements: Placements) -> None:
    assert not placements.lines_wait(now=100.0)
    placements.heartbeat("g1", "http://a", now=100.0)
    assert not placements.lines_wait(now=100.0)
    placements.heartbeat("g2", "http://b", lines_wait=True, now=100.0)
    assert placements.lines_wait(now=105.9)
    assert not placements.lines_wait(now=106.1), "it has fallen silent"
    placements.heartbeat("g2", "http://b", now=107.0)
    assert not placements.lines_wait(now=107.0)


def test_a_gateway_that_has_fallen_silent_holds_nobody_up(placements: Placements) -> None:
    assert placements.headroom(now=100.0) is None
    placements.heartbeat("g1", "http://a", headroom=-2.0, now=100.0)
    assert placements.headroom(now=105.9) == -2.0
    assert placements.headroom(now=106.1) is None
    placements.heartbeat("g1", "http://a", now=107.0)  # it no longer measures
    assert placements.headroom(now=107.0) is None
