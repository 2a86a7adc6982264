"""What an experiment's evidence says, and what is to be done about it. Pure: values in, values out.

Owns the rules, over what `comparisons` shows: an experiment errs with probability `alpha` at most over its whole life,
and stops a harmless challenger with `guardrail_alpha` at most. Does not know how things are done (`looks`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from adapters.allocation import canary_step, thompson_shares
from adapters.comparisons import (
    SAMPLE_RATIO_ALPHA,
    Comparison,
    Guarded,
    SampleRatio,
    arm_view,
    compare,
    difference_words,
    e_value,
    guardrails,
    interval_json,
    sample_ratio,
)
from adapters.evidence import Evidence
from adapters.experiment_records import Experiment, ExperimentState, Outcome, Verdict
from adapters.plans import Policy
from adapters.statistics import Interval, Sums

SHARE_CHANGE = 0.02
"""The least that an adaptive split is moved by: each change begins an epoch and moves people."""

ROUNDING = 1e-9
"""Two equal means of other numbers of units may differ by what floating point makes of them."""


@dataclass(frozen=True, slots=True)
class Look:
    """An experiment at one moment, and what is to be done: at most one of `verdict`, `drop` and `shares`."""

    at: float
    arms: dict[str, dict[str, Any]] = field(hash=False)
    comparisons: tuple[Comparison, ...]
    guardrails: tuple[Guarded, ...]
    sample_ratio: SampleRatio | None
    verdict: Verdict | None = None
    drop: dict[str, str] = field(default_factory=dict, hash=False)  # challengers to stop, and why
    shares: dict[str, float] | None = field(default=None, hash=False)  # to be had from now on

    @property
    def does_something(self) -> bool:
        return self.verdict is not None or bool(self.drop) or self.shares is not None


def look(experiment: Experiment, evidence: Evidence, now: float) -> Look:
    """The evidence as it stands, and what the rules make of it."""
    comparisons = tuple(
        compare(experiment, evidence, variant, score)
        for variant in experiment.challengers
        for score in experiment.plan.scores
    )
    seen = Look(
        now,
        {variant: arm_view(experiment, evidence, variant) for variant in experiment.variants},
        comparisons,
        tuple(guardrails(experiment, evidence)),
        sample_ratio(experiment, evidence),
    )
    return _decided(experiment, evidence, seen, now)


def look_json(seen: Look) -> dict[str, Any]:
    """As it is kept and shown."""
    return {
        "arms": seen.arms,
        "comparisons": [{**asdict(c), "difference": interval_json(c.difference)} for c in seen.comparisons],
        "guardrails": [asdict(guarded) for guarded in seen.guardrails],
        "sample_ratio": None if seen.sample_ratio is None else asdict(seen.sample_ratio),
    }


# -- decisions -------------------------------------------------------------------------------------
def _decided(experiment: Experiment, evidence: Evidence, seen: Look, now: float) -> Look:
    if seen.sample_ratio is not None and seen.sample_ratio.broken:
        return _with(seen, verdict=_broken_split(seen.sample_ratio))
    breaches = _breaches(seen)
    if breaches:
        left = [variant for variant in experiment.challengers if variant not in breaches]
        if left:
            return _with(seen, drop=breaches)
        variant = next(iter(breaches))
        reasons = tuple(f"{name}: {why}" for name, why in breaches.items())
        return _with(seen, verdict=Verdict(Outcome.GUARDRAIL, variant, reasons, _guardrail_rule(experiment)))
    if experiment.state is ExperimentState.MEASURING:
        return _with(seen, verdict=_held_back(experiment, seen, now))
    if experiment.state is not ExperimentState.RUNNING:
        return seen
    verdict = _verdict(experiment, seen, now)
    if verdict is not None:
        return _with(seen, verdict=verdict)
    return _with(seen, shares=_next_shares(experiment, evidence, seen, now))


def _breaches(seen: Look) -> dict[str, str]:
    """The challengers that must be stopped, each with all that speaks against it."""
    breached: dict[str, list[str]] = {}
    for guard in seen.guardrails:
        if guard.breached:
            breached.setdefault(guard.variant, []).append(guard.reason)
    return {variant: "; ".join(reasons) for variant, reasons in breached.items()}


def _with(seen: Look, **changes: Any) -> Look:
    return replace(seen, **changes)


def _verdict(experiment: Experiment, seen: Look, now: float) -> Verdict | None:
    plan = experiment.plan
    is_over = now >= experiment.created + plan.horizon_seconds
    if plan.policy is Policy.SHADOW:
        return _shadow_verdict(experiment, seen, is_over)
    if plan.policy is Policy.CANARY:
        return _canary_verdict(experiment, seen, now, is_over)
    if plan.policy is Policy.FIXED and not is_over:
        return None
    found = _by_score(experiment, seen)
    if found is None and is_over:
        return Verdict(Outcome.INCONCLUSIVE, None, _words(experiment, seen), "the horizon is reached")
    return found


def _by_score(experiment: Experiment, seen: Look) -> Verdict | None:
    """Promote the best challenger that is better for sure; keep the control once none can be better by enough."""
    plan = experiment.plan
    deciding = [c for c in seen.comparisons if c.score == plan.score]
    told = [(c, c.difference) for c in deciding if isinstance(c.difference, Interval)]
    better = [(c, interval) for c, interval in told if interval.above_zero and not c.alone]
    rule = _score_rule(experiment)
    if better:
        best, _ = max(better, key=lambda pair: pair[1].estimate)
        return Verdict(Outcome.PROMOTE, best.variant, _words(experiment, seen), rule)
    given_up = [c for c, interval in told if _hopeless(interval, plan.minimal_effect)]
    if deciding and len(given_up) == len(deciding):
        return Verdict(Outcome.KEEP, None, _words(experiment, seen), rule)
    return None


def _hopeless(interval: Interval, minimal_effect: float) -> bool:
    return interval.below_zero if minimal_effect == 0 else interval.upper < minimal_effect


def _canary_verdict(experiment: Experiment, seen: Look, now: float, is_over: bool) -> Verdict | None:
    variant = experiment.challengers[0]
    if _step_is_held(experiment, seen, now) and _next_step(experiment) is None:
        reasons = (f"{variant} held all guardrails up to {experiment.shares[variant]:.0%} of the traffic",)
        return Verdict(
            Outcome.PROMOTE, variant, (*reasons, *_words(experiment, seen)), _canary_rule(experiment)
        )
    if is_over:
        return Verdict(Outcome.INCONCLUSIVE, None, _words(experiment, seen), "the horizon is reached")
    return None


def _shadow_verdict(experiment: Experiment, seen: Look, is_over: bool) -> Verdict | None:
    answers = sum(seen.arms[variant]["answers"] for variant in experiment.plan.variants)
    if not is_over and answers < experiment.plan.shadow_requests:
        return None
    reasons = (f"the guardrails held on {answers} answers, which nobody was shown and nobody judged",)
    rule = "the horizon is reached" if is_over else "the budget of the shadow is spent"
    return Verdict(Outcome.INCONCLUSIVE, None, reasons, rule)


def _held_back(experiment: Experiment, seen: Look, now: float) -> Verdict | None:
    """After a promotion: the end of the hold-back, or the proof that the promotion was wrong."""
    assert experiment.verdict is not None
    promoted = experiment.verdict["variant"]
    found = next(
        (c for c in seen.comparisons if (c.variant, c.score) == (promoted, experiment.plan.score)), None
    )
    if found is not None and isinstance(found.difference, Interval) and found.difference.below_zero:
        reasons = (f"measured on after its promotion, {promoted} is worse", *_words(experiment, seen))
        return Verdict(Outcome.KEEP, None, reasons, _score_rule(experiment))
    if now >= experiment.epoch_began + experiment.plan.hold_back_seconds:
        return Verdict(Outcome.PROMOTE, promoted, _words(experiment, seen), "the hold-back is over")
    return None


def _broken_split(ratio: SampleRatio) -> Verdict:
    reasons = (
        "the variants' units do not come in the shares they were given, so that nothing can be compared "
        f"(e-value {e_value(ratio.log_e)})",
    )
    rule = f"multinomial e-value of at least {1 / SAMPLE_RATIO_ALPHA:.0f}"
    return Verdict(Outcome.SAMPLE_RATIO, None, reasons, rule)


# -- shares ----------------------------------------------------------------------------------------
def _next_shares(
    experiment: Experiment, evidence: Evidence, seen: Look, now: float
) -> dict[str, float] | None:
    if experiment.plan.policy is Policy.CANARY:
        step = _next_step(experiment)
        if step is None or not _step_is_held(experiment, seen, now):
            return None
        return {experiment.control: 1 - step, experiment.challengers[0]: step}
    if experiment.plan.policy is Policy.ADAPTIVE:
        return _adapted(experiment, evidence, now)
    return None


def _adapted(experiment: Experiment, evidence: Evidence, now: float) -> dict[str, float] | None:
    """Thompson sampling's shares, once enough is known and they differ by enough from those there are."""
    if now < experiment.epoch_began + experiment.plan.reallocate_seconds:
        return None
    sums = {
        variant: evidence.arm(variant).scores.get(experiment.plan.score, Sums())
        for variant in (experiment.control, *experiment.challengers)
    }
    if min(s.n for s in sums.values()) < experiment.plan.least_voices:
        return None
    shares = _whole(thompson_shares(sums, experiment.plan.floor), experiment.control)
    moved = sum(abs(shares[variant] - experiment.shares.get(variant, 0.0)) for variant in shares) / 2
    return shares if moved >= SHARE_CHANGE else None


