"""The command line and the order of things: the model, the engine, Burnish, then stage after stage within the time."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import uvloop

from loadtests.coserving.scenarios import SCENARIOS
from loadtests.curves.__main__ import counts, wait_until_up
from loadtests.curves.adapters import write_adapter
from loadtests.curves.measure import Load, Target
from loadtests.fake_engine.process import FakeEngine
from loadtests.gpu import stages
from loadtests.gpu.engine import ATTEMPTS, Engine, Order, vllm
from loadtests.gpu.model import SHAPES, write_model, write_weights
from loadtests.gpu.report import Report
from loadtests.machine import machine
from loadtests.servers import FAKE_ITL_SECONDS, FAKE_TTFT_SECONDS, System, free_port, serving
from loadtests.workload import Lengths

STAGES = ("concurrency", "adapters", "users", "batch", "coserving")
WITH_TRAINING = tuple(scenario.name for scenario in SCENARIOS if scenario.training)

END_SECONDS = 20.0
"""Kept free at the end: everything is stopped then."""

SHARE_ALONE, SHARE_BESIDE_TRAINING, TRAINING_SHARE = 0.85, 0.55, 0.35
"""Of the GPU's memory: the engine's, the engine's where a run trains beside it, and that run's."""

LOAD_OF_COSERVING = 0.5
FALLBACK_RATE = 4.0
TTFT_TARGET_SECONDS, ITL_TARGET_SECONDS = 0.5, 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all servers are ended then too
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    report = Report(options.out, kept, machine(), options.price_per_hour)
    try:
        run(options, report)
    except KeyboardInterrupt:
        report.end("run", "stopped")
    except (RuntimeError, OSError, httpx.HTTPError) as problem:
        report.end("run", f"{type(problem).__name__}: {problem}")
        _say(f"{type(problem).__name__}: {problem}")
    report.write()
    print(report.tables(), flush=True)
    return int(any(how != "done" for how in report.stages.values()) or not report.stages)


def run(options: argparse.Namespace, report: Report) -> None:
    """Everything. Raises RuntimeError where nothing can be measured at all."""
    until = report.began + options.budget - END_SECONDS
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="burnish-gpu-")))
        config = _model(options, work)
        making = _Making(options, work, config)
        engine = stack.enter_context(_engine(options, work, until, report))
        making.wait(max(1.0, until - time.monotonic()))
        _say(f"the engine is up ({engine.how}) after {engine.start_seconds:.0f} s")
        with serving(
            _system(options, engine, work), None, priority=True, log=options.out / "serve.log"
        ) as url:
            burnish = Target("Burnish", url, options.name)
            wait_until_up(burnish, max(5.0, min(120.0, until - time.monotonic())))
            alone = Target("the engine alone", engine.url, options.name)
            bench = stages.Bench(report, burnish, alone, _load(options), until)
            folders = making.adapters
            steps: dict[str, Callable[[], Awaitable[None]]] = {
                "concurrency": lambda: stages.concurrency(bench, options.levels),
                "adapters": lambda: stages.adapters(bench, folders, options.adapters, options.at_once),
                "users": lambda: stages.users(bench, options.out),
                "batch": lambda: stages.batch(bench),
            }
            for name, step in steps.items():
                if name in options.stages:
                    _stage(report, name, lambda step=step: uvloop.run(_within(step(), bench.until)))  # type: ignore[misc]
        if "coserving" in options.stages:
            asked = _coserving_arguments(options, engine, work, report)
            _stage(report, "coserving", lambda: stages.coserving(bench, asked, options.out))


def _stage(report: Report, name: str, step: Callable[[], None]) -> None:
    """One stage; whatever ends it, the next one has its turn."""
    _say(f"{name} begins, {time.monotonic() - report.began:.0f} s after the start")
    try:
        step()
    except KeyboardInterrupt:
        report.end(name, "stopped")
        raise
    except Exception as problem:
        _say(f"{name}: {type(problem).__name__}: {problem}")
        report.end(name, f"{type(problem).__name__}: {str(problem)[:300]}")
    else:
        report.end(name, "done")


async def _within(work: Awaitable[None], until: float) -> None:
    async with asyncio.timeout(until - time.monotonic()):
        await work


class _Making:
    """The adapters, which are written while the engine starts."""

    def __init__(self, options: argparse.Namespace, work: Path, config: dict[str, Any]) -> None:
        self.adapters: list[Path] = []
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._make, args=(options, work, config), daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Raises RuntimeError where it failed, or is not done in time."""
        self._thread.join(seconds)
        if self._problem is not None or self._thread.is_alive():
            raise RuntimeError(f"the adapters were not written: {self._problem or 'not in time'}")

    def _make(self, options: argparse.Namespace, work: Path, config: dict[str, Any]) -> None:
        try:
            count = max(options.adapters, default=0) if "adapters" in options.stages else 0
            for seed in range(count):
                self.adapters.append(write_adapter(work / f"load-{seed:02d}", config, options.rank, seed))
        except Exception as problem:
            self._problem = problem


