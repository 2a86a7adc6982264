"""Intervals and e-values: golden values against scipy's, and what must hold of any data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from adapters.e_values import (
    chi_square_p,
    log_e_rate,
    log_e_rate_above,
    log_e_rate_excess,
    log_e_sample_ratio,
    rate_sequence,
)
from adapters.statistics import (
    CannotTell,
    Interval,
    Moments,
    Sums,
    asymptotic_radius,
    difference_sequence,
    fixed_difference,
    fixed_mean,
    guarded_variance,
    mean_sequence,
    one_sided_radius,
    split_alpha,
)

UNIT_SCORES = st.lists(st.floats(0, 1), max_size=40)
RANDOM = np.random.default_rng(20260110)


def coins(ups: int, downs: int) -> Sums:
    return Sums.of([1.0] * ups + [0.0] * downs)


def told(interval: Interval | CannotTell) -> Interval:
    assert isinstance(interval, Interval)
    return interval


def difference(
    treatment: Sums, control: Sums, alpha: float = 0.05, *, ratio: float = 1.0, revised: bool = False
) -> Interval | CannotTell:
    return difference_sequence(
        treatment, control, alpha, expected_units=1000, least_units=30, ratio=ratio, revised=revised
    )


# -- sums -------------------------------------------------------------------------------------------------
@given(UNIT_SCORES, UNIT_SCORES)
def test_sums_of_parts_add_up_to_the_sums_of_the_whole(one: list[float], other: list[float]) -> None:
    parts = Sums.of(one, one[::-1]) + Sums.of(other, other[::-1])
    whole = Sums.of(one + other, one[::-1] + other[::-1])
    assert parts.n == whole.n
    for name in ("y", "yy", "x", "xx", "xy"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name))


def test_mean_and_variance_are_numpys() -> None:
    values = RANDOM.lognormal(size=50)
    assert Sums.of(values).mean == pytest.approx(values.mean())
    assert Sums.of(values).variance == pytest.approx(values.var(ddof=1))


def test_what_has_no_mean_or_spread_is_not_a_number() -> None:
    assert math.isnan(Sums().mean)
    assert math.isnan(Sums.of([0.5]).variance)


def test_equal_values_have_no_spread_though_floating_point_leaves_some() -> None:
    assert Sums.of([0.1] * 30).variance == 0


def test_a_covariate_is_asked_of_every_unit() -> None:
    with pytest.raises(ValueError, match="one covariate a unit"):
        Sums.of([1.0, 0.0], [1.0])


# -- confidence sequences ---------------------------------------------------------------------------------
def test_the_radius_is_the_papers() -> None:
    n, alpha, expected = 500.0, 0.05, 1000.0
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha)) + 1) / expected
    by_hand = 0.3 * math.sqrt(2 * (n * rho2 + 1) / (n**2 * rho2) * math.log(math.sqrt(n * rho2 + 1) / alpha))
    assert asymptotic_radius(n, 0.09, alpha, expected) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(0.041187, abs=1e-6)


def test_the_radius_of_an_array_is_that_of_its_numbers() -> None:
    n = np.array([40.0, 400.0])
    both = asymptotic_radius(n, np.array([0.2, 0.1]), 0.05, 300)
    assert list(both) == pytest.approx(
        [asymptotic_radius(40.0, 0.2, 0.05, 300), asymptotic_radius(400.0, 0.1, 0.05, 300)]
    )


def test_it_is_about_narrowest_for_the_units_that_were_expected() -> None:
    at = {expected: asymptotic_radius(1000.0, 0.25, 0.05, expected) for expected in (50, 1000, 20_000)}
    assert min(at, key=at.__getitem__) == 1000


def test_one_side_alone_is_nearer_than_both_and_farther_than_at_one_look() -> None:
    n, variance = 1000.0, 0.25
    one = one_sided_radius(n, variance, 0.05, 1000)
    assert stats.norm.ppf(0.95) * math.sqrt(variance / n) < one < asymptotic_radius(n, variance, 0.05, 1000)
    assert one == pytest.approx(asymptotic_radius(n, variance, 0.1, 1000), rel=0.02)


@given(st.integers(30, 5000), st.floats(0.01, 0.2))
def test_an_interval_shrinks_with_units_and_grows_with_certainty(n: int, alpha: float) -> None:
    radius = asymptotic_radius(float(n), 0.25, alpha, 1000)
    assert asymptotic_radius(float(n) + 10, 0.25, alpha, 1000) < radius
    assert asymptotic_radius(float(n), 0.25, alpha / 2, 1000) > radius


def test_a_difference_lies_between_its_bounds_and_excludes_zero_where_it_is_plain() -> None:
    interval = told(difference(coins(240, 160), coins(160, 240)))
    assert interval.estimate == pytest.approx(0.2)
    assert interval.above_zero
    assert not interval.below_zero
    assert told(difference(coins(160, 240), coins(240, 160))).below_zero
    equal = told(difference(coins(200, 200), coins(200, 200)))
    assert not equal.above_zero
    assert not equal.below_zero


def test_a_sequence_is_wider_than_one_look() -> None:
    one, other = coins(240, 160), coins(160, 240)
    sequence, once = told(difference(one, other)), told(fixed_difference(one, other, 0.05))
    assert sequence.lower < once.lower < once.upper < sequence.upper


def test_values_that_may_still_change_count_as_two_tests() -> None:
    one, other = coins(240, 160), coins(160, 240)
    assert told(difference(one, other, 0.05, revised=True)) == told(difference(one, other, 0.025))


def test_few_units_tell_nothing_and_say_why() -> None:
    answer = difference(coins(20, 9), coins(200, 200))
    assert answer == CannotTell("29 units in an arm are too few (at least 30)")
    assert mean_sequence(coins(20, 9), 0.05, expected_units=100, least_units=30) == CannotTell(
        "29 units are too few (at least 30)"
    )


def test_thirty_units_that_all_say_the_same_tell_nothing() -> None:
    assert isinstance(difference(coins(0, 30), coins(0, 30)), CannotTell)
    assert isinstance(mean_sequence(coins(0, 30), 0.05, expected_units=100, least_units=30), CannotTell)


def test_a_small_challenger_of_whom_all_said_yes_is_not_taken_for_certain() -> None:
    challenger, control = coins(30, 0), coins(931, 19)  # 98%
    interval = told(difference(challenger, control))
    assert interval.lower < 0
    bare = asymptotic_radius(980.0, 980 * control.variance / control.n, 0.05, 1000)
    assert interval.estimate - bare > 0  # without the guard it would have been promoted


def test_the_guard_only_widens_and_fades() -> None:
    assert guarded_variance(Moments(30.0, 0.5, 0.25), 0.1) == 0.25
    few = guarded_variance(Moments(30.0, 1.0, 0.0), 0.02)
    many = guarded_variance(Moments(30_000.0, 1.0, 0.0), 0.02)
    assert 0.01 < few < 0.02
    assert many < 0.0001


def test_a_metric_in_other_units_of_measure_has_the_same_interval_in_these() -> None:
    seconds = RANDOM.lognormal(size=80), RANDOM.lognormal(size=60)
    once = told(difference(Sums.of(seconds[0]), Sums.of(seconds[1])))
    thousandfold = told(difference(Sums.of(1000 * seconds[0]), Sums.of(1000 * seconds[1])))
    assert thousandfold.lower == pytest.approx(1000 * once.lower)


def test_a_ratio_compares_with_so_many_times_the_control() -> None:
    treatment, control = RANDOM.lognormal(size=80), RANDOM.lognormal(size=60)
    by_ratio = told(difference(Sums.of(treatment), Sums.of(control), ratio=1.1))
    by_hand = told(difference(Sums.of(treatment), Sums.of(1.1 * control)))
    assert (by_ratio.estimate, by_ratio.lower) == pytest.approx((by_hand.estimate, by_hand.lower))


# -- CUPED ------------------------------------------------------------------------------------------------
def test_what_was_known_before_narrows_the_interval_around_the_same_effect() -> None:
    before = RANDOM.normal(size=(2, 400))
    after = before + RANDOM.normal(0, 0.5, size=(2, 400)) + np.array([[0.2], [0.0]])
    adjusted = told(difference(Sums.of(after[0], before[0]), Sums.of(after[1], before[1])))
    plain = told(difference(Sums.of(after[0]), Sums.of(after[1])))
    assert (adjusted.upper - adjusted.lower) < 0.6 * (plain.upper - plain.lower)
    assert adjusted.estimate == pytest.approx(0.2, abs=0.1)


def test_the_adjusted_difference_is_that_of_the_residuals() -> None:
    before = RANDOM.normal(size=(2, 50))
    after = 0.7 * before + RANDOM.normal(size=(2, 50))
    centred = before - before.mean(axis=1, keepdims=True)
    slope = (centred * after).sum() / (centred**2).sum()
    residual = after - slope * before
    error = math.sqrt(sum(residual[arm].var(ddof=1) / 50 for arm in (0, 1)))
    found = told(fixed_difference(Sums.of(after[0], before[0]), Sums.of(after[1], before[1]), 0.05))
    assert found.estimate == pytest.approx(residual[0].mean() - residual[1].mean())
    assert found.upper - found.estimate == pytest.approx(stats.norm.ppf(0.975) * error)


def test_covariates_that_do_not_vary_change_nothing() -> None:
    with_them = Sums.of([1.0, 0.0] * 30, [0.1] * 60)
    without = Sums.of([1.0, 0.0] * 30)
    assert difference(with_them, with_them) == difference(without, without)


# -- at one look --------------------------------------------------------------------------------------------
def test_the_interval_of_a_mean_is_scipys() -> None:
    values = RANDOM.normal(size=40)
    theirs = stats.norm.interval(0.9, values.mean(), stats.sem(values))
    mine = told(fixed_mean(Sums.of(values), 0.1))
    assert (mine.lower, mine.upper) == pytest.approx(theirs)


def test_the_interval_of_a_difference_is_scipys() -> None:
    one, other = RANDOM.normal(size=40), RANDOM.normal(size=30)
    error = math.hypot(stats.sem(one), stats.sem(other))
    theirs = stats.norm.interval(0.95, one.mean() - other.mean(), error)
    mine = told(fixed_difference(Sums.of(one), Sums.of(other), 0.05))
    assert (mine.lower, mine.upper) == pytest.approx(theirs)


def test_one_unit_has_no_interval() -> None:
    assert isinstance(fixed_mean(coins(1, 0), 0.05), CannotTell)
    assert isinstance(fixed_difference(coins(1, 0), coins(5, 5), 0.05), CannotTell)


# -- exact rates ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("n", "ups", "rate"), [(10, 3, 0.5), (40, 39, 0.7), (25, 0, 0.1)])
def test_the_e_value_of_a_rate_is_the_beta_binomial_over_the_binomial(n: int, ups: int, rate: float) -> None:
    theirs = stats.betabinom.logpmf(ups, n, 0.5, 0.5) - stats.binom.logpmf(ups, n, rate)
    assert log_e_rate(float(n), float(ups), rate) == pytest.approx(theirs)


def test_the_e_value_is_the_mixture_of_likelihood_ratios() -> None:
    mixture, _ = integrate.quad(
        lambda q: stats.beta.pdf(q, 0.5, 0.5) * (q / 0.3) ** 7 * ((1 - q) / 0.7) ** 5, 0, 1
    )
    assert log_e_rate(12.0, 7.0, 0.3) == pytest.approx(math.log(mixture))


def test_it_is_an_e_value_of_values_that_are_no_coins_too() -> None:
    values = np.random.default_rng(3).beta(0.4, 1.6, (20_000, 12))  # mean 0.2
    log_e = log_e_rate(np.full(20_000, 12.0), values.sum(axis=1), np.full(20_000, 0.2))
    assert np.exp(log_e).mean() < 1


def test_the_rates_of_a_sequence_are_those_not_rejected() -> None:
    sums, alpha = coins(30, 10), 0.05
    interval = told(rate_sequence(sums, alpha))
    for bound in (interval.lower, interval.upper):
        assert log_e_rate(40.0, 30.0, bound) == pytest.approx(math.log(1 / alpha), abs=1e-6)
    assert interval.lower < 0.75 < interval.upper


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_a_rate_lies_within_its_bounds_and_these_within_nought_and_one(values: list[float]) -> None:
    interval = told(rate_sequence(Sums.of(values), 0.05))
    assert 0 <= interval.lower <= interval.estimate <= interval.upper <= 1


def test_no_unit_has_no_rate_and_one_has_a_wide_one() -> None:
    assert rate_sequence(Sums(), 0.05) == CannotTell("no unit yet")
    one = told(rate_sequence(coins(1, 0), 0.05))
    assert (one.lower < 0.1, one.upper) == (True, 1.0)


def test_errors_above_their_limit_are_seen_and_below_it_never_speak() -> None:
    assert log_e_rate_above(coins(12, 48), 0.05) > math.log(20)
    assert log_e_rate_above(coins(1, 59), 0.05) < 0
    assert log_e_rate_above(Sums(), 0.05) == 0


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.01, 0.9))
def test_what_lies_above_a_high_limit_lies_above_a_low_one(ups: int, downs: int, limit: float) -> None:
    sums = coins(ups, downs)
    assert log_e_rate_above(sums, limit + 0.05) <= log_e_rate_above(sums, limit) + 1e-9


@given(st.integers(0, 50), st.integers(0, 50))
def test_equal_data_is_no_evidence(ups: int, downs: int) -> None:
    sums = coins(ups, downs)
    assert log_e_rate_excess(sums, sums) <= 0
    assert log_e_rate_excess(sums, sums, margin=0.1) <= 0


@pytest.mark.parametrize("margin", [0.0, 0.05, -0.1, 0.2])
@pytest.mark.parametrize(
    ("treatment", "control"), [((18, 2), (5, 15)), ((20, 0), (9, 11)), ((6, 14), (8, 2))]
)
def test_the_excess_is_the_least_over_all_rates_the_null_allows(
    treatment: tuple[int, int], control: tuple[int, int], margin: float
) -> None:
    n1, y1, n0, y0 = sum(treatment), treatment[0], sum(control), control[0]
    grid = np.linspace(0.0005, 0.9995, 2000)
    p1, p0 = np.meshgrid(grid, grid, indexing="ij")
    product = log_e_rate(np.float64(n1), np.float64(y1), p1) + log_e_rate(np.float64(n0), np.float64(y0), p0)
    least = float(product[p1 <= p0 + margin].min())
    assert log_e_rate_excess(coins(*treatment), coins(*control), margin) == pytest.approx(least, abs=0.02)


def test_an_excess_needs_both_arms() -> None:
    assert log_e_rate_excess(coins(50, 0), Sums()) == 0


# -- sample ratio -------------------------------------------------------------------------------------------
def test_the_sample_ratios_e_value_is_the_dirichlet_multinomial_over_the_multinomial() -> None:
    counts, shares = [30, 50, 20], [0.5, 0.3, 0.2]
    theirs = stats.dirichlet_multinomial.logpmf(counts, 100 * np.array(shares), 100)
    theirs -= stats.multinomial.logpmf(counts, 100, shares)
    assert log_e_sample_ratio(counts, shares) == pytest.approx(theirs)


def test_a_sound_split_is_no_evidence_and_a_lopsided_one_is() -> None:
    assert log_e_sample_ratio([0, 0], [0.5, 0.5]) == pytest.approx(0)
    assert log_e_sample_ratio([5000, 5000], [0.5, 0.5]) < 0
    assert log_e_sample_ratio([5300, 4700], [0.5, 0.5]) > math.log(1000)


def test_units_on_an_arm_without_a_share_are_beyond_doubt() -> None:
    assert log_e_sample_ratio([10, 1], [1.0, 0.0]) == math.inf
    assert log_e_sample_ratio([10, 0], [1.0, 0.0]) == pytest.approx(0)


def test_the_sample_ratios_e_value_has_mean_one_under_its_shares() -> None:
    counts = np.arange(41)
    chances = stats.binom.pmf(counts, 40, 0.3)
    e = np.exp([log_e_sample_ratio([int(c), 40 - int(c)], [0.3, 0.7]) for c in counts])
    assert float(chances @ e) == pytest.approx(1)


@pytest.mark.parametrize("counts", [[520, 480], [30, 50, 20]])
def test_chi_square_is_scipys(counts: Sequence[int]) -> None:
    shares = [1 / len(counts)] * len(counts)
    expected = [sum(counts) * share for share in shares]
    assert chi_square_p(counts, shares) == pytest.approx(stats.chisquare(counts, expected).pvalue)


def test_chi_square_of_too_few_units_is_no_number() -> None:
    assert isinstance(chi_square_p([0, 0], [0.5, 0.5]), CannotTell)
    assert isinstance(chi_square_p([90, 3], [0.96, 0.04]), CannotTell)


def test_levels_split_over_tests_add_up() -> None:
    assert split_alpha(0.05, 5) == pytest.approx(0.01)
    assert split_alpha(0.05, 0) == 0.05