def without(experiment: Experiment, dropped: Mapping[str, Any]) -> dict[str, float]:
    """The shares once these challengers have none. The others' keep their ratios, so that what is compared among them
    stays comparable, and only the units of the stopped ones move."""
    left = {variant: share for variant, share in experiment.shares.items() if variant not in dropped}
    total = math.fsum(left.values())
    return _whole({variant: share / total for variant, share in left.items()}, experiment.control)


def _whole(shares: Mapping[str, float], control: str) -> dict[str, float]:
    """The control first, with what the others leave: rounding must not make them more or less than 1 together."""
    others = {variant: share for variant, share in shares.items() if variant != control}
    return {control: max(0.0, 1.0 - math.fsum(others.values())), **others}


def _next_step(experiment: Experiment) -> float | None:
    return canary_step(experiment.plan.steps, experiment.shares[experiment.challengers[0]])


def _step_is_held(experiment: Experiment, seen: Look, now: float) -> bool:
    """Long enough, for enough people at this step, and nothing looks worse than is tolerated, be it only by chance."""
    plan, units = experiment.plan, seen.arms[experiment.challengers[0]]["units"]
    if now < experiment.epoch_began + plan.step_seconds or units < plan.step_units:
        return False
    return all(g.worse is None or g.worse <= g.tolerated + ROUNDING for g in seen.guardrails)


def _words(experiment: Experiment, seen: Look) -> tuple[str, ...]:
    deciding = [c for c in seen.comparisons if c.score == experiment.plan.score]
    return tuple(difference_words(c, experiment.control) for c in deciding)


def _score_rule(experiment: Experiment) -> str:
    plan = experiment.plan
    kind = (
        "exact confidence sequences of each variant"
        if plan.policy is Policy.ADAPTIVE
        else ("asymptotic confidence sequence of the difference")
    )
    shared = f" shared among {len(plan.challengers)} challengers" if len(plan.challengers) > 1 else ""
    return f"{kind} in {plan.score}, alpha {plan.alpha:g}{shared}"


def _canary_rule(experiment: Experiment) -> str:
    return f"every step held for {experiment.plan.step_seconds:g} s and {experiment.plan.step_units} units"


def _guardrail_rule(experiment: Experiment) -> str:
    return f"a guardrail breached, alpha {experiment.plan.guardrail_alpha:g} over all of them"
