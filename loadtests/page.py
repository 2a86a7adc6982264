"""The report of a load test as one HTML file: verdict, tables, plots. Nothing in it is fetched from anywhere.

Draws what the report's JSON and the measured distributions hold, and decides nothing. Needs no display.
"""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loadtests.measurement import Measurement
from loadtests.report import BRIEF_HEAD, LATENCIES, model_rows, stage_rows, target_rows
from loadtests.targets import Unit, told

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Report = Mapping[str, Any]

INCHES = (11.0, 12.0)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "burnish",
    "text.parse_math": False,
    "font.size": 9.0,
}
"""Texts stay texts, the same figures make the same drawing, and a model called `a$b` is no formula."""

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
.pass, .met { color: #17692c } .fail, .missed { color: #b3261e } .inconclusive { color: #8a5a00 }
svg { width: 100%; height: auto } pre { background: #f5f5f5; padding: 1rem; overflow: auto }
"""


def page(report: Report, measurement: Measurement) -> str:
    """The whole file."""
    verdict = report["verdict"]
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in report["reasons"])
    parts = [
        f'<h1>Load test: <span class="{verdict}">{verdict}</span></h1>',
        f"<p>{html.escape(_headline(report))}</p>",
        f"<ul>{reasons}</ul>" if reasons else "",
        _table(("target", "limit", "measured", ""), target_rows(report)),
        *_tables(report),
        _drawing(report, measurement),
        "<h2>How it was made</h2>",
        f"<pre>{html.escape(_details(report))}</pre>",
    ]
    title = f"Load test: {verdict}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{CSS}</style></head>\n<body>\n" + "\n".join(filter(None, parts)) + "\n</body></html>\n"
    )


# -- words and tables ------------------------------------------------------------------------------
def _headline(report: Report) -> str:
    options, figures = report["options"], report["figures"]
    models = ", ".join(options["models"] or report["by_model"]) or "no model"
    return (
        f"{', '.join(options['kinds'])} against {models} at {options['host']}, {options['loop']} loop, "
        f"{options['duration_seconds']:g} s: {figures['requests']} requests, {figures['errors']} failed, "
        f"{figures['requests_per_second']:.2f} requests/s, {figures['answer_tokens_per_second']:.1f} tokens/s"
    )


def _tables(report: Report) -> Iterator[str]:
    figures = report["figures"]
    latencies = [
        (
            name,
            *(told(figures[key][p], Unit.SECONDS) for p in ("p50", "p95", "p99")),
            str(figures[key]["count"]),
        )
        for name, key in LATENCIES
        if figures.get(key, {}).get("count")
    ]
    if latencies:
        yield _table(("", "p50", "p95", "p99", "count"), latencies)
    if report["stages"]:
        noun = "requests/s" if report["options"]["loop"] == "open" else "users"
        yield _table((noun, *BRIEF_HEAD), stage_rows(report))
    if report["by_model"]:
        yield _table(("model", *BRIEF_HEAD), model_rows(report))
    if problems := figures.get("problems"):
        yield _table(("error", "count"), [(problem, str(count)) for problem, count in problems.items()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return (
            "<tr>" + "".join(f'<{tag} class="{_class(c)}">{html.escape(c)}</{tag}>' for c in cells) + "</tr>"
        )

    return "<table>" + line("th", head) + "".join(line("td", row) for row in rows) + "</table>"


def _class(cell: str) -> str:
    return cell if cell in ("met", "missed") else ""


def _details(report: Report) -> str:
    return json.dumps({key: report[key] for key in ("options", "client", "machine")}, indent=2)


# -- plots -----------------------------------------------------------------------------------------
def _drawing(report: Report, measurement: Measurement) -> str:
    """Six panels in one SVG: four over time, two distributions."""
    import matplotlib
    from matplotlib.figure import Figure

    series = report["series"]
    if not series:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=INCHES, layout="constrained")
        panels = figure.subplots(3, 2)
        _draw_times(panels[0][0], series, "ttft", "time to the first token, ms", report)
        _draw_times(panels[0][1], series, "itl", "time between tokens, ms", report)
        _draw_rates(panels[1][0], series)
        _draw_load(panels[1][1], series)
        _draw_shares(panels[2][0], measurement, "ttft", report)
        _draw_shares(panels[2][1], measurement, "itl", report)
        for panel in panels.flat[:4]:
            panel.set_xlabel("seconds")
            panel.set_ylim(bottom=0)
            panel.axvspan(0, measurement.window.begin, color="black", alpha=0.06, linewidth=0)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": "burnish"})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _draw_times(panel: Axes, series: Sequence[Report], name: str, title: str, report: Report) -> None:
    at = [row["at"] for row in series]
    for percentile in ("p50", "p95"):
        values = [_milliseconds(row[f"{name}_{percentile}_seconds"]) for row in series]
        panel.plot(at, values, ".-", label=percentile, gid=f"{name}:{percentile}", linewidth=1, markersize=3)
    for target, limit in _limits(report, name):
        panel.axhline(
            1000 * limit, color="black", linestyle="--", linewidth=0.8, label=target, gid=f"limit:{target}"
        )
    panel.set_title(title)
    panel.legend(loc="upper right", fontsize="small")


def _draw_rates(panel: Axes, series: Sequence[Report]) -> None:
    at = [row["at"] for row in series]
    panel.set_title("throughput")
    panel.plot(at, [row["requests_per_second"] for row in series], label="requests/s", gid="requests")
    if any(row["batch_lines_per_second"] for row in series):
        panel.plot(at, [row["batch_lines_per_second"] for row in series], label="batch lines/s", gid="lines")
    panel.legend(loc="upper left", fontsize="small")
    tokens = panel.twinx()
    tokens.plot(
        at, [row["answer_tokens_per_second"] for row in series], color="C2", label="tokens/s", gid="tokens"
    )
    tokens.set_ylim(bottom=0)
    tokens.legend(loc="lower right", fontsize="small")


def _draw_load(panel: Axes, series: Sequence[Report]) -> None:
    at = [row["at"] for row in series]
    panel.set_title("users, requests in flight, errors")
    for name, label in (("users", "users"), ("in_flight", "in flight")):
        panel.plot(at, [row[name] for row in series], label=label, gid=name, drawstyle="steps-post")
    panel.bar(
        at, [row["errors"] for row in series], color="C3", label="errors", width=0.8 * series[0]["seconds"]
    )
    panel.legend(loc="upper left", fontsize="small")


def _draw_shares(panel: Axes, measurement: Measurement, name: str, report: Report) -> None:
    """The share of requests, or of gaps, that took no longer than so much."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    panel.set_title("share within: " + ("first token" if name == "ttft" else "between tokens"))
    for model, tally in sorted(measurement.by_model.items()):
        curve = list(getattr(tally, name).shares())
        if curve:
            values, shares = zip(*curve, strict=True)
            panel.plot([1000 * value for value in values], shares, label=model, gid=f"{name}:shares:{model}")
    for target, limit in _limits(report, name):
        panel.axvline(1000 * limit, color="black", linestyle="--", linewidth=0.8, label=target)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("ms")
    panel.set_ylim(0, 1.02)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(loc="lower right", fontsize="small")


def _limits(report: Report, name: str) -> Iterator[tuple[str, float]]:
    for target in report["targets"]:
        if target["name"].startswith(f"{name}_"):
            yield target["name"], target["limit"]


def _milliseconds(seconds: float | None) -> float:
    """A gap in the line where there was none."""
    return math.nan if seconds is None else 1000 * seconds
