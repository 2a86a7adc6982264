"""How near interactive requests are to their targets, and what is said of every class."""

from __future__ import annotations

import json
import math

import pytest

from adapters.traffic_settings import RouteTarget, Targets
from gateway.latency import FORGET_SECONDS, Latencies, Timing
from gateway.traffic import Traffic

TARGETS = Targets(ttft_p95_seconds=1.0, itl_p95_seconds=0.2, window_seconds=10.0)
INTERACTIVE, BATCH, TRAINING = Traffic.INTERACTIVE, Traffic.BATCH, Traffic.TRAINING


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A `Latencies` and the clock that it reads."""

    def __init__(self, targets: Targets = TARGETS) -> None:
        self.clock = Clock()
        self.latencies = Latencies(targets, self.clock)

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    def begin(self, route: str = "chat", traffic: Traffic = INTERACTIVE, streams: bool = True) -> Timing:
        return self.latencies.begin(route, traffic, streams=streams)

    def stream(
        self,
        ttft: float,
        gaps: tuple[float, ...] = (),
        route: str = "chat",
        traffic: Traffic = INTERACTIVE,
    ) -> None:
        timing = self.begin(route, traffic)
        for seconds in (ttft, *gaps):
            self.wait(seconds)
            timing.piece()
        timing.end()

    def headroom(self, since: float = -math.inf) -> float:
        return self.latencies.headroom(since)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def about(headroom: float) -> object:
    """Within half a bucket of the ratio."""
    return pytest.approx(headroom, abs=(1 - headroom) * 0.045 + 1e-9)


def test_nothing_measured_is_all_the_headroom(bench: Bench) -> None:
    assert bench.headroom() == 1.0


def test_the_first_piece_is_the_first_token_and_each_further_one_a_gap(bench: Bench) -> None:
    bench.stream(0.3, (0.05, 0.05))
    route = bench.latencies.report()["classes"]["interactive"]["routes"]["chat"]
    assert (route["ttft"]["count"], route["itl"]["count"]) == (1, 2)
    assert route["ttft"]["p50_seconds"] == pytest.approx(0.3, rel=0.045)
    assert route["itl"]["p99_seconds"] == pytest.approx(0.05, rel=0.045)


@pytest.mark.parametrize(("ttft", "gap", "headroom"), [(0.3, 0.02, 0.7), (0.1, 0.16, 0.2), (2.0, 0.02, -1.0)])
def test_headroom_is_what_the_worse_kind_leaves(
    bench: Bench, ttft: float, gap: float, headroom: float
) -> None:
    bench.stream(ttft, (gap,) * 5)
    assert bench.headroom() == about(headroom)


def test_the_worst_route_decides_by_its_own_target() -> None:
    targets = Targets(window_seconds=10, routes={"slow": RouteTarget(ttft_p95_seconds=10.0)})
    bench = Bench(targets)
    bench.stream(2.0, route="slow")
    assert bench.headroom() == about(0.8)
    bench.stream(0.5, route="chat")
    assert bench.headroom() == about(0.5)


def test_headroom_has_a_floor(bench: Bench) -> None:
    bench.stream(500.0)
    assert bench.headroom() == -9


@pytest.mark.parametrize("traffic", [BATCH, TRAINING])
def test_promise_07_only_interactive_requests_have_a_target_to_miss(bench: Bench, traffic: Traffic) -> None:
    bench.stream(5.0, (1.0,) * 5, traffic=traffic)
    bench.begin(traffic=traffic)
    bench.wait(5)
    assert bench.headroom() == 1.0


def test_four_slow_ones_of_a_hundred_are_no_miss_and_six_are(bench: Bench) -> None:
    for _ in range(94):
        bench.stream(0.01)
    for _ in range(4):
        bench.stream(1.5)
    assert bench.headroom() > 0.9
    for _ in range(2):
        bench.stream(1.5)
    assert bench.headroom() < 0


def test_what_is_older_than_the_window_is_forgotten(bench: Bench) -> None:
    bench.stream(2.0)
    bench.wait(9)
    assert bench.headroom() < 0
    bench.wait(1.5)
    assert bench.headroom() == 1.0


@pytest.mark.parametrize("window", [1.0, 10.0, 60.0, 600.0])
def test_the_window_is_as_long_as_it_was_set(window: float) -> None:
    bench = Bench(Targets(window_seconds=window))
    bench.stream(2.0)
    bench.wait(window * 0.94)
    assert bench.headroom() < 0
    bench.wait(window * 0.12)
    assert bench.headroom() == 1.0


def test_since_leaves_out_what_was_measured_before(bench: Bench) -> None:
    bench.stream(2.0)
    changed = bench.clock.now
    assert bench.headroom(changed) == 1.0
    bench.wait(1.0)
    bench.stream(0.25)
    assert bench.headroom(changed) == about(0.75)
    assert bench.headroom() < 0


def test_since_finds_what_a_change_did_in_a_long_window_too() -> None:
    bench = Bench(Targets(window_seconds=60))
    bench.stream(2.0)
    changed = bench.clock.now
    bench.wait(1.0)
    bench.stream(0.25)
    assert bench.headroom(changed) == about(0.75)


# -- those that wait -------------------------------------------------------------------------------
def test_one_that_waits_counts_with_the_time_that_it_waited(bench: Bench) -> None:
    timing = bench.begin()
    bench.wait(0.5)
    assert bench.headroom() == about(0.5)
    bench.wait(2.5)
    assert bench.headroom() == about(-2.0)
    timing.piece()
    assert bench.headroom() == about(-2.0)  # and then as what it was


def test_one_that_waits_among_a_hundred_does_not_decide(bench: Bench) -> None:
    for _ in range(100):
        bench.stream(0.02)
    bench.begin()
    bench.wait(3.0)
    assert bench.headroom() > 0.9


def test_promise_07_a_burst_that_waits_shows_at_once(bench: Bench) -> None:
    for _ in range(100):
        bench.stream(0.02)
    for _ in range(10):
        bench.begin()
    bench.wait(1.2)
    assert bench.headroom() == about(-0.2)


def test_many_that_have_just_come_do_not_hide_the_slow_ones(bench: Bench) -> None:
    for seconds in (0.1,) * 20 + (1.5,) * 2:
        bench.stream(seconds)
    slow = bench.headroom()
    assert slow < 0
    for _ in range(500):
        bench.begin()
    assert bench.headroom() == slow


def test_one_that_waits_counts_whatever_since_says(bench: Bench) -> None:
    bench.begin()
    bench.wait(3.0)
    assert bench.headroom(bench.clock.now) == about(-2.0)


def test_who_left_after_the_target_is_a_miss_and_who_left_before_it_is_nothing(bench: Bench) -> None:
    early = bench.begin()
    bench.wait(0.9)
    early.end()
    assert bench.headroom() == 1.0
    late = bench.begin()
    bench.wait(4.0)
    late.end()
    assert bench.headroom() == about(-3.0)


def test_who_left_in_the_middle_of_an_answer_leaves_what_was_measured(bench: Bench) -> None:
    timing = bench.begin()
    bench.wait(0.2)
    timing.piece()
    bench.wait(8.0)
    timing.end()
    assert bench.headroom() == about(0.8)


# -- answers in one piece --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seconds", "tokens", "ratio"),
    [(2.4, 11, 0.8), (0.5, 1, 0.5), (0.5, None, 0.5), (0.5, 0, 0.5), (6, 11, 2)],
)
def test_a_whole_answer_is_held_against_a_first_token_and_the_gaps_of_the_rest(
    bench: Bench, seconds: float, tokens: int | None, ratio: float
) -> None:
    timing = bench.begin(streams=False)
    bench.wait(seconds)
    timing.whole(tokens)
    timing.end()
    assert bench.headroom() == about(1 - ratio)


def test_an_answer_in_one_piece_does_not_wait_for_a_first_token(bench: Bench) -> None:
    timing = bench.begin(streams=False)
    bench.wait(9.0)
    assert bench.headroom() == 1.0
    assert bench.latencies.quiet_for() == 0.0
    timing.end()
    assert bench.headroom() == 1.0


# -- quiet -----------------------------------------------------------------------------------------
def test_it_is_quiet_from_the_last_interactive_request_on(bench: Bench) -> None:
    assert bench.latencies.quiet_for() == math.inf
    bench.stream(1.0, traffic=BATCH)
    assert bench.latencies.quiet_for() == math.inf
    first, second = bench.begin("a"), bench.begin("b")
    bench.wait(5)
    first.end()
    assert bench.latencies.quiet_for() == 0.0
    second.end()
    bench.wait(7)
    assert bench.latencies.quiet_for() == 7.0


def test_to_end_twice_is_to_end_once(bench: Bench) -> None:
    first, second = bench.begin(), bench.begin()
    bench.wait(2)
    for timing in (first, first, first):
        timing.end()
    assert bench.latencies.quiet_for() == 0.0
    route = bench.latencies.report()["classes"]["interactive"]["routes"]["chat"]
    assert (route["in_flight"], route["waiting"], route["ttft"]["count"]) == (1, 1, 1)
    second.end()
    bench.wait(3)
    assert bench.latencies.quiet_for() == 3.0


# -- what is told ----------------------------------------------------------------------------------
def test_the_report_is_json_and_names_every_class_and_route(bench: Bench) -> None:
    assert json.loads(json.dumps(bench.latencies.report()))["quiet_seconds"] is None
    bench.stream(0.3, (0.05,) * 3)
    bench.stream(3.0, (0.5,), route="base", traffic=BATCH)
    bench.begin()
    report = json.loads(json.dumps(bench.latencies.report()))
    assert set(report["classes"]) == set(Traffic)
    interactive = report["classes"]["interactive"]
    assert (interactive["begun"], interactive["in_flight"], interactive["waiting"]) == (2, 1, 1)
    chat = interactive["routes"]["chat"]
    assert (chat["ttft"]["target_seconds"], chat["itl"]["target_seconds"]) == (1.0, 0.2)
    assert chat["headroom"] == about(0.7)
    assert chat["whole"] == {"count": 0, "p50_of_target": None, "p95_of_target": None, "p99_of_target": None}
    assert report["classes"]["batch"]["routes"]["base"]["itl"]["count"] == 1


def test_histograms_only_ever_count_up(bench: Bench) -> None:
    bench.stream(0.3, (0.05, 0.05))
    bench.wait(60)
    bench.stream(3.0, traffic=BATCH)
    told = {(h.kind, h.traffic, h.route): h for h in bench.latencies.histograms()}
    assert set(told) == {
        ("ttft", INTERACTIVE, "chat"),
        ("itl", INTERACTIVE, "chat"),
        ("ttft", BATCH, "chat"),
    }
    gaps = told["itl", INTERACTIVE, "chat"]
    assert (gaps.count, gaps.sum_seconds) == (2, pytest.approx(0.1))
    by_bound = dict(gaps.buckets)
    assert (by_bound[0.025], by_bound[0.075], by_bound[math.inf]) == (0, 2, 2)


def test_what_was_measured_is_told_by_the_variant_that_answered(bench: Bench) -> None:
    timing = bench.latencies.begin("chat", INTERACTIVE, variant="support@2")
    bench.wait(0.5)
    timing.piece()
    timing.end()
    timing = bench.latencies.begin("chat", INTERACTIVE, variant="support@2")
    bench.wait(0.1)
    timing.turn_to("support@1")  # the control answers in its stead
    for _ in range(3):
        bench.wait(0.1)
        timing.piece()
    timing.end()
    told = {(h.kind, h.variant): (h.count, h.sum_seconds) for h in bench.latencies.histograms()}
    assert told == {
        ("ttft", "support@2"): (1, pytest.approx(0.5)),
        ("ttft", "support@1"): (1, pytest.approx(0.2)),
        ("itl", "support@1"): (2, pytest.approx(0.2)),
    }
    assert bench.latencies.report()["classes"]["interactive"]["routes"]["chat"]["ttft"]["count"] == 2


def test_who_is_under_way_is_told_by_class_and_route(bench: Bench) -> None:
    first, second = bench.begin(), bench.begin()
    bench.begin("support", BATCH)
    first.end()
    first.end()
    assert bench.latencies.in_flight() == {(INTERACTIVE, "chat"): 1, (BATCH, "support"): 1}
    second.end()
    assert bench.latencies.in_flight()[INTERACTIVE, "chat"] == 0


def test_a_name_that_nobody_asks_for_is_dropped_after_an_hour_but_its_class_still_counts(
    bench: Bench,
) -> None:
    stays = bench.begin("long")
    bench.stream(0.3, route="support@1")
    bench.stream(0.3, route="support@1", traffic=BATCH)
    bench.wait(FORGET_SECONDS + 1)
    assert [h.route for h in bench.latencies.histograms()] == []
    assert list(bench.latencies.report()["classes"]["interactive"]["routes"]) == ["long"]
    assert bench.latencies.begun() == {INTERACTIVE: 2, BATCH: 1, TRAINING: 0}
    stays.end()
    bench.wait(FORGET_SECONDS + 1)
    list(bench.latencies.histograms())
    assert bench.latencies.quiet_for() == FORGET_SECONDS + 1


def test_pinned_versions_that_come_and_go_do_not_pile_up(bench: Bench) -> None:
    for number in range(200):
        bench.stream(0.1, route=f"support@{number}")
        bench.wait(FORGET_SECONDS / 10)
    assert len(bench.latencies.report()["classes"]["interactive"]["routes"]) <= 11
