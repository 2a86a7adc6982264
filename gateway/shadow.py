"""Shadow traffic: an experiment's challenger answers a share of the requests as well, and nobody is shown its answers.

Owns each experiment's budget in this process, and the challenger's answers until they are on record. It begins once the
client's own answer is there; an engine serves it after everybody else, and its failures are the challenger's, never the
engine's: no client loses an engine to them. Does not know what is made of the answers (`adapters.evidence`).

A shadow never streams, and waits at a low priority: its errors, its length and its manners compare with the control's,
its time is no less than it would be in traffic.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson

from adapters.completions import Completion, Status
from adapters.errors import NotRecorded
from adapters.observations import Observation, insert_shadow
from adapters.settings import Health
from adapters.writer import Writer
from gateway.endpoints import Call
from gateway.engines import Engine, Engines
from gateway.exchange import UpstreamError
from gateway.ids import hex_id
from gateway.recorder import Record
from gateway.routing import Shadow

log = logging.getLogger("burnish.shadow")

PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""The endpoints whose requests are asked again."""

PRIORITY = 1000
"""vLLM serves lower numbers first; what clients ask has 0."""

NOT_COPIED = frozenset({"stream", "stream_options", "request_id", "kv_transfer_params"})
"""How an answer is delivered, and what can be used once only."""

Body = dict[str, Any]


class NoAnswer(Exception):
    """The engine gave nothing that a client could have been sent. `is_final`: another engine would not either."""

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class Shadows:
    """The shadow traffic of one gateway process. Lives on one event loop."""

    def __init__(self, engines: Engines, writer: Writer, health: Health) -> None:
        self._engines = engines
        self._writer = writer
        self._health = health
        # By experiment. `spent` counts what is on record or on its way there; the verdict counts all processes'.
        self._active: Counter[str] = Counter()
        self._spent: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, call: Call, record: Record) -> None:
        """Has the challenger answer too, where the call's own answer is whole and recorded, and the budget has room.

        Waits for nothing. What comes while the challenger is busy is skipped: a queue would only grow.
        """
        shadow, given = call.shadow, call.assignment
        is_recorded = record.status is Status.COMPLETE and call.endpoint.path in PATHS
        if shadow is None or given is None or not is_recorded:
            return
        experiment = given.experiment
        has_room = self._active[experiment] < shadow.at_once and self._spent[experiment] < shadow.requests
        if not has_room or not is_drawn(experiment, call.request_id, shadow.share):
            return
        self._active[experiment] += 1
        self._spent[experiment] += 1
        task = asyncio.create_task(self._run(in_shadow(call, shadow), experiment, record.id), name="shadow")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def active(self) -> int:
        """How many answers are under way."""
        return len(self._tasks)

    async def stop(self) -> None:
        """Ends what is going on; nothing of it is recorded."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, call: Call, experiment: str, shadow_of: str) -> None:
        is_kept = False
        try:
            is_kept = await self._answer(call, experiment, shadow_of)
        except NotRecorded as error:
            log.warning("shadow_not_recorded experiment=%s: %s", experiment, error.message)
        except Exception:
            log.exception("shadow_failed experiment=%s request=%s", experiment, call.request_id)
        finally:
            self._active[experiment] -= 1
            self._spent[experiment] -= not is_kept

    async def _answer(self, call: Call, experiment: str, shadow_of: str) -> bool:
        """Whether there is something on record now: that the challenger gave no answer is something too."""
        record = Record(call, wanted=True)
        try:
            made = record.settle(Status.COMPLETE, await self._ask(call), None, None)
        except (NoAnswer, UpstreamError) as error:
            log.warning("shadow_unanswered experiment=%s request=%s: %s", experiment, call.request_id, error)
            made = record.settle(Status.ERROR, None, None, "engine_failed")
        make = functools.partial(_observation, made, f"shd_{hex_id()}", shadow_of)
        return await self._writer.submit_soon(
            functools.partial(insert_shadow, shadow_of=shadow_of, make=make)
        )

    async def _ask(self, call: Call) -> Body:
        """The challenger's answer, from one engine after another, as a client's would be. Raises NoAnswer, UpstreamError."""
        tried: list[Engine] = []
        while True:
            engine = await self._engine(call, tried)
            self._engines.begin(engine, call.target)
            try:
                return await self._attempt(call, engine)
            except (NoAnswer, UpstreamError) as error:
                tried.append(engine)
                is_final = isinstance(error, NoAnswer) and error.is_final
                if is_final or len(tried) >= self._health.max_attempts:
                    raise
            finally:
                self._engines.end(engine, call.target)

    async def _engine(self, call: Call, tried: list[Engine]) -> Engine:
        """Waits a little for one that is on its way up, as for a client. Raises NoAnswer."""
        affinity = call.affinity if len(self._engines.all) > 1 else b""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._health.hold_seconds
        while (engine := self._engines.pick(call.target, affinity, tried)) is None:
            if loop.time() >= until or not self._engines.could(call.target):
                raise NoAnswer("no engine can answer for it now")
            try:
                async with asyncio.timeout_at(until):
                    await self._engines.changed.wait()
            except TimeoutError:
                pass
        return engine

    async def _attempt(self, call: Call, engine: Engine) -> Body:
        body = {**call.body, "model": engine.served(call.target)}
        if engine.settings.takes_priorities:
            body["priority"] = PRIORITY
        exchange = await engine.pool.open(
            call.endpoint.wire_path, orjson.dumps(body), patience_seconds=self._health.total_timeout_seconds
        )
        try:
            content = await exchange.read()
        finally:
            exchange.close()  # cancelled: the engine's work ends too
        if exchange.status >= 400:
            # What the control has answered is no bad request: that this engine cannot take it is the challenger's.
            raise NoAnswer(f"status {exchange.status}", is_final=exchange.status < 500)
        return _object(content)


# -- pure ------------------------------------------------------------------------------------------
def is_drawn(experiment: str, request_id: str, share: float) -> bool:
    """Whether a request is one of the `share` that are asked again: the same word for the same request, by a hash."""
    drawn = hashlib.blake2b(request_id.encode(), digest_size=8, key=experiment.encode()).digest()
    return int.from_bytes(drawn) < share * 2**64


def in_shadow(call: Call, shadow: Shadow) -> Call:
    """The call as the challenger gets it: the same words to the engine, for one answer, whole."""
    body = {name: value for name, value in call.body.items() if name not in NOT_COPIED}
    if "n" in body:
        body["n"] = 1
    given = call.assignment
    return replace(
        call,
        target=shadow.target,
        body=body,
        assignment=None if given is None else replace(given, variant=shadow.variant),
        control=None,
        shadow=None,
        passage=None,
        began=time.monotonic(),
    )


def _observation(made: Callable[[], Completion], id: str, shadow_of: str) -> Observation:
    """What is measured of a shadow. One of several answers is not compared in length, which adds up over all."""
    completion = made()
    found = completion.observation
    assert found is not None
    if (completion.request.get("n") or 1) != 1:
        found = replace(found, log_length=None, log_total=None)
    return replace(found, id=id, shadow_of=shadow_of, output=completion.output)


def _object(content: bytes) -> Body:
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise NoAnswer("an answer that is not JSON") from None
    if not isinstance(answer, dict):
        raise NoAnswer("an answer that is not an object")
    return answer
