"""How often the off-policy intervals cover the truth, where the assignment hangs together with the score.

Who asks hard questions is sent to the new variant more often, and its share grows while everything gets better: the
plain mean of its rows is wrong, and the propensities know why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from adapters.off_policy import Logged, value
from adapters.statistics import CannotTell, Sums, fixed_mean
from tests.simulations.tables import table, with_error

ALPHA = 0.05
UNITS = 400
TARGETS: dict[str, dict[str, float]] = {
    "new": {"new": 1.0},
    "old": {"old": 1.0},
    "half": {"new": 0.5, "old": 0.5},
}
EASE, TREND, GAIN = (
    -0.15,
    0.1,
    0.05,
)  # what a hard question, the end of the time and the new variant do to the score


@dataclass(frozen=True, slots=True)
class Coverage:
    estimator: str
    target: str
    experiments: int
    coverage: float
    bias: float
    width: float


def simulate(targets: Iterable[str], experiments: int) -> list[Coverage]:
    return [coverage for target in targets for coverage in _simulate_one(target, experiments)]


def _simulate_one(target: str, experiments: int) -> list[Coverage]:
    random = np.random.default_rng(20260104)
    shares = TARGETS[target]
    truth = 0.5 + TREND / 2 + GAIN * shares.get("new", 0.0)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(experiments):
        rows = _logged(random)
        for name, interval in _intervals(rows, shares).items():
            found.setdefault(name, []).append(interval)
    return [_coverage(name, target, truth, np.array(intervals)) for name, intervals in found.items()]


def _logged(random: np.random.Generator) -> list[Logged]:
    """Units of one to four rows, each with its own liking; hard questions are as many as easy ones."""
    rows = []
    for unit in range(UNITS):
        liking, when = random.normal(0, 0.1), unit / UNITS
        for _ in range(int(random.integers(1, 5))):
            hard = float(random.choice((-1.0, 1.0)))
            share_of_new = 0.15 + 0.4 * when + 0.15 * (hard + 1)
            new = random.random() < share_of_new
            mean = 0.5 + EASE * hard + TREND * when + GAIN * new + liking
            score = float(np.clip(mean + random.normal(0, 0.1), 0, 1))
            chosen = ("new", share_of_new) if new else ("old", 1 - share_of_new)
            rows.append(Logged(*chosen, score, f"unit-{unit}", (hard, when)))
    return rows


def _intervals(rows: list[Logged], shares: Mapping[str, float]) -> dict[str, tuple[float, float, float]]:
    found = value(rows, shares, ALPHA)
    plain = fixed_mean(Sums.of([row.score for row in rows if row.variant in shares]), ALPHA)
    assert not isinstance(found, CannotTell)
    assert not isinstance(plain, CannotTell)
    intervals = {
        "inverse propensity": found.inverse_propensity,
        "self-normalised": found.self_normalised,
        "doubly robust": found.doubly_robust,
        "plain mean": plain,
    }
    return {name: (i.estimate, i.lower, i.upper) for name, i in intervals.items()}


def _coverage(name: str, target: str, truth: float, intervals_E3: np.ndarray) -> Coverage:
    estimate_E, lower_E, upper_E = intervals_E3.T
    covered = (lower_E <= truth) & (truth <= upper_E)
    return Coverage(
        name,
        target,
        len(covered),
        float(covered.mean()),
        float(estimate_E.mean()) - truth,
        float((upper_E - lower_E).mean()),
    )


def run(quick: bool) -> str:
    found = simulate(TARGETS, 100 if quick else 1000)
    head = ("target", "estimator", "coverage", "bias", "mean width")
    rows = [
        (c.target, c.estimator, with_error(c.coverage, c.experiments), f"{c.bias:+.4f}", c.width)
        for c in found
    ]
    rows_told = f"{UNITS} units, {found[0].experiments} logs each; intervals at {1 - ALPHA:.0%}"
    return rows_told + "\n\n" + table(head, rows)
