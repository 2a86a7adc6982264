"""A short form of the simulations: the rules err no more than they say, and what they replace does."""

from __future__ import annotations

import pytest

from tests.simulations import bandit, false_alarms, off_policy, power, sample_ratio
from tests.simulations.tables import standard_error


def at_most(alpha: float, experiments: int) -> float:
    return alpha + 3 * standard_error(alpha, experiments)


@pytest.fixture(scope="module")
def alarms() -> list[false_alarms.FalseAlarms]:
    return false_alarms.simulate(false_alarms.SHORT, 1000)


def test_a_twin_is_hardly_ever_promoted_however_often_one_looks(
    alarms: list[false_alarms.FalseAlarms],
) -> None:
    for found in alarms:
        limit = at_most(false_alarms.ALPHA, found.experiments)
        assert max(found.sequence, found.either_way, found.exact) <= limit, found


def test_peeking_with_a_z_test_promotes_many_a_twin(alarms: list[false_alarms.FalseAlarms]) -> None:
    for found in alarms:
        assert found.naive > 3 * false_alarms.ALPHA, found


def test_a_better_variant_is_seen() -> None:
    found = {result.rule: result for result in power.simulate([0.2], 300)}
    assert found["sequence"].power > power.PLANNED_POWER
    assert found["exact"].power > 0.5
    assert found["fixed"].power == pytest.approx(power.PLANNED_POWER, abs=0.1)
    median = found["sequence"].median_units
    assert median is not None
    assert median < 1.5 * found["fixed"].may_use


def test_thompsons_shares_cost_less_than_halves() -> None:
    (found,) = bandit.simulate([0.2], 10, units=1000)
    assert found.regret + 3 * found.error < found.halves / 2
    assert found.last_share > 0.9


def test_off_policy_intervals_cover_what_the_plain_mean_misses() -> None:
    found = {result.estimator: result for result in off_policy.simulate(["new"], 60)}
    for estimator in ("inverse propensity", "self-normalised", "doubly robust"):
        least = 0.95 - 3 * standard_error(0.95, 60)
        assert found[estimator].coverage >= least, found[estimator]
    assert found["plain mean"].coverage < 0.5
    assert found["doubly robust"].width < found["inverse propensity"].width


def test_a_sound_split_is_hardly_ever_called_faulty_and_a_faulty_one_is() -> None:
    sound, faulty = sample_ratio.simulate([0.5, 0.55], 300, units=4000)
    assert sound.sequential <= at_most(sample_ratio.ALPHA, sound.experiments)
    assert sound.peeked > 5 * sample_ratio.ALPHA
    assert faulty.sequential > 0.95
