"""The gate: from paired results to pass, fail or inconclusive. Pure: numpy, and no clock, file or engine.

How it judges, and from whom it is taken:

* A unit (an end user, a conversation) is one voice (promise 10): rows are averaged within it, and units are what is
  resampled. That is the cluster bootstrap of Field & Welsh (2007, J. R. Stat. Soc. B 69, 369-390) for a mean of
  unit means.
* Bounds are percentile bootstrap bounds of the mean paired difference (Efron & Tibshirani 1993, ch. 13). To publish is
  a decision in one direction, so each bound is one-sided at the settings' confidence, Bonferroni-corrected for the
  primary measures that count; the two bounds together are the interval that is shown.
* With a handful of units percentile bounds are too narrow (Efron & Tibshirani ch. 13-14; Hesterberg 2015), so an
  improvement also needs a sign-flip permutation test of the unit means (Fisher 1935; exact up to EXACT_UNITS units,
  else by simulation, with one added to both counts: Phipson & Smyth 2010). Both must say so.
* What would harm is believed sooner than what would help: a guard needs no permutation test and no correction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.measures import Measure, Pair, Role

RESAMPLES = 5000
EXACT_UNITS = 14  # 16,384 sign patterns
EDGE = 0.02
"""A mean this close to an end of its scale is on the floor, or on the ceiling."""

Numbers = npt.NDArray[np.float64]


class Outcome(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Finding(StrEnum):
    """What a line of the table says of its measure."""

    BETTER = "better"
    WORSE = "worse"
    HOLDS = "holds"  # a guard, or the base: no worse than the margin allows
    SLIPPED = "slipped"  # worse than the margin allows (for the others than one key), but it may be chance
    UNDECIDED = "undecided"
    ONE_VOICE = "one voice"  # better, but not without one key's rows
    TOO_FEW = "too few"
    UNCOVERED = "uncovered"
    NO_SIGNAL = "no signal"
    SHOWN = "shown"  # for the report alone


@dataclass(frozen=True, slots=True)
class Rules:
    min_rows: int = 8
    min_units: int = 6  # the least p that six can have is 2^-6 = 0.016: enough for three measures at 0.95
    min_coverage: float = 0.9
    confidence: float = 0.95
    margin: float = 0.05
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """One measure against one rival. `difference`, `low` and `high` are signed so that above 0 is better, and `p` is
    that of chance alone making it so good."""

    measure: str
    role: Role
    against: str  # "incumbent" or "base"
    finding: Finding
    asked: int
    rows: int
    units: int
    candidate: float | None
    rival: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    reasons: tuple[str, ...]
    lines: tuple[Line, ...]
    confidence: float

    def report(self) -> dict[str, Any]:
        """As plain JSON, for the record."""
        return {
            "outcome": self.outcome.value,
            "reasons": list(self.reasons),
            "confidence": self.confidence,
            "lines": [_rounded(asdict(line)) for line in self.lines],
        }


def judge(measures: Sequence[Measure], rules: Rules, *, has_incumbent: bool) -> Verdict:
    """Whether the candidate is shown to be better than what it would replace, and nowhere worse.

    The rival is the incumbent, or the base model where there is none; against the base a candidate must hold its own
    in any case. Pass: a primary measure improves for sure, no guard slips. Fail: something got worse for sure.
    Everything else is inconclusive, a tie too.
    """
    rival = "incumbent" if has_incumbent else "base"
    primaries = [_Compared(m, rival, rules) for m in measures if m.role is Role.PRIMARY]
    counting = [c for c in primaries if c.problem is None]
    alpha = 1 - rules.confidence
    each = alpha / max(1, len(counting))
    lines = [c.line(c.problem or c.direction(each), each) for c in primaries]
    lines += [c.line(c.guarded(alpha), alpha) for c in _guards(measures, rival, rules)]
    if has_incumbent:
        on_base = [_Compared(c.measure, "base", rules) for c in counting]
        lines += [c.line(c.floor(alpha), alpha) for c in on_base]
    shown = [_Compared(m, rival, rules) for m in measures if m.role is Role.REPORT]
    lines += [c.line(Finding.SHOWN, alpha) for c in shown]
    return Verdict(*_conclude(lines, rules), tuple(lines), rules.confidence)


def _guards(measures: Sequence[Measure], rival: str, rules: Rules) -> list[_Compared]:
    every = [_Compared(m, rival, rules) for m in measures if m.role is Role.GUARD]
    return [compared for compared in every if compared.asked]


def _conclude(lines: Sequence[Line], rules: Rules) -> tuple[Outcome, tuple[str, ...]]:
    def having(*findings: Finding, roles: Iterable[Role] = tuple(Role)) -> list[Line]:
        return [line for line in lines if line.finding in findings and line.role in roles]

    if worse := having(Finding.WORSE):
        return Outcome.FAIL, tuple(_words(line, rules) for line in worse)
    doubts = having(Finding.SLIPPED)
    doubts += having(Finding.UNCOVERED, roles=[Role.GUARD])
    better = having(Finding.BETTER, roles=[Role.PRIMARY])
    if better and not doubts:
        return Outcome.PASS, tuple(_words(line, rules) for line in better)
    if not better:
        doubts = having(*Finding, roles=[Role.PRIMARY]) + [d for d in doubts if d.role is not Role.PRIMARY]
    reasons = tuple(dict.fromkeys(_words(line, rules) for line in doubts))
    return Outcome.INCONCLUSIVE, reasons or ("no held-out row shows what the run is for",)


class _Compared:
    """One measure, candidate against one rival: what the rows say, unit by unit."""

    def __init__(self, measure: Measure, rival: str, rules: Rules) -> None:
        self.measure = measure
        self.rival = rival
        self.rules = rules
        self.asked = len(measure.pairs)
        self.pairs = [p for p in measure.pairs if p.candidate is not None and _of(p, rival) is not None]
        self.differences = unit_means((p.unit, self._gain(p)) for p in self.pairs)
        self.means = [
            unit_means((p.unit, _value(_of(p, side))) for p in self.pairs) for side in ("candidate", rival)
        ]
        self.margin = rules.margin * measure.margin
        self._bounds: dict[float, tuple[float, float]] = {}

    @property
    def problem(self) -> Finding | None:
        """Why the measure does not count; None: it does."""
        rules = self.rules
        if self.asked < rules.min_rows:
            return Finding.TOO_FEW
        if len(self.pairs) < rules.min_coverage * self.asked:
            return Finding.UNCOVERED
        if len(self.pairs) < rules.min_rows or len(self.differences) < rules.min_units:
            return Finding.TOO_FEW
        return Finding.NO_SIGNAL if self._on_an_end() else None

    def direction(self, alpha: float) -> Finding:
        """Of a primary that counts: better or worse for sure, or neither."""
        low, high = self.bounds(alpha)
        if low > 0 and sign_flip_p(self.differences, self.rules.seed) <= alpha:
            return self._without_one_key()
        if high < 0 and sign_flip_p(-self.differences, self.rules.seed) <= alpha:
            return Finding.WORSE
        return Finding.SLIPPED if self.differences.mean() < -self.margin else Finding.UNDECIDED

    def guarded(self, alpha: float) -> Finding:
        """Of a guard: whether it has got worse by more than the margin."""
        if len(self.pairs) < self.rules.min_coverage * self.asked:
            return Finding.UNCOVERED
        return self._held(-self.margin, alpha)

    def floor(self, alpha: float) -> Finding:
        """Of a primary against the base: no worse for sure, and not by more than the margin."""
        if len(self.pairs) < self.rules.min_coverage * self.asked:
            return Finding.UNCOVERED
        return self._held(0.0, alpha)

    def bounds(self, alpha: float) -> tuple[float, float]:
        if alpha not in self._bounds:
            self._bounds[alpha] = bootstrap_bounds(self.differences, alpha, self.rules.seed)
        return self._bounds[alpha]

    def line(self, finding: Finding, alpha: float) -> Line:
        units = len(self.differences)
        low, high = self.bounds(alpha) if units else (None, None)
        return Line(
            measure=self.measure.name,
            role=self.measure.role,
            against=self.rival,
            finding=finding,
            asked=self.asked,
            rows=len(self.pairs),
            units=units,
            candidate=float(self.means[0].mean()) if units else None,
            rival=float(self.means[1].mean()) if units else None,
            difference=float(self.differences.mean()) if units else None,
            low=low,
            high=high,
            p=sign_flip_p(self.differences, self.rules.seed) if units else None,
        )

    def _held(self, sure: float, alpha: float) -> Finding:
        """WORSE where the upper bound is below `sure`, and there are units enough for a bound to mean it."""
        _, high = self.bounds(alpha)
        if high < sure and len(self.differences) >= self.rules.min_units:
            return Finding.WORSE
        return Finding.SLIPPED if self.differences.mean() < -self.margin else Finding.HOLDS

    def _gain(self, pair: Pair) -> float:
        gain = _value(pair.candidate) - _value(_of(pair, self.rival))
        return gain if self.measure.higher_is_better else -gain

    def _on_an_end(self) -> bool:
        """Both sides on the floor, or both on the ceiling: there is nothing to see. One that leaves it is seen."""
        ends = (end for end in (self.measure.worst, self.measure.best) if end is not None)
        return any(all(abs(mean.mean() - end) <= EDGE for mean in self.means) for end in ends)

    def _without_one_key(self) -> Finding:
        """What is left of a gain without any one key's rows, where the others' are enough to show it (promise 10)."""
        finding = Finding.BETTER
        for key_id in {pair.key_id for pair in self.pairs}:
            others = unit_means((p.unit, self._gain(p)) for p in self.pairs if p.key_id != key_id)
            if len(others) < self.rules.min_units:
                continue
            if others.mean() < -self.margin:
                return Finding.SLIPPED
            if others.mean() <= 0:
                finding = Finding.ONE_VOICE
        return finding


def unit_means(values: Iterable[tuple[str, float]]) -> Numbers:
    """[G]: each unit's mean, in the order the units first came."""
    rows_of: dict[str, list[float]] = defaultdict(list)
    for unit, value in values:
        rows_of[unit].append(value)
    return np.array([np.mean(rows) for rows in rows_of.values()], dtype=np.float64)


