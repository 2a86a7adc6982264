"""What a measurement has found, as one JSON file: every request's numbers, and the machine they are of.

Knows nothing of how they were measured or what is made of them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtests.servers import Targets
from loadtests.stream import Answer


@dataclass(frozen=True, slots=True)
class Work:
    """What a batch or a training run got done during the trace."""

    done: int  # lines, or optimizer steps
    failed: int
    seconds: float
    per_second: float  # lines, or tokens
    ended_early: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """One scenario in one round."""

    scenario: str
    round: int
    seconds: float
    answers: tuple[Answer, ...]
    batch: Work | None
    training: Work | None


@dataclass(slots=True)
class Results:
    """A whole measurement, as far as it has come."""

    options: dict[str, Any]
    machine: dict[str, Any]
    rate: float
    capacity: float | None  # None: not measured, since the rate was given
    targets: Targets
    measured: list[Measured] = field(default_factory=list)

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), separators=(",", ":")) + "\n")

    @classmethod
    def read(cls, file: Path) -> Results:
        told = json.loads(file.read_text())
        told["targets"] = Targets(**told["targets"])
        told["measured"] = [_measured(one) for one in told["measured"]]
        return cls(**told)


def _measured(told: dict[str, Any]) -> Measured:
    answers = tuple(
        Answer(**{**answer, "gaps_seconds": tuple(answer["gaps_seconds"])}) for answer in told["answers"]
    )
    works = {name: None if told[name] is None else Work(**told[name]) for name in ("batch", "training")}
    return Measured(**{**told, "answers": answers, **works})
