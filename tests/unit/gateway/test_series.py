"""A sliding window in buckets says nearly what the samples themselves would."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.series import EDGES, ITL_BOUNDS, TTFT_BOUNDS, Series

SLOTS = 4
SAMPLES = st.floats(0.001, 1000)
WITHIN = 2 ** (1 / 16) + 1e-9
"""Half of a bucket, an eighth of a doubling, to either side."""


def nearest_rank(samples: list[float], percent: int) -> float:
    ordered = sorted(samples)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def close(found: float, exact: float) -> bool:
    return exact / WITHIN <= found <= exact * WITHIN


@given(samples=st.lists(SAMPLES, min_size=1, max_size=300), percent=st.sampled_from([50, 95, 99]))
def test_a_percentile_is_at_most_half_a_bucket_off(samples: list[float], percent: int) -> None:
    series = Series(SLOTS, 1.0)
    for sample in samples:
        series.add(sample, 0.5)
    assert close(series.percentile(percent, 0, 0), nearest_rank(samples, percent))


@given(
    steps=st.lists(st.tuples(st.sampled_from([0.0, 0.4, 1.0, 2.5, 11.0]), SAMPLES), min_size=1, max_size=60),
    back=st.integers(0, SLOTS + 1),
    later=st.sampled_from([0, 1, 3, 4, 9]),
)
def test_only_the_asked_slots_of_the_window_count(
    steps: list[tuple[float, float]], back: int, later: int
) -> None:
    series, now, all_of_them = Series(SLOTS, 1.0), 0.0, []
    for pause, sample in steps:
        now += pause
        series.add(sample, now)
        all_of_them.append((int(now), sample))
    last = int(now) + later
    first = max(last - back, 0)
    wanted = [sample for slot, sample in all_of_them if slot >= max(first, last - SLOTS + 1)]
    found = series.percentile(95, first, last)
    assert close(found, nearest_rank(wanted, 95)) if wanted else found == 0.0
    in_window = [sample for slot, sample in all_of_them if slot > last - SLOTS]
    assert series.report(last, "")["count"] == len(in_window)


@given(sample=SAMPLES | st.sampled_from([*TTFT_BOUNDS, *ITL_BOUNDS]))
def test_the_window_agrees_with_what_prometheus_is_told_on_what_is_above_a_bound(sample: float) -> None:
    series = Series(SLOTS, 1.0)
    series.add(sample, 0.5)
    for bound in (*TTFT_BOUNDS, *ITL_BOUNDS):
        assert (series.percentile(95, 0, 0) > bound) == (sample > bound)


@given(
    samples=st.lists(SAMPLES, max_size=100),
    waits=st.lists(SAMPLES, max_size=100),
    fresh=st.integers(0, 50),
)
def test_who_has_just_come_changes_nothing(samples: list[float], waits: list[float], fresh: int) -> None:
    series = Series(SLOTS, 1.0)
    for sample in samples:
        series.add(sample, 0.5)
    waits.sort(reverse=True)
    before = series.percentile(95, 0, 0, waits)
    if samples or waits:
        assert series.percentile(95, 0, 0, [*waits, *[0.0] * fresh]) == before


@given(samples=st.lists(SAMPLES, max_size=100), waits=st.lists(SAMPLES, min_size=1, max_size=100))
def test_waiting_never_makes_it_look_better(samples: list[float], waits: list[float]) -> None:
    series = Series(SLOTS, 1.0)
    for sample in samples:
        series.add(sample, 0.5)
    longest_first = sorted(waits, reverse=True)
    assert series.percentile(95, 0, 0, longest_first) >= series.percentile(95, 0, 0)


@pytest.mark.parametrize("extreme", [0.0, EDGES[0], EDGES[-1], 1e9])
def test_the_ends_of_the_scale_hold_everything(extreme: float) -> None:
    series = Series(SLOTS, 1.0)
    series.add(extreme, 0.0)
    assert series.percentile(95, 0, 0) > 0
    assert series.report(0, "")["count"] == 1
