"""How often, and after how many units, each rule sees that a variant is better."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from tests.simulations.streams import Design, Looks, draw, exact_above, sequence_above, z_above
from tests.simulations.tables import table, with_error

ALPHA = 0.05
PLANNED_POWER = 0.8
LEAST_UNITS = 30
PATIENCE = 3
"""The sequential rules may run on to this many times the fixed test's units: they cost nothing extra if it is clear."""

BASE = 0.6
EFFECTS = (0.05, 0.1, 0.2)
AT_ONCE = 200_000


@dataclass(frozen=True, slots=True)
class Power:
    """Of one rule: the share of experiments in which it saw the effect, and the units, both arms', at which half of
    them all had; None where fewer did."""

    effect: float
    rule: str
    may_use: int  # units
    experiments: int
    power: float
    median_units: float | None


def planned_units(base: float, effect: float) -> int:
    """Both arms' units of a fixed z test with PLANNED_POWER (Cohen 1988)."""
    z = float(special.ndtri(1 - ALPHA / 2) + special.ndtri(PLANNED_POWER))
    spread = base * (1 - base) + (base + effect) * (1 - base - effect)
    return 2 * math.ceil(z**2 * spread / effect**2)


def simulate(effects: Iterable[float], experiments: int) -> list[Power]:
    return [power for effect in effects for power in _simulate_one(effect, experiments)]


def _simulate_one(effect: float, experiments: int) -> list[Power]:
    random = np.random.default_rng(20260102)
    planned = planned_units(BASE, effect)
    design = Design((BASE + effect, BASE), units=PATIENCE * planned)
    chunk = max(1, AT_ONCE // design.units)
    stops: dict[str, list[npt.NDArray[np.float64]]] = {"sequence": [], "exact": [], "fixed": [], "naive": []}
    for done in range(0, experiments, chunk):
        stream = draw(design, min(chunk, experiments - done), random)
        by_z = z_above(stream, ALPHA, LEAST_UNITS)
        above, _ = sequence_above(stream, ALPHA, planned, LEAST_UNITS)
        stops["sequence"].append(_first(above))
        stops["exact"].append(_first(exact_above(stream, ALPHA)))
        stops["fixed"].append(np.where(by_z[:, planned - 1], planned, np.inf))
        stops["naive"].append(_first(by_z[:, :planned]))
    return [
        _power(effect, rule, planned if rule in ("fixed", "naive") else design.units, np.concatenate(stop))
        for rule, stop in stops.items()
    ]


def _first(looks: Looks) -> npt.NDArray[np.float64]:
    """[experiments]: the units at the first look that spoke; infinite if none did."""
    return np.where(looks.any(axis=1), looks.argmax(axis=1) + 1.0, np.inf)


def _power(effect: float, rule: str, may_use: int, stop: npt.NDArray[np.float64]) -> Power:
    median = float(np.median(stop))
    share = float(np.isfinite(stop).mean())
    return Power(effect, rule, may_use, len(stop), share, median if math.isfinite(median) else None)


def run(quick: bool) -> str:
    found = simulate(EFFECTS, 500 if quick else 4000)
    rows = [
        (
            f"{BASE} -> {BASE + p.effect:g}",
            p.rule,
            p.may_use,
            with_error(p.power, p.experiments),
            p.median_units,
        )
        for p in found
    ]
    return table(("rates", "rule", "may use units", "power", "median units"), rows)
