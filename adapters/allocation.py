"""How an experiment's traffic is shared out: Thompson sampling over its arms, and the steps of a canary.

Owns the shares alone. They are computed, not drawn, so every process that has the same sums has the same shares. Does
not know how a unit is put on an arm by them, nor when they are computed anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from adapters.statistics import Sums

Array = npt.NDArray[np.float64]

PRIOR_MEAN = 0.5
PRIOR_VARIANCE = (
    0.25  # of a unit: the most that a score in [0, 1] can have, so a new arm is thought to be anything
)
GRID = 2001
"""Points of each integral. Where one arm is known far better than another it steps from 0 to 1 between two of them, and
a share is off by at most 0.3%."""


def thompson_shares(arms: Mapping[str, Sums], floor: float, *, prior_units: float = 1.0) -> dict[str, float]:
    """Each arm's share: the probability that it is the best, mixed so that none has less than `floor`.

    Thompson (1933); Russo, Van Roy, Kazerouni, Osband & Wen (2018). Scores are means of units in [0, 1], higher being
    better; an arm's mean has a normal posterior, its prior worth `prior_units` units. The floor keeps every arm's
    propensity away from 0, so that what is logged can be evaluated off-policy, and a change of taste is noticed.
    Raises ValueError where there is no arm, or the floors add up to more than 1.
    """
    if not arms or not 0 <= floor * len(arms) <= 1:
        raise ValueError("the floors of all arms must add up to at most 1")
    posteriors = [_posterior(sums, prior_units) for sums in arms.values()]
    best_K = _probability_best(*(np.array(column) for column in zip(*posteriors, strict=True)))
    shares_K = floor + (1 - floor * len(arms)) * best_K
    return {name: float(share) for name, share in zip(arms, shares_K, strict=True)}


def canary_step(steps: Sequence[float], share: float) -> float | None:
    """The first step above the present share; None: the last one is reached. `steps` rise."""
    return next((step for step in steps if step > share + 1e-9), None)


def _posterior(sums: Sums, prior_units: float) -> tuple[float, float]:
    """Mean and standard deviation of what the arm's mean may be.

    The variance of a unit is estimated with the prior's units too: an arm of three thumbs up is not known for sure.
    """
    weight = prior_units + sums.n
    mean = (prior_units * PRIOR_MEAN + sums.y) / weight
    squares = prior_units * (PRIOR_VARIANCE + PRIOR_MEAN**2) + sums.yy
    variance = max(squares / weight - mean**2, 1e-9)  # rounding may leave less than nothing
    return mean, math.sqrt(variance / weight)


def _probability_best(means_K: Array, deviations_K: Array) -> Array:
    """[K]: the integral of each arm's density times all other arms' distribution functions (Russo et al., sec. 3).

    Each integral is over the arm's own quantile range, where its density is; the trapezoid rule on a normal density
    converges faster than any power of the step.
    """
    z_G = np.linspace(-8.0, 8.0, GRID)
    weights_G = np.exp(-z_G * z_G / 2)
    best_K = np.empty(len(means_K))
    for k, (mean, deviation) in enumerate(zip(means_K, deviations_K, strict=True)):
        theta_G = mean + deviation * z_G
        below_KG = special.ndtr((theta_G - means_K[:, None]) / deviations_K[:, None])
        below_KG[k] = 1.0
        best_K[k] = (weights_G * below_KG.prod(axis=0)).sum()
    share_K: Array = best_K / best_K.sum()
    return share_K
