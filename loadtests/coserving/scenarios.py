"""Who runs beside whom: the scenarios, and the calibration before them.

Owns the order of things within one scenario: the training run works, then the batch works, then the trace begins; both
are counted from its begin to its end and cancelled after the last answer. Knows neither processes nor tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import httpx

from loadtests.coserving.background import Background, Batch, Reading, Training
from loadtests.coserving.results import Measured, Work
from loadtests.coserving.table import own_gap
from loadtests.percentiles import percentile
from loadtests.servers import Targets
from loadtests.stream import Answer, Body, play, saturate
from loadtests.workload import Ask, Lengths, body, crowd

LEAD_SECONDS = 0.5
"""Before a trace begins all its bodies are made."""

REST_SECONDS = 3.0
"""Between two scenarios: what the last one left behind ends."""

QUIET_SECONDS = 18.0
"""After a trace, the work without interactive requests is measured once the gateway counts as quiet (15 s)."""

SLACK = 1.5
"""The targets, as a multiple of what the trace has alone."""

CROWDS = (8, 16, 32, 64, 128)
LEAST_GAIN = 1.15
"""Saturated: twice as many callers get less than so much more done."""
LEAST_COUNTED = 16


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    interactive: bool
    batch: bool
    training: bool
    priority: bool


SCENARIOS = (
    # Those without interactive requests first: the gateway's headroom is whole, and nobody has to wait for that.
    Scenario("batch-only", interactive=False, batch=True, training=False, priority=True),
    Scenario("training-only", interactive=False, batch=False, training=True, priority=True),
    Scenario("alone", interactive=True, batch=False, training=False, priority=True),
    Scenario("batch", interactive=True, batch=True, training=False, priority=True),
    Scenario("training", interactive=True, batch=False, training=True, priority=True),
    Scenario("both", interactive=True, batch=True, training=True, priority=True),
    Scenario("batch-off", interactive=True, batch=True, training=False, priority=False),
    Scenario("training-off", interactive=True, batch=False, training=True, priority=False),
    Scenario("both-off", interactive=True, batch=True, training=True, priority=False),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What every scenario has in common."""

    model: str
    asks: tuple[Ask, ...]
    warm_asks: tuple[Ask, ...]
    seconds: float
    warm_seconds: float
    batch_asks: tuple[Ask, ...]
    training_rows: int
    training_batch_size: int


class Stage:
    """One server, and the scenarios on it."""

    def __init__(self, url: str, plan: Plan) -> None:
        self._url = url
        self._plan = plan
        self._last_answer = time.monotonic()  # the server has just asked its engine for its greeting
        self._is_warm = False

    async def warm(self) -> None:
        """People whom nobody counts, once: the first who ask a new engine wait for what it makes on its first requests,
        and of a server's scenarios those would be the ones of `alone`."""
        if not self._is_warm:
            await alone(self._url, self._plan.model, self._plan.warm_asks)
            self._is_warm = True
            self._last_answer = time.monotonic()

    async def measure(self, scenario: Scenario, number: int) -> Measured:
        """One scenario in round `number`. Raises RuntimeError where its batch or its run does not work."""
        plan = self._plan
        if scenario.interactive:
            await self.warm()
        await asyncio.sleep(REST_SECONDS)
        if not scenario.interactive:
            await asyncio.sleep(self._last_answer + QUIET_SECONDS - time.monotonic())
        async with _working(self._url, plan, scenario) as background:
            if background:
                await asyncio.sleep(plan.warm_seconds)
            begin = time.monotonic() + LEAD_SECONDS
            asks = plan.asks if scenario.interactive else ()
            playing = asyncio.create_task(play(self._url, asks, _body(plan.model), begin))
            await asyncio.sleep(begin - time.monotonic())
            first = {name: await work.read() for name, work in background.items()}
            await asyncio.sleep(begin + plan.seconds - time.monotonic())
            last = {name: await work.read() for name, work in background.items()}
            answers = await playing
            if scenario.interactive:
                self._last_answer = time.monotonic()
        done = {name: _work(first[name], last[name]) for name in background}
        return Measured(
            scenario.name, number, plan.seconds, tuple(answers), done.get("batch"), done.get("training")
        )


async def alone(url: str, model: str, asks: Sequence[Ask]) -> list[Answer]:
    """The trace with nobody else, for the calibration."""
    return await play(url, asks, _body(model), time.monotonic() + LEAD_SECONDS)


async def capacity(url: str, model: str, seed: int, lengths: Lengths) -> float:
    """Requests a second at which the engine is saturated: callers that ask again when they are answered, twice as many
    each time, until that gets little more done."""
    best = 0.0
    for at_once in CROWDS:
        counted = max(at_once, LEAST_COUNTED)
        asks = crowd(seed + at_once, 2 * at_once + counted, lengths)
        times = await saturate(url, asks, _body(model), at_once)
        # Neither the first answers, when all began together, nor the last, when some have nothing to ask any more.
        rate = counted / (times[at_once + counted - 1] - times[at_once - 1])
        if rate < best * LEAST_GAIN:
            return max(rate, best)
        best = rate
    return best


def targets_of(answers: Sequence[Answer]) -> Targets:
    """From what 99 of 100 requests have alone, each by itself, as the share in target is counted; two digits, rounded up.

    Raises RuntimeError where a request failed, or no answer had a gap.
    """
    for answer in answers:
        if answer.error is not None:
            raise RuntimeError(f"a request of the calibration failed: {answer.error}")
    firsts = [answer.ttft_seconds for answer in answers if answer.ttft_seconds is not None]
    gaps = [own_gap(answer) for answer in answers if answer.gaps_seconds]
    if not gaps:
        raise RuntimeError(
            "no answer of the calibration came in more than one piece: --answer-tokens gives longer answers"
        )
    return Targets(*(_rounded_up(SLACK * percentile(values, 0.99)) for values in (firsts, gaps)))


@contextlib.asynccontextmanager
async def _working(url: str, plan: Plan, scenario: Scenario) -> AsyncIterator[dict[str, Background]]:
    """Who works beside the trace, at work. Where the block fails they are left to the end of the server."""
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
        found: dict[str, Background] = {}
        if scenario.training:  # first, since a batch may keep it from its first step
            found["training"] = Training(http, plan.model, plan.training_rows, plan.training_batch_size)
        if scenario.batch:
            found["batch"] = Batch(http, plan.model, plan.batch_asks, uuid.uuid4().hex[:6])
        for background in found.values():
            await background.begin()
        yield found
        for background in reversed(found.values()):
            await background.end()


def _work(first: Reading, last: Reading) -> Work:
    seconds = last.at - first.at
    done = last.done - first.done
    return Work(done, last.failed - first.failed, seconds, done * last.size / seconds, last.is_over)


def _body(model: str) -> Body:
    """The bodies of one playing of the trace: no other has the same prompts."""
    mark = uuid.uuid4().hex[:6]
    return lambda ask, number: body(ask, model, f"{mark}{number:06d}", streams=True)


def _rounded_up(seconds: float) -> float:
    step = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return round(math.ceil(seconds / step - 1e-9) * step, 9)
