"""Off-policy values: by hand where that can be done, and every reason to refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from adapters.off_policy import Logged, OffPolicyValue, value
from adapters.statistics import CannotTell


def logged(units: int = 200, share_of_new: float = 0.5, rows_a_unit: int = 1, seed: int = 0) -> list[Logged]:
    """A coin chooses; the new variant scores 0.7 on average, the old one 0.5, and 0.2 more where a feature is 1."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(units * rows_a_unit):
        new, easy = random.random() < share_of_new, float(random.integers(2))
        score = 0.4 + 0.2 * new + 0.2 * easy + random.normal(0, 0.05)
        propensity = share_of_new if new else 1 - share_of_new
        rows.append(Logged("new" if new else "old", propensity, score, f"unit-{number % units}", (easy,)))
    return rows


def found(rows: list[Logged], target: dict[str, float]) -> OffPolicyValue:
    answer = value(rows, target, 0.05)
    assert isinstance(answer, OffPolicyValue), answer
    return answer


def refused(rows: list[Logged], target: dict[str, float], **limits: float) -> str:
    answer = value(rows, target, 0.05, **limits)  # type: ignore[arg-type]
    assert isinstance(answer, CannotTell)
    return answer.reason


def test_inverse_propensity_is_the_weighted_mean_and_its_interval_the_normal_one() -> None:
    rows = logged()
    weighted = np.array([row.score / row.propensity * (row.variant == "new") for row in rows])
    interval = found(rows, {"new": 1.0}).inverse_propensity
    assert interval.estimate == pytest.approx(weighted.mean())
    assert interval.upper - interval.estimate == pytest.approx(
        1.959964 * weighted.std(ddof=1) / math.sqrt(len(rows)), rel=1e-5
    )


def test_self_normalised_is_the_ratio_of_the_weighted_scores_to_the_weights() -> None:
    rows = [replace(row, propensity=row.propensity * (1 if row.features[0] else 0.8)) for row in logged()]
    of_new = [row for row in rows if row.variant == "new"]
    expected = sum(r.score / r.propensity for r in of_new) / sum(1 / r.propensity for r in of_new)
    assert found(rows, {"new": 1.0}).self_normalised.estimate == pytest.approx(expected)


@pytest.mark.parametrize(
    ("target", "truth"), [({"new": 1.0}, 0.7), ({"old": 1.0}, 0.5), ({"new": 0.25, "old": 0.75}, 0.55)]
)
def test_every_estimator_covers_the_truth(target: dict[str, float], truth: float) -> None:
    answer = found(logged(units=500, share_of_new=0.3), target)
    for interval in (answer.inverse_propensity, answer.self_normalised, answer.doubly_robust):
        assert interval.lower < truth < interval.upper
        assert interval.upper - interval.lower < 0.25


def test_what_the_features_tell_makes_the_doubly_robust_interval_the_narrowest() -> None:
    answer = found(logged(units=500, share_of_new=0.3), {"new": 1.0})
    widths = [
        i.upper - i.lower for i in (answer.doubly_robust, answer.self_normalised, answer.inverse_propensity)
    ]
    assert widths == sorted(widths)
    assert widths[0] < 0.7 * widths[1]


def test_a_wrong_model_of_the_scores_does_not_bias_the_doubly_robust_estimate() -> None:
    random = np.random.default_rng(4)
    blind = [replace(row, features=(float(random.normal()),)) for row in logged(units=2000)]
    interval = found(blind, {"new": 1.0}).doubly_robust
    assert interval.lower < 0.7 < interval.upper


def test_without_features_it_is_evaluated_all_the_same() -> None:
    bare = [replace(row, features=()) for row in logged(units=1000)]
    assert found(bare, {"new": 1.0}).doubly_robust.estimate == pytest.approx(0.7, abs=0.02)


def test_ten_equal_rows_of_each_unit_are_no_more_certain_than_one() -> None:
    rows = logged()
    once, tenfold = found(rows, {"new": 1.0}), found(rows * 10, {"new": 1.0})
    for name in ("inverse_propensity", "self_normalised"):
        one, ten = getattr(once, name), getattr(tenfold, name)
        assert ten.upper - ten.lower == pytest.approx(one.upper - one.lower)
    assert (tenfold.rows, tenfold.units) == (2000, 200)
    assert tenfold.effective_units == pytest.approx(once.effective_units)


def test_the_policy_that_logged_has_all_units_to_its_name() -> None:
    answer = found(logged(), {"new": 0.5, "old": 0.5})
    assert answer.effective_units == pytest.approx(200)
    assert answer.inverse_propensity.estimate == pytest.approx(np.mean([row.score for row in logged()]))


def test_a_variant_that_never_ran_has_no_value() -> None:
    assert refused(logged(), {"newest": 1.0}) == "no row of 'newest', which the target uses"
    assert "newest" in refused(logged(), {"new": 0.9, "newest": 0.1})
    assert isinstance(value(logged(), {"new": 1.0, "newest": 0.0}, 0.05), OffPolicyValue)


def test_nothing_logged_has_no_value() -> None:
    assert refused([], {"new": 1.0}) == "nothing was logged"


@pytest.mark.parametrize("propensity", [0.0, math.nan, 1.5, -0.1])
def test_a_row_without_a_propensity_has_no_value(propensity: float) -> None:
    rows = logged()
    rows[7] = replace(rows[7], propensity=propensity)
    assert "propensity" in refused(rows, {"new": 1.0})


def test_a_row_that_would_outweigh_all_others_is_refused() -> None:
    rows = [*logged(), Logged("new", 0.001, 1.0, "lucky", (1.0,))]
    assert "below 0.01" in refused(rows, {"new": 1.0})


def test_a_variant_with_hardly_a_row_is_refused() -> None:
    rows = [row for row in logged(units=1000) if row.variant == "old"]
    rows.append(Logged("new", 0.5, 1.0, "single", (1.0,)))
    assert "'new' has 1 of" in refused(rows, {"new": 0.5, "old": 0.5})


def test_few_units_are_refused_however_many_rows_they_have() -> None:
    assert refused(logged(units=20, rows_a_unit=50), {"new": 1.0}) == "20 units are too few (at least 30)"


def test_few_units_that_carry_the_weight_are_refused() -> None:
    rows = logged(units=200, share_of_new=0.1)
    assert "weigh no more than" in refused(rows, {"new": 1.0})


def test_unlike_numbers_of_features_are_refused() -> None:
    assert "unlike" in refused([*logged(), Logged("new", 0.5, 1.0, "odd")], {"new": 1.0})


def test_a_target_must_add_up_to_one() -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        value(logged(), {"new": 0.5}, 0.05)
