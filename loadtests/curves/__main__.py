"""The command line: who is asked, both curves, and their tables."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import uvloop

from loadtests.curves.adapters import import_adapters, write_adapter
from loadtests.curves.measure import Load, Target, level
from loadtests.curves.points import Point
from loadtests.curves.results import Results
from loadtests.curves.table import table
from loadtests.fake_engine.process import FakeEngine
from loadtests.machine import machine
from loadtests.servers import FAKE_ITL_SECONDS, FAKE_TTFT_SECONDS, MODEL, System, serving
from loadtests.workload import Lengths

LEVELS = (1, 2, 4, 8, 16, 32, 64, 128)
ADAPTERS = (0, 1, 4, 8, 16)

PROOF_SECONDS = 900.0
"""Sixteen adapters are loaded and looked at one by one; on two cores that takes minutes."""

CONCURRENCY, BY_ADAPTERS = "concurrency", "adapters"
TITLES = {CONCURRENCY: "Streams at once", BY_ADAPTERS: "Adapters asked at once"}

ANY_CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}
"""For the fake engine, which has no shapes."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.from_file is not None:
        print(tables(Results.read(options.from_file)))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers are ended then too
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run(options)
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    except (RuntimeError, httpx.HTTPError) as problem:
        _say(f"{type(problem).__name__}: {problem}")
        return 1


def run(options: argparse.Namespace) -> int:
    """Both curves, and the tables of what there is at the end, whatever ended them; 1 where a request failed."""
    kept = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    results = Results(kept, machine())
    try:
        with _targets(options) as targets:
            _concurrency(options, targets, results)
            _adapters(options, targets[0], results)
    finally:
        if results.points:
            print(tables(results), flush=True)
    return int(any(point.errors for points in results.points.values() for point in points))


def tables(results: Results) -> str:
    """Each curve under its name, and the machine."""
    price = results.options.get("price_per_hour")
    parts = [f"### {TITLES[curve]}\n\n{table(points, price)}" for curve, points in results.points.items()]
    found = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    gpus = "; ".join(found["gpus"]) or "no GPU"
    parts.append(
        f"{found['cores']} cores of {found['cpu']}, {gpus}; Python {found['python']}, {versions}. Median prompt"
        f" {results.options['prompt_tokens']} tokens, answer {results.options['answer_tokens']};"
        f" {results.options['seconds']:g} s a level."
    )
    if results.options.get("engine") == "fake":
        parts.append(
            "The fake engine's delays do not grow with load: this shows that the harness works, and nothing else."
        )
    return "\n\n".join(parts)


def _concurrency(options: argparse.Namespace, targets: Sequence[Target], results: Results) -> None:
    for streams in options.levels:
        for target in targets:
            _say(f"{target.name}: {streams} streams")
            _add(options, results, CONCURRENCY, uvloop.run(level(target, _load(options), streams)))


def _add(options: argparse.Namespace, results: Results, curve: str, point: Point) -> None:
    """Written at once: a curve takes minutes, and what is there should survive what ends it."""
    results.add(curve, point)
    if options.json is not None:
        results.write(options.json)


def _adapters(options: argparse.Namespace, target: Target, results: Results) -> None:
    if not options.adapters:
        return
    with tempfile.TemporaryDirectory(prefix="burnish-load-") as folder:
        names = _imported(options, target, Path(folder))
        for count in options.adapters:
            _say(f"{target.name}: {count} adapters, {options.at_once} streams")
            found = uvloop.run(level(target, _load(options), options.at_once, names[:count]))
            _add(options, results, BY_ADAPTERS, found)


def _imported(options: argparse.Namespace, target: Target, folder: Path) -> list[str]:
    """Random adapters, as many as the curve needs, proved. Raises RuntimeError."""
    count = max(options.adapters)
    if count == 0:
        return []
    config = _config(options, target.model)
    _say(f"making {count} adapters and having them proved")
    made = [write_adapter(folder / f"load-{seed:02d}", config, options.rank, seed) for seed in range(count)]
    return uvloop.run(import_adapters(target.url, target.model, made, PROOF_SECONDS))


def _config(options: argparse.Namespace, model: str) -> dict[str, Any]:
    """The base model's config.json. Raises RuntimeError where it is not at hand."""
    if options.engine == "fake":
        return dict(ANY_CONFIG)
    file = options.config or options.weights / model / "config.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except OSError as problem:
        raise RuntimeError(f"adapters need the base model's config.json (--config): {problem}") from None
    return found


