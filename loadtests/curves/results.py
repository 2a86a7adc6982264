"""What a run has measured, as one JSON file: its points, the options, the machine.

Knows nothing of how they were measured or what is made of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtests.curves.points import Point
from loadtests.percentiles import Percentiles


@dataclass(slots=True)
class Results:
    """A run, as far as it has come. `points`: by the name of the curve."""

    options: dict[str, Any]
    machine: dict[str, Any]
    points: dict[str, list[Point]] = field(default_factory=dict)

    def add(self, curve: str, point: Point) -> None:
        self.points.setdefault(curve, []).append(point)

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(told(asdict(self)), indent=1) + "\n")

    @classmethod
    def read(cls, file: Path) -> Results:
        found = json.loads(file.read_text())
        points = {curve: [_point(one) for one in several] for curve, several in found["points"].items()}
        return cls(found["options"], found["machine"], points)


def told(value: Any) -> Any:
    """A value as JSON can have it: what is no finite number by its name."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: told(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [told(each) for each in value]
    return value


def _point(found: Mapping[str, Any]) -> Point:
    values = {name: _number(value) for name, value in found.items()}
    return Point(**values | {name: _percentiles(found[name]) for name in ("ttft", "itl")})


def _percentiles(found: Mapping[str, Any]) -> Percentiles:
    return Percentiles(**{name: _number(value) for name, value in found.items()})


def _number(value: Any) -> Any:
    return float(value) if value in ("inf", "nan") else value
