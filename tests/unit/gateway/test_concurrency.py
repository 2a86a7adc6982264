"""How many batch lines may be under way: by rule, and against a simulated engine."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.traffic_settings import Priority, Targets
from gateway.concurrency import GROWTH_SECONDS, REACTION_SECONDS, START, STEP_SECONDS, Adaptive
from gateway.latency import Latencies, Timing
from gateway.traffic import Traffic

PRIORITY = Priority()
GOOD, FAIR, MIDDLING, BAD, MISSED = 0.8, 0.3, 0.2, 0.05, -0.5
CEILING = 128


class Driver:
    """An `Adaptive` and a clock; as many lines as it allows are under way, unless told otherwise."""

    def __init__(self, priority: Priority = PRIORITY, ceiling: int = CEILING) -> None:
        self.adaptive = Adaptive(priority)
        self.ceiling = ceiling
        self.now = 100.0

    def tell(
        self,
        headroom: float,
        seconds: float = 0.0,
        quiet: bool = False,
        in_flight: int | None = None,
        since_step: float | None = None,
    ) -> int:
        """The limit after so many seconds of the same news, told 20 times a second."""
        for _ in range(max(1, round(seconds * 20))):
            self.now += 0.05
            under_way = self.adaptive.limit if in_flight is None else in_flight
            self.adaptive.update(
                headroom=headroom,
                since_step=headroom if since_step is None else since_step,
                in_flight=under_way,
                ceiling=self.ceiling,
                quiet=quiet,
                now=self.now,
            )
        return self.adaptive.limit

    def grown_to(self, limit: int) -> Driver:
        """With interactive traffic that bears so much."""
        while self.adaptive.limit < limit:
            self.tell(GOOD)
        return self


def test_it_begins_small() -> None:
    assert Adaptive(PRIORITY).limit == START
    assert Adaptive(Priority(min_batch=5)).limit == 5


def test_without_priority_there_is_no_limit_but_the_room() -> None:
    driver = Driver(Priority(enabled=False))
    assert driver.tell(MISSED) == CEILING


def test_it_never_allows_more_than_there_is_room_for() -> None:
    driver = Driver()
    assert driver.tell(1.0, 20, quiet=True) == CEILING
    driver.ceiling = 40
    assert driver.tell(1.0, quiet=True) == 40


def test_an_engine_that_was_away_for_a_moment_is_filled_again_at_once() -> None:
    driver = Driver()
    driver.tell(1.0, 20, quiet=True)
    driver.ceiling = 0
    assert driver.tell(1.0, 2, quiet=True) == 0
    driver.ceiling = CEILING
    assert driver.tell(1.0, quiet=True) == CEILING


# -- growth ----------------------------------------------------------------------------------------
def test_engines_that_idle_are_filled_within_seconds() -> None:
    assert Driver().tell(1.0, 4, quiet=True) == CEILING


def test_it_doubles_while_nothing_was_too_much_yet() -> None:
    driver = Driver()
    driver.tell(GOOD, REACTION_SECONDS + 0.1)
    limits = [driver.tell(GOOD, GROWTH_SECONDS) for _ in range(3)]
    assert limits == [limits[0], 2 * limits[0], 4 * limits[0]]


def test_above_what_was_half_too_much_it_grows_by_steps() -> None:
    driver = Driver().grown_to(64)
    assert driver.tell(BAD) == 32
    driver.tell(MIDDLING, 2)
    steps = [driver.tell(GOOD, GROWTH_SECONDS) for _ in range(4)]
    assert all(1 <= after - before <= 0.05 * CEILING for before, after in zip(steps, steps[1:], strict=False))


def test_a_step_is_at_most_a_quarter_of_the_limit_even_below_a_high_ceiling() -> None:
    driver = Driver(ceiling=2000).grown_to(8)
    driver.tell(MIDDLING)
    for _ in range(100):
        before = driver.adaptive.limit
        assert driver.tell(GOOD) <= max(before * 1.25, before + 1)
    assert driver.adaptive.limit > 8


def test_between_the_bounds_it_doubles_no_more_from_there() -> None:
    for seen in (FAIR, MIDDLING):
        driver = Driver().grown_to(16)
        limit = driver.adaptive.limit
        driver.tell(seen, REACTION_SECONDS)
        assert limit < driver.tell(GOOD, GROWTH_SECONDS) <= limit * 1.25


@pytest.mark.parametrize(("seen", "least", "most"), [(FAIR, 1.05, 1.25), (MIDDLING, 0.75, 0.95)])
def test_promise_07_between_the_bounds_it_goes_by_steps_towards_the_middle(
    seen: float, least: float, most: float
) -> None:
    driver = Driver().grown_to(32)
    limits = [driver.tell(seen, STEP_SECONDS) for _ in range(5)][1:]
    for before, after in zip(limits, limits[1:], strict=False):
        assert least * before <= after <= most * before


def test_lines_beyond_a_step_down_may_end_by_themselves_and_those_beyond_a_decrease_may_not() -> None:
    driver = Driver().grown_to(32)
    limit = driver.adaptive.limit
    assert driver.tell(MIDDLING, 2 * STEP_SECONDS) < limit
    assert driver.adaptive.most == limit
    stepped = driver.adaptive.limit
    assert driver.tell(MIDDLING, 10, in_flight=limit) == stepped, (
        "no second step before the first has had its effect"
    )
    assert driver.tell(BAD, in_flight=limit) == driver.adaptive.most == stepped // 2


def test_promise_07_what_was_measured_before_it_grew_is_no_leave_to_grow_again() -> None:
    """People whom a limit left their latency, and who then leave for a while, say nothing of a higher one."""
    for seen in (GOOD, FAIR):
        driver = Driver()
        assert driver.tell(seen, 20, since_step=1.0) == START
        assert driver.tell(GOOD, 20, since_step=MIDDLING) <= START


def test_it_does_not_grow_where_the_limit_is_not_what_holds_batch_back() -> None:
    driver = Driver().grown_to(16)
    limit = driver.adaptive.limit
    assert driver.tell(GOOD, 30, in_flight=limit // 2) == limit


def test_to_have_measured_nothing_is_no_leave_to_grow() -> None:
    driver = Driver()
    assert driver.tell(1.0, 20) == START
    driver.grown_to(16)
    limit = driver.adaptive.limit
    driver.tell(MIDDLING)
    assert driver.tell(1.0, 20) == limit


def test_after_a_decrease_it_returns_to_what_was_borne_though_nothing_is_measured() -> None:
    driver = Driver().grown_to(64)
    driver.tell(MISSED)
    assert driver.tell(1.0, 20) == 32


# -- decrease --------------------------------------------------------------------------------------
def test_promise_07_it_is_halved_at_once_when_headroom_runs_out_and_quartered_when_a_target_is_missed() -> (
    None
):
    assert Driver().grown_to(64).tell(BAD) == 32
    assert Driver().grown_to(64).tell(MISSED) == 16


def test_it_is_decreased_once_for_each_reaction() -> None:
    driver = Driver().grown_to(64)
    assert driver.tell(BAD) == 32
    assert driver.tell(BAD, REACTION_SECONDS - 0.1) == 32
    assert driver.tell(BAD, 0.3) == 16


def test_only_what_was_measured_after_a_decrease_took_effect_counts() -> None:
    driver = Driver().grown_to(64)
    driver.tell(BAD)
    assert driver.adaptive.changed_at == driver.now
    driver.tell(BAD, 5, in_flight=50)  # lines that were under way go on
    assert driver.adaptive.limit == 32
    driver.tell(BAD, in_flight=32)
    assert driver.adaptive.changed_at == driver.now


def test_a_second_decrease_in_a_row_leaves_the_threshold_where_it_was() -> None:
    driver = Driver().grown_to(64)
    driver.tell(MISSED)
    assert driver.tell(MISSED, 2.5) <= 4
    driver.tell(GOOD, 0.5)
    assert driver.tell(GOOD, 4.5) >= 32  # doubles, up to half of 64


def test_what_is_seen_while_a_decrease_takes_effect_does_not_lower_the_threshold() -> None:
    driver = Driver().grown_to(64)
    driver.tell(MISSED, 10)
    assert driver.tell(MIDDLING, 5) == PRIORITY.min_batch
    assert driver.tell(GOOD, 4.5) == 32


def test_a_limit_that_nobody_came_near_was_not_what_was_too_much() -> None:
    driver = Driver().grown_to(64)
    assert driver.tell(BAD, in_flight=8) == 4


@pytest.mark.parametrize("least", [0, 1, 3])
def test_trouble_that_stays_brings_it_down_to_the_least_and_no_further(least: int) -> None:
    driver = Driver(Priority(min_batch=least)).grown_to(64)
    assert driver.tell(MISSED, 30) == least
    assert driver.tell(GOOD, 15) > 3  # and up again, from 0 too


# -- quiet, and the return -------------------------------------------------------------------------
def test_promise_07_when_somebody_comes_the_limit_falls_at_once() -> None:
    driver = Driver()
    driver.tell(1.0, 10, quiet=True)
    assert driver.tell(1.0, in_flight=CEILING) == START


def test_when_somebody_returns_the_limit_is_what_it_was_beside_them() -> None:
    driver = Driver().grown_to(16)
    borne = driver.tell(MIDDLING, 3)
    assert driver.tell(1.0, 10, quiet=True) == CEILING
    assert driver.tell(GOOD, in_flight=CEILING) == borne


def test_the_return_never_raises_the_limit() -> None:
    driver = Driver().grown_to(64)
    driver.tell(1.0, 1, quiet=True)
    driver.ceiling = 8
    driver.tell(1.0, 1, quiet=True)
    assert driver.tell(GOOD) <= 8


NEWS = st.tuples(
    st.floats(-9, 1),
    st.integers(0, 300),
    st.integers(0, 200),
    st.booleans(),
    st.sampled_from([0.05, 0.3, 1.0, 7.0]),
)


@given(news=st.lists(NEWS, max_size=80), least=st.integers(0, 5))
def test_whatever_it_is_told_it_stays_between_the_least_and_the_room(
    news: list[tuple[float, int, int, bool, float]], least: int
) -> None:
    adaptive = Adaptive(Priority(min_batch=least))
    now = 0.0
    for headroom, in_flight, ceiling, quiet, pause in news:
        now += pause
        before, was_quiet = adaptive.limit, quiet
        adaptive.update(
            headroom=headroom,
            since_step=headroom,
            in_flight=in_flight,
            ceiling=ceiling,
            quiet=quiet,
            now=now,
        )
        assert min(least, ceiling) <= adaptive.limit <= ceiling
        if headroom < PRIORITY.middle and not was_quiet and ceiling <= before:
            assert adaptive.limit <= before
        assert adaptive.changed_at <= now


# -- against an engine -----------------------------------------------------------------------------
TARGETS = Targets(ttft_p95_seconds=1.0, itl_p95_seconds=0.2, window_seconds=10.0)
QUIET_SECONDS = 5.0
BASE_SECONDS, SECONDS_EACH, NOISE = 0.02, 0.002, 0.2


MOST = int((TARGETS.itl_p95_seconds / (1 + 0.9 * NOISE) - BASE_SECONDS) / SECONDS_EACH)
"""How many sequences at once leave 95 of 100 gaps within the target: a gap's noise is uniform within 20 %."""


