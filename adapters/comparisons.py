"""What an experiment's evidence shows: each challenger against the control, its guardrails, and whether the split holds.

Pure. Every statement holds however often one looks: the experiment's `alpha` is shared among its challengers and
scores, `guardrail_alpha` among challengers and guardrails. Does not know what follows (`verdicts`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from adapters.e_values import chi_square_p, log_e_rate_excess, log_e_sample_ratio, rate_sequence
from adapters.evidence import ArmEvidence, Evidence
from adapters.experiment_records import Experiment
from adapters.plans import RATES, SCORE, Metric, Policy
from adapters.statistics import CannotTell, Interval, Sums, difference_sequence, split_alpha

SAMPLE_RATIO_ALPHA = 0.001
"""A broken split is rare and its alarm is final, so it must be all but sure (Fabijan et al. 2019 take 0.0005)."""

BEYOND_DOUBT = 1e6
"""In place of a log e-value that is infinite: units of a variant that had no share. JSON knows no infinity."""

GUARDRAIL_UNITS = 20
"""Of each variant, before a time or a length is compared; rates are compared from the first unit on."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A challenger against the control by one score, on the score's scale from 0 to 1."""

    variant: str
    score: str
    difference: Interval | CannotTell
    log_e: float  # exact, against "no better"; at least log(1/alpha): better, whatever the distribution
    alone: bool = False  # the gain is one key's alone (promise 10)


@dataclass(frozen=True, slots=True)
class Guarded:
    """A challenger's guardrail: how much worse it is than the control, and how much is tolerated."""

    variant: str
    metric: str
    tolerated: float
    worse: float | None  # rates, the score: by how much; times, lengths: by what part. None: cannot be told
    breached: bool
    reason: str  # in words


@dataclass(frozen=True, slots=True)
class SampleRatio:
    log_e: float
    p: float | None  # of the chi-square test of the newest epoch, for people who know it; it decides nothing
    broken: bool


def arm_view(experiment: Experiment, evidence: Evidence, variant: str) -> dict[str, Any]:
    """One variant as a table shows it: its scores with intervals, its metrics as plain means."""
    arm, plan = evidence.arm(variant), experiment.plan
    alpha = split_alpha(plan.alpha, len(experiment.variants) * len(plan.scores))
    return {
        "share": experiment.shares.get(variant, 0.0),
        "answers": arm.answers,
        "units": arm.units,
        "scores": {
            name: {"voices": sums.n, **interval_json(rate_sequence(sums, alpha))}
            for name, sums in arm.scores.items()
        },
        "metrics": {metric.value: _plain(metric, sums) for metric, sums in arm.metrics.items()},
        "dropped": experiment.dropped.get(variant),
    }


def _plain(metric: Metric, sums: Sums) -> float:
    """The mean; of times and lengths the geometric one."""
    return sums.mean if metric in RATES else math.exp(sums.mean)


def compare(experiment: Experiment, evidence: Evidence, variant: str, score: str) -> Comparison:
    challenger, control = evidence.arm(variant), evidence.arm(experiment.control)
    one, other = challenger.scores.get(score, Sums()), control.scores.get(score, Sums())
    alone = score == experiment.plan.score and _is_alone(challenger, control, score)
    return Comparison(
        variant, score, _difference(experiment, one, other), log_e_rate_excess(one, other), alone
    )


def _level(alpha: float, experiment: Experiment, *, by_epoch: bool) -> float:
    """What is left of alpha for the present epoch, where each is compared by itself: a half, a sixth, a twelfth, …,
    which add up to the whole however many there will be."""
    return alpha / ((experiment.epoch + 1) * (experiment.epoch + 2)) if by_epoch else alpha


def _difference(experiment: Experiment, one: Sums, other: Sums) -> Interval | CannotTell:
    plan = experiment.plan
    level = _level(plan.alpha, experiment, by_epoch=experiment.words_by_epoch)
    alpha = split_alpha(level, len(plan.challengers) * len(plan.scores))
    if plan.policy is not Policy.ADAPTIVE:
        return difference_sequence(
            one,
            other,
            alpha,
            expected_units=plan.expected_voices,
            least_units=plan.least_voices,
            revised=True,
        )
    # Who comes next depends on what was seen, so that a difference of means has no known spread; but each variant's
    # own voices, in their order, are a sequence like any other.
    if min(one.n, other.n) < plan.least_voices:
        return CannotTell(f"fewer than {plan.least_voices} voices of a variant")
    a, b = rate_sequence(one, alpha / 2), rate_sequence(other, alpha / 2)
    assert isinstance(a, Interval)
    assert isinstance(b, Interval)
    return Interval(a.estimate - b.estimate, a.lower - b.upper, a.upper - b.lower)


def _is_alone(challenger: ArmEvidence, control: ArmEvidence, score: str) -> bool:
    """Whether the gain is gone without one key's voices (promise 10)."""
    return any(gain is None or gain <= 0 for gain in _gains_without_each_key(challenger, control, score))


def _gains_without_each_key(
    challenger: ArmEvidence, control: ArmEvidence, score: str
) -> Iterator[float | None]:
    """Challenger over control without the voices of one key, for each key. None: nobody is left on a side."""
    nobody = Sums()
    for key in challenger.without_key.keys() | control.without_key.keys():
        one = challenger.without_key.get(key, challenger.scores.get(score, nobody))
        other = control.without_key.get(key, control.scores.get(score, nobody))
        yield one.mean - other.mean if one.n and other.n else None


