"""Counts by size are exact at their bounds, and only ever grow."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.buckets import Buckets

BOUNDS = (0.0, 0.1, 1.0, 10.0)
SAMPLES = st.lists(st.floats(-1, 1e6) | st.sampled_from(BOUNDS), max_size=100)


@given(samples=SAMPLES)
def test_each_bound_says_how_many_were_not_above_it(samples: list[float]) -> None:
    buckets = Buckets(BOUNDS)
    for sample in samples:
        buckets.add(sample)
    assert buckets.cumulative() == [(b, sum(s <= b for s in samples)) for b in (*BOUNDS, math.inf)]
    assert (buckets.count, buckets.total) == (len(samples), pytest.approx(sum(samples)))
