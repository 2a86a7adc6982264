"""How things stand in the records: jobs, runs, batches, experiments, versions, feedback, and who is alive. For metrics.

Owns the queries and their values. Reads no completion, however many there are: what it reads grows with routes, jobs
and experiments, and what only grows is counted on from where it was (`tallies`). Knows no metric's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.database import Database
from adapters.experiment_records import Experiment, ExperimentState, find_experiment, newest_look
from adapters.job_records import BATCH, ENDED, TRAINING, Job, JobState, job_of
from adapters.jobs import Jobs
from adapters.placements import SILENT_SECONDS, Placements
from adapters.tallies import FeedbackTally, GateTally, LostTally, Said

SHOWN_SECONDS = 86400.0
"""How long an experiment is shown after its end."""

SHOWN_ENDED = 20
"""How many ended ones at most, the newest."""

EVENTS_READ = 200
"""The last steps of a run among which its losses are looked for."""

BEGUN = (JobState.RUNNING, JobState.PAUSED, JobState.SUCCEEDED, JobState.FAILED)
"""What a run is that has, or may have, learned something."""

LOSSES = ("loss", "validation_loss")
NUMBERS = (
    *LOSSES,
    "step",
    "total_steps",
    "tokens_per_second",
    "eta_seconds",
    "paused_seconds",
    "resting",
    "headroom",
    "lines_wait",
)
"""What a run tells of itself and is a number, or a yes or no."""


@dataclass(frozen=True, slots=True)
class JobCount:
    """The jobs of one kind in one state."""

    kind: str
    state: JobState
    count: int
    age_seconds: (
        float | None
    )  # of the oldest: since it was made, or taken up where it runs; None once they have ended


@dataclass(frozen=True, slots=True)
class RunStanding:
    """A route's run under way, else its latest one, of which only the losses stay."""

    route: str  # "" where it is for none
    stage: str | None  # None: it is not under way
    numbers: dict[str, float] = field(hash=False)  # of NUMBERS, those that it has told


@dataclass(frozen=True, slots=True)
class Estimated:
    """What an experiment knows of one variant by one score or metric."""

    variant: str
    metric: str
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Guardrail:
    variant: str
    metric: str
    is_breached: bool


@dataclass(frozen=True, slots=True)
class ExperimentStanding:
    name: str
    route: str
    state: ExperimentState
    shares: dict[str, float] = field(hash=False)
    units: dict[str, int] = field(hash=False)
    means: tuple[Estimated, ...]  # of each variant: scores with their bounds, metrics without
    differences: tuple[Estimated, ...]  # of scores: each challenger less the control
    guardrails: tuple[Guardrail, ...]
    is_ratio_broken: bool
    verdict: str | None


@dataclass(frozen=True, slots=True)
class Standing:
    """All of it, at one moment."""

    feedback: tuple[Said, ...]
    experiments: tuple[ExperimentStanding, ...]
    jobs: tuple[JobCount, ...]
    attempts_lost: Mapping[str, int] = field(hash=False)  # by kind
    runs: tuple[RunStanding, ...]
    gates: Mapping[tuple[str, str], int] = field(hash=False)  # by route and outcome
    open_batches: tuple[Job, ...]
    versions: Mapping[str, int] = field(hash=False)  # by state
    workers: int
    gateways: int


