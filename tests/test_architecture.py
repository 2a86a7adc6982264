"""The import rules of docs/architecture.md, read off the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("adapters", "gateway", "trainer", "loadtests", "dashboards")

FORBIDDEN = {
    "adapters": {
        "gateway",
        "trainer",
        "loadtests",
        "fastapi",
        "starlette",
        "uvicorn",
        "torch",
        "transformers",
        "vllm",
    },
    "gateway": {"trainer", "loadtests", "torch", "transformers", "vllm"},
    "trainer": {"gateway", "loadtests", "fastapi", "starlette"},
    "loadtests": {"adapters", "gateway", "trainer", "torch", "vllm"},
    "dashboards": {"adapters", "gateway", "trainer", "loadtests", "fastapi", "starlette", "torch", "vllm"},
}

VLLM_PLUGIN = ROOT / "gateway" / "vllm_plugin.py"
"""The one module that vLLM imports, not the gateway."""

VLLM_LORA = ROOT / "gateway" / "vllm_lora.py"
"""And the one that it brings along."""

PURE = {
    "gateway/routing.py": {"adapters"},
    "gateway/access.py": {"adapters", "gateway"},
    "gateway/quotas.py": {"adapters", "gateway"},
    "gateway/protocol/checks.py": {"adapters", "orjson"},
    "gateway/protocol/requests.py": {"adapters", "gateway", "orjson"},
    "gateway/protocol/answers.py": set(),
    "gateway/protocol/errors.py": {"adapters", "orjson"},
    "gateway/protocol/assemble.py": {"orjson"},
    "gateway/relay.py": {"adapters", "gateway", "orjson"},
    "adapters/errors.py": set(),
    "adapters/packed.py": {"orjson"},
    "adapters/turns.py": {"adapters", "orjson"},
    "adapters/versions.py": {"adapters"},
    "adapters/policy.py": {"adapters"},
    "adapters/sections.py": {"adapters"},
    "adapters/plans.py": {"adapters"},
    "adapters/manners.py": {"adapters"},
    "adapters/measuring.py": {"adapters"},
    "adapters/comparisons.py": {"adapters"},
    "adapters/verdicts.py": {"adapters"},
    "adapters/messages.py": set(),
    "adapters/rows.py": {"adapters", "orjson"},
    "adapters/hyperparameters.py": {"adapters"},
    "adapters/statistics.py": {"numpy", "scipy"},
    "adapters/e_values.py": {"adapters", "scipy"},
    "adapters/allocation.py": {"adapters", "numpy", "scipy"},
    "adapters/off_policy.py": {"adapters", "numpy", "scipy"},
    "gateway/job_shapes.py": {"adapters"},
    "gateway/batch_input.py": {"adapters", "orjson"},
    "gateway/batch_shapes.py": {"adapters"},
    "gateway/series.py": set(),
    "gateway/latency.py": {"adapters", "gateway"},
    "gateway/concurrency.py": {"adapters"},
    "adapters/load_tests.py": {"adapters"},
    "adapters/buckets.py": set(),
    "gateway/passage.py": {"adapters", "gateway"},
    "gateway/tally.py": {"adapters", "gateway"},
    "gateway/labels.py": set(),
    "gateway/exposition.py": set(),
    "gateway/trace_context.py": {"gateway"},
    "gateway/gen_ai.py": {"adapters"},
    "gateway/generation_shapes.py": {"adapters"},
    "loadtests/workload.py": {"loadtests"},
    "loadtests/shapes.py": {"loadtests"},
    "loadtests/targets.py": set(),
    "loadtests/chat_stream.py": {"orjson"},
    "loadtests/buckets.py": set(),
    "loadtests/figures.py": {"loadtests"},
    "loadtests/report.py": {"loadtests"},
}
"""Modules that decide and do no I/O, and the packages beyond the standard library that each may import."""

IO = {"asyncio", "socket", "subprocess", "threading", "sqlite3", "httpx", "urllib", "http"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(module: Path) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package: str) -> None:
    wrong = {
        str(module.relative_to(ROOT)): imported(module) & FORBIDDEN[package]
        for module in modules(package)
        if module != VLLM_PLUGIN and imported(module) & FORBIDDEN[package]
    }
    assert not wrong


def test_what_runs_within_vllm_brings_nothing_of_the_gateway_along() -> None:
    assert not imported(VLLM_LORA) & {*PACKAGES, "torch", "vllm"}
    assert imported(VLLM_PLUGIN) & {*PACKAGES, "torch"} == {"gateway"}
    ours = [
        node
        for node in ast.walk(ast.parse(VLLM_PLUGIN.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gateway"
    ]
    assert [(node.module, [alias.name for alias in node.names]) for node in ours] == [
        ("gateway", [VLLM_LORA.stem])
    ]


@pytest.mark.parametrize("name", sorted(PURE))
def test_what_decides_does_no_io(name: str) -> None:
    found = imported(ROOT / name)
    third_party = found & {
        "adapters",
        "gateway",
        "orjson",
        "fastapi",
        "starlette",
        "sqlalchemy",
        "numpy",
        "scipy",
    }
    assert third_party <= PURE[name]
    assert not found & IO


def test_the_hot_path_knows_nothing_of_the_web_framework() -> None:
    for name in (
        "upstream",
        "exchange",
        "presence",
        "snapshots",
        "ids",
        "recorder",
        "shadow",
        "relay",
        "inference",
        "attempts",
        "reply",
        "endpoints",
        "routing",
        "engines",
        "access",
        "quotas",
    ):
        assert not imported(ROOT / "gateway" / f"{name}.py") & {
            "fastapi",
            "starlette",
            "uvicorn",
            "sqlalchemy",
        }, name


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(module.relative_to(ROOT))
        for package in PACKAGES
        for module in modules(package)
        if not ast.get_docstring(ast.parse(module.read_text())) and module.read_text().strip()
    ]
    assert not silent
