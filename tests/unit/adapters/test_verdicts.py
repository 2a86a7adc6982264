"""The rules of experiments, on evidence made by hand: what is decided, and what is not decided yet."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.comparisons import compare
from adapters.evidence import ArmEvidence, Epoch, Evidence
from adapters.experiment_records import Experiment, ExperimentState, Outcome, new_experiment
from adapters.plans import Metric, Policy
from adapters.statistics import CannotTell, Interval, Sums
from adapters.verdicts import Look, look, look_json, without
from tests.observed import plan

CONTROL, A, B = "support@1", "support@2", "support@3"
BEGAN = 1000.0
HORIZON = 14 * 86400.0
OVER = BEGAN + HORIZON
SCORED = ("fixed", "test", "adaptive")


def experiment(
    *challengers: str, state: ExperimentState = ExperimentState.RUNNING, **parts: Any
) -> Experiment:
    made = new_experiment(
        "support-1", "support", CONTROL, plan(*(challengers or (A,)), **parts), "anna", BEGAN
    )
    return replace(made, state=state)


def liked(of: int, yes: int) -> Sums:
    return Sums.of([1.0] * yes + [0.0] * (of - yes))


def arm(of: int = 0, yes: int = 0, *, units: int | None = None, **metrics: Sums) -> ArmEvidence:
    """`of` voices of whom `yes` are content, and as many units without an error."""
    measured = {Metric.ERRORS: liked(of, 0), **{Metric(name): sums for name, sums in metrics.items()}}
    return ArmEvidence(
        answers=of,
        units=of if units is None else units,
        metrics=measured if of else {},
        scores={"rating": liked(of, yes)},
    )


def evidence(control: ArmEvidence, *challengers: ArmEvidence, epochs: tuple[Epoch, ...] = ()) -> Evidence:
    return Evidence({CONTROL: control, **dict(zip((A, B), challengers, strict=False))}, epochs)


def outcome(seen: Look) -> tuple[Outcome, str | None] | None:
    assert [seen.verdict is not None, bool(seen.drop), seen.shares is not None].count(True) <= 1
    assert seen.does_something == (seen.verdict is not None or bool(seen.drop) or seen.shares is not None)
    return None if seen.verdict is None else (seen.verdict.outcome, seen.verdict.variant)


WORSE, SAME, BETTER = arm(400, 100), arm(400, 200), arm(400, 300)
NOTHING = evidence(ArmEvidence(), ArmEvidence())


# -- every policy, every outcome -------------------------------------------------------------------
@pytest.mark.parametrize("policy", SCORED)
def test_a_challenger_that_is_better_is_promoted(policy: str) -> None:
    seen = look(experiment(policy=policy), evidence(SAME, BETTER), OVER)
    assert outcome(seen) == (Outcome.PROMOTE, A)
    assert seen.verdict is not None
    assert "support@2 against support@1: rating +0.250" in seen.verdict.reasons[0]
    assert "alpha 0.05" in seen.verdict.rule


@pytest.mark.parametrize("policy", SCORED)
def test_the_control_is_kept_where_the_challenger_is_worse(policy: str) -> None:
    assert outcome(look(experiment(policy=policy), evidence(SAME, WORSE), OVER)) == (Outcome.KEEP, None)


@pytest.mark.parametrize("policy", SCORED)
def test_what_cannot_be_told_is_inconclusive_at_the_horizon_and_not_before(policy: str) -> None:
    for seen_so_far in (evidence(SAME, SAME), NOTHING):
        running = experiment(policy=policy, reallocate_seconds=10**9)
        assert outcome(look(running, seen_so_far, OVER - 1)) is None
        seen = look(running, seen_so_far, OVER)
        assert outcome(seen) == (Outcome.INCONCLUSIVE, None)
        assert seen.verdict is not None
        assert seen.verdict.rule == "the horizon is reached"


@pytest.mark.parametrize(("policy", "is_decided"), [("test", True), ("adaptive", True), ("fixed", False)])
def test_fixed_shares_are_read_off_at_the_horizon_and_others_as_soon_as_can_be(
    policy: str, is_decided: bool
) -> None:
    for rival in (BETTER, WORSE):
        verdict = look(experiment(policy=policy), evidence(SAME, rival), BEGAN + 1).verdict
        assert (verdict is not None) is is_decided


@pytest.mark.parametrize("policy", [policy.value for policy in Policy])
def test_a_breached_guardrail_ends_it_whatever_else_is_seen(policy: str) -> None:
    broken = replace(BETTER, metrics={Metric.ERRORS: liked(400, 200)})
    seen = look(experiment(policy=policy), evidence(SAME, broken), BEGAN + 1)
    assert outcome(seen) == (Outcome.GUARDRAIL, A)
    assert seen.verdict is not None
    assert "error_rate is +50.0% against the control" in seen.verdict.reasons[0]


def test_all_that_speaks_against_a_challenger_is_on_record() -> None:
    broken = replace(BETTER, metrics={Metric.ERRORS: liked(400, 200), Metric.TTFT: Sums.of([3.0, 3.1] * 200)})
    fine = replace(SAME, metrics={Metric.ERRORS: liked(400, 0), Metric.TTFT: Sums.of([0.0, 0.1] * 200)})
    verdict = look(experiment(), evidence(fine, broken), BEGAN).verdict
    assert verdict is not None
    assert "error_rate is +50.0%" in verdict.reasons[0]
    assert "; ttft_seconds is +" in verdict.reasons[0]


@pytest.mark.parametrize("policy", ["fixed", "test", "adaptive", "canary"])
def test_a_split_that_does_not_hold_ends_it_whatever_else_is_seen(policy: str) -> None:
    made = experiment(policy=policy)
    epochs = (Epoch({CONTROL: 0.5, A: 0.5}, {CONTROL: 900, A: 600}),)
    broken = replace(BETTER, metrics={Metric.ERRORS: liked(400, 200)})
    seen = look(made, evidence(SAME, broken, epochs=epochs), BEGAN + 1)
    assert outcome(seen) == (Outcome.SAMPLE_RATIO, None)
    assert seen.sample_ratio is not None
    assert seen.sample_ratio.p is not None
    assert seen.sample_ratio.p < 0.001


def test_a_split_that_holds_says_nothing() -> None:
    epochs = (
        Epoch({CONTROL: 0.5, A: 0.5}, {CONTROL: 510, A: 490}),
        Epoch({CONTROL: 0.9, A: 0.1}, {CONTROL: 905, A: 95}),
    )
    seen = look(experiment(), evidence(SAME, SAME, epochs=epochs), BEGAN)
    assert seen.sample_ratio is not None
    assert not seen.sample_ratio.broken
    assert outcome(seen) is None


def test_small_faults_of_the_split_add_up_over_the_epochs() -> None:
    one = Epoch({CONTROL: 0.5, A: 0.5}, {CONTROL: 590, A: 480})
    verdicts = [look(experiment(), evidence(SAME, SAME, epochs=(one,) * n), BEGAN).verdict for n in (1, 4)]
    assert verdicts[0] is None
    assert verdicts[1] is not None


def test_a_unit_on_a_variant_without_a_share_is_beyond_doubt_and_still_json() -> None:
    epochs = (Epoch({CONTROL: 1.0, A: 0.0}, {CONTROL: 5, A: 1}),)
    seen = look(experiment(), evidence(SAME, SAME, epochs=epochs), BEGAN)
    assert outcome(seen) == (Outcome.SAMPLE_RATIO, None)
    json.dumps(look_json(seen), allow_nan=False)


# -- when it may be said ---------------------------------------------------------------------------
@pytest.mark.parametrize("policy", SCORED)
def test_nothing_is_said_before_there_are_voices_enough_of_each(policy: str) -> None:
    made = experiment(policy=policy, least_voices=100)
    for control, rival in ((arm(99, 0), arm(999, 999)), (arm(999, 0), arm(99, 99))):
        seen = look(made, evidence(control, rival), OVER - 1)
        assert seen.verdict is None
        assert isinstance(seen.comparisons[0].difference, CannotTell)
    assert outcome(look(made, evidence(arm(100, 0), arm(100, 100)), OVER)) == (Outcome.PROMOTE, A)


def test_a_gain_too_small_to_matter_is_given_up_without_being_worse() -> None:
    both = arm(4000, 2000)
    assert outcome(look(experiment(), evidence(both, both), BEGAN)) is None
    patient = experiment(minimal_effect=0.2)
    assert outcome(look(patient, evidence(both, both), BEGAN)) == (Outcome.KEEP, None)
    assert outcome(look(patient, evidence(both, arm(4000, 2300)), BEGAN)) == (Outcome.PROMOTE, A)


def with_keys(base: ArmEvidence, without: dict[str, Sums]) -> ArmEvidence:
    return replace(base, without_key=without)


def test_promise_10_a_gain_that_is_one_keys_alone_does_not_promote() -> None:
    others = {"key_a": liked(100, 50), "key_b": liked(300, 250)}
    control = with_keys(SAME, {"key_a": liked(200, 100), "key_b": liked(200, 100)})
    seen = look(experiment(), evidence(control, with_keys(BETTER, others)), OVER - 1)
    assert outcome(seen) is None
    (comparison,) = seen.comparisons
    assert isinstance(comparison.difference, Interval)
    assert comparison.difference.above_zero
    assert comparison.alone
    at_last = look(experiment(), evidence(control, with_keys(BETTER, others)), OVER)
    assert outcome(at_last) == (Outcome.INCONCLUSIVE, None)
    assert at_last.verdict is not None
    assert "not without one key's voices" in at_last.verdict.reasons[0]


def test_promise_10_a_gain_that_is_left_without_any_one_key_promotes() -> None:
    others = {"key_a": liked(200, 150), "key_b": liked(200, 150)}
    control = with_keys(SAME, {"key_a": liked(200, 100), "key_b": liked(200, 100)})
    assert outcome(look(experiment(), evidence(control, with_keys(BETTER, others)), BEGAN)) == (
        Outcome.PROMOTE, A,
    )  # fmt: skip


def test_promise_10_a_key_that_alone_has_judged_the_control_decides_nothing() -> None:
    control = with_keys(SAME, {"key_a": Sums(), "key_b": liked(400, 200)})
    others = {"key_a": liked(100, 90), "key_b": liked(300, 220)}
    assert compare(experiment(), evidence(control, with_keys(BETTER, others)), A, "rating").alone


# -- several challengers ---------------------------------------------------------------------------
def test_several_challengers_and_scores_share_the_alpha() -> None:
    def width(made: Experiment) -> float:
        found = compare(made, evidence(SAME, SAME, SAME), A, "rating").difference
        assert isinstance(found, Interval)
        return found.upper - found.lower

    assert width(experiment(A, B)) == pytest.approx(width(experiment(A, alpha=0.025)))
    assert width(experiment(A, scores=["rating", "b"])) == pytest.approx(width(experiment(A, alpha=0.025)))
    assert width(experiment(A, B)) > width(experiment(A))


def test_the_best_of_several_is_promoted() -> None:
    seen = look(experiment(A, B), evidence(SAME, arm(400, 280), BETTER), BEGAN)
    assert outcome(seen) == (Outcome.PROMOTE, B)


def test_the_control_is_kept_only_when_no_challenger_has_hope_left() -> None:
    assert outcome(look(experiment(A, B), evidence(SAME, WORSE, SAME), BEGAN)) is None
    assert outcome(look(experiment(A, B), evidence(SAME, WORSE, WORSE), BEGAN)) == (Outcome.KEEP, None)


def test_one_challengers_breach_drops_it_alone_and_the_others_shares_keep_their_ratios() -> None:
    made = experiment(A, B)
    broken = replace(BETTER, metrics={Metric.ERRORS: liked(400, 200)})
    seen = look(made, evidence(SAME, broken, SAME), BEGAN)
    assert outcome(seen) is None
    assert list(seen.drop) == [A]
    shares = without(made, seen.drop)
    assert list(shares) == [CONTROL, B]
    assert shares == pytest.approx({CONTROL: 1 / 2, B: 1 / 2})
    dropped = replace(made, dropped=seen.drop, shares=shares)
    again = look(dropped, evidence(SAME, broken, SAME), BEGAN)
    assert (outcome(again), again.drop) == (None, {}), "it is compared no more"
    assert outcome(look(dropped, evidence(SAME, broken, BETTER), BEGAN)) == (Outcome.PROMOTE, B)
    assert outcome(look(dropped, evidence(SAME, broken, WORSE), BEGAN)) == (Outcome.KEEP, None)
    assert outcome(look(dropped, evidence(SAME, broken, broken), BEGAN)) == (Outcome.GUARDRAIL, B)


@given(st.lists(st.floats(1e-4, 0.12), min_size=1, max_size=8), st.data())
def test_shares_that_are_left_add_up_to_one(shares: list[float], data: st.DataObject) -> None:
    challengers = {f"support@{n}": share for n, share in enumerate(shares, 2)}
    made = new_experiment("e", "r", CONTROL, plan(challengers=challengers), "anna", BEGAN)
    for _ in range(3):
        dropped = data.draw(st.sets(st.sampled_from(list(challengers))))
        left = without(made, dict.fromkeys(dropped, "why"))
        assert math.fsum(left.values()) == pytest.approx(1.0, abs=1e-15)
        assert min(left.values()) >= 0
        made = replace(made, shares=left)


# -- guardrails ------------------------------------------------------------------------------------
def seconds(mean: float, of: int = 200) -> Sums:
    """Logarithms around a mean of so many seconds."""
    return Sums.of([math.log(mean) + (0.1 if n % 2 else -0.1) for n in range(of)])


def guarded(metric: str, control: Sums, challenger: Sums, tolerated: float = 0.5, **parts: Any) -> Look:
    made = experiment(guardrails={metric: tolerated}, **parts)
    with_metric = [replace(arm(1, 0), metrics={Metric(metric): sums}) for sums in (control, challenger)]
    return look(made, evidence(*with_metric), BEGAN)


def test_times_and_lengths_are_compared_by_the_part_by_which_they_are_worse() -> None:
    slow = guarded("ttft_seconds", seconds(1.0), seconds(2.0))
    assert outcome(slow) == (Outcome.GUARDRAIL, A)
    assert slow.verdict is not None
    assert "ttft_seconds is +100% against the control" in slow.verdict.reasons[0]
    assert outcome(guarded("ttft_seconds", seconds(1.0), seconds(1.4))) is None
    assert outcome(guarded("ttft_seconds", seconds(1.0), seconds(0.1))) is None
    assert outcome(guarded("output_tokens", seconds(100), seconds(300))) == (Outcome.GUARDRAIL, A)


def test_a_time_is_not_compared_on_a_handful_of_units() -> None:
    seen = guarded("ttft_seconds", seconds(1.0), seconds(9.0, of=19))
    assert outcome(seen) is None
    assert (seen.guardrails[-1].worse, seen.guardrails[-1].breached) == (None, False)
    assert "cannot tell yet" in seen.guardrails[-1].reason


def test_rates_are_compared_absolutely() -> None:
    assert outcome(guarded("refusal_rate", liked(200, 10), liked(200, 60), 0.05)) == (Outcome.GUARDRAIL, A)
    assert outcome(guarded("refusal_rate", liked(200, 10), liked(200, 60), 0.3)) is None


def test_what_was_not_measured_is_no_breach() -> None:
    seen = guarded("malformed_rate", liked(200, 0), Sums(), 0.0)
    assert outcome(seen) is None
    (guard,) = (each for each in seen.guardrails if each.metric == "malformed_rate")
    assert guard.reason == "not measured yet"


def test_the_score_may_be_a_guardrail_too() -> None:
    made = experiment(policy="fixed", guardrails={"score": 0.1})
    seen = look(made, evidence(SAME, arm(400, 60)), BEGAN)
    assert outcome(seen) == (Outcome.GUARDRAIL, A)
    assert seen.verdict is not None
    assert "score is +35.0% against the control" in seen.verdict.reasons[0]
    assert outcome(look(made, evidence(SAME, BETTER), BEGAN)) is None
    assert outcome(look(made, evidence(SAME, arm(400, 180)), BEGAN)) is None, "so much is tolerated"


def test_guardrails_share_their_alpha() -> None:
    one = look(experiment(guardrails={"ttft_seconds": None, "inter_token_seconds": None}), NOTHING, BEGAN)
    assert [guard.metric for guard in one.guardrails] == ["error_rate"]
    control, rival = arm(200, 0), replace(arm(200, 0), metrics={Metric.ERRORS: liked(200, 24)})
    alone = experiment(guardrails={"ttft_seconds": None, "inter_token_seconds": None})
    many = experiment(guardrails={metric.value: 0.02 for metric in Metric}, guardrail_alpha=0.0005)
    assert outcome(look(alone, evidence(control, rival), BEGAN)) == (Outcome.GUARDRAIL, A)
    assert outcome(look(many, evidence(control, rival), BEGAN)) is None


# -- canary ----------------------------------------------------------------------------------------
def canary(share: float = 0.01, **parts: Any) -> Experiment:
    made = experiment(policy="canary", **parts)
    return replace(made, shares={CONTROL: 1 - share, A: share})


STEP = BEGAN + 10


def test_a_canary_grows_step_by_step_and_is_promoted_after_the_last() -> None:
    fine = evidence(SAME, SAME)
    for share, after in ((0.01, 0.05), (0.05, 0.2), (0.2, 0.5), (0.1, 0.2)):
        seen = look(canary(share), fine, STEP)
        assert outcome(seen) is None
        assert seen.shares == pytest.approx({CONTROL: 1 - after, A: after})
    seen = look(canary(0.5), fine, STEP)
    assert outcome(seen) == (Outcome.PROMOTE, A)
    assert seen.verdict is not None
    assert "held all guardrails up to 50% of the traffic" in seen.verdict.reasons[0]
    assert seen.verdict.rule == "every step held for 10 s and 10 units"


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_a_canary_waits_for_time_and_for_people_at_every_step(share: float) -> None:
    for rival, now in ((SAME, STEP - 1), (arm(400, 200, units=9), STEP)):
        assert not look(canary(share), evidence(SAME, rival), now).does_something
    assert look(canary(share), evidence(SAME, arm(400, 200, units=10)), STEP).does_something


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_a_canary_waits_while_something_looks_worse_than_is_tolerated(share: float) -> None:
    by_chance = replace(SAME, metrics={Metric.ERRORS: liked(40, 1)})  # 2.5%: no breach, and more than 2%
    assert not look(canary(share), evidence(SAME, by_chance), STEP).does_something
    less_liked = arm(400, 190)  # 2.5 points
    assert not look(canary(share), evidence(SAME, less_liked), STEP).does_something


def test_each_step_of_a_canary_has_a_part_of_alpha_that_leaves_the_rest_for_the_others() -> None:
    by_step = []
    for epoch in (0, 1, 5):
        made = replace(canary(), epoch=epoch)
        (found,) = look(made, evidence(SAME, BETTER), BEGAN).comparisons
        assert isinstance(found.difference, Interval)
        by_step.append(found.difference.upper - found.difference.lower)
    assert by_step == sorted(by_step)
    assert len({*by_step}) == 3
    (whole,) = look(replace(experiment(), epoch=5), evidence(SAME, BETTER), BEGAN).comparisons
    (first,) = look(experiment(), evidence(SAME, BETTER), BEGAN).comparisons
    assert whole == first, "where the ratios of the shares stay, all epochs are one"


def test_promise_10_a_canary_is_not_stopped_by_one_keys_thumbs_alone() -> None:
    loud = replace(WORSE, without_key={"loud": liked(100, 50), "other": liked(300, 20)})
    alone = look(canary(), evidence(SAME, loud), BEGAN)
    assert not alone.does_something
    assert "but not without one key's voices" in next(
        g.reason for g in alone.guardrails if g.metric == "score"
    )
    both = replace(WORSE, without_key={"loud": liked(200, 20), "other": liked(200, 20)})
    assert outcome(look(canary(), evidence(SAME, both), BEGAN)) == (Outcome.GUARDRAIL, A)


def test_equal_scores_of_unequal_numbers_of_voices_are_not_worse() -> None:
    assert look(canary(), evidence(arm(300, 90), arm(10, 3)), STEP).does_something


def test_a_canary_that_never_gets_far_is_inconclusive_at_the_horizon() -> None:
    assert outcome(look(canary(), NOTHING, OVER)) == (Outcome.INCONCLUSIVE, None)


# -- adaptive --------------------------------------------------------------------------------------
def test_adaptive_traffic_moves_to_the_better_and_leaves_the_floor() -> None:
    made = experiment(A, B, policy="adaptive", floor=0.1)
    seen = look(made, evidence(arm(60, 30), arm(60, 20), arm(60, 38)), BEGAN + 60)
    assert seen.shares is not None
    assert list(seen.shares) == [CONTROL, A, B]
    assert seen.shares[B] > 0.5 > seen.shares[CONTROL] > seen.shares[A] >= 0.1
    assert math.fsum(seen.shares.values()) == pytest.approx(1.0, abs=1e-15)


def test_adaptive_traffic_moves_seldom_and_never_for_little() -> None:
    made = experiment(policy="adaptive")
    told = evidence(arm(60, 30), arm(60, 38))
    assert look(made, told, BEGAN + 59).shares is None
    moved = look(made, told, BEGAN + 60).shares
    assert moved is not None
    assert look(replace(made, shares=moved), told, BEGAN + 60).shares is None
    few = evidence(arm(9, 3), arm(9, 9))
    assert look(made, few, BEGAN + 60).shares is None, "nobody knows yet"


def test_adaptive_shares_are_shares_even_where_all_is_said() -> None:
    made = experiment(A, B, policy="adaptive", floor=0.0, least_voices=10)
    seen = look(made, evidence(arm(5000, 4999), arm(5000, 1), arm(5000, 4998)), BEGAN + 60)
    assert seen.verdict is None
    assert seen.shares is not None
    assert all(share >= 0 for share in seen.shares.values())
    assert math.fsum(seen.shares.values()) == pytest.approx(1.0, abs=1e-15)


def test_a_dropped_challenger_is_given_nothing_by_adaptation() -> None:
    made = experiment(A, B, policy="adaptive")
    made = replace(made, dropped={A: "why"}, shares={CONTROL: 0.5, B: 0.5})
    seen = look(made, evidence(arm(60, 30), arm(60, 60), arm(60, 38)), BEGAN + 60)
    assert seen.shares is not None
    assert set(seen.shares) == {CONTROL, B}


# -- shadow ----------------------------------------------------------------------------------------
def test_a_shadow_ends_when_its_budget_is_spent_and_promotes_nothing() -> None:
    made = experiment(policy="shadow", shadow_requests=400)
    assert outcome(look(made, evidence(SAME, arm(399, 399)), BEGAN)) is None
    seen = look(made, evidence(SAME, BETTER), BEGAN)
    assert outcome(seen) == (Outcome.INCONCLUSIVE, None)
    assert seen.verdict is not None
    assert seen.verdict.rule == "the budget of the shadow is spent"
    assert outcome(look(made, NOTHING, OVER)) == (Outcome.INCONCLUSIVE, None)


# -- after a promotion, and while a person is awaited ----------------------------------------------
def measuring(*challengers: str) -> Experiment:
    made = experiment(*challengers, state=ExperimentState.MEASURING, hold_back=0.1, hold_back_seconds=100)
    return replace(made, verdict={"variant": A}, shares={CONTROL: 0.1, A: 0.9})


def test_a_promotion_that_holds_ends_with_the_hold_back() -> None:
    for rival in (BETTER, SAME):
        assert outcome(look(measuring(), evidence(SAME, rival), BEGAN + 99)) is None
        seen = look(measuring(), evidence(SAME, rival), BEGAN + 100)
        assert outcome(seen) == (Outcome.PROMOTE, A)
        assert seen.verdict is not None
        assert seen.verdict.rule == "the hold-back is over"


def test_a_promotion_that_proves_wrong_is_taken_back() -> None:
    assert outcome(look(measuring(), evidence(SAME, WORSE), BEGAN + 1)) == (Outcome.KEEP, None)


def test_a_promoted_variant_that_breaches_is_taken_back_whoever_else_was_compared() -> None:
    broken = replace(BETTER, metrics={Metric.ERRORS: liked(400, 200)})
    seen = look(measuring(A, B), evidence(SAME, broken, SAME), BEGAN + 1)
    assert outcome(seen) == (Outcome.GUARDRAIL, A)
    loser = look(measuring(A, B), evidence(SAME, BETTER, broken), BEGAN + 1)
    assert not loser.does_something, "what has no traffic any more cannot do harm"


def test_a_verdict_that_waits_for_a_person_is_not_given_again_but_guarded() -> None:
    waiting = experiment(A, B, state=ExperimentState.AWAITING)
    assert not look(waiting, evidence(SAME, BETTER, SAME), OVER).does_something
    broken = replace(BETTER, metrics={Metric.ERRORS: liked(400, 200)})
    assert list(look(waiting, evidence(SAME, broken, SAME), OVER).drop) == [A]
    both = look(waiting, evidence(SAME, broken, broken), OVER)
    assert outcome(both) == (Outcome.GUARDRAIL, A)


# -- records ---------------------------------------------------------------------------------------
counts = st.integers(0, 300)


@given(st.sampled_from([policy.value for policy in Policy]), counts, counts, counts, counts, st.booleans())
def test_every_look_is_json(policy: str, n1: int, n0: int, y1: int, y0: int, is_over: bool) -> None:
    control = arm(n0, min(y0, n0), ttft_seconds=seconds(1.0, n0))
    rival = arm(n1, min(y1, n1), ttft_seconds=seconds(2.0, n1))
    epochs = (Epoch({CONTROL: 0.5, A: 0.5}, {CONTROL: n0, A: n1} if n0 and n1 else {}),)
    for so_far in (evidence(control, rival, epochs=epochs), NOTHING, Evidence({})):
        seen = look(experiment(policy=policy, guardrails={"score": 0.1}), so_far, OVER if is_over else STEP)
        outcome(seen)
        shown = look_json(seen)
        assert json.loads(json.dumps(shown, allow_nan=False)) == shown
        assert set(shown["arms"]) == {CONTROL, A}
