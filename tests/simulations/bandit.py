"""What an experiment costs its users: thumbs up lost by Thompson's shares, and by fixed halves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from adapters.allocation import thompson_shares
from adapters.statistics import Sums
from tests.simulations.tables import table

BASE = 0.6
GAPS = (0.0, 0.02, 0.05, 0.1, 0.2)
UNITS = 2000
EVERY = 50  # units between two reckonings of the shares
FLOOR = 0.05


@dataclass(frozen=True, slots=True)
class Regret:
    """Thumbs up lost against always the better arm, in expectation; and the better arm's share of the traffic."""

    gap: float
    experiments: int
    regret: float
    error: float  # the regret's Monte-Carlo standard error
    halves: float  # the regret of fixed halves
    last_share: float  # the better arm's at the end


def simulate(gaps: Iterable[float], experiments: int, units: int = UNITS) -> list[Regret]:
    return [_simulate_one(gap, experiments, units) for gap in gaps]


def _simulate_one(gap: float, experiments: int, units: int) -> Regret:
    random = np.random.default_rng(20260103)
    paths = [_one_path(gap, units, random) for _ in range(experiments)]
    regrets = np.array([regret for regret, _ in paths])
    return Regret(
        gap,
        experiments,
        float(regrets.mean()),
        float(regrets.std(ddof=1)) / math.sqrt(experiments),
        gap * units / 2,
        float(np.mean([share for _, share in paths])),
    )


def _one_path(gap: float, units: int, random: np.random.Generator) -> tuple[float, float]:
    arms = {"better": Sums(), "worse": Sums()}
    lost, shares = 0.0, thompson_shares(arms, FLOOR)
    for _ in range(units // EVERY):
        better = int(random.binomial(EVERY, shares["better"]))
        lost += gap * (EVERY - better)
        arms["better"] += Sums.of(random.random(better) < BASE + gap)
        arms["worse"] += Sums.of(random.random(EVERY - better) < BASE)
        shares = thompson_shares(arms, FLOOR)
    return lost, shares["better"]


def run(quick: bool) -> str:
    found = simulate(GAPS, 50 if quick else 500)
    head = ("gap", "thumbs up lost", "fixed halves lose", "better arm's share at the end")
    rows = [(r.gap, f"{r.regret:.1f} ± {r.error:.1f}", r.halves, r.last_share) for r in found]
    return f"{UNITS} units, {found[0].experiments} experiments, base rate {BASE}\n\n" + table(head, rows)
