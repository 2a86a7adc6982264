"""How fast a run works beside people's requests, and that its rests are nothing but rests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adapters.errors import StaleWorker
from adapters.jobs import Wish
from adapters.traffic_settings import Priority
from trainer.pace import HYSTERESIS, LONG_SECONDS, SLICE_SECONDS, Pace, duty
from trainer.progress import Cancelled, Unwatched

BOUNDS = (0.1, 0.4)
CALM, HALF, PRESSED = 1.0, 0.25, -0.5
"""Headrooms at which a run may work all the time, half of it, and not at all."""


class Machine(Unwatched):
    """A clock that sleeping moves on, and a headroom and a wish that change as it does."""

    def __init__(
        self,
        headroom: Callable[[float], float | None],
        wish: Callable[[float], Wish | None] = lambda now: None,
        lines_wait: Callable[[float], bool] = lambda now: False,
    ) -> None:
        self.now = 0.0
        self.told: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.sleeps: list[float] = []
        self._headroom, self._wish, self._lines_wait = headroom, wish, lines_wait

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    def work(self, seconds: float) -> None:
        self.now += seconds

    def headroom(self) -> float | None:
        return self._headroom(self.now)

    def lines_wait(self) -> bool:
        return self._lines_wait(self.now)

    def step(self, metrics: dict[str, Any]) -> Wish | None:
        self.told.append(metrics)
        return self._wish(self.now)

    def note(self, message: str) -> None:
        self.notes.append(message)


def pace_on(machine: Machine, **settings: Any) -> Pace:
    return Pace(Priority(**settings), machine, machine.clock, machine.sleep)


def rest_after(machine: Machine, pace: Pace, seconds: float) -> float:
    """How long it rests after work of so many seconds."""
    machine.work(seconds)
    began = machine.now
    pace.rest()
    return machine.now - began


# -- the rule --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("headroom", "share"),
    [(None, 1.0), (1.0, 1.0), (0.4, 1.0), (0.25, 0.5), (0.175, 0.25), (0.1, 0.0), (0.0, 0.0), (-9.0, 0.0)],
)
def test_promise_07_the_less_headroom_there_is_the_less_a_run_works(
    headroom: float | None, share: float
) -> None:
    assert duty(headroom, *BOUNDS) == pytest.approx(share)


def test_a_run_that_has_stopped_goes_on_only_well_above_where_it_stopped() -> None:
    resumes_at = BOUNDS[0] + HYSTERESIS
    assert duty(resumes_at - 0.01, *BOUNDS) > 0  # one that has not stopped works on
    assert duty(resumes_at - 0.01, *BOUNDS, resting=True) == 0
    assert duty(resumes_at, *BOUNDS, resting=True) == pytest.approx(1 / 3)
    assert duty(None, *BOUNDS, resting=True) == 1.0  # nobody serves any more


def test_close_bounds_leave_room_to_go_on() -> None:
    assert duty(0.16, 0.1, 0.2, resting=True) == pytest.approx(0.6)
    assert duty(0.14, 0.1, 0.2, resting=True) == 0


# -- the rests -------------------------------------------------------------------------------------
def test_a_run_with_room_does_not_rest() -> None:
    for headroom in (CALM, None):
        machine = Machine(lambda now, headroom=headroom: headroom)
        assert rest_after(machine, pace_on(machine), 2.0) == 0
        assert machine.told == []


def test_promise_07_a_slowed_run_rests_in_proportion_to_what_it_has_worked() -> None:
    machine = Machine(lambda now: HALF)
    pace = pace_on(machine)
    assert rest_after(machine, pace, 2.0) == pytest.approx(2.0)
    assert rest_after(machine, pace, 0.5) == pytest.approx(0.5)  # the rest before is not counted as work
    assert max(machine.sleeps) <= SLICE_SECONDS
    assert pace.paused_seconds == pytest.approx(2.5)


def test_promise_07_a_stopped_run_goes_on_as_soon_as_there_is_room_again() -> None:
    machine = Machine(lambda now: PRESSED if now < 7.0 else CALM)
    rested = rest_after(machine, pace_on(machine), 1.0)
    assert 6.0 <= rested <= 6.0 + 2 * SLICE_SECONDS
    assert machine.told[0] == {"resting": True, "paused_seconds": 0.0}
    assert machine.told[-1] == {"resting": False, "paused_seconds": round(rested, 1)}


def test_a_long_rest_is_cut_short_when_the_pressure_goes() -> None:
    machine = Machine(lambda now: 0.11 if now < 12.0 else CALM)  # 29 seconds of rest for each of work
    assert rest_after(machine, pace_on(machine), 10.0) == pytest.approx(2.0, abs=2 * SLICE_SECONDS)


def test_pressure_that_comes_during_a_rest_makes_it_longer() -> None:
    machine = Machine(lambda now: HALF if now < 1.5 else PRESSED if now < 5.0 else CALM)
    assert rest_after(machine, pace_on(machine), 1.0) == pytest.approx(4.0, abs=2 * SLICE_SECONDS)


def test_a_run_that_wavers_around_the_threshold_does_not_stutter() -> None:
    """Headroom swings by less than the hysteresis until second 9: stopped once, it stays so."""
    machine = Machine(lambda now: CALM if now > 9 else 0.12 if int(now) % 2 else 0.09)
    machine.work(1.0)
    assert rest_after(machine, pace_on(machine), 1.0) == pytest.approx(7.0, abs=2 * SLICE_SECONDS)


@pytest.mark.parametrize("headroom", [0.4, CALM, None])
def test_with_ample_headroom_there_is_enough_for_lines_and_a_run(headroom: float | None) -> None:
    machine = Machine(lambda now: headroom, lines_wait=lambda now: True)
    assert rest_after(machine, pace_on(machine), 1.0) == 0


@pytest.mark.parametrize("headroom", [HALF, 0.39])
def test_promise_07_without_it_a_run_rests_until_no_line_waits(headroom: float) -> None:
    machine = Machine(lambda now: headroom, lines_wait=lambda now: now < 7.0)
    assert rest_after(machine, pace_on(machine), 1.0) == pytest.approx(6.0, abs=2 * SLICE_SECONDS)


def test_a_run_that_lines_have_stopped_goes_on_as_slow_as_without_them() -> None:
    machine = Machine(lambda now: HALF, lines_wait=lambda now: now < 7.0)
    rest_after(machine, pace_on(machine), 1.0)
    assert rest_after(machine, pace_on(machine), 1.0) == pytest.approx(1.0)


def test_work_that_was_done_before_it_began_is_not_made_up_for() -> None:
    machine = Machine(lambda now: HALF)
    pace = pace_on(machine)
    machine.work(60.0)
    pace.begin()
    assert rest_after(machine, pace, 1.0) == pytest.approx(1.0)


def test_without_priority_a_run_never_rests() -> None:
    machine = Machine(lambda now: PRESSED)
    assert rest_after(machine, pace_on(machine, enabled=False), 5.0) == 0


def test_the_settings_say_where_a_run_slows_and_stops() -> None:
    machine = Machine(lambda now: 0.5)
    assert rest_after(machine, pace_on(machine, pause_below=0.4, full_above=0.8), 1.0) == pytest.approx(3.0)


def test_small_pieces_of_work_do_not_look_each_time() -> None:
    looks: list[float] = []
    machine = Machine(lambda now: looks.append(now) or CALM)  # type: ignore[func-returns-value]
    pace = pace_on(machine)
    for _ in range(100):
        rest_after(machine, pace, 0.001)
    assert 1 <= len(looks) <= 4


def test_why_it_rests_is_told_once_and_only_where_it_takes_long() -> None:
    machine = Machine(lambda now: HALF)
    pace = pace_on(machine)
    rest_after(machine, pace, LONG_SECONDS / 2)
    assert machine.notes == []
    for _ in range(3):
        rest_after(machine, pace, LONG_SECONDS)
    assert machine.notes == ["Training rests: interactive latency is near its target."]


def test_that_lines_go_first_is_told() -> None:
    machine = Machine(lambda now: HALF, lines_wait=lambda now: now < 2 * LONG_SECONDS)
    rest_after(machine, pace_on(machine), 1.0)
    (note,) = machine.notes
    assert (
        note
        == "Training rests: interactive latency is near its target, and batch lines wait, which go first."
    )


# -- what it hears meanwhile -----------------------------------------------------------------------
def test_a_wish_to_cancel_ends_a_rest_and_the_run() -> None:
    machine = Machine(lambda now: PRESSED, lambda now: Wish.CANCEL if now > 3 else None)
    with pytest.raises(Cancelled):
        rest_after(machine, pace_on(machine), 1.0)
    assert machine.now <= 3 + 2 * SLICE_SECONDS


def test_a_wish_to_pause_ends_a_rest_so_that_the_step_can_be_saved() -> None:
    machine = Machine(lambda now: PRESSED, lambda now: Wish.PAUSE if now > 3 else None)
    pace = pace_on(machine)
    assert rest_after(machine, pace, 1.0) == pytest.approx(2.0, abs=2 * SLICE_SECONDS)
    assert machine.told[-1]["resting"] is False
    assert rest_after(machine, pace, 1.0) == 0  # nor does it rest again before it has stopped
    assert machine.told[-1]["resting"] is False


def test_promise_08_a_run_that_has_lost_its_job_learns_it_while_it_rests() -> None:
    class Lost(Machine):
        def step(self, metrics: dict[str, Any]) -> Wish | None:
            raise StaleWorker("another worker's by now")

    machine = Lost(lambda now: PRESSED)
    with pytest.raises(StaleWorker):
        rest_after(machine, pace_on(machine), 1.0)
