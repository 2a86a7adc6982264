"""What a route declares: its scores, when it is trained, what becomes of a new version, the form of its answers.

Pure values, kept as JSON with the route; `parse_policy` makes them from a person's JSON and refuses what it does
not know. Does not know who reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Release(StrEnum):
    """What a version that passed its gate becomes."""

    PROMOTE = "promote"  # the route's default, at once
    ASK = "ask"  # proved and loaded, and waits for a person's `burnish promote`


class Method(StrEnum):
    AUTO = "auto"  # by the data: demonstrations -> supervised, corrections -> dpo, bare thumbs -> kto
    SUPERVISED = "supervised"
    DPO = "dpo"
    KTO = "kto"


@dataclass(frozen=True, slots=True)
class Score:
    """A named judgement: boolean, or a number between `low` and `high`; `higher_is_better` is its direction."""

    name: str
    kind: str = "boolean"  # "boolean" or "number"
    low: float | None = None
    high: float | None = None
    higher_is_better: bool = True


#: Every route has it: the thumb.
RATING = Score("rating")


@dataclass(frozen=True, slots=True)
class TrainingPolicy:
    """When a route trains by itself, and how."""

    enabled: bool = False
    min_new_rows: int = 50  # usable feedback rows since the last run
    every_seconds: float | None = None  # also when so much time has passed, if there is anything new at all
    cooldown_seconds: float = 600.0  # between the end of a run and the next one's start by itself
    method: Method = Method.AUTO
    hyperparameters: tuple[tuple[str, Any], ...] = ()
    release: Release = Release.PROMOTE
    judge_model: str | None = None  # an OpenAI-compatible model of one of the engines; None: no judge


@dataclass(frozen=True, slots=True)
class FormatCheck:
    """The form that every answer of the route should have; each part is checked if it is given."""

    json_schema: dict[str, Any] | None = None
    regex: str | None = None


@dataclass(frozen=True, slots=True)
class RoutePolicy:
    scores: tuple[Score, ...] = ()  # besides RATING
    training: TrainingPolicy = TrainingPolicy()
    format: FormatCheck = FormatCheck()

    def score(self, name: str) -> Score | None:
        """The declared score of that name; `rating` always is."""
        return next((score for score in (*self.scores, RATING) if score.name == name), None)
