"""An experiment as a person reads it: its plan in a few lines, tables of variants and guardrails, the verdict.

Owns the words on the screen, over the plain JSON of a look (`verdicts.look_json`). Computes nothing of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapters.experiment_records import Experiment
from adapters.plans import RATES, SCORE, Metric
from gateway.cli import terminal

NOTHING = "-"

LARGEST_LOG = 700.0
"""exp of more does not fit into a float."""

#: The columns of the variants' table beside share, units, answers, voices and scores.
METRICS: tuple[tuple[str, Metric, Callable[[float], str]], ...] = (
    ("errors", Metric.ERRORS, lambda value: f"{value:.1%}"),
    ("ttft", Metric.TTFT, lambda value: f"{value:.3f} s"),
    ("tokens", Metric.LENGTH, lambda value: f"{value:.0f}"),
)


def row(experiment: Experiment) -> tuple[str, ...]:
    """One line of the list."""
    verdict = experiment.verdict
    return (
        experiment.name,
        experiment.route,
        experiment.plan.policy.value,
        experiment.state.value,
        ", ".join(f"{variant} {share:.1%}" for variant, share in experiment.shares.items()),
        terminal.moment(experiment.created),
        "" if verdict is None else _outcome(verdict),
    )


def print_experiment(experiment: Experiment, seen: Mapping[str, Any] | None) -> None:
    """`seen`: what there is to see of it; None where its route or one of its scores is gone."""
    terminal.print_fields(_fields(experiment))
    print()
    if seen is None:
        print("there is nothing to see: its route, or one of its scores, is gone")
    else:
        _print_seen(experiment, seen)
    if experiment.verdict is not None:
        print()
        terminal.print_fields(_verdict(experiment.verdict))


def print_estimate(variant: str, told: Mapping[str, Any]) -> None:
    """`told`: as `estimates.estimate_json` has it."""
    found = told["value"]
    fields = {"variant": variant, "route": told["route"], "score": told["score"]}
    if found is None:
        terminal.print_fields(
            {**fields, "answers": str(told["rows"]), "value": f"cannot tell: {told['cannot_tell']}"}
        )
        return
    sure = f"{1 - told['alpha']:.4g}"
    terminal.print_fields(
        {
            **fields,
            "answers": f"{found['rows']} judged, of {found['units']} voices that weigh {found['effective_units']:.1f}",
            "doubly robust": _interval(found["doubly_robust"]),
            "self-normalised": _interval(found["self_normalised"]),
            "inverse propensity": _interval(found["inverse_propensity"]),
            "intervals": f"at {sure}, for one look: an experiment decides",
        }
    )


def _fields(experiment: Experiment) -> dict[str, str]:
    plan = experiment.plan
    horizon = terminal.moment(experiment.created + plan.horizon_seconds)
    enough = f", a gain of at least {plan.minimal_effect:g}" if plan.minimal_effect else ""
    fields = {
        "experiment": experiment.name,
        "id": experiment.id,
        "route": experiment.route,
        "policy": plan.policy.value,
        "state": experiment.state.value,
        "decides": f"{plan.score}, alpha {plan.alpha:g}{enough}; at the latest {horizon}",
        "promotes": "by itself" if plan.on_promote.value == "act" else "by a person's word",
        "began": f"{terminal.moment(experiment.created)} by {experiment.actor}",
        "ended": "" if experiment.ended is None else terminal.moment(experiment.ended),
    }
    return {name: value for name, value in fields.items() if value}


def _print_seen(experiment: Experiment, seen: Mapping[str, Any]) -> None:
    _print_variants(experiment, seen["arms"])
    if seen["comparisons"]:
        print()
    for comparison in seen["comparisons"]:
        print(_comparison(comparison, experiment.control))
    if seen["guardrails"]:
        print()
        columns = ("variant", "guardrail", "tolerated", "now", "")
        terminal.print_table(columns, [_guardrail(each) for each in seen["guardrails"]])
    print()
    terminal.print_fields({"sample ratio": _sample_ratio(seen["sample_ratio"])})


def _print_variants(experiment: Experiment, arms: Mapping[str, Mapping[str, Any]]) -> None:
    scores = experiment.plan.scores
    columns = ("variant", "share", "units", "answers", "voices", *scores, *(name for name, _, _ in METRICS))
    rows = [_variant(experiment, variant, arm) for variant, arm in arms.items()]
    terminal.print_table(columns, rows)
    for variant, why in experiment.dropped.items():
        print(f"{variant} has no traffic any more: {why}")


def _variant(experiment: Experiment, variant: str, arm: Mapping[str, Any]) -> Sequence[str]:
    plan = experiment.plan
    deciding = arm["scores"].get(plan.score)
    measured = [arm["metrics"].get(metric.value) for _, metric, _ in METRICS]
    return (
        f"{variant} (control)" if variant == experiment.control else variant,
        f"{arm['share']:.1%}",
        str(arm["units"]),
        str(arm["answers"]),
        str(deciding["voices"] if deciding else 0),
        *(_interval(arm["scores"].get(score)) for score in plan.scores),
        *(
            NOTHING if value is None else words(value)
            for value, (_, _, words) in zip(measured, METRICS, strict=True)
        ),
    )


def _comparison(comparison: Mapping[str, Any], control: str) -> str:
    found = comparison["difference"]
    begin = f"{comparison['variant']} against {control}: {comparison['score']}"
    if found["estimate"] is None:
        return f"{begin} cannot tell yet: {found['cannot_tell']}"
    remark = ", but not without one key's voices" if comparison["alone"] else ""
    return f"{begin} {found['estimate']:+.3f} ({found['lower']:+.3f} to {found['upper']:+.3f}){remark}"


def _guardrail(guarded: Mapping[str, Any]) -> tuple[str, ...]:
    is_rate = guarded["metric"] == SCORE or Metric(guarded["metric"]) in RATES
    form = "+.1%" if is_rate else "+.0%"
    worse = guarded["worse"]
    state = "breached" if guarded["breached"] else guarded["reason"] if worse is None else "holds"
    now = NOTHING if worse is None else format(worse, form)
    return (guarded["variant"], guarded["metric"], format(guarded["tolerated"], form), now, state)


def _sample_ratio(ratio: Mapping[str, Any] | None) -> str:
    if ratio is None:
        return "none: everybody is answered by the control"
    log_e, p = ratio["log_e"], ratio["p"]
    e = "beyond all doubt" if log_e > LARGEST_LOG else f"e-value {math.exp(log_e):.3g}"
    words = (
        "BROKEN: the variants' units do not come in their shares" if ratio["broken"] else "as it should be"
    )
    return f"{words} ({e}{'' if p is None else f', chi-square p {p:.3g}'})"


def _verdict(verdict: Mapping[str, Any]) -> dict[str, str]:
    reasons = verdict["reasons"]
    return {
        "verdict": _outcome(verdict),
        "by": f"{verdict['by']}, {terminal.moment(verdict['at'])}",
        "rule": verdict["rule"],
        **{("because" if n == 0 else " " * n): reason for n, reason in enumerate(reasons)},
        "done": verdict["done"],
    }


def _outcome(verdict: Mapping[str, Any]) -> str:
    return " ".join(filter(None, (verdict["outcome"], verdict["variant"])))


def _interval(value: Mapping[str, Any] | None) -> str:
    if value is None or value["estimate"] is None:
        return NOTHING
    return f"{value['estimate']:.3f} ({value['lower']:.3f} to {value['upper']:.3f})"