@dataclass
class Sample:
    at: float
    limit: int
    in_flight: int
    people: int


class Simulation:
    """One engine, people who come as a Poisson process, and a batch without end. Runs on a clock of its own."""

    def __init__(
        self,
        seed: int,
        people_per_second: Callable[[float], float],
        preempts: bool = False,
        enabled: bool = True,
        base_seconds: float = BASE_SECONDS,
    ) -> None:
        self.base_seconds = base_seconds
        self.random = random.Random(seed)
        self.people_per_second = people_per_second
        self.preempts = preempts
        self.now = 0.0
        self.latencies = Latencies(TARGETS, lambda: self.now)
        self.adaptive = Adaptive(Priority(enabled=enabled))
        self.people = 0
        self.lines: set[int] = set()
        self.samples: list[Sample] = []
        self.gaps: list[tuple[float, float]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def run(self, seconds: float) -> Simulation:
        self._in(0.0, self._arrival)
        self._in(0.0, self._control)
        while self._events[0][0] < seconds:
            self.now, _, happens = heapq.heappop(self._events)
            happens()
        return self

    def limits(self, start: float, end: float) -> list[int]:
        return [sample.limit for sample in self.samples if start <= sample.at < end]

    def missed(self, start: float, end: float) -> float:
        """The share of gaps over the target."""
        gaps = [gap for at, gap in self.gaps if start <= at < end]
        return sum(gap > TARGETS.itl_p95_seconds for gap in gaps) / len(gaps)

    def _in(self, seconds: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), happens))

    def _step_seconds(self) -> float:
        """An engine's step: longer the more sequences it holds."""
        running = self.people + len(self.lines)
        return (self.base_seconds + SECONDS_EACH * running) * self.random.uniform(1 - NOISE, 1 + NOISE)

    def _arrival(self) -> None:
        rate = self.people_per_second(self.now)
        if rate > 0:
            self.people += 1
            timing = self.latencies.begin("chat", Traffic.INTERACTIVE)
            tokens = self.random.randint(20, 60)
            self._in(0.1 + self._step_seconds(), lambda: self._token(timing, tokens, self.now))
        self._in(self.random.expovariate(rate) if rate > 0 else 0.1, self._arrival)

    def _token(self, timing: Timing, left: int, before: float) -> None:
        timing.piece()
        if self.now > before:
            self.gaps.append((self.now, self.now - before))
        if left == 1:
            timing.end()
            self.people -= 1
        else:
            at = self.now
            self._in(self._step_seconds(), lambda: self._token(timing, left - 1, at))

    def _control(self) -> None:
        self.adaptive.update(
            headroom=self.latencies.headroom(self.adaptive.changed_at),
            since_step=self.latencies.headroom(max(self.adaptive.changed_at, self.adaptive.stepped_at)),
            in_flight=len(self.lines),
            ceiling=CEILING,
            quiet=self.latencies.quiet_for() >= QUIET_SECONDS,
            now=self.now,
        )
        while self.preempts and len(self.lines) > self.adaptive.limit:
            self.lines.pop()
        self._fill()
        self.samples.append(Sample(self.now, self.adaptive.limit, len(self.lines), self.people))
        self._in(0.05, self._control)

    def _fill(self) -> None:
        while len(self.lines) < self.adaptive.limit:
            line = next(self._numbers)
            self.lines.add(line)
            tokens = self.random.randint(10, 60)
            self._in(tokens * self._step_seconds(), lambda line=line: self._line_ended(line))

    def _line_ended(self, line: int) -> None:
        if line in self.lines:
            self.lines.discard(line)
            self._fill()


