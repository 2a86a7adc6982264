"""What a panel asks Prometheus: PromQL put together from metrics, matchers and the dashboards' variables.

Owns the one rule about several gateways. What a process counts itself is summed over instances (`counted`). What is read
off the shared database is the same from every gateway, and so are an engine's own metrics and a GPU's: of those the
greatest over instances is taken (`shared`), or two gateways would make two of everything.
"""

from __future__ import annotations

from dataclasses import dataclass

RATE_WINDOW = "$__rate_interval"
"""Grafana's: at least four scrapes, however far one zooms in."""

ROUTE = 'route=~"$route"'
INSTANCE = 'instance=~"$instance"'
INTERACTIVE = 'class="interactive"'

CLIENT_MISTAKES = 'error=~"invalid_request|context_too_long|unauthorized|forbidden|not_found|conflict|too_large|rate_limited"'
SERVER_FAULTS = 'error=~"engine_failed|unavailable|overloaded|not_recorded|engine_timeout|server_error"'
"""The kinds of errors: the client's, and the system's."""

MILLION = "1e6"


@dataclass(frozen=True)
class Query:
    """One expression of a panel. `now`: only its last value is of interest."""

    expr: str
    legend: str = ""
    now: bool = False
    heatmap: bool = False


def series(metric: str, *matchers: str) -> str:
    return f"{metric}{{{', '.join(matchers)}}}" if matchers else metric


def of_gateways(metric: str, *matchers: str) -> str:
    """What the chosen gateways count themselves."""
    return series(metric, *matchers, INSTANCE)


def counted(by: str, expr: str) -> str:
    """The sum over gateways, by the labels that are named ("" for one number)."""
    return f"sum by ({by}) ({expr})" if by else f"sum({expr})"


def shared(expr: str) -> str:
    """What every gateway tells alike, once."""
    return f"max without (instance, job) ({expr})"


def per_second(selector: str, window: str = RATE_WINDOW) -> str:
    return f"rate({selector}[{window}])"


def quantile(share: float, metric: str, by: str, *matchers: str, window: str = RATE_WINDOW) -> str:
    """Of a histogram that gateways count: the value that `share` of the observations do not exceed."""
    buckets = per_second(of_gateways(f"{metric}_bucket", *matchers), window)
    return f"histogram_quantile({share}, {counted(', '.join(filter(None, (by, 'le'))), buckets)})"


def mean(metric: str, by: str, *matchers: str) -> str:
    """Of such a histogram: the mean."""
    sums, counts = (
        counted(by, per_second(of_gateways(f"{metric}_{part}", *matchers))) for part in ("sum", "count")
    )
    return f"{sums} / ({counts} > 0)"


def target(kind: str) -> str:
    """The latency targets of all names, by route; what is counted under `other` has the default's."""
    every = shared(series("burnish_latency_target_seconds", f'kind="{kind}"'))
    usual = shared(series("burnish_latency_target_seconds", f'kind="{kind}"', 'route=""'))
    return f'({every} or label_replace({usual}, "route", "other", "", ""))'


def over_target(kind: str, metric: str) -> str:
    """The 95th percentile of interactive latency over its target, by route: above 1 it is missed."""
    p95 = quantile(0.95, metric, "route", INTERACTIVE, ROUTE)
    return f"{p95} / on (route) group_left () {target(kind)}"


def targets_asked_for(kind: str) -> str:
    """The targets of those routes that somebody asks."""
    asked = counted("route", per_second(of_gateways("burnish_requests_total", INTERACTIVE, ROUTE)))
    return f"{target(kind)} and on (route) ({asked} > 0)"
