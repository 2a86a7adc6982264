"""One training run, from its claim to its end: dataset → train → candidate → evaluate → gate → publish.

Runs as a child of `trainer.worker`: `python -m trainer.run JOB_ID TOKEN`. Owns the order of the stages and what each
failure means for the job. Every stage leaves its result in the run's folder, or on record, and finds it there again, so
that a run killed at any moment goes on where it was (promise 8); every write carries the claim's token, so that a
worker that has lost its claim changes nothing. What computes for long does so aside, in a thread that has stepped back;
every write is this thread's, which has not (`scheduling`).

    RUN/dataset/, checkpoints/, adapter/, manifest.json   what was learned from, and what came of it
    RUN/step_metrics.csv                                  the numbers of each step, as OpenAI's result files have them
    RUN/answers.jsonl                                     what candidate, incumbent and base said
    RUN/tasks.json                                        what lm-evaluation-harness found, where tasks are named
    RUN/run.log                                           this process's output
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from adapters.artifacts import ArtifactStore
from adapters.base_weights import base_config, base_digest, chat_template, weights_path
from adapters.database import Database
from adapters.draw import draw_feedback
from adapters.errors import BurnishError, EngineFailed, InvalidRequest, StaleWorker, Unavailable
from adapters.jobs import EventDraft, Job, Jobs, JobState, Wish, finish
from adapters.keys import Keys
from adapters.placements import Placements, PlacementState
from adapters.policy import RoutePolicy
from adapters.registry import Registry
from adapters.routes import find_route
from adapters.settings import Settings, load_settings
from adapters.versions import VersionState
from trainer import dataset, endurance, evaluate, gate, harness, publish, together, train
from trainer.asking import Asker
from trainer.dataset import Built
from trainer.evaluate import Contest
from trainer.examples import examples_of
from trainer.gate import Outcome, Rules, Verdict
from trainer.methods import convert
from trainer.progress import Cancelled, Paused, Unwatched, Watch, obey
from trainer.publish import Origin, Proof
from trainer.recipe import Recipe, engine_of
from trainer.rendering import Rendering
from trainer.scheduling import Aside, lower_session, step_back, threads_of
from trainer.tracing import RunTrace, training_attributes
from trainer.train import TrainResult

log = logging.getLogger("burnish.run")

REPORT_SECONDS = 1.0
"""How often progress is written; wishes are looked for at every step all the same."""

HOLD_SECONDS = 900.0
"""How long engines may take to load a candidate; none may be up for a while."""

POLL_SECONDS = 0.25

LOSSES = {"loss": "training loss", "validation_loss": "validation loss"}
"""What a step's event says in words, as OpenAI's does."""


class Run:
    """One claimed job on its way through the stages; the `Watch` of those that take long."""

    def __init__(self, settings: Settings, db: Database, job: Job, trace: RunTrace | None = None) -> None:
        """`trace` is told of the stages."""
        self.trace = trace
        self.settings = settings
        self.db = db
        self.job = job
        self.jobs = Jobs(db, settings.training.max_attempts)
        self.registry = Registry(db, ArtifactStore(settings.artifact_root), settings.models)
        self.placements = Placements(db)
        self.folder = settings.run_root / job.id
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.base = job.payload["base_model"]
        self.engine = engine_of(settings, self.base)
        self.weights = weights_path(settings, self.engine)
        if not (self.weights / "config.json").is_file():
            raise InvalidRequest(
                f"There are no weights of '{self.base}' on this machine to train with (looked in its folder under "
                "the home's weights/, or where the engine's `weights` says).",
                param="model",
                code="weights_missing",
            )
        self.template = chat_template(self.engine)
        self.rendering = Rendering(self.weights, self.template)
        self.policy = self._policy()
        harness.check_installed(self.policy.training.lm_eval_tasks)
        self.is_stopping = False
        self._aside = Aside(_step_back if settings.training.nice else _stay)
        self._reported = 0.0
        self._progress: dict[str, Any] = {}
        self._events: list[EventDraft] = []

    def go(self) -> None:
        """All stages in order; each finds what an earlier attempt has finished."""
        self._enter("dataset")
        built = dataset.snapshot(
            self.db, self.settings, self.job, self.rendering, self.folder, self._aside.run
        )
        self._enter("train")
        trained = self._train(built)
        self._tell(training_attributes(trained.manifest))
        self._enter("candidate")
        ref = self._candidate(trained)
        self._enter("evaluate")
        proof = self._prove(ref, built, trained)
        self._tell({"burnish.version": ref, "burnish.gate.outcome": proof.verdict.outcome.value})
        self._enter("publish")
        publish.publish(self.db, self.settings, self.job, proof, _origin(built, trained))

    # -- the stages --------------------------------------------------------------------------------
    def _train(self, built: Built) -> TrainResult:
        """In this process, or in those that an Accelerate configuration asks for."""
        config = self.settings.training.accelerate_config
        done = train.finished(self.folder)
        if config is None or done is not None:
            return done or self.train_here(built)
        together.launch(together.command_of(config), self.job, self.folder, lambda: self.is_stopping)
        done = train.finished(self.folder)
        assert done is not None
        return done

    def train_here(self, built: Built) -> TrainResult:
        start_from = self.job.payload.get("start_from")
        start = None
        if start_from is not None:
            start = self.registry.artifacts.get(self.registry.version(start_from).digest).path
        examples = examples_of(convert(built.train, built.method), self.rendering, built.report["max_length"])
        recipe = Recipe.resolve(
            self.job.payload,
            [example.longest for example in examples],
            self.engine,
            method=built.method,
            dataset=built.digest,
            base_digest=base_digest(self.settings, self.base),
            parameters=_parameters(self.weights),
            threads=threads_of(self.settings.training.threads),
            accelerate=together.configuration(self.settings.training.accelerate_config),
        )
        watch: Watch = self if together.is_first() else Unwatched()
        return self._aside.run(
            lambda: train.train(
                recipe,
                built.train,
                built.held_out,
                self.weights,
                self.template,
                self.folder,
                watch,
                start=start,
                priority=self.settings.priority,
                gpu_memory_share=self.settings.training.gpu_memory_share,
            )
        )

    def _candidate(self, trained: TrainResult) -> str:
        """The adapter as a version that only this run may ask; returns when every engine holds it."""
        version = self.registry.import_adapter(
            self.job.payload["adapter"],
            trained.adapter,
            self.base,
            base_config(self.settings, self.base),
            self.job.payload["actor"],
            max_rank=self.engine.max_lora_rank,
            origin=self.job.id,
            approval={"kind": "pending", "job": self.job.id},
            state=VersionState.CANDIDATE,
            fingerprint={
                "by": "trainer",
                "logprobs": list(trained.fingerprint.float32),
                "bfloat16": list(trained.fingerprint.bfloat16),
            },
            token=self.job.token,
        )
        until = time.monotonic() + HOLD_SECONDS
        while not self._is_held(version.ref):
            if time.monotonic() > until:
                raise Unavailable(
                    f"No engine has loaded the candidate {version.ref} within {HOLD_SECONDS:g} s.",
                    code="not_loaded",
                )
            obey(self.step({}))
            time.sleep(POLL_SECONDS)
        return version.ref

    def _prove(self, ref: str, built: Built, trained: TrainResult) -> Proof:
        with self.db.read() as connection:
            contest = evaluate.contest_of(connection, self.job.payload, ref)
        cache = self.folder / "answers.jsonl"
        asker = Asker(Keys(self.db), self.placements, self.job.id)
        try:
            parity = self._parity(asker, ref, built, trained, cache)
            found = evaluate.evaluate(
                asker,
                contest,
                built.held_out,
                self._cases(built),
                self.rendering,
                cache,
                self,
                method=built.method,
                max_model_len=self.engine.max_model_len,
                form=self.policy.format,
                judge_model=self.policy.training.judge_model,
            )
            tasks = self._tasks(asker, contest)
        finally:
            asker.close()
        bounds = self.settings.training
        rules = Rules(
            min_rows=bounds.min_held_out_rows,
            min_units=bounds.min_held_out_units,
            confidence=bounds.confidence,
            margin=bounds.guard_margin,
            seed=self.job.payload["seed"],
        )
        verdict = self._aside.run(
            lambda: gate.judge(found.measures, rules, has_incumbent=contest.incumbent is not None)
        )
        endured = self._endured(ref, verdict)
        if endured:
            verdict = endurance.judged(verdict, endured, self.settings.priority.full_above)
        return Proof(contest, verdict, found.counts, parity, tasks, endured)

    def _endured(self, ref: str, verdict: Verdict) -> dict[str, Any]:
        """The load test's report, where the policy asks for one and the gate would let the candidate pass; else empty."""
        wanted, file = self.policy.training.load_test, self.folder / "load_test.json"
        if wanted is None or verdict.outcome is not Outcome.PASS:
            return {}
        if file.is_file():
            return dict(json.loads(file.read_text()))
        self._enter("load test")
        seed = self.job.payload["seed"]
        asker = Asker(Keys(self.db), self.placements, self.job.id)
        try:
            found = endurance.measure(
                asker,
                lambda url, results: endurance.command_of(url, ref, wanted, seed, results),
                wanted.seconds,
                self,
                self.settings.priority.full_above,
            )
        finally:
            asker.close()
        _write_whole(file, json.dumps(found))
        return found

    def _parity(
        self, asker: Asker, ref: str, built: Built, trained: TrainResult, cache: Path
    ) -> dict[str, Any]:
        """Empty where there is no held-out row that could be a probe."""
        seen = {probe.row_id: (probe.seen.float32, probe.seen.bfloat16) for probe in trained.probe}
        probes = evaluate.probes_of(seen, built.held_out, self.rendering)
        if not probes:
            return {}
        tolerance = self.settings.training.parity_tolerance
        return evaluate.parity(asker, ref, probes, cache, self, tolerance).report()

    def _tasks(self, asker: Asker, contest: Contest) -> dict[str, Any]:
        """What lm-evaluation-harness finds of the candidate and of what it would replace, for the report alone."""
        names = self.policy.training.lm_eval_tasks
        file = self.folder / "tasks.json"
        if not names or file.is_file():
            return json.loads(file.read_text()) if file.is_file() else {}
        sides = {"candidate": contest.candidate, contest.rival: contest.incumbent or contest.base}
        length = self.engine.max_model_len
        try:
            found = {
                side: harness.run_tasks(asker, model, names, self.weights, length, self)
                for side, model in sides.items()
            }
        except (EngineFailed, Unavailable) as error:  # they decide nothing, so they end nothing
            self.note(f"The tasks of lm-evaluation-harness told nothing. {error.message}")
            return {}
        _write_whole(file, json.dumps(found))
        return found

    def _is_held(self, ref: str) -> bool:
        """Whether every engine that has been heard of holds the candidate. Raises what an engine found wrong."""
        version = self.registry.version(ref)
        if version.state is not VersionState.CANDIDATE:
            raise InvalidRequest(
                f"{ref} is {version.state}: {version.reason or 'it is no candidate any more'}",
                code="candidate_refused",
            )
        placed = self.placements.list(ref=ref)
        return bool(placed) and all(placement.state is PlacementState.PROVED for placement in placed)

    def _cases(self, built: Built) -> list[Any]:
        """The regression set: all answers of the route that were ever put right."""
        if self.job.route is None:
            return []
        with self.db.read() as connection:
            drawn = draw_feedback(connection, self.job.route, self.policy)
        return evaluate.regression_cases(drawn, built.held_out)

    def _policy(self) -> RoutePolicy:
        with self.db.read() as connection:
            route = find_route(connection, self.job.route) if self.job.route else None
        return RoutePolicy() if route is None else route.policy

    # -- the watch: what a stage says while it works, and what it is told --------------------------
    def step(self, metrics: dict[str, Any]) -> Wish | None:
        """Raises StaleWorker."""
        return self._aside.ask(lambda: self._step(metrics))

    def checkpoint(self, step: int, metrics: dict[str, Any]) -> None:
        data = {"step": step, **metrics}
        event = EventDraft(f"Checkpoint created at step {step}", kind="checkpoint", data=data)
        self._aside.ask(lambda: self._happened(event))

    def note(self, message: str) -> None:
        self._aside.ask(lambda: self._happened(EventDraft(message, level="warn")))

    def headroom(self) -> float | None:
        """The least of the live gateways'; it is reported with whatever is next."""
        found = self._aside.ask(self.placements.headroom)
        self._progress["headroom"] = None if found is None else round(found, 3)
        return found

    def lines_wait(self) -> bool:
        """At any live gateway; it is reported with whatever is next."""
        self._progress["lines_wait"] = found = self._aside.ask(self.placements.lines_wait)
        return found

    def stop(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM: a checkpoint after the current step, and back to the queue."""
        self.is_stopping = True

    def _step(self, metrics: dict[str, Any]) -> Wish | None:
        self._progress |= metrics
        losses = [f"{name}={metrics[key]:.4f}" for key, name in LOSSES.items() if key in metrics]
        if losses:
            words = f"Step {metrics['step']}/{metrics['total_steps']}: {', '.join(losses)}"
            self._events.append(EventDraft(words, kind="metrics", data=metrics))
        return self._asked(self._say(at_once=False))

    def _happened(self, event: EventDraft) -> None:
        self._events.append(event)
        self._say(at_once=True)

    def _enter(self, stage: str) -> None:
        self._progress = {"stage": stage}
        log.info("stage job=%s stage=%s", self.job.id, stage)
        if self.trace is not None:
            self.trace.enter(stage)
        obey(self._asked(self._say(at_once=True)))

    def _tell(self, attributes: dict[str, Any]) -> None:
        if self.trace is not None:
            self.trace.tell(attributes)

    def _say(self, *, at_once: bool) -> Wish | None:
        """Writes progress and events if it is time; what is wished, in any case. Raises StaleWorker."""
        if not at_once and time.monotonic() - self._reported < REPORT_SECONDS:
            job = self.jobs.get(self.job.id)
            if job.token != self.job.token or job.state is not JobState.RUNNING:
                raise StaleWorker(f"job {job.id} is another worker's by now")
            return job.wish
        self._reported = time.monotonic()
        events, self._events = self._events, []
        return self.jobs.report(self.job.id, self.job.token, self._progress, events)

    def _asked(self, wish: Wish | None) -> Wish | None:
        """A worker that is to stop asks for a pause, whatever people wish beside it."""
        return Wish.PAUSE if self.is_stopping and wish is None else wish


def main(job_id: str, token: int, part: str | None = None) -> int:
    """The process's exit status; what became of the job is in the database."""
    settings = load_settings(None, os.environ)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if settings.training.nice:
        lower_session()
    torch.set_num_interop_threads(
        1
    )  # nothing here is dealt out to that pool, and it is as large as the machine
    db = Database(settings.database)
    jobs = Jobs(db, settings.training.max_attempts)
    job = jobs.get(job_id)
    if job.token != token or job.state is not JobState.RUNNING:
        log.warning("claim_lost job=%s token=%d", job_id, token)
        return 1
    try:
        return _attempt(settings, db, jobs, job) if part is None else _take_part(settings, db, job)
    except StaleWorker:
        log.warning("claim_lost job=%s token=%d", job_id, token)
        return 1
    finally:
        db.close()


def _attempt(settings: Settings, db: Database, jobs: Jobs, job: Job) -> int:
    """Runs the stages and puts every way out of them on record. Raises StaleWorker."""
    trace = RunTrace(settings, job)
    try:
        run = Run(settings, db, job, trace)
        signal.signal(signal.SIGTERM, run.stop)
        run.go()
    except Paused:
        asked = jobs.get(job.id).wish is Wish.PAUSE
        jobs.release(job.id, job.token, JobState.PAUSED if asked else JobState.QUEUED, counts=False)
    except Cancelled:
        with db.begin() as connection:
            finish(connection, job.id, job.token, state=JobState.CANCELLED)
    except StaleWorker:
        raise
    except BurnishError as error:
        _fail(jobs, job, error.code or "run_failed", error.message, error.param)
    except (MemoryError, RuntimeError) as error:
        found = _out_of_memory(error)
        if found is None:
            raise
        _fail(jobs, job, found.code or "", found.message, None)
    finally:
        with contextlib.suppress(Exception):  # a trace is worth no run
            trace.end(jobs.get(job.id))
    return 0


def _take_part(settings: Settings, db: Database, job: Job) -> int:
    """The training alone, as one process of several; whoever launched them hears of it from the first of them."""
    run = Run(settings, db, job)
    signal.signal(signal.SIGTERM, run.stop)
    built = dataset.read(run.folder / "dataset")
    assert built is not None
    error: BaseException | None = None
    try:
        run.train_here(built)
    except (Paused, Cancelled, BurnishError) as raised:
        error = raised
    except (MemoryError, RuntimeError) as raised:
        error = _out_of_memory(raised)
        if error is None:
            raise
        together.tell(run.folder, error)  # whichever process it is: the others will wait for it in vain
        return 1
    if together.is_first():
        together.tell(run.folder, error)
    return 0


def _fail(jobs: Jobs, job: Job, code: str, message: str, param: str | None) -> None:
    log.warning("run_failed job=%s code=%s: %s", job.id, code, message)
    jobs.fail(job.id, job.token, {"code": code, "message": message, "param": param})


def _out_of_memory(error: Exception) -> BurnishError | None:
    """What a run that needs more memory than there is has failed with; None for anything else. torch says so in words
    on a CPU, and by a class of its own on a GPU."""
    in_words = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if not (isinstance(error, MemoryError) or in_words):
        return None
    words = (str(error).splitlines() or ["no more is known"])[0][:300]
    return BurnishError(
        f"The run is out of memory ({words}); use a smaller batch_size or max_length.", code="out_of_memory"
    )


def _origin(built: Built, trained: TrainResult) -> Origin:
    tokens = int(trained.metrics["trained_tokens"])
    steps = trained.steps_file.read_bytes()
    return Origin(built.method, built.digest, tokens, built.report, trained.manifest, steps)


def _write_whole(file: Path, text: str) -> None:
    """Or not at all: a run that is killed does not find half of it."""
    file.with_suffix(".partial").write_text(text)
    file.with_suffix(".partial").rename(file)


def _step_back() -> None:
    step_back(on_gpu=torch.cuda.is_available())


def _stay() -> None:
    """`training.nice` is off."""


def _parameters(weights: Path) -> float:
    """How many parameters the base model has, about: two bytes each, as weights are kept."""
    return sum(file.stat().st_size for file in weights.glob("*.safetensors")) / 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
