"""What an experiment is to do, as a person declares it: variants, score, guardrails, the rule, and what follows.

Pure values, kept as JSON with the experiment; `parse_plan` makes them and refuses what it does not know. A route's
policy holds the same as a template for the experiments that its training runs begin. Knows no traffic and no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from adapters.sections import Section, is_number, wrong

MAX_CHALLENGERS = 8

LEAST_REST = 1e-6  # of the traffic, for the control: less is what floating point makes of nothing

#: The guardrail on the deciding score itself, beside those on `Metric`s.
SCORE = "score"


class Policy(StrEnum):
    FIXED = "fixed"  # the shares stay as they are until the horizon, where the verdict is read off
    TEST = "test"  # control against challengers, decided as soon as it can be
    ADAPTIVE = "adaptive"  # traffic moves towards the better variant (Thompson sampling), then as TEST
    SHADOW = "shadow"  # the challenger answers too, off the client's path; nobody is shown its answers
    CANARY = "canary"  # a small share that grows by steps while the guardrails hold


class OnPromote(StrEnum):
    """What is done when the verdict is to promote."""

    ASK = "ask"  # it waits for a person's `burnish experiments decide`
    ACT = "act"  # the winner becomes the route's default, at once


class Metric(StrEnum):
    """What is measured of every answer; more of it is worse."""

    ERRORS = "error_rate"
    TTFT = "ttft_seconds"  # of streams
    INTER_TOKEN = "inter_token_seconds"  # of streams
    TOTAL = "total_seconds"
    LENGTH = "output_tokens"
    REFUSALS = "refusal_rate"
    REPETITION = "repetition"  # the share of 4-grams of words that were there before
    MALFORMED = "malformed_rate"  # against the request's JSON schema or the route's form of answers


#: Between 0 and 1: a guardrail on one of them tolerates so much more, absolutely. On the others, relatively.
RATES = frozenset({Metric.ERRORS, Metric.REFUSALS, Metric.REPETITION, Metric.MALFORMED})

#: How much worse than the control a challenger may be: rates and the score by so much, the others by that part.
GUARDRAILS = ((Metric.ERRORS.value, 0.02), (Metric.INTER_TOKEN.value, 0.5), (Metric.TTFT.value, 0.5))

#: All that a guardrail can stand on.
WATCHABLE = (SCORE, *(metric.value for metric in Metric))

#: A canary shows that a challenger does no harm, so its score must not be worse either.
CANARY_GUARDRAILS = (*GUARDRAILS, (SCORE, 0.02))


@dataclass(frozen=True, slots=True)
class Plan:
    #: Each variant with its share at first; None: as the policy has it.
    challengers: tuple[tuple[str, float | None], ...] = ()
    policy: Policy = Policy.TEST
    scores: tuple[str, ...] = ("rating",)  # of the route's policy; the first one decides
    minimal_effect: float = 0.0  # of the score's scale: a challenger that cannot gain this much is given up
    alpha: float = 0.05  # how often, at most, a verdict may be wrong, however often one looks
    guardrails: tuple[tuple[str, float], ...] = GUARDRAILS
    guardrail_alpha: float = 0.05  # how often, at most, a guardrail may stop what does no harm
    least_voices: int = 30  # of each variant, before anything is said of it
    expected_voices: int = 1000  # of two variants together, where the intervals are to be narrowest
    max_share_per_key: float = 1.0  # of the voices of a variant (promise 10)
    horizon_seconds: float = 14 * 86400.0
    on_promote: OnPromote = OnPromote.ASK
    hold_back: float = 0.0  # share of the former default that goes on being measured after a promotion
    hold_back_seconds: float = 86400.0
    floor: float = 0.05  # share that `adaptive` leaves to every variant
    reallocate_seconds: float = 60.0
    steps: tuple[float, ...] = (0.01, 0.05, 0.2, 0.5)  # of a canary
    step_seconds: float = 600.0
    step_units: int = 30  # that the challenger must have answered before the next step
    shadow_share: float = 0.1  # of the requests that the challenger answers as well
    shadow_requests: int = 1000  # in all
    shadow_at_once: int = 2

    @property
    def score(self) -> str:
        return self.scores[0]

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(variant for variant, _ in self.challengers)

    def first_shares(self) -> dict[str, float]:
        """The challengers' shares at the beginning; the control has the rest."""
        return {
            variant: self._usual_share() if share is None else share for variant, share in self.challengers
        }

    def of(self, variants: Iterable[str]) -> Plan:
        """This plan, as a template, for these challengers."""
        return replace(self, challengers=tuple((variant, None) for variant in variants))

    def _usual_share(self) -> float:
        if self.policy is Policy.CANARY:
            return self.steps[0]
        return 0.0 if self.policy is Policy.SHADOW else 1 / (len(self.challengers) + 1)


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON: `parse_plan` makes the same of it again."""
    value = asdict(plan)
    value["challengers"] = dict(plan.challengers)
    # Those that are not watched too: left out, they would be watched again where a policy has them by default.
    value["guardrails"] = {**dict.fromkeys(WATCHABLE), **dict(plan.guardrails)}
    value["scores"] = list(plan.scores)
    value["steps"] = list(plan.steps)
    return value


def departures(plan: Plan) -> dict[str, float | None]:
    """Its guardrails where they are other than its policy's usual ones; None for one of those that is taken away.

    They alone go with a template whose policy changes: what is usual for the old policy is not for the new one.
    """
    usual, own = dict(_usual_guardrails(plan.policy)), dict(plan.guardrails)
    return {name: own.get(name) for name in WATCHABLE if own.get(name) != usual.get(name)}


def parse_plan(value: Any, where: str = "plan", *, template: bool = False) -> Plan:
    """A plan from JSON; what is not given has its default. A `template` has no challengers yet.

    `challengers` is a list of variants, or an object with the share of each. Raises InvalidRequest with the dotted
    `param`.
    """
    section = Section(value, where, Plan)
    policy = section.choice("policy", Policy)
    plan = Plan(
        challengers=_challengers(section.raw("challengers"), f"{where}.challengers"),
        policy=policy,
        scores=_names(section, "scores"),
        minimal_effect=section.portion("minimal_effect"),
        alpha=section.share("alpha"),
        guardrails=_guardrails(section, policy),
        guardrail_alpha=section.share("guardrail_alpha"),
        least_voices=section.count("least_voices", least=10),
        expected_voices=section.count("expected_voices", least=10),
        max_share_per_key=section.number_between("max_share_per_key", 0.0, 1.0),
        horizon_seconds=section.seconds("horizon_seconds"),
        on_promote=section.choice("on_promote", OnPromote),
        hold_back=section.portion("hold_back"),
        hold_back_seconds=section.seconds("hold_back_seconds"),
        floor=section.portion("floor"),
        reallocate_seconds=section.seconds("reallocate_seconds"),
        steps=_steps(section),
        step_seconds=section.seconds("step_seconds"),
        step_units=section.count("step_units"),
        shadow_share=section.number_between("shadow_share", 0.0, 1.0),
        shadow_requests=section.count("shadow_requests"),
        shadow_at_once=section.count("shadow_at_once"),
    )
    _check(plan, where, template)
    return plan


def _challengers(value: Any, where: str) -> tuple[tuple[str, float | None], ...]:
    if value is None:
        return ()
    named: list[tuple[str, float | None]]
    if isinstance(value, dict):
        named = list(value.items())
    elif isinstance(value, list | tuple):
        named = [(variant, None) for variant in value]
    else:
        raise wrong(where, "must be a list of variants, or an object with the share of each")
    for variant, share in named:
        if not isinstance(variant, str) or not variant:
            raise wrong(where, "must name variants: NAME@N, or a model of an engine")
        if share is not None and not (is_number(share) and 0 <= share < 1):
            raise wrong(f"{where}.{variant}", "must be a share of the traffic, below 1")
    if len({variant for variant, _ in named}) < len(named):
        raise wrong(where, "names a variant twice")
    return tuple((variant, None if share is None else float(share)) for variant, share in named)


def _names(section: Section, name: str) -> tuple[str, ...]:
    names = section.texts(name)
    if not names or len(set(names)) < len(names):
        raise section.wrong(name, "must name at least one score, and none twice")
    return names


def _guardrails(section: Section, policy: Policy) -> tuple[tuple[str, float], ...]:
    """What is given stands beside the policy's usual ones; null takes one of those away."""
    given = section.mapping("guardrails") or {}
    for name, tolerated in given.items():
        if name not in WATCHABLE:
            raise section.wrong("guardrails", f"knows no {name!r}; it may hold {', '.join(WATCHABLE)}")
        if tolerated is not None and not (is_number(tolerated) and tolerated >= 0):
            raise section.wrong(
                f"guardrails.{name}", "must be a number, at least 0: how much worse is tolerated"
            )
    whole = {**dict(_usual_guardrails(policy)), **given}
    return tuple(sorted((name, float(t)) for name, t in whole.items() if t is not None))


