"""The gate: what passes, what fails, what tells nothing; and its statistics against scipy's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from trainer.gate import (
    Finding,
    Outcome,
    Rules,
    Verdict,
    bootstrap_bounds,
    judge,
    sign_flip_p,
    unit_means,
)
from trainer.measures import Measure, Pair, Role

RULES = Rules()


def measure(
    candidate: Sequence[float | None],
    rival: Sequence[float | None],
    name: str = "exact_match",
    role: Role = Role.PRIMARY,
    *,
    units: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    **more: object,
) -> Measure:
    """Against the base alone; each row a unit of its own unless `units` says otherwise."""
    pairs = tuple(
        Pair(units[i] if units else f"u{i}", c, None, r, keys[i] if keys else None)
        for i, (c, r) in enumerate(zip(candidate, rival, strict=True))
    )
    return Measure(name, role, pairs, **more)  # type: ignore[arg-type]


def verdict(*measures: Measure, rules: Rules = RULES) -> Verdict:
    return judge(measures, rules, has_incumbent=False)


def finding(told: Verdict, name: str) -> Finding:
    return next(line.finding for line in told.lines if line.measure == name)


# -- what passes and what does not -------------------------------------------------------------------
def test_a_clear_gain_passes_and_says_by_how_much() -> None:
    told = verdict(measure([1.0] * 9 + [0.0], [0.0] * 10))
    assert told.outcome is Outcome.PASS
    assert told.lines[0].difference == pytest.approx(0.9)
    assert "exact_match: 0.000 (base) -> 0.900, better" in told.reasons[0]


def test_eight_rows_of_six_users_are_enough_where_all_agree() -> None:
    units = ["u0", "u0", "u0", "u1", "u2", "u3", "u4", "u5"]
    assert verdict(measure([1.0] * 8, [0.0] * 8, units=units)).outcome is Outcome.PASS


def test_a_tie_is_inconclusive() -> None:
    told = verdict(measure([0.0, 1.0] * 20, [1.0, 0.0] * 20))
    assert told.outcome is Outcome.INCONCLUSIVE
    assert finding(told, "exact_match") is Finding.UNDECIDED


def test_the_same_model_against_itself_is_inconclusive() -> None:
    values = list(np.random.default_rng(3).normal(1.0, 0.3, 40))
    told = verdict(measure(values, values, "nll", worst=None, best=0.0, higher_is_better=False))
    assert told.outcome is Outcome.INCONCLUSIVE


def test_what_is_worse_for_sure_fails_whatever_else_got_better() -> None:
    told = verdict(measure([0.0] * 20, [1.0] * 20, "exact_match"), measure([0.9] * 20, [0.1] * 20, "chrf"))
    assert told.outcome is Outcome.FAIL
    assert finding(told, "chrf") is Finding.BETTER


def test_a_lower_likelihood_loss_is_better() -> None:
    low, high = [1.0 + 0.01 * i for i in range(10)], [2.0 + 0.01 * i for i in range(10)]
    scale = {"worst": None, "best": 0.0, "higher_is_better": False}
    assert verdict(measure(low, high, "nll", **scale)).outcome is Outcome.PASS
    assert verdict(measure(high, low, "nll", **scale)).outcome is Outcome.FAIL


# -- what tells nothing --------------------------------------------------------------------------------
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_both_on_the_floor_or_on_the_ceiling_carry_no_signal(end: float) -> None:
    told = verdict(measure([end] * 30, [end] * 30))
    assert (told.outcome, told.lines[0].finding) == (Outcome.INCONCLUSIVE, Finding.NO_SIGNAL)


def test_one_that_leaves_the_floor_counts() -> None:
    assert verdict(measure([1.0] * 12 + [0.0] * 18, [0.0] * 30)).outcome is Outcome.PASS


def test_one_that_leaves_the_ceiling_counts() -> None:
    assert verdict(measure([0.0] * 12 + [1.0] * 18, [1.0] * 30)).outcome is Outcome.FAIL


def test_a_measure_without_signal_takes_no_share_of_the_correction() -> None:
    gain = measure([1.0] * 6 + [0.0] * 2, [0.0] * 8)  # p = 2^-6 = 0.0156: above 0.05/4, below 0.05/3
    silent = [measure([0.0] * 8, [0.0] * 8, f"silent_{i}") for i in range(5)]
    assert verdict(gain, *silent).outcome is Outcome.PASS
    undecided = [measure([0.0, 1.0] * 4, [1.0, 0.0] * 4, f"undecided_{i}") for i in range(3)]
    assert verdict(gain, *undecided).outcome is Outcome.INCONCLUSIVE


def test_too_few_rows_are_inconclusive() -> None:
    told = verdict(measure([1.0] * 7, [0.0] * 7))
    assert (told.outcome, told.lines[0].finding) == (Outcome.INCONCLUSIVE, Finding.TOO_FEW)
    assert "at least 8 rows" in told.reasons[0]


def test_promise_10_many_rows_of_a_few_users_are_few_voices() -> None:
    told = verdict(measure([1.0] * 500, [0.0] * 500, units=[f"u{i % 3}" for i in range(500)]))
    assert (told.outcome, told.lines[0].finding) == (Outcome.INCONCLUSIVE, Finding.TOO_FEW)


def test_promise_10_a_user_with_a_thousand_rows_weighs_as_one() -> None:
    good = measure(
        [1.0] * 1000 + [0.0] * 9,
        [0.0] * 1000 + [1.0] * 9,
        units=["loud"] * 1000 + [f"u{i}" for i in range(9)],
    )
    assert verdict(good).outcome is Outcome.FAIL


def test_promise_10_a_gain_that_is_one_keys_alone_does_not_count() -> None:
    keys = ["flood"] * 40 + ["team"] * 10
    told = verdict(measure([1.0] * 40 + [0.5] * 10, [0.0] * 40 + [0.5] * 10, keys=keys))
    assert (told.outcome, told.lines[0].finding) == (Outcome.INCONCLUSIVE, Finding.ONE_VOICE)
    told = verdict(measure([1.0] * 40 + [0.2] * 10, [0.0] * 40 + [0.8] * 10, keys=keys))
    assert (told.outcome, told.lines[0].finding) == (Outcome.INCONCLUSIVE, Finding.SLIPPED)
    told = verdict(measure([1.0] * 40 + [0.9] * 10, [0.0] * 40 + [0.5] * 10, keys=keys))
    assert told.outcome is Outcome.PASS


@pytest.mark.parametrize("side", ["candidate", "rival"])
def test_missing_pairs_are_inconclusive(side: str) -> None:
    holes: list[float | None] = [None] * 5 + [1.0] * 25
    candidate = holes if side == "candidate" else [1.0] * 30
    rival: list[float | None] = [0.0] * 30 if side == "candidate" else [None] * 5 + [0.0] * 25
    told = verdict(measure(candidate, rival))
    assert (told.outcome, told.lines[0].finding) == (Outcome.INCONCLUSIVE, Finding.UNCOVERED)
    assert "only 25 of 30 rows" in told.reasons[0]


def test_an_incumbent_that_never_answered_is_not_replaced_by_the_base() -> None:
    pairs = tuple(Pair(f"u{i}", 1.0, None, 0.0) for i in range(20))
    told = judge([Measure("exact_match", Role.PRIMARY, pairs)], RULES, has_incumbent=True)
    assert told.outcome is Outcome.INCONCLUSIVE


def test_nothing_measured_is_inconclusive() -> None:
    assert verdict().outcome is Outcome.INCONCLUSIVE


# -- guards and the base -------------------------------------------------------------------------------
GAIN = measure([1.0] * 20, [0.0] * 20)


def guard(candidate: Sequence[float | None], rival: Sequence[float | None], name: str = "format") -> Measure:
    return measure(candidate, rival, name, Role.GUARD)


def test_a_guard_that_regresses_for_sure_fails() -> None:
    told = verdict(GAIN, guard([0.0] * 10 + [1.0] * 10, [1.0] * 20))
    assert (told.outcome, finding(told, "format")) == (Outcome.FAIL, Finding.WORSE)


def test_a_guard_that_regresses_beyond_the_margin_by_chance_blocks_a_pass() -> None:
    told = verdict(GAIN, guard([0.0] * 2 + [1.0] * 18, [1.0] * 20))
    assert (told.outcome, finding(told, "format")) == (Outcome.INCONCLUSIVE, Finding.SLIPPED)


def test_a_guard_within_the_margin_holds() -> None:
    told = verdict(GAIN, guard([0.0] + [1.0] * 39, [1.0] * 40))
    assert (told.outcome, finding(told, "format")) == (Outcome.PASS, Finding.HOLDS)


def test_a_guard_that_could_not_be_seen_blocks_a_pass() -> None:
    told = verdict(GAIN, guard([None] * 20, [1.0] * 20))
    assert (told.outcome, finding(told, "format")) == (Outcome.INCONCLUSIVE, Finding.UNCOVERED)


def test_a_guard_that_nothing_was_asked_of_is_not_there() -> None:
    assert verdict(GAIN, guard([], [])).outcome is Outcome.PASS


def test_one_broken_case_of_one_is_no_proof_of_harm_but_no_pass() -> None:
    told = verdict(GAIN, guard([0.0], [1.0], "regressions"))
    assert (told.outcome, finding(told, "regressions")) == (Outcome.INCONCLUSIVE, Finding.SLIPPED)


def test_better_than_the_incumbent_but_worse_than_the_base_fails() -> None:
    pairs = tuple(Pair(f"u{i}", 0.5, 0.1, 0.9) for i in range(20))
    told = judge([Measure("chrf", Role.PRIMARY, pairs)], RULES, has_incumbent=True)
    assert told.outcome is Outcome.FAIL
    assert [line.against for line in told.lines] == ["incumbent", "base"]


def test_what_is_only_reported_decides_nothing() -> None:
    told = verdict(GAIN, measure([0.0] * 20, [1.0] * 20, "judge", Role.REPORT))
    assert (told.outcome, finding(told, "judge")) == (Outcome.PASS, Finding.SHOWN)


# -- how often it is wrong -----------------------------------------------------------------------------
def rate(outcome: Outcome, draw: Callable[[np.random.Generator], Measure], runs: int) -> float:
    random = np.random.default_rng(20)
    return sum(verdict(draw(random)).outcome is outcome for _ in range(runs)) / runs


@pytest.mark.parametrize("rows", [8, 12, 30])
def test_no_difference_passes_no_oftener_than_the_confidence_allows(rows: int) -> None:
    """At most 5 % of A-A comparisons; 300 of them may by chance show 8 %."""

    def binary(random: np.random.Generator) -> Measure:
        return measure(list(random.binomial(1, 0.4, rows) * 1.0), list(random.binomial(1, 0.4, rows) * 1.0))

    def skewed(random: np.random.Generator) -> Measure:
        return measure(
            list(random.exponential(1, rows)), list(random.exponential(1, rows)), worst=None, best=None
        )

    for draw in (binary, skewed):
        assert rate(Outcome.PASS, draw, 300) <= 0.08
        assert rate(Outcome.FAIL, draw, 300) <= 0.08


def test_real_gains_pass_and_inverted_labels_fail() -> None:
    def preferences(share: float) -> Callable[[np.random.Generator], Measure]:
        return lambda random: measure(
            list(random.binomial(1, share, 40) * 1.0),
            list(random.binomial(1, 0.5, 40) * 1.0),
            "preference_accuracy",
        )

    assert rate(Outcome.PASS, preferences(0.95), 60) >= 0.9
    assert rate(Outcome.FAIL, preferences(0.05), 60) >= 0.9
    assert rate(Outcome.PASS, preferences(0.05), 60) == 0


# -- the statistics, against scipy's --------------------------------------------------------------------
def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).exponential(1.0, 25) - 0.6
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=20_000,
        method="percentile",
        confidence_level=0.9,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert bootstrap_bounds(values, 0.05, seed=0) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_the_interval_is_golden() -> None:
    values = np.array([0.3, -0.1, 0.4, 0.2, 0.0, 0.5, 0.1, 0.2])
    assert bootstrap_bounds(values, 0.025, seed=7) == pytest.approx((0.075, 0.3375))


@pytest.mark.parametrize("count", [6, 10])
def test_the_sign_flip_test_is_scipys_where_it_is_exact(count: int) -> None:
    values = np.random.default_rng(count).normal(0.3, 0.5, count)
    theirs = stats.permutation_test(
        (values, np.zeros(count)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
        alternative="greater",
    )
    assert sign_flip_p(values, seed=0) == pytest.approx(theirs.pvalue)


def test_the_sign_flip_test_of_yes_and_no_is_mcnemars_exact_test() -> None:
    values = np.array([1.0] * 9 + [-1.0] * 2 + [0.0] * 3)
    assert sign_flip_p(values, seed=0) == pytest.approx(stats.binomtest(9, 11, alternative="greater").pvalue)


def test_the_simulated_sign_flip_test_is_near_the_exact_one() -> None:
    values = np.array([1.0] * 20 + [-1.0] * 9 + [0.0] * 11)
    assert sign_flip_p(values, seed=0) == pytest.approx(
        stats.binomtest(20, 29, alternative="greater").pvalue, abs=0.01
    )


def test_a_units_rows_are_averaged() -> None:
    assert list(unit_means([("a", 1.0), ("b", 0.0), ("a", 0.0)])) == [0.5, 0.0]
