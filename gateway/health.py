"""Whether each engine answers: a probe with a deadline, again and again, and what follows from it.

Health is judged by answers, since a stopped process still accepts connections. A probe that finds nobody
listening ejects at once; one that gets no answer in time does so after a few in a row, and then everything that
engine has been silent on is given up, so that it can be tried elsewhere. Coming back goes through `reconcile`:
no engine is up before it holds its adapters and has really answered.
"""

from __future__ import annotations

import asyncio
import logging
import time

from adapters.settings import Health
from gateway.control import Control, ControlError, Refused
from gateway.engines import Engine, Engines, EngineState

log = logging.getLogger("burnish.health")


class Watch:
    """The watch over one engine."""

    def __init__(self, engine: Engine, control: Control, engines: Engines, health: Health) -> None:
        self._engine = engine
        self._control = control
        self._engines = engines
        self._health = health
        self._missed = 0

    async def run(self) -> None:
        """Probes until cancelled."""
        while True:
            await self.probe()
            await asyncio.sleep(self._health.probe_interval_seconds)

    async def probe(self) -> None:
        """One probe and what follows from it."""
        began = asyncio.get_running_loop().time()
        try:
            listed = await self._control.models(self._health.probe_timeout_seconds)
        except (ControlError, Refused) as error:
            unreachable = isinstance(error, ControlError) and error.unreachable
            self._no_answer(str(error), began, unreachable)
        else:
            self._missed = 0
            self._answered(listed)

    def _answered(self, listed: frozenset[str]) -> None:
        engine = self._engine
        for served in engine.held - listed:
            self._engines.lost_adapter(engine, served)
        if engine.state is EngineState.EJECTED and time.monotonic() < engine.eject_until:
            return
        if engine.state in (EngineState.STARTING, EngineState.EJECTED):
            log.info("engine_answers engine=%s", engine.name)
            engine.state = EngineState.SYNCING
            engine.reason = "it is getting its adapters"
            engine.boot += 1
            engine.wake.set()

    def _no_answer(self, reason: str, began: float, unreachable: bool) -> None:
        engine = self._engine
        self._missed += 1
        if engine.state is EngineState.STARTING:
            return
        if unreachable or self._missed >= self._health.failures_to_eject:
            if engine.state is not EngineState.EJECTED:
                log.warning("engine_ejected engine=%s: %s", engine.name, reason)
                self._engines.eject(engine, reason)
            engine.pool.abort_silent(began, "the engine does not answer")