def mean(values: list[int]) -> float:
    return math.fsum(values) / len(values)


@pytest.mark.parametrize("people_per_second", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_promise_07_it_finds_about_as_many_lines_as_leave_people_their_latency(
    seed: int, people_per_second: float
) -> None:
    simulated = Simulation(seed, lambda _: people_per_second).run(180)
    most = MOST - mean([sample.people for sample in simulated.samples if sample.at >= 60])
    assert 0.5 * most < mean(simulated.limits(60, 180)) < most
    assert simulated.missed(60, 180) < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_promise_07_where_people_alone_have_little_headroom_it_does_not_stay_where_it_began(
    seed: int,
) -> None:
    """An engine whose step takes half of the target with nobody in it: there is hardly ever headroom above `full_above`."""
    simulated = Simulation(
        seed, lambda _: 1.0, preempts=True, base_seconds=0.5 * TARGETS.itl_p95_seconds
    ).run(180)
    assert mean(simulated.limits(60, 180)) > 2 * START
    assert simulated.missed(60, 180) < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_it_fills_the_engine_within_seconds_after_the_last_has_left(seed: int) -> None:
    simulated = Simulation(seed, lambda now: 0.5 if now < 60 else 0.0).run(90)
    gone = max(at for at, _ in simulated.gaps)
    full = min(s.at for s in simulated.samples if s.at > gone and s.limit == CEILING)
    assert 0 <= full - (gone + QUIET_SECONDS) <= 4


@pytest.mark.parametrize("preempts", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_promise_07_when_people_come_to_a_full_engine_batch_makes_room_within_two_seconds(
    seed: int, preempts: bool
) -> None:
    simulated = Simulation(seed, lambda now: 0.0 if now < 30 else 1.0, preempts).run(90)
    assert simulated.limits(29, 30) == [CEILING] * len(simulated.limits(29, 30))
    assert max(simulated.limits(30.2, 32)) <= 4 * START
    if preempts:
        assert simulated.missed(32, 90) < 0.05
    assert simulated.missed(50, 90) < 0.05
    assert mean(simulated.limits(60, 90)) > 0.4 * MOST


@pytest.mark.parametrize("seed", range(4))
def test_promise_07_it_falls_within_two_seconds_when_many_more_people_come(seed: int) -> None:
    """Fifteen people a second for ten seconds: more than the engine can serve even without a batch."""
    simulated = Simulation(seed, lambda now: 15.0 if 60 <= now < 70 else 0.5, preempts=True).run(120)
    before = mean(simulated.limits(50, 60))
    crossed = min(at for at, gap in simulated.gaps if at > 60 and gap > TARGETS.itl_p95_seconds)
    assert min(simulated.limits(crossed, crossed + 2)) <= before / 2
    assert mean(simulated.limits(105, 120)) > 0.4 * MOST  # and is back when they have gone


def test_without_priority_the_same_engine_makes_people_wait() -> None:
    assert Simulation(0, lambda _: 0.5, enabled=False).run(60).missed(10, 60) > 0.9


def test_a_simulation_is_the_same_for_the_same_seed() -> None:
    one, two = (Simulation(7, lambda _: 0.5).run(20) for _ in range(2))
    assert one.samples == two.samples