@contextlib.contextmanager
def _targets(options: argparse.Namespace) -> Iterator[list[Target]]:
    """Who is asked; the one that takes adapters is the first."""
    if options.url is not None:
        yield [Target("server", options.url.rstrip("/"), options.model)]
        return
    with contextlib.ExitStack() as stack:
        engine = options.engine
        if engine == "fake":
            fake = stack.enter_context(FakeEngine(options.model))
            fake.set(ttft_seconds=FAKE_TTFT_SECONDS, itl_seconds=FAKE_ITL_SECONDS)
            engine = fake.url
        given = {
            "engine": {"model": options.model, "max_loras": options.max_loras},
            "training": {"worker": False},
        }
        system = System(engine, options.weights, given)
        burnish = Target("Burnish", stack.enter_context(serving(system, None, priority=True)), options.model)
        wait_until_up(burnish)
        beside = [Target("the engine alone", engine.rstrip("/"), options.model)] if options.beside else []
        yield [burnish, *beside]


def wait_until_up(target: Target, seconds: float = 600.0) -> None:
    """Until it has really answered. Raises RuntimeError where it does not in time."""
    asked = {"model": target.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    until = time.monotonic() + seconds
    told = "nothing"
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.post(f"{target.url}/v1/chat/completions", json=asked, timeout=120, trust_env=False)
            if answer.is_success:
                return
            told = f"{answer.status_code} {answer.text[:300]}"
        time.sleep(0.5)
    raise RuntimeError(f"{target.name} does not answer: {told}")


def _load(options: argparse.Namespace) -> Load:
    lengths = Lengths(
        options.prompt_tokens, options.answer_tokens, 4 * options.prompt_tokens, 2 * options.answer_tokens
    )
    return Load(lengths, options.seconds, options.warm_seconds, options.seed)


def counts(text: str) -> tuple[int, ...]:
    """`1,2,4` in the order given; `none` for none."""
    try:
        found = () if text == "none" else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1,2,4") from None
    if any(count < 0 for count in found):
        raise argparse.ArgumentTypeError(f"{text!r}: a count is less than 0")
    return found


def _levels(text: str) -> tuple[int, ...]:
    found = counts(text)
    if 0 in found:
        raise argparse.ArgumentTypeError(f"{text!r}: 0 streams ask nothing")
    return found


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.curves",
        description="Latency and throughput by streams at once, and by adapters asked at once.",
    )
    add = parser.add_argument
    add("--url", help="a running server: Burnish, or any that speaks OpenAI's API")
    add("--engine", metavar="real|fake|URL",
        help="serve Burnish for it: on an engine of its own, on a fake one, on a vLLM's URL")  # fmt: skip
    add("--beside", action="store_true", help="the engine itself too, level by level (fake or URL)")
    add("--model", default=MODEL, help="what is asked for (%(default)s)")
    add("--levels", type=_levels, default=LEVELS, help="streams at once: 1,2,4; or none (1 to 128)")
    add("--adapters", type=counts, help="adapters asked at once; or none (0,1,4,8,16, with --url none)")
    add("--at-once", type=int, default=32, help="streams of the adapters' curve (%(default)s)")
    add("--rank", type=int, default=16, help="of the adapters (%(default)s)")
    add("--max-loras", type=int, default=4, help="slots of the engine that Burnish starts (%(default)s)")
    add("--seconds", type=float, default=20.0, help="a level (%(default)s)")
    add("--warm-seconds", type=float, default=60.0, help="at most, before that (%(default)s)")
    add("--prompt-tokens", type=int, default=64, help="median (%(default)s)")
    add("--answer-tokens", type=int, default=32, help="median (%(default)s)")
    add("--seed", type=int, default=1)
    add("--price-per-hour", type=float, help="of the engine: adds what a million tokens cost")
    add("--config", type=Path, help="the base model's config.json, for the adapters' shapes")
    add("--weights", type=Path, default=_cache() / "burnish-tests" / "weights",
        help="folder of base models, fetched into once (%(default)s)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the points there")
    add(
        "--from", type=Path, metavar="FILE", dest="from_file", help="print the tables of such a file, and end"
    )
    options = parser.parse_args(arguments)
    if options.from_file is None and (options.url is None) == (options.engine is None):
        parser.error("give --url or --engine")
    if options.beside and options.engine in (None, "real"):
        parser.error("--beside needs --engine fake or a URL: an engine that Burnish starts has no port")
    if options.adapters is None:
        options.adapters = () if options.url is not None else ADAPTERS
    return options


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
