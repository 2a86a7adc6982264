"""The measurements, one function each: they add to the report what they find, as they find it.

Knows who is asked and how long it may take. Starts no engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from loadtests.coserving.background import Batch
from loadtests.curves.adapters import import_adapters
from loadtests.curves.measure import Load, Target, level
from loadtests.gpu.report import Report
from loadtests.workload import crowd

USERS = 100
USERS_SECONDS = 15.0
SCRAPE_AFTER_SECONDS = 6.0

PROOF_SECONDS = 90.0

BATCH_SECONDS = 15.0
BATCH_LINES = 4000
BATCH_REST_SECONDS = 4.0
"""The gateway is started with `priority.quiet_seconds = 2`, so that a batch has the engine to itself after this."""

STOP_SECONDS = 25.0
"""What the other measurement gets to print its table in once it is stopped: it ends a server and a run."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all stages have in common."""

    report: Report
    burnish: Target
    engine: Target
    load: Load
    until: float  # of time.monotonic's clock: nothing is begun that will not be over by then

    def has(self, seconds: float) -> bool:
        return time.monotonic() + seconds < self.until


async def concurrency(bench: Bench, levels: Sequence[int]) -> None:
    """Every level at the engine itself and through Burnish, next to each other in time."""
    for streams in levels:
        for target in (bench.engine, bench.burnish):
            if not bench.has(_level_seconds(bench.load)):
                raise TimeoutError(f"no time for {streams} streams")
            bench.report.add("concurrency", await level(target, bench.load, streams))


async def adapters(
    bench: Bench, folders: Sequence[Path], adapter_counts: Sequence[int], at_once: int
) -> None:
    """The curve through Burnish, and at the engine itself for the counts that it was loaded with where Burnish does not
    prove them."""
    target = bench.burnish
    began = time.monotonic()
    try:
        names = await import_adapters(target.url, target.model, folders, PROOF_SECONDS)
        bench.report.tell("adapters", {"imported and proved in, s": time.monotonic() - began})
    except (RuntimeError, httpx.HTTPError) as problem:
        bench.report.tell("adapters", {"Burnish did not prove them": str(problem)[:600]})
        target = bench.engine
        names = await _loaded(target.url, folders)
    for count in adapter_counts:
        if not bench.has(_level_seconds(bench.load)):
            raise TimeoutError(f"no time for {count} adapters")
        bench.report.add("adapters", await level(target, bench.load, at_once, names[:count]))


async def users(bench: Bench, folder: Path) -> None:
    """A hundred at once, and under that load what the gateway and the engine tell of themselves."""
    if not bench.has(USERS_SECONDS + _level_seconds(bench.load)):
        raise TimeoutError("no time for it")
    scraping = asyncio.create_task(_scrape(bench.burnish.url, folder))
    load = replace(bench.load, seconds=USERS_SECONDS)
    bench.report.add("users", await level(bench.burnish, load, USERS))
    await scraping


async def batch(bench: Bench) -> None:
    """Lines a second of a batch alone."""
    if not bench.has(BATCH_SECONDS + 4 * BATCH_REST_SECONDS):
        raise TimeoutError("no time for it")
    await asyncio.sleep(BATCH_REST_SECONDS)
    asks = crowd(bench.load.seed + 1, BATCH_LINES, bench.load.lengths)
    async with httpx.AsyncClient(base_url=bench.burnish.url, timeout=60, trust_env=False) as http:
        work = Batch(http, bench.burnish.model, asks, uuid.uuid4().hex[:6])
        await work.begin()
        await asyncio.sleep(BATCH_REST_SECONDS)
        first = await work.read()
        await asyncio.sleep(BATCH_SECONDS)
        last = await work.read()
        await work.end()
    found = {"lines/s": (last.done - first.done) / (last.at - first.at), "failed": last.failed}
    bench.report.tell("batch", found | {"ended early": last.is_over})


def coserving(bench: Bench, arguments: Sequence[str], folder: Path) -> None:
    """`loadtests.coserving` as a command of its own; stopped where the time is over, with the table of what there is."""
    command = [
        sys.executable,
        "-m",
        "loadtests.coserving",
        *arguments,
        "--json",
        str(folder / "coserving.json"),
    ]
    with (folder / "coserving.md").open("wb") as out:
        process = subprocess.Popen(command, stdout=out)
        try:
            process.wait(max(1.0, bench.until - STOP_SECONDS - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            raise TimeoutError("it was not done in time") from None
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise RuntimeError(f"it ended with {process.returncode}")


def _level_seconds(load: Load) -> float:
    """What a level takes at most, as a rule: its warm-up, its time, and the last answers."""
    return load.seconds + 2 * min(load.warm_seconds, 5.0)


async def _loaded(url: str, folders: Sequence[Path]) -> list[str]:
    """Loads the adapters into a vLLM itself; their names there."""
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        for folder in folders:
            asked = {"lora_name": folder.name, "lora_path": str(folder)}
            (await http.post("/v1/load_lora_adapter", json=asked)).raise_for_status()
    return [folder.name for folder in folders]


async def _scrape(url: str, folder: Path) -> None:
    """What /metrics and /metrics/engines say in the midst of it; a failure is written in their place."""
    await asyncio.sleep(SCRAPE_AFTER_SECONDS)
    async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as http:
        for path, name in (("/metrics", "metrics.txt"), ("/metrics/engines", "metrics-engines.txt")):
            try:
                text = (await http.get(path)).text
            except httpx.HTTPError as problem:
                text = f"{type(problem).__name__}: {problem}\n"
            (folder / name).write_text(text)
