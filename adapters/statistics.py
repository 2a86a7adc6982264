"""The statistics of experiments over variants: sums that add up, and intervals that hold at every look, not at one.

Owns the formulas; a unit (an end user, a conversation) is one entry, the mean of what it said. For any metric, in any
unit of measure, there are the asymptotic confidence sequences of Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas,
"Time-uniform central limit theory and asymptotic confidence sequences" (2021; Annals of Statistics 2024). They lean on
the central limit theorem, so they are silent below `least_units`, and their variance is guarded. For what lies in
[0, 1], `e_values` has exact ones.

What cannot be said is `CannotTell`, with the reason, and never a number. Does not know where the sums come from, nor
what is decided by them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]
N = TypeVar("N", float, Array)
"""A number, or an array of them: simulations run the same formulas over many experiments at once."""

PSEUDO_UNITS = 100.0
"""The weight of both arms' common spread in an arm's variance: see `guarded_variance`."""

REVISED_TESTS = 2
"""For how many tests a sequence counts whose units' values still change.

A unit that has spoken once and will speak again is looked at as it is first heard and as it will be. In simulated A/A
experiments with units of five thumbs that come late and among each other, a two-sided sequence at 0.05 errs in up to
6 of 100; at half its level in 3.
"""

ROUNDING = 1e-12  # of the sum of squares: a spread below it is what floating point makes of equal values


@dataclass(frozen=True, slots=True)
class CannotTell:
    """No answer yet, and why, in words for a person."""

    reason: str


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate between its bounds, in the metric's own unit of measure."""

    estimate: float
    lower: float
    upper: float

    @property
    def above_zero(self) -> bool:
        return self.lower > 0

    @property
    def below_zero(self) -> bool:
        return self.upper < 0


@dataclass(frozen=True, slots=True)
class Sums:
    """What is needed of one metric over one arm's units; sums of parts add up to the sums of the whole.

    `y` is a unit's value, the mean of its observations; `x` its covariate, known before the experiment began.
    """

    n: int = 0
    y: float = 0.0
    yy: float = 0.0
    x: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float] | Array, covariates: Sequence[float] | Array | None = None) -> Sums:
        """Of one value a unit, [n]; without covariates all of them are 0. Raises ValueError for unlike lengths."""
        y_N = np.asarray(values, dtype=np.float64)
        x_N = np.zeros_like(y_N) if covariates is None else np.asarray(covariates, dtype=np.float64)
        if y_N.shape != x_N.shape:
            raise ValueError("one covariate a unit")
        sums = (y_N.sum(), (y_N * y_N).sum(), x_N.sum(), (x_N * x_N).sum(), (x_N * y_N).sum())
        return cls(len(y_N), *(float(value) for value in sums))

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.n + other.n,
            self.y + other.y,
            self.yy + other.yy,
            self.x + other.x,
            self.xx + other.xx,
            self.xy + other.xy,
        )

    @property
    def mean(self) -> float:
        """Not a number without units."""
        return self.y / self.n if self.n else math.nan

    @property
    def variance(self) -> float:
        """The sample variance (n - 1 below). Not a number for fewer than two units."""
        return _centred(self.yy, self.y, self.y, self.n) / (self.n - 1) if self.n > 1 else math.nan


@dataclass(frozen=True, slots=True)
class Moments(Generic[N]):
    """Units, mean and sample variance of one arm, or of one arm in each of many experiments."""

    n: N
    mean: N
    variance: N


# -- asymptotic confidence sequences --------------------------------------------------------------------
def asymptotic_radius(n: N, variance: N, alpha: float, expected_units: float) -> N:
    """Half the width of the two-sided asymptotic confidence sequence after `n` units (theorem 2.2).

    It is narrowest, for its kind, about `expected_units`, and holds before and after it. alpha is at most a half.
    """
    spread = n * _rho_squared(alpha, expected_units)
    radius: N = np.sqrt(variance * 2 * (spread + 1) / (n * spread) * np.log(np.sqrt(spread + 1) / alpha))
    return radius


