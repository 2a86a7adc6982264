"""The transports benchmark as its command runs it, very short: every row is there, measured, and whole."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[3]
PROTOTYPES = ["FastAPI + httpx", "FastAPI + aiohttp", "bare ASGI + httpx", "bare ASGI + aiohttp"]
EXPECTED = [
    "no relay: the fake engine's own",
    *(name for name in PROTOTYPES if find_spec(name.rpartition(" ")[2])),
    "burnish serve (this repository)",
]


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """The table and the samples of one round of a few requests."""
    samples = tmp_path_factory.mktemp("transports") / "samples.json"
    command = [sys.executable, "-m", "loadtests.transports", "--requests", "64", "--tokens", "4"]
    done = subprocess.run(
        [*command, "--rounds", "1", "--json", str(samples)],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(samples.read_text())


def test_every_system_has_a_row_in_the_table(short_run: tuple[str, list[dict[str, Any]]]) -> None:
    table, _ = short_run
    head, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert head[0] == "relay"
    assert len(rule) == len(head)
    assert [row[0] for row in rows] == EXPECTED
    assert all(len(row) == len(head) for row in rows)


def test_every_figure_is_a_positive_number(short_run: tuple[str, list[dict[str, Any]]]) -> None:
    _, rows = short_run
    assert [row["name"] for row in rows] == EXPECTED
    for row in rows:
        for figure in ("ms_per_request", "us_per_chunk", "requests_per_second"):
            assert len(row[figure]) == 1, (row["name"], figure)
            assert row[figure][0] > 0, (row["name"], figure)


def test_every_relay_passes_every_event_of_every_stream_on(
    short_run: tuple[str, list[dict[str, Any]]],
) -> None:
    _, rows = short_run
    role, usage, done = 1, 1, 1
    assert [row["chunks"] for row in rows] == [[32 * (role + 4 + usage + done)]] * len(EXPECTED)
