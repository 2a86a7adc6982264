"""What README and docs/ name is there, and what they must name is named: settings, endpoints, codes, links, verbs.

Does not judge the prose. README's commands themselves are run by tests/acceptance/test_readme.py.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from adapters.engine_settings import EngineSettings
from adapters.plans import GUARDRAILS, WATCHABLE, Plan, plan_json
from adapters.settings import ENVIRONMENT, Canary, Health, Limits, Recording, Settings, Training
from adapters.telemetry_settings import Costs, Langfuse, Metrics, Tracing
from adapters.traffic_settings import Admission, Batches, KeyLimits, Priority, Targets
from gateway.app import _rest
from gateway.cli import app as cli
from gateway.endpoints import ENDPOINTS
from gateway.runtime import Runtime
from gateway.serve import open_database

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])

SECTIONS: dict[str, type[BaseModel]] = {
    "Top level": Settings,
    "[limits]": Limits,
    "[health]": Health,
    "[canary]": Canary,
    "[recording]": Recording,
    "[targets]": Targets,
    "[priority]": Priority,
    "[admission]": Admission,
    "[batches]": Batches,
    "[key_limits]": KeyLimits,
    "[training]": Training,
    "[metrics]": Metrics,
    "[tracing]": Tracing,
    "[langfuse]": Langfuse,
    "[costs]": Costs,
    "[[engines]]": EngineSettings,
}
TABLES = {heading.strip("[]") for heading in SECTIONS} - {"Top level"}
"""Keys of the top level that have a section of their own."""

OWN_HTTP = {("GET", "/docs"), ("GET", "/openapi.json")}
"""What FastAPI serves by itself."""

MADE_CODES = {
    f"{kind}_{side}_value" for kind in ("integer", "decimal") for side in ("below_min", "above_max")
}
"""Codes that are put together at run time (gateway/protocol/checks.py)."""


# -- settings ------------------------------------------------------------------------------------
def toml(field: FieldInfo) -> str:
    """A default as operations.md writes it."""
    value: Any = field.get_default(call_default_factory=True)
    match value:
        case _ if field.is_required():
            return "required"
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case str() | Path():
            return f'"{value}"'
        case tuple():
            return "[]"
        case _:
            return str(value)


def part(page: str, heading: str) -> str:
    """The text under one heading, up to the next heading of any level."""
    found = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##+ |\Z)", page, re.M | re.S)
    assert found, heading
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, heads and rules left out."""
    lines = [line for line in text.splitlines() if line.startswith(("| ", "|-"))]
    kept = [
        line
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
        if not line.startswith("|-") and not following.startswith("|-")
    ]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in kept]


@pytest.mark.parametrize("heading", SECTIONS)
def test_operations_has_every_settings_key_with_its_default(heading: str) -> None:
    table = rows(part((DOCS / "operations.md").read_text(), heading))
    told = {row[0].strip("`"): row[1].strip("`") for row in table}
    fields = SECTIONS[heading].model_fields
    assert told == {name: toml(field) for name, field in fields.items() if name not in TABLES}


def test_operations_has_every_variable() -> None:
    source = "".join(file.read_text() for folder in ("adapters", "gateway") for file in sources(folder))
    used = set(re.findall(r"\bBURNISH_[A-Z_]+\b", source + (ROOT / "Makefile").read_text())) | set(
        ENVIRONMENT
    )
    table = rows(part((DOCS / "operations.md").read_text(), "Settings"))
    assert used == {row[0].strip("`") for row in table if row[0].startswith("`BURNISH_")}


def test_the_limits_of_the_api_page_are_those_of_the_settings() -> None:
    table = rows(part((DOCS / "api.md").read_text(), "Limits"))
    told = {row[1].strip("`"): row[2] for row in table}
    fields = Limits.model_fields
    assert told == {name: toml(field) for name, field in fields.items() if name.startswith("max_")}


def test_the_api_page_has_every_key_of_a_plan_with_its_default() -> None:
    table = rows(part((DOCS / "api.md").read_text(), "The plan"))
    told = {row[0].strip("`"): row[1].strip("`") for row in table}
    usual = {name: json.dumps(value) for name, value in plan_json(Plan()).items()}
    expected = {**usual, "challengers": "required", "guardrails": "see below"}
    assert {name: told[name] for name in expected} == expected
    assert {name for name in told if name not in expected} == set(WATCHABLE), "the table of guardrails"
    tolerated = {name: float(row[2]) for row in table if (name := row[0].strip("`")) in dict(GUARDRAILS)}
    assert tolerated == dict(GUARDRAILS)