def _usual_guardrails(policy: Policy) -> tuple[tuple[str, float], ...]:
    return CANARY_GUARDRAILS if policy is Policy.CANARY else GUARDRAILS


def _steps(section: Section) -> tuple[float, ...]:
    steps = section.numbers("steps")
    if not steps or not all(0 < step < 1 for step in steps) or list(steps) != sorted(set(steps)):
        raise section.wrong("steps", "must be shares of the traffic that grow, above 0 and below 1")
    return steps


def _check(plan: Plan, where: str, template: bool) -> None:
    """What no field can say alone."""
    count = len(plan.challengers)
    if not count and not template:
        raise wrong(f"{where}.challengers", "must name at least one variant")
    if count > MAX_CHALLENGERS:
        raise wrong(f"{where}.challengers", f"may name at most {MAX_CHALLENGERS} variants")
    if plan.policy in (Policy.CANARY, Policy.SHADOW) and count > 1:
        raise wrong(f"{where}.challengers", f"may name one variant only where the policy is {plan.policy}")
    shares = plan.first_shares()
    if math.fsum(shares.values()) > 1 - LEAST_REST:
        raise wrong(f"{where}.challengers", "must leave the control a share: together they must be below 1")
    if plan.policy is Policy.SHADOW and any(shares.values()):
        raise wrong(
            f"{where}.challengers",
            "can have no share where the policy is shadow: nobody is shown its answers",
        )
    if plan.policy is not Policy.SHADOW and not all(shares.values()):
        raise wrong(f"{where}.challengers", "must each have a share above 0")
    if plan.floor * (max(1, count) + 1) >= 1:
        raise wrong(f"{where}.floor", "leaves nothing to move: it must be below 1 / the number of variants")
