"""What dashboards and rules ask Prometheus: each expression, where it stands, and the metrics in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

ROOT = Path(__file__).resolve().parents[3]
DASHBOARDS = ROOT / "dashboards"
BUILT = DASHBOARDS / "built"
PROMETHEUS = DASHBOARDS / "prometheus"

OF_GRAFANA = {"$__rate_interval": "1m", "$__range": "15m"}
CHOSEN = ("route", "instance", "experiment", "metric", "engine")
"""The dashboards' own variables, with all values chosen."""


@dataclass(frozen=True)
class Asked:
    board: str
    """A dashboard's name; "" for a rule."""
    where: str
    expr: str

    def __str__(self) -> str:
        return f"{self.board} {self.where}"


def replaced(expr: str) -> str:
    """As Grafana would send it."""
    values = OF_GRAFANA | {f"${name}": ".*" for name in CHOSEN}
    for name in sorted(values, key=len, reverse=True):
        expr = expr.replace(name, values[name])
    assert "$" not in expr, expr
    return expr


def boards() -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text()) for file in sorted(BUILT.glob("*.json"))}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def of_panels() -> list[Asked]:
    return [
        Asked(name, f"{panel['title']} {target['refId']}", replaced(target["expr"]))
        for name, board in boards().items()
        for panel in panels(board)
        for target in panel["targets"]
    ]


def rules() -> list[dict[str, Any]]:
    files = sorted((PROMETHEUS / "rules").glob("*.yml"))
    return [
        rule
        for file in files
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]


def of_rules() -> list[Asked]:
    return [Asked("", rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]


def selectors(expr: str) -> Iterator[tuple[str, str | None]]:
    """Every metric of an expression, with the aggregation that is nearest around it."""
    around: list[str] = []
    found: list[tuple[str, str | None]] = []

    def enter(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.AggregateExpr):
            around.append(str(node.op))
        elif isinstance(node, promql_parser.VectorSelector):
            assert node.name, f"a selector without a name in {expr}"
            found.append((node.name, around[-1] if around else None))
        return True

    def leave(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.AggregateExpr):
            around.pop()
        return True

    promql_parser.walk(promql_parser.parse(expr), enter, leave)
    return iter(found)


def family(metric: str) -> str:
    """The family that a series is of: without the endings of counters and histograms."""
    return re.sub(r"_(total|bucket|count|sum)$", "", metric) if not metric.endswith("value_sum") else metric
