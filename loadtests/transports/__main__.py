"""The command line: every system in turn, round by round, and the table."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import uvloop

from loadtests.fake_engine.process import FakeEngine
from loadtests.transports.load import CONNECTIONS, ENGINE_MODEL, MODEL, ask, connections, request_body
from loadtests.transports.processes import LOAD_CORE, burnish, cpu_seconds, on_core, prototype

WARM_UP_REQUESTS = 200
PACE_SECONDS = 0.02
"""Between two events of a stream: slow enough that every relay here takes each event on its own."""
PROTOTYPES = {
    "FastAPI + httpx": ("fastapi", "httpx"),
    "FastAPI + aiohttp": ("fastapi", "aiohttp"),
    "bare ASGI + httpx": ("asgi", "httpx"),
    "bare ASGI + aiohttp": ("asgi", "aiohttp"),
}


@dataclass
class Row:
    """One system and its samples, one a round."""

    name: str
    url: str
    pid: int
    model: str = MODEL
    ms_per_request: list[float] = field(default_factory=list)
    us_per_chunk: list[float] = field(default_factory=list)
    requests_per_second: list[float] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)


async def measure_requests(row: Row, requests: int) -> None:
    body = request_body(row.model, 16, streams=False)
    async with connections(row.url) as callers:
        await ask(callers, body, min(WARM_UP_REQUESTS, requests))
        cpu, began = cpu_seconds(row.pid), time.monotonic()
        part = await ask(callers, body, requests)
        row.requests_per_second.append(part.answered / (time.monotonic() - began))
        row.ms_per_request.append((cpu_seconds(row.pid) - cpu) * 1e3 / part.answered)


async def measure_streams(row: Row, tokens: int) -> None:
    async with connections(row.url) as callers:
        await ask(callers, request_body(row.model, 1, streams=True), CONNECTIONS)
        cpu = cpu_seconds(row.pid)
        part = await ask(callers, request_body(row.model, tokens, streams=True), CONNECTIONS)
        row.us_per_chunk.append((cpu_seconds(row.pid) - cpu) * 1e6 / part.events)
        row.chunks.append(part.events)


async def measure(rows: list[Row], engine: FakeEngine, options: argparse.Namespace) -> None:
    """All rounds. Raises RuntimeError where a relay drops or adds events."""
    for _ in range(options.rounds):
        engine.set(itl_seconds=0)
        for row in rows:
            await measure_requests(row, options.requests)
        engine.set(itl_seconds=PACE_SECONDS)
        for row in rows:
            await measure_streams(row, options.tokens)
            if row.chunks != rows[0].chunks:
                raise RuntimeError(f"{row.name} relayed {row.chunks} events of {rows[0].chunks}")


def table(rows: list[Row]) -> str:
    """Markdown: medians over the rounds, and the least and the most beside them."""
    lines = [
        "| relay | CPU ms/request | least–most | CPU µs/chunk | least–most | requests/s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        request, chunk = row.ms_per_request, row.us_per_chunk
        cells = [
            row.name,
            f"{statistics.median(request):.3f}",
            f"{min(request):.3f}–{max(request):.3f}",
            f"{statistics.median(chunk):.1f}",
            f"{min(chunk):.1f}–{max(chunk):.1f}",
            f"{statistics.median(row.requests_per_second):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(rows: list[Row]) -> str:
    figures = ("name", "ms_per_request", "us_per_chunk", "requests_per_second", "chunks")
    return json.dumps([{name: getattr(row, name) for name in figures} for row in rows], indent=1)


def run(options: argparse.Namespace) -> list[Row]:
    """Starts everything, measures it, stops it."""
    with ExitStack() as stack:
        stack.enter_context(on_core(LOAD_CORE))
        engine = stack.enter_context(FakeEngine(ENGINE_MODEL))
        rows = [Row("no relay: the fake engine's own", engine.url, engine.pid, ENGINE_MODEL)]
        for name, (server, client) in PROTOTYPES.items():
            if find_spec(client) is None:
                print(f"{name} is left out: {client} is not installed", file=sys.stderr)
            else:
                rows.append(Row(name, *stack.enter_context(prototype(server, client, engine.url))))
        rows.append(Row("burnish serve (this repository)", *stack.enter_context(burnish(engine.url))))
        uvloop.run(measure(rows, engine, options))
    return rows


def main() -> None:
    """`python -m loadtests.transports`."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.transports",
        description="What a relay's HTTP server and client cost in CPU.",
    )
    parser.add_argument("--requests", type=int, default=3000, help="requests a relay and round (%(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=96, help="tokens of each of the 32 streams (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    options = parser.parse_args()
    rows = run(options)
    print(table(rows))
    if options.json:
        options.json.write_text(as_json(rows))


if __name__ == "__main__":
    main()
