"""How a panel looks: curves, numbers, states, tables and heatmaps, each alike on every dashboard.

A panel's description says what it shows and what to do when it is not as it should be. Knows no metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.queries import Query

GREEN, YELLOW, RED, BLUE, GREY = "green", "yellow", "red", "blue", "#808080"
DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8

PanelBuilder = Builder[models.Panel]
Thresholds = tuple[tuple[float | None, str], ...]
"""From which value on which colour; None is the lowest."""

PLAIN: Thresholds = ((None, BLUE),)

_Any = TypeVar(
    "_Any",
    timeseries.Panel,
    stat.Panel,
    statetimeline.Panel,
    table.Panel,
    heatmap.Panel,
    bargauge.Panel,
)


def up_to(warning: float, bad: float) -> Thresholds:
    """Less is better."""
    return ((None, GREEN), (warning, YELLOW), (bad, RED))


def at_least(bad: float, warning: float) -> Thresholds:
    """More is better."""
    return ((None, RED), (bad, YELLOW), (warning, GREEN))


ANY_IS_BAD: Thresholds = ((None, GREEN), (1e-9, RED))
OF_TARGET = up_to(0.6, 1.0)
"""Shares of a latency target: batches and training make room from 0.6 on (`priority.full_above`), above 1 it is missed."""


def curves(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    thresholds: Thresholds = (),
    stacked: bool = False,
    share: bool = False,
    least: float | None = 0,
    most: float | None = None,
    span: int = 8,
) -> PanelBuilder:
    """Values over time. `stacked`: one on the other, `share`: as shares of the whole. What ends with `target`, `low` or
    `high` is dashed."""
    panel = _framed(timeseries.Panel(), title, description, queries, span, unit)
    panel.legend(_legend()).tooltip(_tooltip()).fill_opacity(40 if stacked else 8).line_width(1)
    panel.show_points(looks.VisibilityMode.AUTO).span_nulls(False)
    panel.override_by_regexp(r"(target|low|high)$", _dashed())
    if stacked:
        mode = looks.StackingMode.PERCENT if share else looks.StackingMode.NORMAL
        panel.stacking(common.StackingConfig().mode(mode))
    if thresholds:
        style = common.GraphThresholdsStyleConfig().mode(looks.GraphThresholdsStyleMode.DASHED)
        panel.thresholds(_steps(thresholds)).thresholds_style(style)
    if least is not None:
        panel.axis_soft_min(least)
    if most is not None:
        panel.axis_soft_max(most)
    return panel


def number(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    thresholds: Thresholds = PLAIN,
    decimals: int | None = None,
    words: Mapping[str, tuple[str, str]] | None = None,
    span: int = 4,
) -> PanelBuilder:
    """What it is now, with its past behind it."""
    panel = _framed(stat.Panel(), title, description, queries, span, unit)
    panel.height(4).thresholds(_steps(thresholds)).reduce_options(_last())
    panel.graph_mode(looks.BigValueGraphMode.AREA).color_mode(looks.BigValueColorMode.VALUE)
    if decimals is not None:
        panel.decimals(decimals)
    if words:
        panel.mappings(_words(words))
    return panel


def states(
    title: str,
    description: str,
    *queries: Query,
    words: Mapping[str, tuple[str, str]],
    span: int = 12,
) -> PanelBuilder:
    """What was so when. `words`: of each value its text and colour."""
    panel = _framed(statetimeline.Panel(), title, description, queries, span, "none")
    panel.mappings(_words(words)).legend(_legend(show=False)).merge_values(True)
    return panel.show_value(looks.VisibilityMode.NEVER).row_height(0.8)


def listed(
    title: str,
    description: str,
    *queries: Query,
    value: str = "value",
    hidden: Sequence[str] = (),
    unit: str = "none",
    span: int = 12,
    height: int = HEIGHT,
) -> PanelBuilder:
    """A table of what is now: a column a label, and the value under the name `value`. `hidden`: labels to leave out."""
    panel = _framed(table.Panel(), title, description, queries, span, unit).height(height)
    excluded = dict.fromkeys(("Time", "__name__", "instance", "job", *hidden), True)
    options = {"excludeByName": excluded, "renameByName": {"Value": value}}
    return panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=options))


def bars(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    thresholds: Thresholds = PLAIN,
    most: float | None = None,
    span: int = 8,
) -> PanelBuilder:
    """A bar for each of what is now."""
    panel = _framed(bargauge.Panel(), title, description, queries, span, unit)
    panel.thresholds(_steps(thresholds)).reduce_options(_last()).min(0)
    panel.orientation(looks.VizOrientation.HORIZONTAL)
    panel.display_mode(looks.BarGaugeDisplayMode.BASIC)
    return panel if most is None else panel.max(most)


def spread(title: str, description: str, query: Query, *, unit: str, span: int = 8) -> PanelBuilder:
    """A histogram over time."""
    panel = _framed(heatmap.Panel(), title, description, (query,), span, unit)
    colors = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    return panel.calculate(False).color(colors).y_axis(heatmap.YAxisConfig().unit(unit))


# -- what they are made of -------------------------------------------------------------------------
def _framed(
    panel: _Any, title: str, description: str, queries: Sequence[Query], span: int, unit: str
) -> _Any:
    panel.title(title).description(description).datasource(DATASOURCE).span(span).height(HEIGHT).unit(unit)
    for letter, query in zip(ascii_uppercase, queries, strict=False):
        panel.with_target(_target(query, letter))
    return panel


def _target(query: Query, letter: str) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(query.expr).ref_id(letter).datasource(DATASOURCE)
    made.legend_format("{{le}}" if query.heatmap else query.legend)
    if query.heatmap:
        made.format(PromQueryFormat.HEATMAP)
    if query.now:
        return made.instant().format(PromQueryFormat.TABLE)
    return made.range()


def _steps(thresholds: Thresholds) -> builders.ThresholdsConfig:
    made = [models.Threshold(value, color) for value, color in thresholds]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def _words(words: Mapping[str, tuple[str, str]]) -> list[models.ValueMapping]:
    results = {
        value: models.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(words.items())
    }
    return [models.ValueMap(results)]


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"])


def _legend(show: bool = True) -> common.VizLegendOptions:
    made = common.VizLegendOptions().display_mode(looks.LegendDisplayMode.LIST)
    return made.placement(looks.LegendPlacement.BOTTOM).show_legend(show)


def _tooltip() -> common.VizTooltipOptions:
    return common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING)


def _dashed() -> list[models.DynamicConfigValue]:
    return [
        models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [6, 6]}),
        models.DynamicConfigValue("custom.fillOpacity", 0),
    ]