def bootstrap_bounds(values_G: Numbers, alpha: float, seed: int) -> tuple[float, float]:
    """The percentiles `alpha` and 1 - `alpha` of the mean of `values_G`, resampled. The same seed gives the same."""
    random = np.random.default_rng(seed)
    count = len(values_G)
    at_once = max(1, 1_000_000 // count)
    means = [
        values_G[random.integers(0, count, (min(at_once, RESAMPLES - done), count))].mean(axis=1)
        for done in range(0, RESAMPLES, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), [alpha, 1 - alpha])
    return float(low), float(high)


def sign_flip_p(values_G: Numbers, seed: int) -> float:
    """One-sided p: how often the mean of `values_G` were so large, if each were as likely to have the other sign."""
    count = len(values_G)
    total = float(values_G.sum())
    observed = total - 1e-12 * abs(total)  # sums in another order differ in the last digit
    if count <= EXACT_UNITS:
        signs = 1.0 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((signs @ values_G >= observed).mean())
    random = np.random.default_rng(seed)
    at_once = max(1, 1_000_000 // count)
    hits = 0
    for done in range(0, RESAMPLES, at_once):
        signs = random.choice((-1.0, 1.0), (min(at_once, RESAMPLES - done), count))
        hits += int((signs @ values_G >= observed).sum())
    return (hits + 1) / (RESAMPLES + 1)


def _of(pair: Pair, side: str) -> float | None:
    value: float | None = getattr(pair, side)
    return value


def _value(value: float | None) -> float:
    assert value is not None
    return value


def _words(line: Line, rules: Rules) -> str:
    """A line of the table as a sentence for a person."""
    if line.finding is Finding.TOO_FEW:
        return (
            f"{line.measure}: {line.rows} held-out rows of {line.units} users or conversations are too few "
            f"(at least {rules.min_rows} rows of {rules.min_units})"
        )
    if line.finding is Finding.UNCOVERED:
        return (
            f"{line.measure}: only {line.rows} of {line.asked} rows could be compared with the {line.against}"
        )
    if line.finding is Finding.NO_SIGNAL:
        return f"{line.measure}: both sides are at {_number(line.candidate)}, which tells nothing"
    told = f"{line.measure}: {_number(line.rival)} ({line.against}) -> {_number(line.candidate)}"
    interval = f"gain {_number(line.difference)}, interval {_number(line.low)} to {_number(line.high)}"
    remark = {
        Finding.ONE_VOICE: ", but not without one key's rows",
        Finding.SLIPPED: ", perhaps by chance, but by more than the margin",
    }
    return f"{told}, {line.finding.value} ({interval}){remark.get(line.finding, '')}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _rounded(line: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in line.items()}
