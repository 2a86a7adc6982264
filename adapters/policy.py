"""What a route declares: its scores, when it is trained, what becomes of a new version, the form of its answers.

Pure values, kept as JSON with the route; `parse_policy` makes them from a person's JSON and refuses what it does
not know. Does not know who reads them.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from adapters.load_tests import LoadTest, load_test_json, parse_load_test
from adapters.plans import Plan, departures, parse_plan, plan_json
from adapters.sections import Section, json_object, wrong

SCORE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

#: What feedback without a score is called.
RESERVED_NAMES = frozenset({"comment", "demonstration", "preference"})


class Release(StrEnum):
    """What a version that passed its gate becomes."""

    PROMOTE = "promote"  # the route's default, at once
    CHALLENGE = "challenge"  # a challenger of the route's default, with a small share of its traffic
    EXPERIMENT = "experiment"  # a challenger in an experiment by the policy's plan, which decides
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
    load_test: LoadTest | None = None  # what a version that passed must stand as well; None: nothing


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
    experiment: Plan = field(
        default_factory=Plan
    )  # for the experiments that training begins; it names no challengers

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
    value["training"]["load_test"] = load_test_json(policy.training.load_test)
    value["experiment"] = plan_json(policy.experiment)
    del value["experiment"]["challengers"]
    return value


def changed_policy(policy: RoutePolicy, change: Any, where: str = "policy") -> RoutePolicy:
    """`policy` with the parts that `change` gives in the place of its own; null puts a part back to its default.

    Of `training`, `format` and `experiment` each key is a part; `scores`, `hyperparameters` and `json_schema` are one as a whole.
    Raises InvalidRequest.
    """
    before = policy_json(policy)
    before["experiment"]["guardrails"] = departures(policy.experiment)
    for name, part in json_object(change, where, RoutePolicy).items():
        merges = isinstance(part, dict) and isinstance(before[name], dict)
        before[name] = {**before[name], **part} if merges else part
    return parse_policy(before, where)


def parse_policy(value: Any, where: str = "policy") -> RoutePolicy:
    """A policy from JSON; what is not given has its default. Raises InvalidRequest with the dotted `param`."""
    parts = json_object(value, where, RoutePolicy)
    return RoutePolicy(
        scores=_scores(parts.get("scores"), f"{where}.scores"),
        training=_training(Section(parts.get("training"), f"{where}.training", TrainingPolicy)),
        format=_format(Section(parts.get("format"), f"{where}.format", FormatCheck)),
        experiment=_experiment(parts.get("experiment"), f"{where}.experiment"),
    )


def _scores(value: Any, where: str) -> tuple[Score, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise wrong(where, "must be a list of scores")
    scores = tuple(_score(Section(item, f"{where}[{i}]", Score)) for i, item in enumerate(value))
    for index, score in enumerate(scores):
        if score.name in {other.name for other in scores[:index]}:
            raise wrong(f"{where}[{index}].name", f"is there twice: {score.name!r}")
    return scores


def _score(section: Section) -> Score:
    name = section.text("name")
    if name is None or SCORE_NAME.fullmatch(name) is None or name in RESERVED_NAMES:
        taken = ", ".join(sorted(RESERVED_NAMES))
        raise wrong(
            f"{section.where}.name",
            f"must be 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit, and none of {taken}",
        )
    kind = section.choice("kind", ScoreKind)
    low, high = section.number("low"), section.number("high")
    if kind is ScoreKind.BOOLEAN and (low, high) != (None, None):
        raise wrong(f"{section.where}.low", "and `high` are for kind 'number'")
    if kind is ScoreKind.NUMBER and (low is None or high is None or low >= high):
        raise wrong(f"{section.where}.low", "and `high` must be given, `low` the smaller, for kind 'number'")
    return Score(name, kind, low, high, section.flag("higher_is_better"))


def _training(section: Section) -> TrainingPolicy:
    hyperparameters = section.mapping("hyperparameters") or {}
    for name, value in hyperparameters.items():
        if isinstance(value, dict | list):
            raise wrong(f"{section.where}.hyperparameters.{name}", "must be a number, a text, true or false")
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
        load_test=parse_load_test(section.raw("load_test"), f"{section.where}.load_test"),
    )


def _experiment(value: Any, where: str) -> Plan:
    plan = parse_plan(value, where, template=True)
    if plan.challengers:
        raise wrong(f"{where}.challengers", "are the versions that training makes, and cannot be given")
    return plan


def _format(section: Section) -> FormatCheck:
    regex = section.text("regex")
    try:
        re.compile(regex or "")
    except re.error as error:
        raise wrong(f"{section.where}.regex", f"is no regular expression: {error}") from None
    return FormatCheck(section.mapping("json_schema"), regex)
