"""Prometheus' own word on configuration and rules; every alert fires when it should, not otherwise, and has a remedy."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.dashboards.asked import PROMETHEUS, ROOT, rules

HERE = Path(__file__).with_name("rules")
RULE_TESTS = sorted(HERE.glob("*.yml"))
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RUNBOOK = "docs/operations.md"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's package: prometheus")


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_the_configuration() -> None:
    told = promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert "rule files found" in told
    assert "warning" not in told.lower()


@needs_promtool
def test_prometheus_takes_the_configuration_with_a_key(tmp_path: Path) -> None:
    """With the comments off, as the docs say, and a key in its place."""
    folder = shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    text = (folder / "prometheus.yml").read_text()
    opened = re.sub(r"^    # (authorization:|  credentials_file:)", r"    \1", text, flags=re.M)
    assert opened.count("\n    authorization:\n      credentials_file: burnish.key") == 2
    (folder / "prometheus.yml").write_text(opened)
    (folder / "burnish.key").write_text("a-key")
    promtool("check", "config", folder / "prometheus.yml")


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", *sorted((PROMETHEUS / "rules").glob("*.yml")))


@needs_promtool
@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda file: file.stem)
def test_rules_say_what_they_should(file: Path) -> None:
    promtool("test", "rules", file)


def expectations() -> list[tuple[str, list[Any]]]:
    """Of each question about an alert: its name, and what is expected to fire."""
    cases = (case for file in RULE_TESTS for case in yaml.safe_load(file.read_text())["tests"])
    every = (asked for case in cases for asked in case["promql_expr_test"])
    about = re.compile(r'ALERTS\{alertname="(\w+)", alertstate="firing"\}')
    return [(named[1], asked["exp_samples"]) for asked in every if (named := about.fullmatch(asked["expr"]))]


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_seen_to_fire_and_not_to_fire(alert: str) -> None:
    told = [bool(samples) for name, samples in expectations() if name == alert]
    assert True in told, "no test in which it fires"
    assert False in told, "no test in which it does not"


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_what_is_so_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, anchor = rule["annotations"]["runbook_url"].split("#")
    assert (page, anchor) == (RUNBOOK, alert.lower())


def test_the_runbook_has_every_alert_and_no_other() -> None:
    told = re.findall(r"^#### (Burnish\w+)$", (ROOT / RUNBOOK).read_text(), re.M)
    assert sorted(told) == sorted(ALERTS)


def test_recorded_names_say_level_metric_and_operation() -> None:
    names = [rule["record"] for rule in rules() if "record" in rule]
    assert all(re.fullmatch(r"burnish:\w+(:\w+)?", name) for name in names)
    assert len(names) == len(set(names))
