"""The files that a run leaves, written anew with every result: gpu.json and tables.md.

Knows nothing of how things were measured.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtests.curves.points import Point
from loadtests.curves.results import told
from loadtests.curves.table import table
from loadtests.figures import rounded


@dataclass(slots=True)
class Report:
    """A run, as far as it has come."""

    folder: Path
    options: dict[str, Any]
    machine: dict[str, Any]
    price_per_hour: float | None
    began: float = field(default_factory=time.monotonic)
    engine: dict[str, Any] = field(default_factory=dict)
    points: dict[str, list[Point]] = field(default_factory=dict)  # by the stage's name
    facts: dict[str, Any] = field(default_factory=dict)  # what is no curve, by the stage's name
    stages: dict[str, str] = field(default_factory=dict)  # how each ended

    def add(self, stage: str, point: Point) -> None:
        self.points.setdefault(stage, []).append(point)
        self.write()

    def tell(self, stage: str, facts: Any) -> None:
        self.facts[stage] = facts
        self.write()

    def end(self, stage: str, how: str) -> None:
        self.stages[stage] = how
        self.write()

    def write(self) -> None:
        kept = {
            "options": self.options,
            "machine": self.machine,
            "engine": self.engine,
            "stages": self.stages,
            "facts": self.facts,
            "points": {stage: [asdict(point) for point in points] for stage, points in self.points.items()},
            "seconds": time.monotonic() - self.began,
        }
        (self.folder / "gpu.json").write_text(json.dumps(told(kept), indent=1) + "\n")
        (self.folder / "tables.md").write_text(self.tables() + "\n")

    def tables(self) -> str:
        """Everything as Markdown."""
        parts = [
            f"### {stage}\n\n{table(points, self.price_per_hour)}" for stage, points in self.points.items()
        ]
        parts += [f"{stage}: {json.dumps(rounded(told(facts)))}" for stage, facts in self.facts.items()]
        ends = "; ".join(f"{stage}: {how}" for stage, how in self.stages.items())
        gpus = "; ".join(self.machine["gpus"]) or "no GPU"
        parts.append(f"{gpus}; engine: {json.dumps(rounded(told(self.engine)))}. {ends}.")
        return "\n\n".join(parts)
