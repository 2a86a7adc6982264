"""E-values and exact confidence sequences, for what lies in [0, 1], and for the shares in which units come.

Owns the mixture martingales of Robbins (1970), in the form of Howard, Ramdas, McAuliffe & Sekhon (2021) and
Waudby-Smith & Ramdas (2023), and the multinomial ones of Lindon & Malek (2022). They hold from the first unit on. An
e-value of at least 1/alpha rejects at level alpha, whenever one looks (Ville 1939). Pure; does not know what is decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import optimize, special

from adapters.statistics import CannotTell, Interval, N, Sums

JEFFREYS = 0.5
"""Both parameters of the Beta mixture: of all priors the one that costs least for the worst rate (Krichevsky &
Trofimov 1981), so that rates of 2% and 50% are treated alike."""

SRM_CONCENTRATION = 100.0
"""The Dirichlet's weight in units: see `log_e_counts`."""


def log_e_rate(n: N, y: N, rate: N) -> N:
    """The log e-value against a mean of exactly `rate`: the Beta-binomial mixture M_n(rate), [0, 1]-bounded values.

    Written for coin tosses, it holds for any values in [0, 1]: (q/p)^y ((1-q)/(1-p))^(1-y) is convex in y, so its
    mean is at most that of a coin of the same mean, which is 1.
    """
    mixture = special.betaln(JEFFREYS + y, JEFFREYS + n - y) - special.betaln(JEFFREYS, JEFFREYS)
    log_e: N = mixture - _log_likelihood(n, y, rate)
    return log_e


def rate_sequence(sums: Sums, alpha: float) -> Interval | CannotTell:
    """The mean of values in [0, 1], covered at every look at once: the rates that M_n has not rejected. From one unit."""
    if sums.n == 0:
        return CannotTell("no unit yet")
    estimate = min(1.0, sums.y / sums.n)

    def excess(rate: float) -> float:
        return log_e_rate(float(sums.n), min(sums.y, float(sums.n)), rate) + math.log(alpha)

    lower = optimize.bisect(excess, 0.0, estimate) if excess(0.0) > 0 else 0.0
    upper = optimize.bisect(excess, estimate, 1.0) if excess(1.0) > 0 else 1.0
    return Interval(estimate, lower, upper)


def log_e_rate_above(sums: Sums, limit: float) -> float:
    """The log e-value against a mean of at most `limit`: the least that M_n has for any such mean.

    M_n falls up to the observed mean and rises after it, so the least is at the nearer of that mean and the limit.
    """
    if sums.n == 0:
        return 0.0
    rate = min(limit, sums.y / sums.n)
    return float(log_e_rate(float(sums.n), min(sums.y, float(sums.n)), rate))


def log_e_rate_excess(treatment: Sums, control: Sums, margin: float = 0.0) -> float:
    """The log e-value against a mean of the treatment of at most the control's plus `margin`, both in [0, 1].

    The product of both arms' M_n is an e-value at the true means; these are not known, so it is taken at the pair
    that the null allows and that fits best (universal inference: Wasserman, Ramdas & Balakrishnan 2020).
    """
    if not (treatment.n and control.n):
        return 0.0
    n1, n0 = float(treatment.n), float(control.n)
    y1, y0 = min(treatment.y, n1), min(control.y, n0)  # sums of ones may round to more
    if y1 / n1 <= y0 / n0 + margin:  # the null allows what fits best of all
        return float(log_e_rate(n1, y1, y1 / n1) + log_e_rate(n0, y0, y0 / n0))
    if margin == 0:
        return float(log_e_equal_rates(n1, y1, n0, y0))
    rate = _likeliest_rate(n1, y1, n0, y0, margin)
    return float(log_e_rate(n1, y1, rate + margin) + log_e_rate(n0, y0, rate))


def log_e_equal_rates(n1: N, y1: N, n0: N, y0: N) -> N:
    """The log e-value against equal means. Where the treatment is ahead, `log_e_rate_excess` at margin 0 is this."""
    rate = (y1 + y0) / (n1 + n0)
    log_e: N = log_e_rate(n1, y1, rate) + log_e_rate(n0, y0, rate)
    return log_e


# -- whether the units came in the shares that they were to come in --------------------------------------
def log_e_sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> float:
    """The log e-value against units falling on the arms by `shares` (Lindon & Malek 2022).

    `counts` and `shares`, [arms]; shares add up to 1. Where the shares change, an epoch's e-value stands for itself
    and the logs add up. Infinite if an arm without a share has units.
    """
    pairs = list(zip(counts, shares, strict=True))
    if any(count and share <= 0 for count, share in pairs):
        return math.inf
    given = [(float(count), share) for count, share in pairs if share > 0]
    return float(log_e_counts([count for count, _ in given], [share for _, share in given]))


def log_e_counts(counts: Sequence[N], shares: Sequence[float]) -> N:
    """Multinomial counts against a Dirichlet mixture of other shares; shares above 0.

    The Dirichlet is centred on the shares, so that every arm is watched in proportion, and weighs SRM_CONCENTRATION
    units: about half and half it looks 5 points around, where the faults of an assignment lie (Fabijan et al. 2019),
    and not at shares that anyone would notice.
    """
    total = sum(counts)
    log_e = special.gammaln(SRM_CONCENTRATION) - special.gammaln(SRM_CONCENTRATION + total)
    for count, share in zip(counts, shares, strict=True):
        weight = SRM_CONCENTRATION * share
        log_e = log_e + special.gammaln(weight + count) - special.gammaln(weight) - count * math.log(share)
    return log_e  # type: ignore[no-any-return]


def chi_square_p(counts: Sequence[int], shares: Sequence[float]) -> float | CannotTell:
    """Pearson's test (1900) of the same, for one look at a number of units fixed beforehand.

    Its p is not to be trusted where an arm is expected to have fewer than five units (Cochran 1952).
    """
    total = sum(counts)
    expected = [total * share for share in shares]
    if len(expected) < 2 or min(expected) < 5:
        return CannotTell("an arm is expected to have fewer than 5 units")
    statistic = sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True))
    return float(special.chdtrc(len(expected) - 1, statistic))


# -- the parts ----------------------------------------------------------------------------------------
def _log_likelihood(n: N, y: N, rate: N) -> N:
    log_likelihood: N = special.xlogy(y, rate) + special.xlog1py(n - y, -rate)
    return log_likelihood


def _likeliest_rate(n1: float, y1: float, n0: float, y0: float, margin: float) -> float:
    """The control's rate that makes both arms likeliest if the treatment's lies `margin` above it: concave in it."""

    def unlikely(rate: float) -> float:
        return -float(_log_likelihood(n1, y1, rate + margin) + _log_likelihood(n0, y0, rate))

    bounds = (max(0.0, -margin), min(1.0, 1.0 - margin))
    found = optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    return float(found.x)