class Standings:
    """Reads how things stand, again and again. Not for several threads at once."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._feedback = FeedbackTally()
        self._lost = LostTally()
        self._gates = GateTally()
        self._losses: dict[tuple[int, str], dict[str, float]] = {}  # by a run's number and stage
        self._stopped: dict[tuple[str, str], tuple[Guardrail, ...]] = {}  # by experiment and dropped variant

    def read(self, now: float) -> Standing:
        workers = len(Jobs(self._db).workers(now))
        gateways = len(Placements(self._db).live_gateways(SILENT_SECONDS, now))
        with self._db.read() as connection:
            return Standing(
                feedback=self._feedback.read(connection, now),
                experiments=self._experiments(connection, now),
                jobs=_job_counts(connection, now),
                attempts_lost=self._lost.read(connection, now),
                runs=self._runs(connection),
                gates=self._gates.read(connection),
                open_batches=_open_batches(connection),
                versions=_version_counts(connection),
                workers=workers,
                gateways=gateways,
            )

    # -- runs --------------------------------------------------------------------------------------
    def _runs(self, connection: Connection) -> tuple[RunStanding, ...]:
        shown = {row.route or "": row for row in _latest_runs(connection)}
        told = {(row.number, _stage(row)): self._losses_of(connection, row) for row in shown.values()}
        self._losses = told
        return tuple(
            _run_standing(route, row, told[row.number, _stage(row)]) for route, row in sorted(shown.items())
        )

    def _losses_of(self, connection: Connection, row: Row[Any]) -> dict[str, float]:
        """The run's last losses, which leave its progress with the stage that told them."""
        known = self._losses.get((row.number, _stage(row)))
        if _stage(row) == "train":  # they are in its progress
            return {}
        return known if known is not None else _last_losses(connection, row.id)

    # -- experiments -------------------------------------------------------------------------------
    def _experiments(self, connection: Connection, now: float) -> tuple[ExperimentStanding, ...]:
        found = (find_experiment(connection, name) for name in _shown_experiments(connection, now))
        return tuple(self._experiment(connection, each) for each in found if each is not None)

    def _experiment(self, connection: Connection, experiment: Experiment) -> ExperimentStanding:
        """By its newest look; an ended one by the numbers of its verdict."""
        ended = (experiment.verdict or {}).get("numbers") if not experiment.is_open else None
        seen = ended or newest_look(connection, experiment.id) or {}
        arms, ratio = seen.get("arms", {}), seen.get("sample_ratio") or {}
        stopped = (self._guardrails_of(connection, experiment, variant) for variant in experiment.dropped)
        return ExperimentStanding(
            name=experiment.name,
            route=experiment.route,
            state=experiment.state,
            shares=experiment.shares,
            units={variant: arms.get(variant, {}).get("units", 0) for variant in experiment.variants},
            means=tuple(_means(arms)),
            differences=tuple(_differences(seen)),
            guardrails=(*_guardrails(seen), *(one for some in stopped for one in some)),
            is_ratio_broken=bool(ratio.get("broken")),
            verdict=experiment.verdict["outcome"] if experiment.verdict else None,
        )

    def _guardrails_of(
        self, connection: Connection, experiment: Experiment, variant: str
    ) -> tuple[Guardrail, ...]:
        """Those of a challenger that one of them has stopped: later looks know it no more."""
        key = (experiment.id, variant)
        if key not in self._stopped:
            self._stopped[key] = _last_guardrails(connection, experiment.id, variant)
        return self._stopped[key]


# -- jobs ------------------------------------------------------------------------------------------
def _job_counts(connection: Connection, now: float) -> tuple[JobCount, ...]:
    """Counts look at the first columns alone: an ended job's result may be long, and its times lie behind it."""
    table = schema.jobs
    group = (table.c.kind, table.c.state)
    counts = connection.execute(sa.select(*group, sa.func.count()).group_by(*group)).all()
    oldest = sa.select(*group, sa.func.min(table.c.created), sa.func.min(table.c.started))
    since = {
        (kind, state): started if state == JobState.RUNNING.value and started is not None else made
        for kind, state, made, started in connection.execute(oldest.where(_is_open()).group_by(*group))
    }
    ages = {which: max(0.0, now - at) for which, at in since.items()}
    return tuple(
        JobCount(kind, JobState(state), count, ages.get((kind, state))) for kind, state, count in counts
    )


def _is_open() -> sa.ColumnElement[bool]:
    return schema.jobs.c.state.in_([state.value for state in JobState if state not in ENDED])


def _open_batches(connection: Connection) -> tuple[Job, ...]:
    table = schema.jobs
    query = sa.select(table).where(_is_open(), table.c.kind == BATCH).order_by(table.c.number)
    return tuple(job_of(row) for row in connection.execute(query))


