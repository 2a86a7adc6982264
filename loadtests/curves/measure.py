"""A level and a curve: what is asked, how often at once, and of whom.

Knows neither processes nor tables.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.curves.points import Point
from loadtests.stream import keep_asking
from loadtests.workload import Ask, Lengths, body, crowd

ASKS = 4096
"""Different requests; they are gone through again after that, under other marks."""


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked, and by which name the tables call it."""

    name: str
    url: str
    model: str


@dataclass(frozen=True, slots=True)
class Load:
    """What all levels have in common."""

    lengths: Lengths
    seconds: float
    warm_seconds: float
    seed: int


async def level(target: Target, load: Load, streams: int, models: Sequence[str] = ()) -> Point:
    """One level. `models`: adapters that are asked in turn, in place of the target's own model."""
    asked = models or (target.model,)
    mark = uuid.uuid4().hex[:6]

    def body_of(ask: Ask, number: int) -> dict[str, Any]:
        return body(ask, asked[number % len(asked)], f"{mark}{number:06d}", streams=True)

    asks = crowd(load.seed, ASKS, load.lengths)
    loop = await keep_asking(target.url, asks, body_of, streams, load.seconds, load.warm_seconds)
    return Point.of(target.name, streams, len(models), loop)
