"""Dashboards as they are committed: up to date, whole, their queries sound, their metrics there, nothing counted twice."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path

import promql_parser
import pytest
from prometheus_client.metrics_core import Metric

from adapters.engine_settings import EngineSettings
from adapters.settings import Settings
from adapters.standings import Standing
from dashboards.__main__ import DASHBOARDS, built, main, stale, write
from gateway.metrics import collectors
from gateway.metrics import gpus as gpu_metrics
from gateway.metrics import records as record_metrics
from gateway.runtime import Runtime
from gateway.serve import open_database
from tests.unit.dashboards.asked import (
    boards,
    family,
    of_panels,
    of_rules,
    panels,
    rules,
    selectors,
)

ASKED = [*of_panels(), *of_rules()]

PROMETHEUS_OWN = {"up", "ALERTS"}
EXPORTED_BY_THE_ENGINE_PAGE = {"burnish_engine_metrics_up"}
"""By /metrics/engines, beside what engines say."""
ONLY_WHERE_ENABLED = {"burnish_telemetry_dropped"}

PROCESS_FAMILIES = {"process_cpu_seconds", "process_resident_memory_bytes"}

UNSHOWN: dict[str, str] = {
    "process_virtual_memory_bytes": "of no use to an operator",
    "process_start_time_seconds": "a restart shows in every counter",
    "process_open_fds": "a limit is an error of its own in the log",
    "process_max_fds": "the same",
    "python_info": "goes with the version of Burnish",
}
"""Families that no panel and no rule asks for, and why."""


# -- the files -----------------------------------------------------------------------------------
def test_the_committed_dashboards_are_what_the_code_builds() -> None:
    assert stale() == [], "run python -m dashboards"


def test_building_twice_gives_the_same_bytes() -> None:
    assert built() == built()


def test_check_tells_a_changed_a_missing_and_a_foreign_file(tmp_path: Path) -> None:
    write(tmp_path)
    assert stale(tmp_path) == []
    (tmp_path / "overview.json").write_text("{}")
    (tmp_path / "training.json").unlink()
    (tmp_path / "foreign.json").write_text("{}")
    assert stale(tmp_path) == ["foreign.json", "overview.json", "training.json"]
    write(tmp_path)
    assert stale(tmp_path) == []


def test_check_exits_with_0_where_all_is_up_to_date() -> None:
    assert main(["--check"]) == 0


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_can_be_loaded_and_chosen_by(name: str) -> None:
    board = boards()[name]
    assert board["uid"].startswith("burnish-")
    assert {variable["name"] for variable in board["templating"]["list"]} >= {
        "datasource",
        "route",
        "instance",
    }
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"\$(?!__)(\w+)", json.dumps([panel["targets"] for panel in panels(board)])))
    assert used <= {variable["name"] for variable in board["templating"]["list"]}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_says_what_it_shows_in_its_unit_and_asks_something(name: str) -> None:
    for panel in panels(boards()[name]):
        assert len(panel["description"]) > 30, panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_fill_their_rows_and_do_not_lie_on_each_other(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels(boards()[name]):
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24, panel["title"]
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    rows = {y for _, y in taken}
    assert all((x, y) in taken for y in rows for x in range(24)), "a row is not full"


def test_titles_are_of_one_panel_each() -> None:
    for name, board in boards().items():
        titles = [panel["title"] for panel in panels(board)]
        assert len(titles) == len(set(titles)), name


# -- the queries ---------------------------------------------------------------------------------
def test_every_expression_parses() -> None:
    assert len(ASKED) > 150
    for asked in ASKED:
        assert promql_parser.parse(asked.expr), asked


@pytest.fixture
async def emitted(tmp_path: Path) -> dict[str, str]:
    """Every family of ours that the code can emit, and whether it is a process's, the records' or a GPU's."""
    engine = EngineSettings(name="e0", kind="openai", models=("some-model",), url="http://127.0.0.1:9")
    settings = Settings(home=tmp_path, engines=(engine,))
    db = open_database(settings)
    try:
        runtime = Runtime(settings, db, {})
        of_process = _names(metric for each in collectors(runtime) for metric in each.collect())
    finally:
        db.close()
    empty = Standing((), (), (), {}, (), {}, (), {}, 0, 0)
    of_records = _names(record_metrics.families(empty, 10))
    return {
        **dict.fromkeys(of_process | ONLY_WHERE_ENABLED, "process"),
        **dict.fromkeys(of_records, "records"),
        **dict.fromkeys(EXPORTED_BY_THE_ENGINE_PAGE, "engines"),
        **dict.fromkeys(gpu_metrics.FIELDS, "gpus"),
    }


def _names(metrics: Iterable[Metric]) -> set[str]:
    return {metric.name for metric in metrics}


def vllm_families() -> set[str]:
    """What the vLLM that is installed can tell, read off its source."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "v1" / "metrics"
    found = {
        node.value
        for file in folder.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("vllm:")
    }
    assert len(found) > 20, "its metrics are not where this test looks for them"
    return found


def test_every_metric_that_is_asked_for_can_be_emitted(emitted: dict[str, str]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = emitted.keys() | recorded | PROMETHEUS_OWN
    asked = {metric for each in ASKED for metric, _ in selectors(each.expr)}
    ours = {metric for metric in asked if not metric.startswith("vllm:")}
    assert not {metric for metric in ours if metric not in known and family(metric) not in known}


def test_every_metric_of_vllm_is_one_that_it_has() -> None:
    asked = {
        family(metric) for each in ASKED for metric, _ in selectors(each.expr) if metric.startswith("vllm:")
    }
    assert len(asked) > 5
    assert asked <= vllm_families()


def test_every_family_that_is_emitted_is_asked_for(emitted: dict[str, str]) -> None:
    asked = {family(metric) for each in ASKED for metric, _ in selectors(each.expr)}
    unseen = {name for name in emitted if name not in asked and not name.startswith("python_gc")}
    assert unseen <= UNSHOWN.keys(), sorted(unseen - UNSHOWN.keys())


def test_what_all_gateways_tell_alike_is_taken_once(emitted: dict[str, str]) -> None:
    """The nearest aggregation around it takes the greatest (or least) and does not add up."""
    for asked in ASKED:
        for metric, around in selectors(asked.expr):
            source = "engines" if metric.startswith("vllm:") else emitted.get(family(metric), "")
            if source in ("records", "engines", "gpus"):
                assert around in ("max", "min"), f"{asked}: {metric} within {around}"
