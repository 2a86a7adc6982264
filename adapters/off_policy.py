"""What another way of choosing variants would have scored, from what was logged under the way that chose then.

Owns the estimators: inverse propensity (Horvitz & Thompson 1952), self-normalised (Swaminathan & Joachims 2015), and
doubly robust (Dudík, Langford & Li 2011). Rows of one unit (an end user, a conversation) hang together, so intervals
are clustered by unit. They are normal intervals of a number of units fixed beforehand: a first look at what an
experiment might show, not one that may be repeated until it pleases. Does not know where rows are kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from adapters.statistics import CannotTell, Interval

FOLDS = 5
RIDGE = (
    1.0  # one row's worth of doubt: enough that a variant with few rows, or equal features, has a solution
)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Logged:
    """One scored completion, with the probability that its variant had when it was chosen."""

    variant: str
    propensity: float
    score: float
    unit: str
    features: tuple[float, ...] = ()  # known before the variant was chosen; as many in every row


@dataclass(frozen=True, slots=True)
class OffPolicyValue:
    """The mean score a row would have under the target policy, by each estimator."""

    inverse_propensity: Interval
    self_normalised: Interval
    doubly_robust: Interval
    effective_units: float
    units: int
    rows: int


def value(
    rows: Sequence[Logged],
    target: Mapping[str, float],
    alpha: float,
    *,
    least_units: int = 30,
    least_share: float = 0.01,
) -> OffPolicyValue | CannotTell:
    """The value of `target` (variant -> probability, adding up to 1) with intervals at 1 - alpha.

    `least_units` is asked of the units and of the effective units (Kish 1965: (sum w)^2 / sum w^2, of units' weights).
    `least_share`: a variant that the target uses must have had this probability in each row in which it was chosen,
    and this share of all rows; otherwise single rows would decide. Raises ValueError if the target does not add up to 1.
    """
    if abs(sum(target.values()) - 1) > 1e-6 or min(target.values()) < 0:
        raise ValueError("the target's probabilities must be at least 0 and add up to 1")
    used = {variant: share for variant, share in target.items() if share > 0}
    if problem := _no_overlap(rows, used, least_share):
        return CannotTell(problem)
    names, unit_N = np.unique([row.unit for row in rows], return_inverse=True)
    weight_N = np.array([used.get(row.variant, 0.0) / row.propensity for row in rows])
    effective = _effective(_by_unit(weight_N, unit_N))
    if len(names) < least_units:
        return CannotTell(f"{len(names)} units are too few (at least {least_units})")
    if effective < least_units:
        return CannotTell(
            f"{len(names)} units weigh no more than {effective:.1f} on the target's variants (at least {least_units})"
        )
    return _estimates(rows, used, alpha, weight_N, unit_N, effective)


def _no_overlap(rows: Sequence[Logged], used: Mapping[str, float], least_share: float) -> str | None:
    """Why the rows cannot speak for the target; None: they can."""
    if not rows:
        return "nothing was logged"
    if any(not 0 < row.propensity <= 1 for row in rows):
        return "a row has no propensity: it is not known how its variant was chosen"
    if len({len(row.features) for row in rows}) > 1:
        return "rows have unlike numbers of features"
    for variant in used:
        own = [row for row in rows if row.variant == variant]
        if not own:
            return f"no row of {variant!r}, which the target uses"
        if min(row.propensity for row in own) < least_share:
            return f"{variant!r} had a propensity below {least_share:g} in a row, which alone would weigh too much"
        if len(own) < least_share * len(rows):
            return f"{variant!r} has {len(own)} of {len(rows)} rows (at least {least_share:.0%})"
    return None


def _estimates(
    rows: Sequence[Logged],
    used: Mapping[str, float],
    alpha: float,
    weight_N: Array,
    unit_N: npt.NDArray[np.intp],
    effective: float,
) -> OffPolicyValue:
    score_N = np.array([row.score for row in rows], dtype=np.float64)
    predicted_NV, chosen_N = _predictions(rows, list(used))
    expected_N = predicted_NV @ np.array(list(used.values()))
    weighted_N = weight_N * score_N
    robust_N = expected_N + weight_N * (score_N - chosen_N)
    normalised = float(weighted_N.sum() / weight_N.sum())
    residual_N = weight_N * (score_N - normalised) / weight_N.mean()
    return OffPolicyValue(
        inverse_propensity=_clustered(weighted_N, unit_N, alpha),
        self_normalised=_clustered(normalised + residual_N, unit_N, alpha),
        doubly_robust=_clustered(robust_N, unit_N, alpha),
        effective_units=effective,
        units=int(unit_N.max()) + 1,
        rows=len(rows),
    )


def _clustered(value_N: Array, unit_N: npt.NDArray[np.intp], alpha: float) -> Interval:
    """The mean of rows, with the linearised variance of a ratio of unit totals (Cochran 1977, ch. 6), since units
    have unlike numbers of rows."""
    mean = float(value_N.mean())
    total_U = _by_unit(value_N - mean, unit_N)
    count = len(total_U)
    error = math.sqrt(count / (count - 1) * float(total_U @ total_U)) / len(value_N)
    radius = float(special.ndtri(1 - alpha / 2)) * error
    return Interval(mean, mean - radius, mean + radius)


def _by_unit(value_N: Array, unit_N: npt.NDArray[np.intp]) -> Array:
    """[U]: the sum of each unit's rows."""
    return np.bincount(unit_N, value_N).astype(np.float64)


def _predictions(rows: Sequence[Logged], variants: Sequence[str]) -> tuple[Array, Array]:
    """[N, V]: each target variant's predicted score for each row; [N]: that of the row's own variant, else 0 (its weight
    is 0). By a ridge regression a variant, fitted on the other folds' units: a row never predicts itself."""
    fold_N = np.array([_fold(row.unit) for row in rows])
    variant_N = np.array([row.variant for row in rows])
    score_N = np.array([row.score for row in rows], dtype=np.float64)
    features_NF = np.array([row.features for row in rows], dtype=np.float64).reshape(len(rows), -1)
    predicted_NV = np.zeros((len(rows), len(variants)))
    chosen_N = np.zeros(len(rows))
    for v, variant in enumerate(variants):
        own_N = variant_N == variant
        for fold in range(FOLDS):
            learn_N, apply_N = own_N & (fold_N != fold), fold_N == fold
            predicted_NV[apply_N, v] = _ridge(features_NF[learn_N], score_N[learn_N], features_NF[apply_N])
        chosen_N[own_N] = predicted_NV[own_N, v]
    return predicted_NV, chosen_N


def _ridge(features_NF: Array, score_N: Array, asked_MF: Array) -> Array:
    """[M]: the scores predicted for `asked_MF` by a ridge regression on standardised features, its intercept free.

    Without rows it predicts 0: doubly robust estimates hold with any prediction, as the weights are right.
    """
    if not len(score_N):
        return np.zeros(len(asked_MF))
    middle_F, scale_F = features_NF.mean(axis=0), features_NF.std(axis=0)
    scale_F = np.where(scale_F > 0, scale_F, 1.0)
    design_NF = (features_NF - middle_F) / scale_F
    mean = score_N.mean()
    gram_FF = design_NF.T @ design_NF + RIDGE * np.eye(design_NF.shape[1])
    slope_F = np.linalg.solve(gram_FF, design_NF.T @ (score_N - mean))
    predicted_M: Array = mean + (asked_MF - middle_F) / scale_F @ slope_F
    return predicted_M


def _fold(unit: str) -> int:
    """The same unit always falls into the same fold."""
    return int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8).digest(), "big") % FOLDS


def _effective(weight_U: Array) -> float:
    squares = float(weight_U @ weight_U)
    return float(weight_U.sum()) ** 2 / squares if squares else 0.0
