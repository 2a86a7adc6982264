"""Desired against actual: which adapters each engine should hold, and which it does.

One loop an engine compares the snapshot with what the engine lists, loads and unloads the difference, and checks
each load by the fingerprint canary (promise 4): the engine must answer differently from the base, differently
from every other adapter, and the same as the trainer that made the version or the engine that proved it first.
An engine's restart needs no code of its own: it lists nothing, so it gets everything. One adapter that will not
load fails alone. What becomes of a candidate beyond that is its run's to say.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters.errors import BurnishError
from adapters.placements import Placements, PlacementState
from adapters.registry import Registry
from adapters.settings import Canary, Health
from adapters.versions import VersionRecord, VersionState
from gateway.control import Control, ControlError, Fingerprint, Refused
from gateway.engines import Engine, Engines, EngineState
from gateway.routing import Snapshot

log = logging.getLogger("burnish.reconcile")

RESYNC_SECONDS = 5.0
"""How often an engine is compared with the registry when nothing has called for it."""

ANSWER_TIMEOUT_SECONDS = 90.0
"""vLLM compiles at the first request of a kind: 20 s for the first log-probabilities on a CPU."""


class CanaryFailed(Exception):
    """The engine loaded the adapter but does not answer with it."""


@dataclass
class _Boot:
    """What is known of an engine since it last began to answer."""

    number: int = -1
    base: Fingerprint | None = None
    noise: float = 0.0
    prints: dict[str, Fingerprint] = field(default_factory=dict)
    """Of each held version, by served name."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why the engine will not serve a version, by served name: terminal until its next boot."""