def one_sided_radius(n: N, variance: N, alpha: float, expected_units: float) -> N:
    """How far one bound lies from the estimate, where only that bound is wanted (their proposition B.1)."""
    spread = n * _rho_squared(2 * alpha, expected_units)
    root = np.sqrt(spread + 1) / (2 * alpha)
    radius: N = np.sqrt(variance * 2 * (spread + 1) / (n * spread) * np.log1p(root))
    return radius


def guarded_variance(arm: Moments[N], pooled: N) -> N:
    """The arm's variance, or that with PSEUDO_UNITS more units that vary as both arms' units do, if that is more.

    A challenger whose 30 units all said yes has a sample variance of 0, which is no evidence that it never varies. In
    simulated A/A experiments on rates of 2% and 98%, with a challenger on 10% of the units and a look at each one,
    the bare variance errs in 34 of 100, with 30 pseudo-units in 9, with 100 in 3; where the arms are of one size
    none is needed. The guard fades as units come, only ever widens, and needs no scale, so that seconds have it too.

    What it cannot mend: where a small arm's true rate lies nearer to the middle than its rival's, its first units may
    hide that. At 90% against 98% the interval misses the difference in 7 to 12 of 100; whether it then has even the
    wrong sign was not counted. A margin of rates belongs to `log_e_rate_excess`.
    """
    shrunk = ((arm.n - 1) * arm.variance + PSEUDO_UNITS * pooled) / (arm.n - 1 + PSEUDO_UNITS)
    variance: N = np.maximum(arm.variance, shrunk)
    return variance


def pooled_variance(treatment: Moments[N], control: Moments[N]) -> N:
    """The sample variance of both arms' units as one sample: the difference of their means is part of it."""
    n1, n0 = treatment.n, control.n
    between = n1 * n0 / (n1 + n0) * (treatment.mean - control.mean) ** 2
    pooled: N = ((n1 - 1) * treatment.variance + (n0 - 1) * control.variance + between) / (n1 + n0 - 1)
    return pooled


def difference_radius(
    treatment: Moments[N], control: Moments[N], alpha: float, expected_units: float, revised: bool = False
) -> N:
    """Half the width of the sequence for the difference of two means, `expected_units` being both arms' together."""
    alpha = split_alpha(alpha, REVISED_TESTS if revised else 1)
    pooled = pooled_variance(treatment, control)
    total = treatment.n + control.n
    variance = (
        guarded_variance(treatment, pooled) / treatment.n + guarded_variance(control, pooled) / control.n
    )
    return asymptotic_radius(total, total * variance, alpha, expected_units)


def mean_sequence(
    sums: Sums, alpha: float, *, expected_units: float, least_units: int
) -> Interval | CannotTell:
    """The mean of one arm, to be covered at every look at once with probability 1 - alpha.

    For metrics without bounds, to be shown and not decided by: with one arm there is no other to guard the variance
    from. In simulations from 30 units on at alpha 0.05 it misses a rate of one half in 3 to 6 of 100, one of 2 to 10%
    in up to 15. What lies in [0, 1] has `rate_sequence`.
    """
    if sums.n < max(2, least_units):
        return _too_few(sums.n, least_units)
    if sums.variance == 0:
        return CannotTell(f"all {sums.n} units have the same value, so their spread is not known")
    return _around(sums.mean, asymptotic_radius(float(sums.n), sums.variance, alpha, expected_units))


def difference_sequence(
    treatment: Sums,
    control: Sums,
    alpha: float,
    *,
    expected_units: float,
    least_units: int,
    ratio: float = 1.0,
    revised: bool = False,
) -> Interval | CannotTell:
    """treatment - ratio * control in means, covered at every look at once with probability 1 - alpha.

    Where the covariates vary it is adjusted by them: CUPED (Deng, Xu, Kohavi & Walker 2013), with one slope for both
    arms. `expected_units` counts both arms, `least_units` each. `revised`: units that were counted may say more, and
    their values change by it (REVISED_TESTS).
    """
    fewest = min(treatment.n, control.n)
    if fewest < max(2, least_units):
        return _too_few(fewest, least_units, " in an arm")
    of_treatment, of_control = _adjusted(treatment, _scaled(control, ratio))
    if of_treatment.variance == of_control.variance == 0 and of_treatment.mean == of_control.mean:
        return CannotTell("all units of both arms have the same value, so their spread is not known")
    radius = difference_radius(of_treatment, of_control, alpha, expected_units, revised)
    return _around(of_treatment.mean - of_control.mean, radius)


