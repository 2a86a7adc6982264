"""One gateway process's parts, put together: the records, the engines, the loops that tend them, the snapshot.

Owns their life: `start` to `stop`. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from adapters.artifacts import ArtifactStore
from adapters.base_weights import base_digest
from adapters.batches import Batches
from adapters.buckets import Buckets
from adapters.completions import Completions
from adapters.database import Database
from adapters.experiments import Experiments
from adapters.feedback import FeedbackStore
from adapters.files import Files
from adapters.jobs import Jobs
from adapters.keys import Keys, Quota
from adapters.looks import Looks
from adapters.placements import SILENT_SECONDS, Placements
from adapters.registry import Registry, withdraw_orphans
from adapters.responses import ResponseStore
from adapters.routes import Routes
from adapters.settings import Settings
from adapters.standings import Standing, Standings
from adapters.triggers import due_by_time, maybe_enqueue
from adapters.uploads import Uploads
from adapters.writer import Writer
from gateway.admission import Admission
from gateway.answer_tally import AnswerTally
from gateway.attempts import Attempts
from gateway.batch_runner import BatchRunner
from gateway.batch_work import Parts
from gateway.control import Control, engine_key
from gateway.conversations import Conversations
from gateway.cost import COUNT_SECONDS, Costs
from gateway.engines import Engine, Engines
from gateway.generations import Generations
from gateway.gpus import GPU_SECONDS, Gpu, Gpus
from gateway.health import Watch
from gateway.inference import Inference
from gateway.labels import Labels
from gateway.latency import Latencies
from gateway.orders import Orders
from gateway.quotas import Quotas
from gateway.readings import Reading
from gateway.reconcile import Reconciler
from gateway.recorder import Recorder
from gateway.routing import Snapshot
from gateway.shadow import Shadows
from gateway.snapshots import Snapshots
from gateway.supervisor import SupervisedEngine
from gateway.tally import Tally
from gateway.trace_context import pass_on
from gateway.tracing import Traces
from gateway.upstream import Pool
from gateway.validation import Validation

log = logging.getLogger("burnish.runtime")

HEARTBEAT_SECONDS = 2.0
HEADROOM_SECONDS, HEADROOM_STEP = 0.2, 0.05
"""How often headroom is looked at, and how far it must have moved to be put on record before the next heartbeat."""

TICK_SECONDS = 0.1
LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

PURGE_SECONDS = 3600.0
TRIGGER_SECONDS = 5.0
LOOK_SECONDS = 0.5
"""Between two looks at experiments: with the snapshot's REFRESH_SECONDS less than the two seconds in which a breach must be over."""

DAY_SECONDS = 86400.0


