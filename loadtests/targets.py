"""What a load test is held to: names of figures, limits with units, and whether they are kept. Pure.

Owns the names that `--target` knows and how many samples each needs. Does not know where the figures come from.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

LEAST_ANSWERS = 10
"""Fewer answers than this say nothing, whatever is asked of them."""

Figures = Mapping[str, Any]


class Unit(StrEnum):
    SECONDS = "s"
    PER_SECOND = "/s"
    SHARE = "share"


@dataclass(frozen=True, slots=True)
class Kind:
    """A figure that may have a limit. `path`: where the figures have it, and where the count of its samples."""

    name: str
    unit: Unit
    path: tuple[str, ...]
    counted: tuple[str, ...]
    is_at_least: bool = False
    least_count: int = LEAST_ANSWERS


def _percentile(name: str, figure: str, percent: int) -> Kind:
    """A percentile needs a sample beyond it: twenty for the 95th, a hundred for the 99th."""
    beyond = math.ceil(100 / (100 - percent))
    return Kind(
        f"{name}_p{percent}",
        Unit.SECONDS,
        (figure, f"p{percent}"),
        (figure, "count"),
        least_count=max(LEAST_ANSWERS, beyond),
    )


def _rate(name: str, path: tuple[str, ...], counted: tuple[str, ...], least_count: int) -> Kind:
    return Kind(name, Unit.PER_SECOND, path, counted, is_at_least=True, least_count=least_count)


_STREAM = "tokens_per_second_per_stream"

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        *(_percentile("ttft", "ttft_seconds", percent) for percent in (50, 95, 99)),
        *(_percentile("itl", "itl_seconds", percent) for percent in (50, 95, 99)),
        *(_percentile("total", "total_seconds", percent) for percent in (50, 95, 99)),
        *(_percentile("feedback", "feedback_seconds", percent) for percent in (50, 95, 99)),
        _rate("tokens_per_second_p5", (_STREAM, "p5"), (_STREAM, "count"), 20),
        _rate("tokens_per_second_p50", (_STREAM, "p50"), (_STREAM, "count"), LEAST_ANSWERS),
        _rate("answer_tokens_per_second", ("answer_tokens_per_second",), ("requests",), LEAST_ANSWERS),
        _rate("requests_per_second", ("requests_per_second",), ("requests",), LEAST_ANSWERS),
        _rate("batch_lines_per_second", ("batch_lines_per_second",), ("batch_lines",), LEAST_ANSWERS),
        Kind("error_rate", Unit.SHARE, ("error_rate",), ("requests",)),
    )
}

DEFAULT_ERROR_RATE = 0.01
"""The limit where none is given: latencies of the few that were answered are no pass."""

_FACTORS = {
    Unit.SECONDS: {"ms": 0.001, "s": 1.0},
    Unit.PER_SECOND: {"/s": 1.0, "": 1.0},
    Unit.SHARE: {"%": 0.01, "": 1.0},
}
_EXAMPLES = {Unit.SECONDS: "500ms or 1.5s", Unit.PER_SECOND: "20", Unit.SHARE: "1% or 0.01"}


@dataclass(frozen=True, slots=True)
class Target:
    """A limit, in seconds, in so many a second, or as a share."""

    kind: Kind
    limit: float

    @property
    def name(self) -> str:
        return self.kind.name


@dataclass(frozen=True, slots=True)
class Checked:
    """A target beside what was measured. `met` is None where that cannot be told; `problem` says why."""

    target: Target
    measured: float | None
    met: bool | None
    problem: str | None = None

    def json(self) -> dict[str, Any]:
        return {
            "name": self.target.name,
            "limit": self.target.limit,
            "unit": self.target.kind.unit.value,
            "measured": self.measured,
            "met": self.met,
        }


def parse_target(text: str) -> Target:
    """`ttft_p95=500ms`. Raises ValueError with the nearest right name, or the units that there are."""
    name, equals, limit = (part.strip() for part in text.partition("="))
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, n=1, cutoff=0.4)
        raise ValueError(
            f"{name!r} is no target; "
            + (f"is {near[0]!r} meant?" if near else f"there are {', '.join(KINDS)}")
        )
    kind = KINDS[name]
    if not equals:
        raise ValueError(f"{text!r} has no limit; such is {name}={_EXAMPLES[kind.unit]}")
    return Target(kind, _limit(kind, limit))


def with_error_rate(targets: Sequence[Target]) -> tuple[Target, ...]:
    """With the default limit of errors where there is none among them."""
    if any(target.name == "error_rate" for target in targets):
        return tuple(targets)
    return (*targets, Target(KINDS["error_rate"], DEFAULT_ERROR_RATE))


def check(target: Target, figures: Figures) -> Checked:
    kind = target.kind
    count, measured = int(_found(figures, kind.counted) or 0), _found(figures, kind.path)
    if count < kind.least_count or measured is None:
        noun = "sample" if count == 1 else "samples"
        problem = f"{kind.name} could not be told: {count} {noun}, and it takes {kind.least_count}"
        return Checked(target, measured, None, problem)
    met = measured >= target.limit if kind.is_at_least else measured <= target.limit
    return Checked(target, measured, met)


def told(value: float | None, unit: Unit) -> str:
    """A figure for a person: "140 ms", "1.52 s", "20.3 /s", "0.5%"."""
    if value is None:
        return "-"
    if unit is Unit.SHARE:
        return f"{100 * value:.3g}%"
    if unit is Unit.PER_SECOND:
        return f"{value:.4g} /s"
    return (
        f"{1000 * value:.3g} ms" if value < 0.9995 else f"{value:.3g} s" if value < 100 else f"{value:.0f} s"
    )


def _limit(kind: Kind, text: str) -> float:
    units = sorted(_FACTORS[kind.unit].items(), key=lambda unit: -len(unit[0]))
    for ending, factor in units:
        if text.endswith(ending):
            try:
                limit = float(text.removesuffix(ending)) * factor
            except ValueError:
                break
            if 0 <= limit < math.inf:
                return limit
            break
    raise ValueError(f"{text!r} is no limit for {kind.name}; such is {kind.name}={_EXAMPLES[kind.unit]}")


def _found(figures: Figures, path: tuple[str, ...]) -> float | None:
    value: Any = figures
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None else float(value)
