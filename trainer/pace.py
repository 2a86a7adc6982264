"""How fast a run works beside people's requests: the rule, and the rests between two pieces of its work (promise 7).

Owns what share of its time a run may work at a given headroom, and the loop that rests for the remainder. Where batch lines
wait for a place, a run rests unless there is enough for both. A rest is a sleep between two micro-batches and nothing
else, so that the run goes on exactly where it was. Knows neither the database nor how headroom is measured: a
`Watch` says it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adapters.jobs import Wish
from adapters.traffic_settings import Priority
from trainer.progress import Cancelled, Watch, agreed

SLICE_SECONDS = 0.1
"""The longest sleep: after each, headroom and wishes are looked at again."""

LEAST_SECONDS = 1e-4
"""A rest shorter than what a timer is late by is none."""

LOOK_SECONDS = 0.05
"""Headroom is looked at no more often, since very small micro-batches would be spent on it."""

HYSTERESIS = 0.1
"""How far above `pause_below` headroom must be until a run that has stopped goes on; it would stutter otherwise."""

LONG_SECONDS = 10.0
"""Whoever waits for a run that has rested for so long in all is told why."""


def duty(headroom: float | None, pause_below: float, full_above: float, *, resting: bool = False) -> float:
    """The share of its time that a run may work: 0 up to `pause_below`, 1 from `full_above` on, linear between. None:
    nobody serves, so 1.

    `resting`: whether it has been at 0 until now. It then stays there until there is HYSTERESIS more, or half the way.
    """
    if headroom is None:
        return 1.0
    resumes_at = min(pause_below + HYSTERESIS, (pause_below + full_above) / 2)
    if resting and headroom < resumes_at:
        return 0.0
    return min(1.0, max(0.0, (headroom - pause_below) / (full_above - pause_below)))


class Pace:
    """Rests after each piece of work for as long as the headroom asks.

    In several processes each has one, and all rest at the same points; the first decides, slice by slice, and the others hear it: a
    single long wait would outlast the patience of their collectives.
    """

    def __init__(
        self,
        priority: Priority,
        watch: Watch,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.paused_seconds = 0.0
        self._priority = priority
        self._watch = watch
        self._clock = clock
        self._sleep = sleep
        self._since = clock()
        self._is_stopped = False
        self._has_told_why = False
        self._headroom: float | None = None
        self._lines_wait = False
        self._looked = -math.inf

    def begin(self) -> None:
        """What was done until now is no work that is to be made up for."""
        self._since = self._clock()

    def rest(self, *, is_alone: bool = False) -> None:
        """After a piece of work. A wish to pause ends the rest, so that the step can end and be saved. `is_alone`: the
        other processes, if there were any, have ended or are not working at this.

        Raises Cancelled, and what the watch raises.
        """
        if not self._priority.enabled:
            return
        _finish_what_is_queued()
        began = self._clock()
        worked, rested = began - self._since, 0.0
        while True:
            answer = self._next(worked, rested)
            seconds, wish = answer if is_alone else agreed(answer)
            if wish is Wish.CANCEL:
                raise Cancelled
            if not seconds:
                break
            self._sleep(seconds)
            rested = self._clock() - began
        if rested or wish:
            self.paused_seconds += rested
            self._tell(0.0, resting=False)
        self.begin()

    def _next(self, worked: float, rested: float) -> tuple[float, Wish | None]:
        """How many seconds to sleep before looking again, 0 where the rest is over; and what is wished."""
        self._look()
        share = self._share()
        self._is_stopped = share == 0
        left = worked * (1 / share - 1) - rested if share else math.inf
        if left < LEAST_SECONDS:
            return 0.0, None
        wish = self._tell(rested, resting=self._is_stopped)
        return (0.0 if wish else min(SLICE_SECONDS, left)), wish

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return
        self._headroom, self._lines_wait = self._watch.headroom(), self._watch.lines_wait()
        self._looked = now

    def _share(self) -> float:
        bounds = self._priority
        is_ample = self._headroom is None or self._headroom >= bounds.full_above
        if self._lines_wait and not is_ample:
            return 0.0
        return duty(self._headroom, bounds.pause_below, bounds.full_above, resting=self._is_stopped)

    def _tell(self, rested: float, *, resting: bool) -> Wish | None:
        paused = self.paused_seconds + rested
        if paused >= LONG_SECONDS and not self._has_told_why:
            self._has_told_why = True
            others = ", and batch lines wait, which go first" if self._lines_wait else ""
            self._watch.note(f"Training rests: interactive latency is near its target{others}.")
        return self._watch.step({"resting": resting, "paused_seconds": round(paused, 1)})


class Resting(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Rests between micro-batches, of training and of its evaluations.

    After the last micro-batch of a step it rests once the step is done, and before the step is told: a wish to pause
    that comes meanwhile then costs no further work.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._pace.begin()
        self._pace.rest()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._pace.rest()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._pace.rest()

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._pace.rest()


def _finish_what_is_queued() -> None:
    """A GPU works on after the call returns: what it still has to do is work, and no rest."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
