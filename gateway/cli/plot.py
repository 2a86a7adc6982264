"""How an experiment went, as an SVG of three panels over time: the difference, the shares, the guardrails.

Draws the looks that were kept, and nothing that was not seen. Needs no display; matplotlib is imported when something
is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapters.experiment_records import Experiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kept = Sequence[tuple[float, Mapping[str, Any]]]
"""(at, what was seen), the oldest first; at least one."""

INCHES = (10.0, 9.0)
MARGIN = 0.02  # of the time, after its end
UNITS = ((2 * 86400.0, 86400.0, "days"), (2 * 3600.0, 3600.0, "hours"), (120.0, 60.0, "minutes"))
"""A time of at least so many seconds is told in this unit, which has so many."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "burnish",
    "text.parse_math": False,
    "font.size": 9.0,
}
"""Texts stay texts, the same looks make the same file, and a model called `a$b` is no formula."""


def svg(experiment: Experiment, looks: Kept, now: float) -> bytes:
    """The drawing; `now`, in epoch seconds, is where that of an open experiment ends."""
    import matplotlib
    from matplotlib.figure import Figure

    end = max(now if experiment.ended is None else experiment.ended, looks[-1][0])
    clock = _Clock(experiment.created, end)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=INCHES, layout="constrained")
        difference, shares, guardrails = figure.subplots(3, 1, sharex=True)
        figure.suptitle(f"{experiment.name}: {experiment.plan.policy.value} on {experiment.route}")
        _draw_difference(difference, experiment, looks, clock)
        _draw_shares(shares, experiment, looks, clock)
        _draw_guardrails(guardrails, experiment, looks, clock)
        for panel in (difference, shares, guardrails):
            _draw_verdict(panel, experiment, clock)
        guardrails.set_xlim(0.0, clock(end) * (1 + MARGIN) or 1.0)
        guardrails.set_xlabel(f"{clock.unit} since it began")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": "burnish"})
    return drawn.getvalue()


class _Clock:
    """Epoch seconds as what the axis shows."""

    def __init__(self, began: float, end: float) -> None:
        self.end = end
        self._began = began
        fits = (unit for unit in UNITS if end - began >= unit[0])
        _, self._seconds, self.unit = next(fits, (0.0, 1.0, "seconds"))

    def __call__(self, at: float) -> float:
        return (at - self._began) / self._seconds


# -- the panels ------------------------------------------------------------------------------------
def _draw_difference(panel: Axes, experiment: Experiment, looks: Kept, clock: _Clock) -> None:
    """The confidence sequence of each challenger's difference in the deciding score."""
    score = experiment.plan.score
    panel.set_gid("difference")
    panel.set_title(f"{score}: difference from {experiment.control}, alpha {experiment.plan.alpha:g}")
    panel.axhline(0.0, color="black", linewidth=0.8, gid="zero")
    for n, variant in enumerate(experiment.plan.variants):
        found = list(_differences(looks, variant, score))
        at = [clock(when) for when, _ in found]
        estimate, lower, upper = (
            [each[name] for _, each in found] for name in ("estimate", "lower", "upper")
        )
        color = f"C{n + 1}"
        panel.plot(at, estimate, ".-", color=color, label=variant, gid=f"difference:{variant}")
        panel.fill_between(at, lower, upper, color=color, alpha=0.2, linewidth=0, gid=f"band:{variant}")
    _legend(panel)


def _draw_shares(panel: Axes, experiment: Experiment, looks: Kept, clock: _Clock) -> None:
    """Stacked, the control at the bottom; each holds until the next look."""
    panel.set_gid("shares")
    panel.set_title("share of the traffic")
    first = experiment.plan.first_shares()
    begun = {experiment.control: 1.0 - math.fsum(first.values()), **first}
    seen = [(experiment.created, begun)]
    seen += [(at, {v: arm["share"] for v, arm in look["arms"].items()}) for at, look in looks]
    seen.append((clock.end, experiment.shares if experiment.is_open else seen[-1][1]))
    at = [clock(when) for when, _ in seen]
    below = [0.0] * len(seen)
    for n, variant in enumerate(experiment.variants):
        above = [low + shares.get(variant, 0.0) for low, (_, shares) in zip(below, seen, strict=True)]
        panel.fill_between(
            at, below, above, step="post", color=f"C{n}", alpha=0.6, label=variant, gid=f"share:{variant}"
        )
        below = above
    panel.set_ylim(0.0, 1.0)
    _legend(panel)


def _draw_guardrails(panel: Axes, experiment: Experiment, looks: Kept, clock: _Clock) -> None:
    """How much worse each challenger is, over what is tolerated: above 1 is too much, if it is for sure."""
    panel.set_gid("guardrails")
    panel.set_title("guardrails: how much worse, over what is tolerated (x: breached)")
    panel.axhline(1.0, color="black", linewidth=0.8, gid="tolerated")
    series = [(v, metric) for v in experiment.plan.variants for metric, _ in experiment.plan.guardrails]
    for n, (variant, metric) in enumerate(series):
        found = list(_guarded(looks, variant, metric))
        at = [clock(when) for when, _ in found]
        color, name = f"C{n}", f"{variant} {metric}"
        over = [_over(each) for _, each in found]
        panel.plot(at, over, ".-", color=color, label=name, gid=f"guardrail:{variant}:{metric}")
        breached = [(x, y) for x, y, (_, each) in zip(at, over, found, strict=True) if each["breached"]]
        if breached:
            x, y = zip(*breached, strict=True)
            panel.plot(x, y, "x", color=color, markersize=10, gid=f"breach:{variant}:{metric}")
    _legend(panel)


def _draw_verdict(panel: Axes, experiment: Experiment, clock: _Clock) -> None:
    verdict = experiment.verdict
    if verdict is None:
        return
    at = clock(verdict["at"])
    panel.axvline(at, color="black", linestyle="--", linewidth=1.0, gid=f"verdict:{panel.get_gid()}")
    words = " ".join(filter(None, (verdict["outcome"], verdict["variant"])))
    panel.annotate(
        words, (at, 1.0), xycoords=("data", "axes fraction"), ha="right", va="bottom", fontsize="small"
    )


def _legend(panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        panel.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")


# -- what is drawn ---------------------------------------------------------------------------------
def _differences(looks: Kept, variant: str, score: str) -> Iterator[tuple[float, dict[str, float]]]:
    """Once there is something to tell. A line with gaps where it could not be told."""
    for at, look in looks:
        for comparison in look["comparisons"]:
            if (comparison["variant"], comparison["score"]) == (variant, score):
                found = comparison["difference"]
                yield at, {name: _or_gap(found[name]) for name in ("estimate", "lower", "upper")}


def _guarded(looks: Kept, variant: str, metric: str) -> Iterator[tuple[float, dict[str, Any]]]:
    for at, look in looks:
        for guarded in look["guardrails"]:
            if (guarded["variant"], guarded["metric"]) == (variant, metric):
                yield at, guarded


def _over(guarded: Mapping[str, Any]) -> float:
    """1 where all that is tolerated is used up. Of nothing there is no part: then 1 and how much worse it is."""
    worse, tolerated = _or_gap(guarded["worse"]), guarded["tolerated"]
    return worse / tolerated if tolerated > 0 else 1.0 + worse


def _or_gap(value: float | None) -> float:
    return math.nan if value is None else value