def _version_counts(connection: Connection) -> dict[str, int]:
    table = schema.versions
    query = sa.select(table.c.state, sa.func.count()).group_by(table.c.state)
    return {row[0]: row[1] for row in connection.execute(query)}


# -- runs ------------------------------------------------------------------------------------------
def _latest_runs(connection: Connection) -> Iterable[Row[Any]]:
    """Of each route the newest that was begun, and after it those under way, which may be older."""
    table = schema.jobs
    begun = sa.and_(table.c.kind == TRAINING, table.c.state.in_([state.value for state in BEGUN]))
    newest = sa.select(sa.func.max(table.c.number)).where(begun).group_by(table.c.route)
    query = sa.select(table.c.number, table.c.id, table.c.route, table.c.state, table.c.progress)
    latest = connection.execute(query.where(table.c.number.in_(newest))).all()
    is_running = sa.and_(table.c.state == JobState.RUNNING.value, table.c.kind == TRAINING)
    return [*latest, *connection.execute(query.where(is_running).order_by(table.c.number))]


def _stage(row: Row[Any]) -> str:
    """Of a run under way; "" of another."""
    return str(row.progress.get("stage", "")) if row.state == JobState.RUNNING.value else ""


def _run_standing(route: str, row: Row[Any], losses: Mapping[str, float]) -> RunStanding:
    told = _numbers(row.progress, NUMBERS if _stage(row) else LOSSES)
    return RunStanding(route, _stage(row) or None, {**losses, **told})


def _last_losses(connection: Connection, job_id: str) -> dict[str, float]:
    table = schema.job_events
    query = (
        sa.select(table.c.data)
        .where(table.c.job_id == job_id, table.c.kind == "metrics")
        .order_by(table.c.number.desc())
    )
    found: dict[str, float] = {}
    for data in connection.execute(query.limit(EVENTS_READ)).scalars():
        found = {**_numbers(data, LOSSES), **found}
        if len(found) == len(LOSSES):
            break
    return found


def _numbers(told: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    return {name: float(told[name]) for name in names if isinstance(told.get(name), int | float)}


# -- experiments -----------------------------------------------------------------------------------
def _shown_experiments(connection: Connection, now: float) -> list[str]:
    """Names: of all that are open, and of those that ended lately."""
    table = schema.experiments
    is_ended = table.c.state == ExperimentState.ENDED.value
    is_open = sa.select(table.c.name).where(~is_ended).order_by(table.c.number)
    lately = sa.select(table.c.name).where(is_ended, table.c.ended >= now - SHOWN_SECONDS)
    ended = lately.order_by(table.c.ended.desc()).limit(SHOWN_ENDED)
    return [*connection.execute(is_open).scalars(), *connection.execute(ended).scalars()]


def _means(arms: Mapping[str, Any]) -> Iterable[Estimated]:
    for variant, arm in arms.items():
        for score, found in arm["scores"].items():
            if found["estimate"] is not None:
                yield Estimated(variant, score, found["estimate"], found["lower"], found["upper"])
        for metric, mean in arm["metrics"].items():
            yield Estimated(variant, metric, mean)


def _differences(seen: Mapping[str, Any]) -> Iterable[Estimated]:
    for found in seen.get("comparisons", ()):
        gap = found["difference"]
        if gap["estimate"] is not None:
            yield Estimated(found["variant"], found["score"], gap["estimate"], gap["lower"], gap["upper"])


def _guardrails(seen: Mapping[str, Any]) -> tuple[Guardrail, ...]:
    every = seen.get("guardrails", ())
    return tuple(Guardrail(one["variant"], one["metric"], bool(one["breached"])) for one in every)


def _last_guardrails(connection: Connection, experiment: str, variant: str) -> tuple[Guardrail, ...]:
    """As the last look saw them that still compared the variant."""
    table = schema.experiment_looks
    query = sa.select(table.c.body).where(table.c.experiment == experiment).order_by(table.c.number.desc())
    for body in connection.execute(query).scalars():
        found = tuple(one for one in _guardrails(body) if one.variant == variant)
        if found:
            return found
    return ()