class Runtime:
    """The parts of one gateway process. Made and used on one event loop."""

    def __init__(self, settings: Settings, db: Database, processes: Mapping[str, SupervisedEngine]) -> None:
        """`processes` are the engines that are supervised, by name; the others' addresses are in the settings."""
        self.settings = settings
        self.db = db
        self.id = f"gateway-{secrets.token_hex(6)}"
        self.registry = Registry(db, ArtifactStore(settings.artifact_root), settings.models)
        self.routes = Routes(db, settings.models)
        self.experiments = Experiments(db, self.routes)
        self.keys = Keys(db)
        self.placements = Placements(db)
        self.responses = ResponseStore(db)
        self.completions = Completions(db)
        self.writer = Writer(db, settings.recording.max_queue)
        self.labels = Labels(settings.metrics.max_series)
        self.tally = Tally(self.labels)
        self.answer_tally = AnswerTally(self.labels)
        self.loop_lag = Buckets(LAG_BOUNDS)
        standings = Standings(db)
        self.standings: Reading[Standing] = Reading(
            "records", lambda: standings.read(time.time()), settings.metrics.records_seconds
        )
        self.gpus: Reading[tuple[Gpu, ...]] = Reading("GPUs", Gpus().read, GPU_SECONDS)
        self.traces = _traces(settings, self.id)
        self.generations = Generations(settings.langfuse, os.environ) if settings.langfuse.enabled else None
        told = (self.generations.recorded,) if self.generations is not None else ()
        self.recorder = Recorder(self.writer, settings.recording, listeners=(self.answer_tally.made, *told))
        self.feedback = FeedbackStore(db)
        self.files = Files(db, settings.file_root)
        self.uploads = Uploads(db, self.files)
        self.jobs = Jobs(db, settings.training.max_attempts)
        self.orders = Orders(settings, self.registry, self.routes, self.files)
        self.validation = Validation(self.jobs, self.files, self.id)
        self.snapshots = Snapshots(self.registry, settings.models, self._wake_engines)
        self._tasks: list[asyncio.Task[None]] = []
        self.engines, self._controls = self._connect(processes)
        self.costs = Costs(settings, self.engines, self.labels)
        self._reconciler = Reconciler(
            self.engines,
            self._controls,
            self.registry,
            self.placements,
            lambda: self.snapshot,
            self.snapshots.is_stale,
            settings.canary,
            settings.health,
        )
        self.shadows = Shadows(self.engines, self.writer, settings.health)
        self.latencies = Latencies(settings.targets, labels=self.labels)
        self.admission = Admission(settings, self.engines, self.latencies)
        conversations = Conversations(self.responses)
        self.inference = Inference(
            settings,
            Attempts(settings, self.engines, self.recorder, conversations),
            self.snapshots,
            conversations,
            self.recorder,
            self.shadows,
            self.latencies,
            Quotas(Quota(**settings.key_limits.model_dump())),
            self.admission,
            observers=(self.tally.ended, *((self.traces.ended,) if self.traces is not None else ())),
            begin_trace=self.traces.begin if self.traces is not None else pass_on,
        )
        self.batches = Batches(db)
        parts = Parts(self.batches, self.files, self.writer, self.inference, self.snapshots, settings.batches)
        self.batch_runner = BatchRunner(parts, self.id)

    async def start(self, url: str) -> None:
        """Reads the registry and begins to tend the engines. `url` is where this process listens."""
        await asyncio.to_thread(self._register_bases)
        await asyncio.to_thread(self.registry.sweep)
        await asyncio.to_thread(self.files.sweep)
        await asyncio.to_thread(self.uploads.sweep)
        await self.snapshots.reload()
        self._spawn(self.snapshots.follow(), "registry")
        self._spawn(self._beat(url), "heartbeat")
        self._spawn(self._purge(), "purge")
        self._spawn(self._trigger(), "trigger")
        self._spawn(self._look(), "experiments")
        self._spawn(self.validation.run(), "validation")
        self._spawn(self.batch_runner.run(), "batches")
        self._spawn(self._tick(), "admission")
        self._spawn(self._count_costs(), "costs")
        for engine in self.engines.all:
            watch = Watch(engine, self._controls[engine], self.engines, self.settings.health)
            self._spawn(watch.run(), f"watch {engine.name}")
            self._spawn(self._reconciler.run(engine), f"reconcile {engine.name}")

    @property
    def snapshot(self) -> Snapshot:
        """What requests go by now."""
        return self.snapshots.current

    @property
    def controls(self) -> Mapping[Engine, Control]:
        """The control plane of each engine."""
        return self._controls

    async def stop(self) -> None:
        """Ends every loop and connection. The server has drained by now."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.shadows.stop()
        for engine in self.engines.all:
            engine.pool.close()
            await self._controls[engine].close()
        await asyncio.to_thread(self.writer.close)
        outboxes = [outbox for outbox in (self.traces, self.generations) if outbox is not None]
        await asyncio.gather(*(asyncio.to_thread(outbox.close) for outbox in outboxes))
        await asyncio.to_thread(self.placements.leave, self.id)

    def _wake_engines(self) -> None:
        for engine in self.engines.all:
            engine.wake.set()

    def _connect(self, processes: Mapping[str, SupervisedEngine]) -> tuple[Engines, dict[Engine, Control]]:
        controls: dict[Engine, Control] = {}
        for settings in self.settings.engines:
            process = processes.get(settings.name)
            url = process.url if process else settings.url
            assert url is not None
            pool = Pool(
                url,
                api_key=engine_key(settings),
                connect_timeout_seconds=self.settings.health.connect_timeout_seconds,
            )
            controls[Engine(settings, pool, process)] = Control(settings, url, self.settings.artifact_root)
        return Engines(controls, self.settings.health), controls

    def _register_bases(self) -> None:
        for name in self.settings.models:
            self.registry.register_base(name, base_digest(self.settings, name))

    async def _tick(self) -> None:
        """Fits what batches may do to the latency that people have, and sees how late it comes to it."""
        while True:
            due = time.monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self.loop_lag.add(max(0.0, time.monotonic() - due))
            self.admission.tick()

    async def _count_costs(self) -> None:
        while True:
            await asyncio.sleep(COUNT_SECONDS)
            self.costs.count()

    async def _beat(self, url: str) -> None:
        """A sign of life, with headroom and whether lines wait on record: at once where one has moved, for whoever gives
        way by it."""
        told_at, told, told_wait = -HEARTBEAT_SECONDS, 1.0, False
        while True:
            now, headroom, wait = time.monotonic(), self.latencies.headroom(), self.admission.lines_wait
            has_moved = abs(headroom - told) >= HEADROOM_STEP or wait != told_wait
            if has_moved or now - told_at >= HEARTBEAT_SECONDS:
                told_at, told, told_wait = now, headroom, wait
                try:
                    await asyncio.to_thread(
                        self.placements.heartbeat, self.id, url, headroom=headroom, lines_wait=wait
                    )
                    peers = await asyncio.to_thread(self.placements.headroom, beside=self.id)
                    self.admission.peers_headroom = 1.0 if peers is None else peers
                    alive = await asyncio.to_thread(self.placements.live_gateways, SILENT_SECONDS)
                    self.costs.gateways = len(alive)
                except Exception:
                    log.exception("heartbeat_failed")
            await asyncio.sleep(HEADROOM_SECONDS)

    async def _purge(self) -> None:
        """Forgets kept responses and completions once they are as old as the settings say."""
        while True:
            try:
                now, recording = time.time(), self.settings.recording
                oldest = now - self.settings.responses_days * DAY_SECONDS
                await asyncio.to_thread(self.responses.purge, oldest)
                unjudged, judged = (
                    now - days * DAY_SECONDS for days in (recording.days, recording.judged_days)
                )
                await asyncio.to_thread(self.completions.purge, unjudged, judged)
                await asyncio.to_thread(self.feedback.purge_keys)
                await asyncio.to_thread(self.files.purge_expired)
                await asyncio.to_thread(self.uploads.purge_expired)
                await asyncio.to_thread(self.keys.purge_passes)
            except Exception:
                log.exception("purge_failed")
            await asyncio.sleep(PURGE_SECONDS)

    async def _trigger(self) -> None:
        """Makes the training jobs that no click makes due: a pause after a run is over, or a period."""
        while True:
            await asyncio.sleep(TRIGGER_SECONDS)
            try:
                await asyncio.to_thread(self._enqueue_due)
                await asyncio.to_thread(withdraw_orphans, self.db)
            except Exception:
                log.exception("trigger_failed")

    async def _look(self) -> None:
        """Looks at the open experiments, and does what their evidence says."""
        looks = Looks(self.db, self.routes)
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                for experiment in await asyncio.to_thread(looks.look_at_all, time.time()):
                    log.info(
                        "experiment_changed experiment=%s state=%s epoch=%d",
                        experiment.name,
                        experiment.state,
                        experiment.epoch,
                    )
                    self.snapshots.is_stale()
            except Exception:
                log.exception("look_failed")

    def _enqueue_due(self) -> None:
        now = time.time()
        with self.db.read() as connection:
            due = due_by_time(connection, now)
        for route in due:
            with self.db.begin() as connection:
                job = maybe_enqueue(connection, route, now)
            if job is not None:
                log.info("training_due route=%s job=%s", route, job.id)

    def _spawn(self, loop: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(loop, name=name)
        task.add_done_callback(_report)
        self._tasks.append(task)


def _traces(settings: Settings, instance: str) -> Traces | None:
    """None: there is nowhere to send them."""
    if settings.tracing.endpoint is None:
        return None
    return Traces(settings, instance=instance, environ=os.environ)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("loop_died loop=%s", task.get_name(), exc_info=task.exception())