# -- the surface ---------------------------------------------------------------------------------
async def endpoints(home: Path) -> set[tuple[str, str]]:
    """Method and path of everything that one gateway serves."""
    engine = EngineSettings(name="e0", kind="openai", models=("some-model",), url="http://127.0.0.1:9")
    settings = Settings(home=home, engines=(engine,))
    db = open_database(settings)
    try:
        app = _rest(Runtime(settings, db, {}))
    finally:
        db.close()
    served = {
        (method, route.path)
        for route in cast(FastAPI, app).routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert len(served) > 15, "the routes are not where this test looks for them"
    return served | {("POST", path) for path in ENDPOINTS} | OWN_HTTP


def nameless(endpoint: tuple[str, str]) -> tuple[str, str]:
    return endpoint[0], re.sub(r"\{[^}]*\}", "{}", endpoint[1])


async def test_the_api_page_has_every_endpoint_and_no_other(tmp_path: Path) -> None:
    text = (DOCS / "api.md").read_text()
    told = set(re.findall(r"`(GET|POST|PUT|PATCH|DELETE) (/[^`\s…?]*)`", text))
    assert {nameless(endpoint) for endpoint in told} == {
        nameless(endpoint) for endpoint in await endpoints(tmp_path)
    }


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def codes() -> Iterator[str]:
    """Every error code that is a literal: an argument called `code`, or a class's `default_code`."""
    for file in (*sources("adapters"), *sources("gateway")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case (
                    ast.keyword(arg="code", value=value)
                    | ast.Assign(targets=[ast.Name(id="default_code")], value=value)
                ):
                    yield from literals(value)


def literals(value: ast.expr) -> Iterator[str]:
    """The strings that an expression can be, as far as they stand in it."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.IfExp):
        yield from (*literals(value.body), *literals(value.orelse))


def test_the_api_page_has_every_error_code_and_no_other() -> None:
    table = rows(part((DOCS / "api.md").read_text(), "Errors").split("The codes:")[1])
    told = {code for row in table for code in re.findall(r"`(\w+)`", row[0])}
    assert told == set(codes()) | MADE_CODES


# -- links and names -----------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_of(page: Path) -> str:
    """All blocks and spans of code of a page, one a line; a tree of files is no command."""
    text = page.read_text()
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.M | re.S))
    return "\n".join([*(block for block in fenced if "──" not in block and "  " * 4 not in block), *spans])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_verb_and_option_of_the_command_exists(page: Path) -> None:
    for words in re.findall(r"(?:^|[ /(])burnish ([^\n()|;#]+)", code_of(page), re.M):
        _walk(words.split())


def _walk(words: list[str]) -> None:
    """Follows words down the tree of commands; options must be those of the command they end at."""
    command: Any = typer.main.get_command(cli)
    while words and getattr(command, "commands", None) is not None:
        assert words[0] in command.commands, f"burnish … {words[0]}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        assert not word.startswith("--") or word in known, f"{command.name} {word}"


def test_the_command_walk_finds_what_is_not_there() -> None:
    with pytest.raises(AssertionError):
        _walk(["adapters", "polish"])
    with pytest.raises(AssertionError):
        _walk(["promote", "support@2", "--gently"])


def test_tests_that_the_docs_name_exist() -> None:
    known = set()
    for file in (ROOT / "tests").rglob("*.py"):
        if "node_modules" not in file.parts:
            known |= set(re.findall(r"def (test_\w+)", file.read_text()))
    for page in PAGES:
        for name in re.findall(r"`(test_\w+)`", page.read_text()):
            assert name in known, f"{page.name}: {name}"


def test_files_that_the_docs_name_exist() -> None:
    for page in PAGES:
        if page.name in ("log.md", "CHANGELOG.md"):  # what was true on the day
            continue
        for name in re.findall(
            r"`((?:adapters|gateway|trainer|loadtests|tests|requirements|docs)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_tree_of_the_readme_is_the_tree() -> None:
    """Every file or folder it names exists, and no module of the packages is left out."""
    tree = (ROOT / "README.md").read_text().split("## The files")[1].split("```")[1]
    named, folder = set(), ""
    for line in tree.splitlines():
        if not (found := re.match(r"( *)([\w.-]+(?:/\w+)?/?)(?: |$)", line)) or len(found[1]) > 2:
            continue
        indent, name = len(found[1]), found[2]
        folder = folder if indent else name
        path = (folder if indent else "") + name
        named.add(path.rstrip("/"))
        assert (ROOT / path).exists(), path
    for package in ("adapters", "gateway", "trainer", "loadtests", "dashboards"):
        inside = {
            f"{package}/{entry.name}"
            for entry in (ROOT / package).iterdir()
            if not entry.name.startswith("__")
        }
        assert inside <= named, sorted(inside - named)