def sample_ratio(experiment: Experiment, evidence: Evidence) -> SampleRatio | None:
    if experiment.plan.policy is Policy.SHADOW:
        return None  # everybody is the control's
    log_e, p = 0.0, None
    for epoch in evidence.epochs:
        variants = list(epoch.shares)
        counts = [epoch.units.get(variant, 0) for variant in variants]
        shares = [epoch.shares[variant] for variant in variants]
        log_e += log_e_sample_ratio(counts, shares)
        found = chi_square_p(counts, shares)
        p = None if isinstance(found, CannotTell) else found
    log_e = min(log_e, BEYOND_DOUBT)
    return SampleRatio(log_e, p, log_e >= math.log(1 / SAMPLE_RATIO_ALPHA))


# -- guardrails ------------------------------------------------------------------------------------
def guardrails(experiment: Experiment, evidence: Evidence) -> list[Guarded]:
    plan = experiment.plan
    level = _level(plan.guardrail_alpha, experiment, by_epoch=experiment.answers_by_epoch)
    alpha = split_alpha(level, len(plan.guardrails) * len(plan.challengers))
    control = evidence.arm(experiment.control)
    return [
        _guard(experiment, variant, name, tolerated, evidence.arm(variant), control, alpha)
        for variant in experiment.challengers
        for name, tolerated in plan.guardrails
    ]


def _guard(
    experiment: Experiment,
    variant: str,
    name: str,
    tolerated: float,
    challenger: ArmEvidence,
    control: ArmEvidence,
    alpha: float,
) -> Guarded:
    if name == SCORE:
        return _guard_score(experiment, variant, tolerated, challenger, control, alpha)
    metric = Metric(name)
    one, other = challenger.metrics.get(metric, Sums()), control.metrics.get(metric, Sums())
    if metric in RATES:
        return _guard_rate(variant, name, tolerated, one, other, alpha)
    return _guard_size(experiment, variant, name, tolerated, one, other, alpha)


def _guard_score(
    experiment: Experiment,
    variant: str,
    tolerated: float,
    challenger: ArmEvidence,
    control: ArmEvidence,
    alpha: float,
) -> Guarded:
    score = experiment.plan.score
    one, other = challenger.scores.get(score, Sums()), control.scores.get(score, Sums())
    guarded = _guard_rate(variant, SCORE, tolerated, _turned(one), _turned(other), alpha)
    gains = _gains_without_each_key(challenger, control, score)
    if guarded.breached and any(gain is None or -gain <= tolerated for gain in gains):
        return replace(guarded, breached=False, reason=f"{guarded.reason}, but not without one key's voices")
    return guarded


def _guard_rate(variant: str, name: str, tolerated: float, one: Sums, other: Sums, alpha: float) -> Guarded:
    if not (one.n and other.n):
        return Guarded(variant, name, tolerated, None, False, "not measured yet")
    log_e = log_e_rate_excess(one, other, tolerated)
    worse = one.mean - other.mean
    words = f"{name} is {worse:+.1%} against the control, {tolerated:.1%} are tolerated (e-value {e_value(log_e)})"
    return Guarded(variant, name, tolerated, worse, log_e >= math.log(1 / alpha), words)


def _guard_size(
    experiment: Experiment, variant: str, name: str, tolerated: float, one: Sums, other: Sums, alpha: float
) -> Guarded:
    found = difference_sequence(
        one,
        other,
        alpha,
        expected_units=experiment.plan.expected_voices,
        least_units=GUARDRAIL_UNITS,
        revised=True,
    )
    if isinstance(found, CannotTell):
        return Guarded(variant, name, tolerated, None, False, f"cannot tell yet: {found.reason}")
    worse, sure = math.exp(found.estimate) - 1, math.exp(found.lower) - 1
    words = f"{name} is {worse:+.0%} against the control, at least {sure:+.0%}; {tolerated:.0%} are tolerated"
    return Guarded(variant, name, tolerated, worse, sure > tolerated, words)


def _turned(sums: Sums) -> Sums:
    """Of 1 - y: what is worse in place of what is better."""
    return Sums(sums.n, sums.n - sums.y, sums.n - 2 * sums.y + sums.yy)


# -- words -----------------------------------------------------------------------------------------
def difference_words(comparison: Comparison, control: str) -> str:
    found = comparison.difference
    if isinstance(found, CannotTell):
        return f"{comparison.variant} against {control}: cannot tell yet: {found.reason}"
    remark = ", but not without one key's voices" if comparison.alone else ""
    return (
        f"{comparison.variant} against {control}: {comparison.score} {found.estimate:+.3f} "
        f"({found.lower:+.3f} to {found.upper:+.3f}){remark}"
    )


def interval_json(value: Interval | CannotTell) -> dict[str, Any]:
    if isinstance(value, CannotTell):
        return {"estimate": None, "lower": None, "upper": None, "cannot_tell": value.reason}
    return {**asdict(value), "cannot_tell": None}


def e_value(log_e: float) -> str:
    return f"{math.exp(log_e):.3g}" if log_e < 700 else "beyond all doubt"
