"""Streams of feedback to two arms, and what each rule says of them after every observation. Vectorised over experiments.

Owns the making of the streams: units fall on the arms by a coin, a unit's thumbs hang together, and may come late and
out of order. A unit is one voice: the mean of its thumbs so far, updated as they come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from adapters.e_values import log_e_equal_rates
from adapters.statistics import Moments, difference_radius

Array = npt.NDArray[np.float64]
Looks = npt.NDArray[np.bool_]

INTRACLASS = 0.2
"""The correlation of one unit's thumbs: a unit's own rate is a Beta with 1 / INTRACLASS - 1 pseudo-thumbs."""

WORTH_A_LOOK = 1.5
"""No e-value of 20 has a z below it, and the exact e-value is dear to compute: only looks above it are."""


@dataclass(frozen=True, slots=True)
class Design:
    """Two arms with `rates` of thumbs up; `units` of both arms together, each with `words` thumbs."""

    rates: tuple[float, float]  # treatment, control
    units: int = 4000
    words: int = 1
    delay: float = 0.0  # mean delay of a thumb, in units that came meanwhile; exponential
    share: float = 0.5  # of the units, the treatment's


@dataclass(frozen=True, slots=True)
class Stream:
    """The arms' moments after each observation, [experiments, looks], and the sums of the unit means."""

    treatment: Moments[Array]
    control: Moments[Array]
    y1: Array
    y0: Array

    @property
    def difference(self) -> Array:
        return self.treatment.mean - self.control.mean

    def enough(self, least_units: int) -> Looks:
        return np.minimum(self.treatment.n, self.control.n) >= least_units


def draw(design: Design, experiments: int, random: np.random.Generator) -> Stream:
    treated_EU = random.random((experiments, design.units)) < design.share
    rates_EU = np.where(treated_EU, *design.rates)
    if design.words > 1:
        pseudo = 1 / INTRACLASS - 1
        rates_EU = random.beta(rates_EU * pseudo, (1 - rates_EU) * pseudo)
    shape = (experiments, design.units, design.words)
    thumbs_EUW = (random.random(shape) < rates_EU[:, :, None]).astype(np.float64)
    means_EUW = thumbs_EUW.cumsum(axis=2) / np.arange(1, design.words + 1)
    changes = [_change(means_EUW), _change(means_EUW**2), np.zeros(shape)]
    changes[2][:, :, 0] = 1.0  # the unit's first thumb makes it count
    on_EUW = np.broadcast_to(treated_EU[:, :, None], shape)
    order = _order(design, shape, random)
    looks = [_in_order(change, order) for change in changes]
    on_EL = _in_order(on_EUW, order)
    y1, yy1, n1 = ((change * on_EL).cumsum(axis=1) for change in looks)
    y0, yy0, n0 = ((change * ~on_EL).cumsum(axis=1) for change in looks)
    return Stream(_moments(n1, y1, yy1), _moments(n0, y0, yy0), y1, y0)


def sequence_above(
    stream: Stream, alpha: float, expected_units: float, least_units: int, revised: bool = False
) -> tuple[Looks, Looks]:
    """Looks at which `difference_sequence` lies above zero; and those at which it excludes zero."""
    radius = difference_radius(stream.treatment, stream.control, alpha, expected_units, revised)
    enough = stream.enough(least_units)
    return (stream.difference > radius) & enough, (np.abs(stream.difference) > radius) & enough


def z_above(stream: Stream, alpha: float, least_units: int) -> Looks:
    """Looks at which the ordinary two-sided z interval lies above zero."""
    variance = stream.treatment.variance / stream.treatment.n + stream.control.variance / stream.control.n
    bound = float(special.ndtri(1 - alpha / 2)) * np.sqrt(variance)
    above: Looks = (stream.difference > bound) & stream.enough(least_units)
    return above


def exact_above(stream: Stream, alpha: float) -> Looks:
    """Looks at which `log_e_rate_excess` at margin 0 rejects that the treatment is no better."""
    n1, n0 = stream.treatment.n, stream.control.n
    rate = (stream.y1 + stream.y0) / (n1 + n0)
    likely = stream.difference > WORTH_A_LOOK * np.sqrt(rate * (1 - rate) * (1 / n1 + 1 / n0))
    above = np.zeros(likely.shape, dtype=np.bool_)
    log_e = log_e_equal_rates(n1[likely], stream.y1[likely], n0[likely], stream.y0[likely])
    above[likely] = log_e >= -math.log(alpha)
    return above


def _change(value_EUW: Array) -> Array:
    """What each thumb adds to its unit's value."""
    return np.diff(value_EUW, axis=2, prepend=0.0)


def _order(
    design: Design, shape: tuple[int, ...], random: np.random.Generator
) -> npt.NDArray[np.intp] | None:
    """[experiments, looks]: the thumbs in the order they come. None: unit by unit."""
    if not design.delay:
        return None
    delay_EUW = np.sort(random.exponential(design.delay, shape), axis=2)
    return np.argsort((np.arange(shape[1])[:, None] + delay_EUW).reshape(shape[0], -1), axis=1)


def _in_order(
    value_EUW: npt.NDArray[np.generic], order: npt.NDArray[np.intp] | None
) -> npt.NDArray[np.generic]:
    flat = value_EUW.reshape(len(value_EUW), -1)
    return flat if order is None else np.take_along_axis(flat, order, axis=1)


def _moments(n: Array, y: Array, yy: Array) -> Moments[Array]:
    """Below two units an arm says nothing; it is counted as two, so that nothing is divided by zero."""
    n = np.maximum(n, 2.0)
    mean = y / n
    return Moments(n, mean, np.maximum(yy - y * mean, 0.0) / (n - 1))
