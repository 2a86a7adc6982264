"""What a route declares: its scores, when it is trained, what becomes of a new version, the form of its answers.

Pure values, kept as JSON with the route; `parse_policy` makes them from a person's JSON and refuses what it does
not know. Does not know who reads them.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeVar

from adapters.errors import InvalidRequest

SCORE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

#: What feedback without a score is called.
RESERVED_NAMES = frozenset({"comment", "demonstration", "preference"})

E = TypeVar("E", bound=StrEnum)


class Release(StrEnum):
    """What a version that passed its gate becomes."""

    PROMOTE = "promote"  # the route's default, at once
    CHALLENGE = "challenge"  # a challenger of the route's default, with a small share of its traffic
    ASK = "ask"  # proved and loaded, and waits for a person's `burnish promote`


class Method(StrEnum):
    AUTO = "auto"  # by the data: demonstrations -> supervised, corrections -> dpo, bare thumbs -> kto
    SUPERVISED = "supervised"
    DPO = "dpo"
    KTO = "kto"


class ScoreKind(StrEnum):
    BOOLEAN = "boolean"
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class Score:
    """A named judgement: boolean, or a number between `low` and `high`; `higher_is_better` is its direction."""

    name: str
    kind: ScoreKind = ScoreKind.BOOLEAN
    low: float | None = None
    high: float | None = None
    higher_is_better: bool = True

    @property
    def bounds(self) -> tuple[float, float]:
        return (self.low or 0.0, 1.0 if self.high is None else self.high)

    def liked(self, value: float) -> bool | None:
        """Whether a value is a good word: on the better half of the scale. None: right in the middle, it says nothing."""
        low, high = self.bounds
        middle = (low + high) / 2
        return None if value == middle else (value > middle) is self.higher_is_better

    def value_of(self, liked: bool) -> float:
        """The end of the scale that stands for a plain yes or no."""
        low, high = self.bounds
        return high if liked is self.higher_is_better else low


#: Every route has it: the thumb.
RATING = Score("rating")


@dataclass(frozen=True, slots=True)
class TrainingPolicy:
    """When a route trains by itself, and how."""

    enabled: bool = False
    min_new_rows: int = 50  # completions with usable feedback since the last run
    every_seconds: float | None = None  # also when so much time has passed, if there is anything new at all
    cooldown_seconds: float = 600.0  # between the end of a run and the next one's start by itself
    method: Method = Method.AUTO
    hyperparameters: tuple[tuple[str, Any], ...] = ()
    release: Release = Release.PROMOTE
    challenger_share: float = 0.05  # of the route's traffic, where `release` is "challenge"
    judge_model: str | None = None  # an OpenAI-compatible model of one of the engines; None: no judge
    lm_eval_tasks: tuple[str, ...] = ()  # of lm-evaluation-harness, for the report


@dataclass(frozen=True, slots=True)
class FormatCheck:
    """The form that every answer of the route should have; each part is checked if it is given."""

    json_schema: dict[str, Any] | None = field(default=None, hash=False)
    regex: str | None = None


@dataclass(frozen=True, slots=True)
class RoutePolicy:
    scores: tuple[Score, ...] = ()  # besides RATING; one of that name stands in its place
    training: TrainingPolicy = TrainingPolicy()
    format: FormatCheck = FormatCheck()

    def score(self, name: str) -> Score | None:
        """The declared score of that name; `rating` always is."""
        return next((score for score in (*self.scores, RATING) if score.name == name), None)

    @property
    def score_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*(score.name for score in self.scores), RATING.name]))


def policy_json(policy: RoutePolicy) -> dict[str, Any]:
    """The whole policy as plain JSON: `parse_policy` makes the same of it again."""
    value = asdict(policy)
    value["scores"] = list(value["scores"])
    value["training"]["hyperparameters"] = dict(policy.training.hyperparameters)
    value["training"]["lm_eval_tasks"] = list(policy.training.lm_eval_tasks)
    return value


def changed_policy(policy: RoutePolicy, change: Any, where: str = "policy") -> RoutePolicy:
    """`policy` with the parts that `change` gives in the place of its own; null puts a part back to its default.

    Of `training` and `format` each key is a part; `scores`, `hyperparameters` and `json_schema` are one as a whole.
    Raises InvalidRequest.
    """
    before = policy_json(policy)
    for name, part in _object(change, where, RoutePolicy).items():
        merges = isinstance(part, dict) and isinstance(before[name], dict)
        before[name] = {**before[name], **part} if merges else part
    return parse_policy(before, where)


def parse_policy(value: Any, where: str = "policy") -> RoutePolicy:
    """A policy from JSON; what is not given has its default. Raises InvalidRequest with the dotted `param`."""
    parts = _object(value, where, RoutePolicy)
    return RoutePolicy(
        scores=_scores(parts.get("scores"), f"{where}.scores"),
        training=_training(_Section(parts.get("training"), f"{where}.training", TrainingPolicy)),
        format=_format(_Section(parts.get("format"), f"{where}.format", FormatCheck)),
    )


def _scores(value: Any, where: str) -> tuple[Score, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _wrong(where, "must be a list of scores")
    scores = tuple(_score(_Section(item, f"{where}[{i}]", Score)) for i, item in enumerate(value))
    for index, score in enumerate(scores):
        if score.name in {other.name for other in scores[:index]}:
            raise _wrong(f"{where}[{index}].name", f"is there twice: {score.name!r}")
    return scores


def _score(section: _Section) -> Score:
    name = section.text("name")
    if name is None or SCORE_NAME.fullmatch(name) is None or name in RESERVED_NAMES:
        taken = ", ".join(sorted(RESERVED_NAMES))
        raise _wrong(
            f"{section.where}.name",
            f"must be 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit, and none of {taken}",
        )
    kind = section.choice("kind", ScoreKind)
    low, high = section.number("low"), section.number("high")
    if kind is ScoreKind.BOOLEAN and (low, high) != (None, None):
        raise _wrong(f"{section.where}.low", "and `high` are for kind 'number'")
    if kind is ScoreKind.NUMBER and (low is None or high is None or low >= high):
        raise _wrong(f"{section.where}.low", "and `high` must be given, `low` the smaller, for kind 'number'")
    return Score(name, kind, low, high, section.flag("higher_is_better"))


def _training(section: _Section) -> TrainingPolicy:
    hyperparameters = section.mapping("hyperparameters") or {}
    for name, value in hyperparameters.items():
        if isinstance(value, dict | list):
            raise _wrong(f"{section.where}.hyperparameters.{name}", "must be a number, a text, true or false")
    return TrainingPolicy(
        enabled=section.flag("enabled"),
        min_new_rows=section.count("min_new_rows"),
        every_seconds=section.number("every_seconds", above=0),
        cooldown_seconds=section.seconds("cooldown_seconds"),
        method=section.choice("method", Method),
        hyperparameters=tuple(sorted(hyperparameters.items())),
        release=section.choice("release", Release),
        challenger_share=section.share("challenger_share"),
        judge_model=section.text("judge_model"),
        lm_eval_tasks=section.texts("lm_eval_tasks"),
    )


def _format(section: _Section) -> FormatCheck:
    regex = section.text("regex")
    try:
        re.compile(regex or "")
    except re.error as error:
        raise _wrong(f"{section.where}.regex", f"is no regular expression: {error}") from None
    return FormatCheck(section.mapping("json_schema"), regex)


class _Section:
    """One object of a policy: its fields by their kind, each the default of `shape` where it is not given."""

    def __init__(self, value: Any, where: str, shape: type) -> None:
        self.where = where
        self._values = _object(value, where, shape)
        self._defaults = {field.name: field.default for field in fields(shape)}

    def flag(self, name: str) -> bool:
        value = self._value(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "must be true or false")
        return value

    def count(self, name: str) -> int:
        value = self._value(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._wrong(name, "must be a whole number, at least 1")
        return value

    def number(self, name: str, above: float = -math.inf) -> float | None:
        value = self._value(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(name, "must be a number")
        if value <= above:
            raise self._wrong(name, f"must be above {above:g}")
        return float(value)

    def share(self, name: str) -> float:
        value = self.number(name)
        if value is None or not 0 < value < 1:
            raise self._wrong(name, "must be a number above 0 and below 1")
        return value

    def seconds(self, name: str) -> float:
        value = self.number(name)
        if value is None or value < 0:
            raise self._wrong(name, "must be a number of seconds, at least 0")
        return value

    def text(self, name: str) -> str | None:
        value = self._value(name)
        if value is not None and not (isinstance(value, str) and value):
            raise self._wrong(name, "must be a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._value(name)
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) and text for text in value):
            raise self._wrong(name, "must be a list of texts")
        return tuple(value)

    def choice(self, name: str, kind: type[E]) -> E:
        value = self._value(name)
        try:
            return kind(value)
        except ValueError:
            raise self._wrong(name, f"must be one of {', '.join(kind)}") from None

    def mapping(self, name: str) -> dict[str, Any] | None:
        value = self._values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(name, "must be a JSON object")
        try:
            json.dumps(value, allow_nan=False)
        except (ValueError, RecursionError):
            raise self._wrong(name, "must be JSON: no NaN or infinity, and not so deep") from None
        return value

    def _value(self, name: str) -> Any:
        """Null stands for the default, as does nothing."""
        value = self._values.get(name)
        default = self._defaults[name]
        return (None if default is MISSING else default) if value is None else value

    def _wrong(self, name: str, problem: str) -> InvalidRequest:
        return _wrong(f"{self.where}.{name}", problem)


def _object(value: Any, where: str, shape: type) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(where, "must be a JSON object")
    known = [field.name for field in fields(shape)]
    for name in value:
        if name not in known:
            raise _unknown(where, str(name), known)
    return value


def _unknown(where: str, name: str, known: Iterable[str]) -> InvalidRequest:
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean `{nearest[0]}`?" if nearest else f"it may be one of {', '.join(names)}"
    return InvalidRequest(
        f"unknown key `{where}.{name}`; {hint}", param=f"{where}.{name}", code="unknown_field"
    )


def _wrong(where: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"`{where}` {problem}", param=where, code="invalid_value")
