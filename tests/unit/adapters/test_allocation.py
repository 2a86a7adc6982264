"""Thompson's shares against posteriors that are known in closed form, and their floor."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from adapters.allocation import canary_step, thompson_shares
from adapters.statistics import Sums

ARMS = st.dictionaries(
    st.sampled_from("abcde"), st.tuples(st.integers(0, 2000), st.integers(0, 2000)), min_size=1
)


def coins(ups: int, downs: int) -> Sums:
    return Sums(ups + downs, float(ups), float(ups))


@given(ARMS, st.floats(0, 0.2))
def test_shares_add_up_to_one_and_respect_the_floor(arms: dict[str, tuple[int, int]], floor: float) -> None:
    shares = thompson_shares({name: coins(*of) for name, of in arms.items()}, floor)
    assert list(shares) == list(arms)
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= floor - 1e-12


def test_arms_of_which_nothing_is_known_share_alike() -> None:
    assert thompson_shares({"a": Sums(), "b": Sums(), "c": Sums()}, 0.0) == pytest.approx(
        dict.fromkeys("abc", 1 / 3)
    )


def test_two_arms_shares_are_the_normal_probability_that_one_is_better() -> None:
    shares = thompson_shares({"a": coins(60, 40), "b": coins(50, 50)}, 0.0)
    means = [(0.5 + ups) / 101 for ups in (60, 50)]
    variances = [((0.5 + ups) / 101 - mean**2) / 101 for ups, mean in zip((60, 50), means, strict=True)]
    expected = stats.norm.cdf((means[0] - means[1]) / math.sqrt(sum(variances)))
    assert shares["a"] == pytest.approx(expected, abs=1e-6)


def test_three_arms_shares_are_what_draws_would_give() -> None:
    arms = {"a": coins(30, 20), "b": coins(55, 45), "c": coins(6, 4)}
    random = np.random.default_rng(1)
    draws = []
    for sums in arms.values():
        mean = (0.5 + sums.y) / (1 + sums.n)
        variance = ((0.5 + sums.yy) / (1 + sums.n) - mean**2) / (1 + sums.n)
        draws.append(random.normal(mean, math.sqrt(variance), 400_000))
    drawn = np.bincount(np.argmax(draws, axis=0), minlength=3) / 400_000
    assert list(thompson_shares(arms, 0.0).values()) == pytest.approx(list(drawn), abs=0.003)


def test_the_better_arm_gets_nearly_all_but_the_floor() -> None:
    shares = thompson_shares({"good": coins(900, 100), "bad": coins(500, 500)}, 0.05)
    assert shares == pytest.approx({"good": 0.95, "bad": 0.05})


def test_a_new_arm_is_tried_beside_one_that_is_well_known() -> None:
    shares = thompson_shares({"known": coins(60_000, 40_000), "new": Sums()}, 0.0)
    assert 0.3 < shares["new"] < 0.5


def test_a_few_lucky_units_do_not_take_all() -> None:
    assert thompson_shares({"lucky": coins(3, 0), "old": coins(700, 300)}, 0.0)["lucky"] < 0.9


def test_the_same_sums_give_the_same_shares() -> None:
    arms = {"a": coins(31, 20), "b": coins(55, 45)}
    assert thompson_shares(arms, 0.01) == thompson_shares(arms, 0.01)


@pytest.mark.parametrize(
    ("arms", "floor"), [({}, 0.1), ({"a": Sums(), "b": Sums()}, 0.6), ({"a": Sums()}, -0.1)]
)
def test_floors_that_cannot_be_are_refused(arms: dict[str, Sums], floor: float) -> None:
    with pytest.raises(ValueError, match="floors"):
        thompson_shares(arms, floor)


def test_a_canary_goes_step_by_step_to_the_last() -> None:
    steps = (0.01, 0.05, 0.25, 1.0)
    assert canary_step(steps, 0.0) == 0.01
    assert canary_step(steps, 0.05) == 0.25
    assert canary_step(steps, 0.1) == 0.25
    assert canary_step(steps, 1.0) is None
