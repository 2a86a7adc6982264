"""Adapters and experiments: who answers, what people say of it, what experiments have found, how variants behave."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.board import Row, board, chosen
from dashboards.panels import GREEN, RED, YELLOW, bars, curves, listed, spread, states
from dashboards.queries import (
    INTERACTIVE,
    ROUTE,
    SERVER_FAULTS,
    Query,
    counted,
    mean,
    of_gateways,
    per_second,
    quantile,
    series,
    shared,
)

EXPERIMENT = 'experiment=~"$experiment"'
FEEDBACK_WINDOW = "1h"
"""People judge few answers: over less there would be gaps."""


def dashboard() -> Dashboard:
    return board(
        "burnish-experiments",
        "Burnish: adapters and experiments",
        "Which variant answers, what people think of it, and what experiments make of that. `burnish experiments show "
        "NAME` says the same in words.",
        [_answers(), _feedback(), _experiments(), _manners()],
        [chosen("experiment", "burnish_experiment_state"), chosen("metric", "burnish_experiment_mean")],
    )


def _answers() -> Row:
    requests = counted("variant", per_second(of_gateways("burnish_requests_total", INTERACTIVE, ROUTE)))
    errors = counted(
        "variant", per_second(of_gateways("burnish_errors_total", INTERACTIVE, ROUTE, SERVER_FAULTS))
    )
    asked = " or ".join(
        per_second(of_gateways(metric, *matchers, ROUTE))
        for metric, matchers in (("burnish_requests_total", (INTERACTIVE,)), ("burnish_fail_overs_total", ()))
    )
    return Row(
        "Who answers",
        (
            curves(
                "Requests by variant",
                "Interactive requests a second. After a promotion or a roll-back one variant takes over from another.",
                Query(requests, "{{variant}}"),
                unit="reqps",
                stacked=True,
            ),
            curves(
                "Share of the traffic",
                "Of those requests. In an experiment it should be near the shares below.",
                Query(requests, "{{variant}}"),
                unit="reqps",
                stacked=True,
                share=True,
            ),
            bars(
                "Adapter versions",
                "By state. `staged` for long: an engine is away. `failed` and `rejected`: `burnish adapters show NAME@N`.",
                Query(shared(series("burnish_adapter_versions")), "{{state}}"),
            ),
            curves(
                "Errors by variant",
                "Share of what was asked of a variant that it failed, also where the control answered in its stead. Higher "
                "for one variant: roll it back.",
                Query(f"({errors} or 0 * {requests}) / (sum by (variant) ({asked}) > 0)", "{{variant}}"),
                unit="percentunit",
            ),
            curves(
                "First token by variant, p95",
                "An adapter costs the engine something; much more than the base model's: too many adapters in one batch "
                "(`max_loras`), or a high rank.",
                Query(
                    quantile(0.95, "burnish_time_to_first_token_seconds", "variant", INTERACTIVE, ROUTE),
                    "{{variant}}",
                ),
                unit="s",
            ),
            curves(
                "Fail-overs",
                "Requests that the control answered since the variant could not. A guardrail counts them as its errors.",
                Query(
                    counted("variant", per_second(of_gateways("burnish_fail_overs_total", ROUTE))),
                    "{{variant}}",
                ),
                unit="reqps",
            ),
        ),
    )


def _feedback() -> Row:
    total = shared(series("burnish_feedback_total", ROUTE))
    sums = shared(series("burnish_feedback_value_sum", ROUTE))
    new = shared(f"delta({series('burnish_feedback_total', ROUTE)}[{FEEDBACK_WINDOW}])")
    new_sum = shared(f"delta({series('burnish_feedback_value_sum', ROUTE)}[{FEEDBACK_WINDOW}])")
    return Row(
        "What people say",
        (
            curves(
                "Feedback",
                "Words on answers within the last hour, by score. None while there is traffic: is the thumb still there?",
                Query(f"sum by (route, name) (clamp_min({new}, 0))", "{{route}} {{name}}"),
            ),
            curves(
                "Mean of the last hour, by variant",
                "Of thumbs the share that is up. It swings where few judge: see how many beside it, and leave the verdict "
                "to an experiment.",
                Query(f"{new_sum} / ({new} > 0)", "{{variant}} {{name}}"),
                most=1,
            ),
            curves(
                "Mean so far, by variant",
                "Of all feedback that is on record.",
                Query(f"{sums} / ({total} > 0)", "{{variant}} {{name}}"),
                most=1,
            ),
        ),
    )


def _experiments() -> Row:
    states_of = shared(series("burnish_experiment_state", EXPERIMENT))
    verdicts = shared(series("burnish_experiment_verdict", EXPERIMENT))
    return Row(
        "Experiments",
        (
            states(
                "State",
                "`awaiting`: the verdict is to promote, and you are to say so: `burnish experiments decide`. `measuring`: "
                "promoted, a part still held back.",
                Query(f"{states_of} == 1", "{{experiment}} {{state}}"),
                words={"1": ("so", GREEN)},
                span=8,
            ),
            listed(
                "Verdicts",
                "What experiments have ended with, or wait with. `burnish experiments show NAME` gives rule and numbers.",
                Query(f"{verdicts} == 1", now=True),
                hidden=("Value",),
                span=8,
            ),
            states(
                "Alarms",
                "Red: the sample ratio is off, and nothing can be compared; or a guardrail is breached, and the challenger "
                "has lost its traffic.",
                Query(
                    shared(series("burnish_experiment_sample_ratio_mismatch", EXPERIMENT)),
                    "{{experiment}} sample ratio",
                ),
                Query(
                    shared(series("burnish_experiment_guardrail_breached", EXPERIMENT)),
                    "{{experiment}} {{variant}} {{guardrail}}",
                ),
                words={"0": ("well", GREEN), "1": ("breached", RED)},
                span=8,
            ),
            curves(
                "Difference from the control",
                "Of the scores that decide: estimate, with its bounds dashed. The bounds hold however often you look: once "
                "both are on one side of zero, that is so.",
                *_bounded("estimate", "low", "high"),
                least=None,
                span=12,
            ),
            curves(
                "What each variant is like",
                "Means of scores and of what is measured (errors, times, lengths, refusals), scores with their bounds "
                "dashed. Choose one with `metric`: their scales differ.",
                *_bounded("mean", "mean_low", "mean_high"),
                least=None,
                span=12,
            ),
            curves(
                "Shares",
                "What experiments give their variants. `adaptive` and `canary` move them.",
                Query(shared(series("burnish_experiment_share", EXPERIMENT)), "{{experiment}} {{variant}}"),
                unit="percentunit",
                most=1,
                span=12,
            ),
            curves(
                "Units",
                "Users, or conversations, that count. Operations has a table of how many a verdict takes.",
                Query(shared(series("burnish_experiment_units", EXPERIMENT)), "{{experiment}} {{variant}}"),
                span=12,
            ),
        ),
    )


def _bounded(*names: str) -> list[Query]:
    """A value, its lower bound and its upper bound."""
    metric, legend = 'metric=~"$metric"', "{{experiment}} {{variant}} {{metric}}"
    return [
        Query(shared(series(f"burnish_experiment_{name}", EXPERIMENT, metric)), legend + bound)
        for name, bound in zip(names, ("", " low", " high"), strict=True)
    ]


def _manners() -> Row:
    answers = counted("variant", per_second(of_gateways("burnish_answer_texts_total", ROUTE)))
    refusals = counted("variant", per_second(of_gateways("burnish_refusals_total", ROUTE)))
    length = f"increase({of_gateways('burnish_answer_tokens_bucket', ROUTE)}[$__rate_interval])"
    return Row(
        "How variants behave",
        (
            curves(
                "Answers' length",
                "Median and 95th percentile in tokens. A jump after a training run: it has learned to ramble, or to stop "
                "too soon.",
                Query(quantile(0.5, "burnish_answer_tokens", "variant", ROUTE), "{{variant}} p50"),
                Query(quantile(0.95, "burnish_answer_tokens", "variant", ROUTE), "{{variant}} p95"),
                span=6,
            ),
            spread(
                "Answers' length, how many",
                "Each column is a moment: how many answers were how long. A band at the top is `max_tokens`.",
                Query(counted("le", length), heatmap=True),
                unit="short",
                span=6,
            ),
            curves(
                "Refusals",
                "Share of answers that refuse, in words that are usual for it. More than the base model's: look at what "
                "it learned from.",
                Query(f"({refusals} or 0 * {answers}) / ({answers} > 0)", "{{variant}}"),
                unit="percentunit",
                span=6,
            ),
            curves(
                "Repetition",
                "Mean share of an answer that it says again. Above 0.3 an answer goes in circles: less training, or "
                "a lower learning rate.",
                Query(mean("burnish_repetition", "variant", ROUTE), "{{variant}}"),
                unit="percentunit",
                thresholds=((None, GREEN), (0.2, YELLOW), (0.3, RED)),
                span=6,
            ),
        ),
    )
