"""How often a sound assignment is called faulty, and how soon a faulty one is, with a look after every unit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import special

from adapters.e_values import log_e_counts
from tests.simulations.tables import table, with_error

ALPHA = 0.01  # a fault of the assignment stops an experiment, so it is not called lightly
UNITS = 20_000
TRUE_SHARES = (0.5, 0.52, 0.55)  # of an arm that should have half
LEAST_EXPECTED = 5
AT_ONCE = 200_000


@dataclass(frozen=True, slots=True)
class Called:
    true_share: float
    units: int
    experiments: int
    sequential: float  # the share of experiments ever called faulty
    peeked: float  # by chi-square at every unit
    once: float  # by chi-square at the end
    median_units: float | None  # at which the sequential test had called half of all experiments


def simulate(true_shares: Iterable[float], experiments: int, units: int = UNITS) -> list[Called]:
    return [_simulate_one(share, experiments, units) for share in true_shares]


def _simulate_one(share: float, experiments: int, units: int) -> Called:
    random = np.random.default_rng(20260105)
    chunk = max(1, AT_ONCE // units)
    stops, peeked, once = [], 0, 0
    total_L = np.arange(1.0, units + 1)
    for done in range(0, experiments, chunk):
        first_EL = (
            (random.random((min(chunk, experiments - done), units)) < share).cumsum(axis=1).astype(float)
        )
        calls_EL = log_e_counts([first_EL, total_L - first_EL], [0.5, 0.5]) >= -math.log(ALPHA)
        stops.append(np.where(calls_EL.any(axis=1), calls_EL.argmax(axis=1) + 1.0, np.inf))
        p_EL = special.chdtrc(1, (2 * first_EL - total_L) ** 2 / total_L)
        peeked += int((p_EL[:, 2 * LEAST_EXPECTED :] <= ALPHA).any(axis=1).sum())
        once += int((p_EL[:, -1] <= ALPHA).sum())
    stop_E = np.concatenate(stops)
    median = float(np.median(stop_E))
    return Called(
        share,
        units,
        experiments,
        float(np.isfinite(stop_E).mean()),
        peeked / experiments,
        once / experiments,
        median if math.isfinite(median) else None,
    )


def run(quick: bool) -> str:
    found = simulate(TRUE_SHARES, 300 if quick else 5000)
    head = ("true share", "sequential", "chi-square, peeked at", "chi-square, once", "median units")
    rows = [
        (
            c.true_share,
            *(with_error(s, c.experiments) for s in (c.sequential, c.peeked, c.once)),
            c.median_units,
        )
        for c in found
    ]
    told = f"an arm that should have half; {UNITS} units, {found[0].experiments} experiments, alpha {ALPHA}"
    return told + "\n\n" + table(head, rows)