class Reconciler:
    """The loops of all engines of a gateway, and the verdict on a version that they reach together."""

    def __init__(
        self,
        engines: Engines,
        controls: dict[Engine, Control],
        registry: Registry,
        placements: Placements,
        snapshot: Callable[[], Snapshot],
        refresh: Callable[[], None],
        canary: Canary,
        health: Health,
    ) -> None:
        self._engines = engines
        self._controls = controls
        self._registry = registry
        self._placements = placements
        self._snapshot = snapshot
        self._refresh = refresh
        self._canary = canary
        self._health = health
        self._boots = {engine: _Boot() for engine in engines.all}

    async def run(self, engine: Engine) -> None:
        """Keeps one engine as the registry wants it until cancelled."""
        await asyncio.to_thread(self._placements.forget_engine, engine.name)
        while True:
            engine.wake.clear()
            if engine.state in (EngineState.SYNCING, EngineState.UP):
                try:
                    await self._sync(engine)
                except (ControlError, Refused) as error:
                    log.warning("sync_failed engine=%s: %s", engine.name, error)
                    engine.reason = str(error)
                except Exception:  # the loop must live: the next round compares everything anew
                    log.exception("sync_failed engine=%s", engine.name)
            wait = RESYNC_SECONDS if engine.state is EngineState.UP else self._health.probe_interval_seconds
            try:
                async with asyncio.timeout(wait):
                    await engine.wake.wait()
            except TimeoutError:
                pass

    async def _sync(self, engine: Engine) -> None:
        control = self._controls[engine]
        number = engine.boot
        boot = self._boots[engine]
        if boot.number != number:
            boot = self._boots[engine] = _Boot(number)
            await asyncio.to_thread(self._placements.forget_engine, engine.name)
        if engine.takes_adapters:
            if engine.state is EngineState.SYNCING:
                await control.answer(_base_name(engine), ANSWER_TIMEOUT_SECONDS)
            snapshot = self._snapshot()
            listed = await control.models(self._health.probe_timeout_seconds)
            for version in snapshot.wanted:
                if version.base_model in engine.settings.served_models:
                    await self._hold(engine, control, boot, version, listed)
            await self._give_up(engine, control, boot, snapshot, listed)
        if engine.state is EngineState.SYNCING and engine.boot == number:
            log.info("engine_up engine=%s adapters=%d", engine.name, len(engine.held))
            self._engines.up(engine)
        await self._judge()

    async def _measure_base(self, engine: Engine, control: Control, boot: _Boot) -> None:
        """The base's fingerprint, twice: the difference is the engine's noise."""
        name = _base_name(engine)
        first = await control.fingerprint(name, ANSWER_TIMEOUT_SECONDS)
        boot.noise = first.distance(await control.fingerprint(name, ANSWER_TIMEOUT_SECONDS))
        boot.base = first

    async def _hold(
        self, engine: Engine, control: Control, boot: _Boot, version: VersionRecord, listed: frozenset[str]
    ) -> None:
        served = version.served_name
        if served in engine.held or served in boot.refused:
            return
        try:
            if boot.base is None:
                await self._measure_base(engine, control, boot)
            if served not in listed:
                await self._place(engine, version, PlacementState.LOADING)
                await self._load(engine, control, version)
            fingerprint = await control.fingerprint(served, ANSWER_TIMEOUT_SECONDS)
            self._check(boot, version, fingerprint)
        except (Refused, CanaryFailed) as error:
            boot.refused[served] = str(error)
            engine.load_failures += 1
            log.warning("adapter_refused engine=%s adapter=%s: %s", engine.name, version.ref, error)
            await self._place(engine, version, PlacementState.FAILED, str(error))
            if isinstance(error, CanaryFailed):
                await control.unload(served)
            return
        if engine.boot != boot.number:  # it went away in the meantime
            return
        boot.prints[served] = fingerprint
        engine.held |= {served}
        self._engines.announce()
        log.info("adapter_held engine=%s adapter=%s", engine.name, version.ref)
        await self._place(engine, version, PlacementState.PROVED)

    async def _load(self, engine: Engine, control: Control, version: VersionRecord) -> None:
        """Raises Refused where the engine will not, ControlError where it could not be asked or gave no answer."""
        began = time.monotonic()
        try:
            await control.load(version.served_name, self._registry.artifacts.path(version.digest))
        except ControlError:  # what is refused is counted with what the canary refuses
            engine.load_failures += 1
            raise
        engine.load_seconds.add(time.monotonic() - began)

    def _check(self, boot: _Boot, version: VersionRecord, fingerprint: Fingerprint) -> None:
        """Raises CanaryFailed unless the engine answers as this version, and as nothing else."""
        assert boot.base is not None
        least = max(self._canary.min_difference, self._canary.noise_factor * boot.noise)
        if fingerprint.distance(boot.base) <= least:
            raise CanaryFailed("it answers as the base model does: the adapter has no effect on this engine")
        for other, known in boot.prints.items():
            same_bytes = _digest_part(other) == _digest_part(version.served_name)
            if not same_bytes and fingerprint.distance(known) <= least:
                raise CanaryFailed(f"the engine answers as {other.rpartition('.')[0]} does")
        if version.fingerprint is not None:
            self._compare(version.fingerprint, fingerprint)

    def _compare(self, known: Mapping[str, Any], found: Fingerprint) -> None:
        """Raises CanaryFailed unless the engine agrees with whoever saw the version first: with an engine like it at
        every token, with the trainer on average, in whichever precision they are nearer."""
        by_trainer = known.get("by") == "trainer"
        first = Fingerprint(tuple(known["logprobs"]))
        distance = found.mean_distance(first) if by_trainer else found.distance(first)
        if by_trainer and "bfloat16" in known:
            distance = min(distance, found.mean_distance(Fingerprint(tuple(known["bfloat16"]))))
        if distance <= self._canary.agreement_tolerance:
            return
        tokens, others = (len(seen.logprobs) + 1 for seen in (found, first))
        if tokens != others:
            raise CanaryFailed(f"its tokenizer makes {tokens} tokens of the probe text, and not {others}")
        whose = "a token on average from the trainer's" if by_trainer else "from those it was proved with"
        raise CanaryFailed(f"its log-probabilities differ by {distance:.3g} {whose}")

    async def _give_up(
        self, engine: Engine, control: Control, boot: _Boot, snapshot: Snapshot, listed: frozenset[str]
    ) -> None:
        """Unloads what the registry no longer wants, once no request uses it."""
        wanted = {version.served_name for version in snapshot.wanted}
        for version in snapshot.leaving:  # if it is wanted again, it is tried again
            boot.refused.pop(version.served_name, None)
        leaving = {version.served_name for version in snapshot.leaving} | set(boot.prints) - wanted
        for served in leaving - wanted:
            engine.held -= {served}
            if engine.by_adapter[served] > 0:
                continue
            if served in listed or served in boot.prints:
                await control.unload(served)
                log.info("adapter_unloaded engine=%s adapter=%s", engine.name, served)
            boot.prints.pop(served, None)

    async def _judge(self) -> None:
        """Moves versions on: proved when every engine that answers holds it, failed when one refuses it, gone
        when no request uses it."""
        changed = False
        snapshot = self._snapshot()
        for version in snapshot.wanted:
            if version.state is not VersionState.PROVED:
                changed |= await self._judge_version(version)
        for version in snapshot.leaving:
            if version.state is VersionState.REMOVING and not self._in_use(version):
                changed |= await self._record(self._registry.finish_remove, version.ref)
                for engine in self._engines.all:
                    await asyncio.to_thread(self._placements.remove, engine.name, version.ref)
        if changed:
            self._refresh()

    async def _judge_version(self, version: VersionRecord) -> bool:
        """A staged version is proved when all hold it; a candidate stays one, and waits for its gate."""
        answering = (EngineState.SYNCING, EngineState.UP)
        engines = [
            e
            for e in self._engines.all
            if e.state in answering and version.base_model in e.settings.served_models
        ]
        for engine in engines:
            reason = self._boots[engine].refused.get(version.served_name)
            if reason is not None:
                why = f"engine {engine.name}: {reason}"
                return await self._record(
                    self._registry.set_state, version.ref, VersionState.FAILED, why, "reconcile"
                )
        is_candidate = version.state is VersionState.CANDIDATE
        if is_candidate or not engines or any(version.served_name not in e.held for e in engines):
            return False
        fingerprint = self._boots[engines[0]].prints[version.served_name]
        await self._record(
            self._registry.record_fingerprint, version.ref, {"logprobs": list(fingerprint.logprobs)}
        )
        return await self._record(
            self._registry.set_state, version.ref, VersionState.PROVED, None, "reconcile"
        )

    def _in_use(self, version: VersionRecord) -> bool:
        return any(
            engine.by_adapter[version.served_name] or version.served_name in self._boots[engine].prints
            for engine in self._engines.all
            if engine.state in (EngineState.SYNCING, EngineState.UP)
        )

    async def _record(self, write: Callable[..., object], *values: object) -> bool:
        """Writes a change of the registry; one that somebody else's change forbids by now is dropped."""
        try:
            await asyncio.to_thread(write, *values)
        except BurnishError as error:
            log.info("verdict_dropped: %s", error)
            return False
        return True

    async def _place(
        self, engine: Engine, version: VersionRecord, state: PlacementState, reason: str | None = None
    ) -> None:
        await asyncio.to_thread(self._placements.put, engine.name, version.ref, state, reason)


def _base_name(engine: Engine) -> str:
    return engine.settings.upstream_model or engine.settings.model


def _digest_part(served: str) -> str:
    return re.sub(r"^.*\.", "", served)
