"""How much load there is at what time: constant, in steps, or rising: users of a closed loop, requests/s of an open one.

Pure. Owns the text of `--shape`; does not know what makes the load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FORMS = "steps=10,50,100 (equal parts of --duration), steps=10:30s,50:2m, or ramp=1,100"


@dataclass(frozen=True, slots=True)
class Stage:
    """From one load to another, evenly; a step where both are the same."""

    first: float
    last: float
    seconds: float

    @property
    def mean(self) -> float:
        return (self.first + self.last) / 2

    def name(self) -> str:
        return f"{self.first:g}" if self.first == self.last else f"{self.first:g} to {self.last:g}"


@dataclass(frozen=True, slots=True)
class Shape:
    """One stage after another."""

    stages: tuple[Stage, ...]

    @property
    def seconds(self) -> float:
        return math.fsum(stage.seconds for stage in self.stages)

    @property
    def most(self) -> float:
        return max(max(stage.first, stage.last) for stage in self.stages)

    def after(self, seconds: float) -> Shape:
        """With a stage before it in which the load is what it begins with."""
        first = self.stages[0].first
        return Shape((Stage(first, first, seconds), *self.stages)) if seconds > 0 else self

    def at(self, seconds: float) -> float:
        """The load at a time; from the end on, the last."""
        begin = 0.0
        for stage in self.stages:
            if seconds < begin + stage.seconds:
                return stage.first + (stage.last - stage.first) * (seconds - begin) / stage.seconds
            begin += stage.seconds
        return self.stages[-1].last

    def stage_at(self, seconds: float) -> int | None:
        """The number of the stage; None before the first and after the last."""
        end = 0.0
        for number, stage in enumerate(self.stages):
            end += stage.seconds
            if 0.0 <= seconds < end:
                return number
        return None

    def when(self, units: float) -> float | None:
        """When so much load has come together: the time up to which rate times time is `units`; None: never.

        It turns a Poisson process of rate one into one of this rate (time change).
        """
        begin = 0.0
        for stage in self.stages:
            inside = stage.mean * stage.seconds
            if units < inside:
                return begin + _crossed(stage, units)
            units -= inside
            begin += stage.seconds
        return None


def constant(load: float, seconds: float) -> Shape:
    return Shape((Stage(load, load, seconds),))


def parse_shape(text: str, seconds: float | None) -> Shape:
    """Of `--shape`, over `seconds` where the text says no times of its own. Raises ValueError."""
    kind, _, told = text.partition("=")
    parts = [part.strip() for part in told.split(",") if part.strip()]
    if kind == "ramp" and len(parts) == 2 and ":" not in told:
        return Shape((Stage(_load(parts[0]), _load(parts[1]), _given(seconds, text)),))
    if kind == "steps" and parts and all(":" in part for part in parts):
        if seconds is not None:
            raise ValueError(f"{text!r} says how long each step takes; leave --duration out")
        return Shape(tuple(_timed(part) for part in parts))
    if kind == "steps" and parts and ":" not in told:
        each = _given(seconds, text) / len(parts)
        return Shape(tuple(Stage(_load(part), _load(part), each) for part in parts))
    raise ValueError(f"{text!r} is no shape; such are {FORMS}")


def parse_seconds(text: str) -> float:
    """`30`, `30s`, `500ms`, `5m`, `8h`. Raises ValueError."""
    units = (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0))
    ending, factor = next(((unit, size) for unit, size in units if text.endswith(unit)), ("", 1.0))
    try:
        seconds = float(text.removesuffix(ending)) * factor
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{text!r} is no time; such are 30s, 5m, 8h")
    return seconds


def _crossed(stage: Stage, units: float) -> float:
    """Seconds into the stage until `units` have come: the root of first*t + slope*t²/2 = units that lies in it."""
    slope = (stage.last - stage.first) / stage.seconds
    root = math.sqrt(max(0.0, stage.first**2 + 2 * slope * units))
    return 2 * units / (stage.first + root) if units else 0.0


def _timed(part: str) -> Stage:
    load, _, seconds = part.partition(":")
    long = parse_seconds(seconds)
    if long == 0:
        raise ValueError(f"{part!r}: a step takes some time")
    return Stage(_load(load), _load(load), long)


def _load(text: str) -> float:
    try:
        load = float(text)
    except ValueError:
        load = -1.0
    if not 0 < load < math.inf:
        raise ValueError(f"{text!r} is no load; it is a number above 0")
    return load


def _given(seconds: float | None, text: str) -> float:
    if seconds is None:
        raise ValueError(f"{text!r} needs --duration, or a time for each step: {FORMS}")
    return seconds
