"""What all dashboards have in common: variables, links to each other, the alerts that fire, rows of panels.

Knows no panel of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from dashboards.panels import DATASOURCE, RED, PanelBuilder

TAG = "burnish"


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[PanelBuilder, ...]


def board(
    uid: str,
    title: str,
    description: str,
    rows: Sequence[Row],
    variables: Sequence[Builder[models.VariableModel]] = (),
) -> models.Dashboard:
    """A dashboard: its rows from top to bottom, `variables` beside those that all have. The same call, the same result."""
    made = builders.Dashboard(title).uid(uid).description(description).tags([TAG]).readonly()
    made.time("now-1h", "now").refresh("30s").timezone("browser").tooltip(
        models.DashboardCursorSync.CROSSHAIR
    )
    made.variables([_datasource(), _gateways(), chosen("route", "burnish_requests_total"), *variables])
    made.link(_links()).annotation(_alerts())
    for row in rows:
        made.with_row(builders.Row(row.title))
        for panel in row.panels:
            made.with_panel(panel)
    built = made.build()
    for number, placed in enumerate(built.panels or (), 1):
        placed.id_val = number
    return built


def chosen(label: str, metric: str, name: str | None = None) -> builders.QueryVariable:
    """A variable: any number of a label's values, all of them at first."""
    made = builders.QueryVariable(name or label).datasource(DATASOURCE)
    made.query({"query": f"label_values({metric}, {label})", "refId": name or label})
    made.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    return (
        made.multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(True, "All", "$__all"))
    )


def _datasource() -> builders.DatasourceVariable:
    return builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus")


def _gateways() -> builders.QueryVariable:
    return chosen("instance", "burnish_build_info").label("gateway")


def _links() -> builders.DashboardLink:
    link = builders.DashboardLink("Burnish").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.as_dropdown(True).include_vars(True).keep_time(True)


def _alerts() -> builders.AnnotationQuery:
    made = builders.AnnotationQuery().name("alerts").datasource(DATASOURCE).enable(True).icon_color(RED)
    return made.expr('ALERTS{alertname=~"Burnish.+", alertstate="firing"}')