def _model(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The model's folder is work/weights/NAME, where Burnish's trainer looks for it too; its config.json's content."""
    folder = work / "weights" / options.name
    if options.weights is None:
        write_model(folder, SHAPES[options.shape], options.tokenizer)
        if options.engine != "fake" or _trains(options):
            write_weights(folder, SHAPES[options.shape])
    else:
        folder.parent.mkdir(parents=True)
        folder.symlink_to(options.weights.absolute())
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@contextlib.contextmanager
def _engine(options: argparse.Namespace, work: Path, until: float, report: Report) -> Iterator[Engine]:
    if options.engine == "fake":
        with FakeEngine(options.name) as fake:
            fake.set(ttft_seconds=FAKE_TTFT_SECONDS, itl_seconds=FAKE_ITL_SECONDS)
            yield Engine(fake.url, "fake", 0.0)
        return
    order = Order(
        model=work / "weights" / options.name,
        name=options.name,
        max_loras=options.max_loras,
        max_cpu_loras=2 * max(options.max_loras, *options.adapters, 8),
        rank=options.rank,
        memory_share=options.memory_share or (SHARE_BESIDE_TRAINING if _trains(options) else SHARE_ALONE),
        extra=tuple(options.engine_args.split()),
    )
    starting = vllm(
        order,
        free_port(),
        options.out / "engine.log",
        until,
        first=options.first_attempt,
        patience=options.patience,
    )
    with starting as engine:
        report.engine = {
            "how": engine.how,
            "up after, s": engine.start_seconds,
            "memory share": order.memory_share,
        }
        report.write()
        yield engine


def _system(options: argparse.Namespace, engine: Engine, work: Path) -> System:
    given = {"model": options.name, "max_loras": options.max_loras, "max_lora_rank": options.rank}
    given |= {"priorities": True}
    if options.price_per_hour is not None:
        given["price_per_hour"] = options.price_per_hour
    tables = {"engine": given, "priority": {"quiet_seconds": 2.0}, "training": {"worker": False}}
    return System(engine.url, work / "weights", tables)


def _coserving_arguments(
    options: argparse.Namespace, engine: Engine, work: Path, report: Report
) -> list[str]:
    """The trace has half of the requests that the engine answered a second at most, as measured before."""
    points = [point for point in report.points.get("concurrency", ()) if point.target == "Burnish"]
    best = max((point.requests_per_second for point in points), default=FALLBACK_RATE / LOAD_OF_COSERVING)
    rate = options.rate or best * LOAD_OF_COSERVING
    given = {"model": options.name, "max_loras": options.max_loras, "max_lora_rank": options.rank}
    sets = [f"engine.{key}={value}" for key, value in given.items()]
    sets += ["engine.priorities=true", f"training.gpu_memory_share={TRAINING_SHARE}"]
    return [
        *("--engine", engine.url, "--weights", str(work / "weights"), "--scenarios", options.scenarios),
        *("--seconds", f"{options.coserving_seconds:g}", "--warm-seconds", "5", "--rate", f"{rate:.2f}"),
        *("--ttft-target", str(TTFT_TARGET_SECONDS), "--itl-target", str(ITL_TARGET_SECONDS)),
        *("--prompt-tokens", str(options.prompt_tokens), "--answer-tokens", str(options.answer_tokens)),
        *(word for one in sets for word in ("--set", one)),
    ]


def _trains(options: argparse.Namespace) -> bool:
    return "coserving" in options.stages and any(
        name in WITH_TRAINING for name in options.scenarios.split(",")
    )


def _load(options: argparse.Namespace) -> Load:
    prompt, answer = options.prompt_tokens, options.answer_tokens
    return Load(Lengths(prompt, answer, 4 * prompt, 2 * answer), options.seconds, 30.0, options.seed)


def _stages(text: str) -> tuple[str, ...]:
    asked = tuple(text.split(","))
    if unknown := set(asked) - set(STAGES):
        raise argparse.ArgumentTypeError(
            f"no stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}"
        )
    return asked


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.gpu", description="All measurements that want a GPU, within a time."
    )
    add = parser.add_argument
    add("--budget", type=float, default=560.0, metavar="SECONDS", help="for everything (%(default)s)")
    add("--stages", type=_stages, default=STAGES, help=",".join(STAGES))
    add("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder of results ($OUT, or .)")
    add("--engine", choices=("vllm", "fake"), default="vllm")
    add("--shape", choices=SHAPES, default="llama3-8b", help="of the model that is made up (%(default)s)")
    add("--tokenizer", type=Path, default=_cache(), help="folder of a BPE tokenizer for it (%(default)s)")
    add("--weights", type=Path, help="a model's folder, in place of a made-up one")
    add("--name", help="what the model is called (the shape, or that folder's name)")
    add("--levels", type=counts, default=(1, 4, 16, 32, 64, 128), help="streams at once: 1,4,16,32,64,128")
    add("--adapters", type=counts, default=(0, 1, 4, 8, 16), help="asked at once: 0,1,4,8,16")
    add("--at-once", type=int, default=32, help="streams of the adapters' curve (%(default)s)")
    add("--max-loras", type=int, default=4, help="the engine's slots (%(default)s)")
    add("--rank", type=int, default=16)
    add("--seconds", type=float, default=5.0, help="a level (%(default)s)")
    add("--prompt-tokens", type=int, default=512, help="median (%(default)s)")
    add("--answer-tokens", type=int, default=128, help="median (%(default)s)")
    add("--scenarios", default="batch-only,alone,batch,training", help="of loadtests.coserving (%(default)s)")
    add("--coserving-seconds", type=float, default=20.0, help="a scenario's trace (%(default)s)")
    add("--rate", type=float, help="requests a second of that trace; else half of the most measured")
    add(
        "--memory-share",
        type=float,
        help=f"of the GPU's, for the engine ({SHARE_ALONE}; {SHARE_BESIDE_TRAINING} beside training)",
    )
    add(
        "--first-attempt",
        choices=[attempt.how for attempt in ATTEMPTS],
        default=ATTEMPTS[0].how,
        help="how vLLM is started first (%(default)s)",
    )
    add("--patience", type=float, default=1.0, help="a factor on the seconds that a start gets (%(default)s)")
    add("--engine-args", default="", metavar="FLAGS", help="further ones for vLLM")
    add("--price-per-hour", type=float, help="of the engine: adds what a million tokens cost")
    add("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    options.name = options.name or (options.weights.name if options.weights else options.shape)
    return options


def _cache() -> Path:
    """Where the load tests keep the default weights, and their tokenizer with them."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "burnish-tests" / "weights" / "smollm2-135m-instruct"


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