# -- ordinary intervals, for a number of units fixed beforehand ------------------------------------------
def fixed_mean(sums: Sums, alpha: float) -> Interval | CannotTell:
    """The z interval of a mean. It covers at one look only; looked at as units come it errs far above alpha."""
    if sums.n < 2:
        return _too_few(sums.n, 2)
    return _around(sums.mean, _z(alpha) * math.sqrt(sums.variance / sums.n))


def fixed_difference(treatment: Sums, control: Sums, alpha: float) -> Interval | CannotTell:
    """The z interval of treatment - control, adjusted by CUPED as `difference_sequence` is; for one look only."""
    fewest = min(treatment.n, control.n)
    if fewest < 2:
        return _too_few(fewest, 2, " in an arm")
    one, other = _adjusted(treatment, control)
    error = math.sqrt(one.variance / one.n + other.variance / other.n)
    return _around(one.mean - other.mean, _z(alpha) * error)


def split_alpha(alpha: float, tests: int) -> float:
    """Each test's level, so that all together err with probability alpha at most (Bonferroni).

    A confidence sequence errs at any time with probability alpha / tests, so one of them at any time with at most
    their sum: the union bound needs neither independence nor looks at the same time.
    """
    return alpha / max(1, tests)


# -- the parts ----------------------------------------------------------------------------------------
def _rho_squared(alpha: float, expected_units: float) -> float:
    """The mixture's variance that makes the sequence about narrowest at `expected_units` (their appendix B.2)."""
    log_term = -2 * math.log(alpha)
    return (log_term + math.log(log_term) + 1) / expected_units


def _centred(product: float, one: float, other: float, n: int) -> float:
    """The sum of products around the means; 0 where rounding alone is left of it."""
    centred = product - one * other / n
    return centred if abs(centred) > ROUNDING * abs(product) else 0.0


def _scaled(sums: Sums, ratio: float) -> Sums:
    """The sums of values times `ratio`."""
    return replace(sums, y=ratio * sums.y, yy=ratio**2 * sums.yy, xy=ratio * sums.xy)


def _adjusted(treatment: Sums, control: Sums) -> tuple[Moments[float], Moments[float]]:
    """Both arms after the covariate's share of them is taken away; as they are, if the covariates do not vary."""
    arms = (treatment, control)
    spread = sum(_centred(arm.xx, arm.x, arm.x, arm.n) for arm in arms)
    slope = sum(_centred(arm.xy, arm.x, arm.y, arm.n) for arm in arms) / spread if spread > 0 else 0.0
    middle = (treatment.x + control.x) / (treatment.n + control.n)
    one, other = (_moments(arm, slope, middle) for arm in arms)
    return one, other


def _moments(arm: Sums, slope: float, middle: float) -> Moments[float]:
    """Of the residuals y - slope * (x - middle)."""
    of_y = _centred(arm.yy, arm.y, arm.y, arm.n)
    of_x = _centred(arm.xx, arm.x, arm.x, arm.n)
    of_xy = _centred(arm.xy, arm.x, arm.y, arm.n)
    centred = max(0.0, of_y - 2 * slope * of_xy + slope**2 * of_x)
    return Moments(float(arm.n), arm.mean - slope * (arm.x / arm.n - middle), centred / (arm.n - 1))


def _around(estimate: float, radius: float) -> Interval:
    return Interval(estimate, estimate - float(radius), estimate + float(radius))


def _too_few(units: int, least: int, where: str = "") -> CannotTell:
    return CannotTell(f"{units} units{where} are too few (at least {max(2, least)})")


def _z(alpha: float) -> float:
    return float(special.ndtri(1 - alpha / 2))
