"""What /metrics tells of the shared records: feedback, experiments, jobs, training, batches, versions, who is alive.

Owns the names and labels of these families. They are the same from every gateway, so that a query takes the maximum over
instances, not the sum. `standings` reads them, no more often than the settings say; while the database is away the last
ones stand for a while, then there are none, and `burnish_records_stale_seconds` says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from adapters.experiment_records import ExperimentState
from adapters.job_records import BATCH, ENDED, TRAINING, Job, JobState
from adapters.standings import Estimated, ExperimentStanding, JobCount, RunStanding, Standing
from adapters.tallies import Said
from adapters.versions import VersionState
from gateway.batch_shapes import STATUS, status_of
from gateway.labels import OTHER
from gateway.runtime import Runtime

RUN_WORDS = {
    "loss": "The training loss of the route's last run.",
    "validation_loss": "The loss on held-out rows of the route's last run.",
    "step": "The optimizer step that the run under way has done.",
    "total_steps": "The steps that it will do at most.",
    "tokens_per_second": "Tokens that it learns from in a second.",
    "eta_seconds": "How long it still trains, rests included.",
    "paused_seconds": "How long it has rested so far, for people's requests.",
    "resting": "Whether it rests now.",
    "headroom": "The headroom of interactive requests that it goes by: it slows, and rests, where that is low.",
    "lines_wait": "Whether batch lines wait for a place: it rests for them where headroom is not ample.",
}
"""Of the numbers that a run tells of itself (`standings.NUMBERS`)."""

BATCH_STATES = (*STATUS.values(), "finalizing", "cancelling")


class RecordMetrics(Collector):
    """What the database says."""

    def __init__(self, runtime: Runtime) -> None:
        self._reading = runtime.standings
        self._max_series = runtime.settings.metrics.max_series

    def collect(self) -> Iterable[Metric]:
        newest = self._reading.newest()
        yield GaugeMetricFamily(
            "burnish_records_stale_seconds",
            "How old what is told of the records is; it grows while the database cannot be read.",
            newest.age_seconds,
        )
        if newest.standing is not None:
            yield from families(newest.standing, self._max_series)


def families(standing: Standing, max_series: int) -> Iterable[Metric]:
    """Everything that the records tell, of one standing."""
    yield from _feedback(bounded(standing.feedback, max_series))
    yield from _experiments(standing.experiments)
    yield from _jobs(standing)
    yield from _runs(standing)
    yield from _batches(standing)
    yield from _alive(standing)


def bounded(said: tuple[Said, ...], most: int) -> tuple[Said, ...]:
    """No more than `most`: what was said longest ago is told together, as `other`."""
    if len(said) <= most:
        return said
    old, kept = said[: len(said) - most + 1], said[len(said) - most + 1 :]
    count, total = sum(one.count for one in old), sum(one.value_sum for one in old)
    return (Said(*OTHER, OTHER[0], count, total), *kept)


# -- feedback and experiments ----------------------------------------------------------------------
def _feedback(every: Iterable[Said]) -> Iterable[Metric]:
    labels = ["route", "variant", "name"]
    counts = CounterMetricFamily("burnish_feedback", "What was said of answers, by its name.", labels=labels)
    sums = GaugeMetricFamily(
        "burnish_feedback_value_sum", "The sum of its values; a yes is 1.", labels=labels
    )
    for said in every:
        counts.add_metric([said.route, said.variant, said.name], said.count)
        sums.add_metric([said.route, said.variant, said.name], said.value_sum)
    yield from (counts, sums)


def _experiments(every: tuple[ExperimentStanding, ...]) -> Iterable[Metric]:
    yield from _traffic(every)
    yield from _estimates(every)
    yield from _findings(every)


def _traffic(every: Iterable[ExperimentStanding]) -> Iterable[Metric]:
    states = GaugeMetricFamily(
        "burnish_experiment_state", "1 for its state.", labels=["experiment", "route", "state"]
    )
    by_variant = ["experiment", "variant"]
    shares = GaugeMetricFamily(
        "burnish_experiment_share", "The share of the route's traffic.", labels=by_variant
    )
    units = GaugeMetricFamily("burnish_experiment_units", "Users and conversations seen.", labels=by_variant)
    for one in every:
        for state in ExperimentState:
            states.add_metric([one.name, one.route, state.value], state is one.state)
        for variant, share in one.shares.items():
            shares.add_metric([one.name, variant], share)
        for variant, count in one.units.items():
            units.add_metric([one.name, variant], count)
    yield from (states, shares, units)


def _estimates(every: tuple[ExperimentStanding, ...]) -> Iterable[Metric]:
    """Each challenger's scores less the control's, by which experiments decide; and what each variant is like by itself."""
    differences = [(one.name, each) for one in every for each in one.differences]
    yield from _bounded_means(
        ("estimate", "low", "high"), "a challenger's score less the control's", differences
    )
    means = [(one.name, each) for one in every for each in one.means]
    told = "a variant's mean, by score or metric; of times and lengths the geometric one"
    yield from _bounded_means(("mean", "mean_low", "mean_high"), told, means)


def _bounded_means(
    names: tuple[str, str, str], told: str, every: list[tuple[str, Estimated]]
) -> Iterable[Metric]:
    """Three families: a mean, and the bounds between which it lies, where there are any."""
    texts = (f"What is known of {told}.", f"The lower bound of {told}.", f"The upper bound of {told}.")
    labels = ["experiment", "variant", "metric"]
    for place, (name, text) in enumerate(zip(names, texts, strict=True)):
        family = GaugeMetricFamily(f"burnish_experiment_{name}", text, labels=labels)
        for experiment, each in every:
            value = (each.mean, each.low, each.high)[place]
            if value is not None:
                family.add_metric([experiment, each.variant, each.metric], value)
        yield family


def _findings(every: Iterable[ExperimentStanding]) -> Iterable[Metric]:
    verdicts = GaugeMetricFamily(
        "burnish_experiment_verdict", "1 for its verdict, once it has one.", labels=["experiment", "verdict"]
    )
    ratios = GaugeMetricFamily(
        "burnish_experiment_sample_ratio_mismatch",
        "Whether users come in other shares than they were given, so that nothing can be compared.",
        labels=["experiment"],
    )
    breaches = GaugeMetricFamily(
        "burnish_experiment_guardrail_breached",
        "Whether the challenger is worse than the guardrail tolerates.",
        labels=["experiment", "variant", "guardrail"],
    )
    for one in every:
        if one.verdict is not None:
            verdicts.add_metric([one.name, one.verdict], 1)
        ratios.add_metric([one.name], one.is_ratio_broken)
        for guardrail in one.guardrails:
            breaches.add_metric([one.name, guardrail.variant, guardrail.metric], guardrail.is_breached)
    yield from (verdicts, ratios, breaches)


# -- jobs, training, batches -----------------------------------------------------------------------
def _jobs(standing: Standing) -> Iterable[Metric]:
    """Every kind in every state, so that a query for what waits has an answer where nothing does."""
    known = {(one.kind, one.state): one for one in standing.jobs}
    labels = ["kind", "state"]
    counts = GaugeMetricFamily("burnish_jobs", "Jobs on record.", labels=labels)
    ages = GaugeMetricFamily(
        "burnish_job_age_seconds",
        "The age of the oldest one: since it was made, or first taken up where it runs; 0 where there is none.",
        labels=labels,
    )
    for kind in (TRAINING, BATCH):
        for state in JobState:
            found = known.get((kind, state), JobCount(kind, state, 0, 0.0))
            counts.add_metric([kind, state.value], found.count)
            if state not in ENDED:
                ages.add_metric([kind, state.value], found.age_seconds or 0.0)
    lost = CounterMetricFamily(
        "burnish_job_attempts_lost", "How often whoever held a job was lost with it.", labels=["kind"]
    )
    for kind, count in standing.attempts_lost.items():
        lost.add_metric([kind], count)
    yield from (counts, ages, lost)


def _runs(standing: Standing) -> Iterable[Metric]:
    for name, text in RUN_WORDS.items():
        family = GaugeMetricFamily(f"burnish_training_{name}", text, labels=["route"])
        for run in standing.runs:
            if name in run.numbers:
                family.add_metric([run.route], run.numbers[name])
        yield family
    yield _stages(standing.runs)
    gates = CounterMetricFamily(
        "burnish_training_gate", "Runs whose gate was reached, by its outcome.", labels=["route", "outcome"]
    )
    for (route, outcome), count in standing.gates.items():
        gates.add_metric([route, outcome], count)
    yield gates


def _stages(runs: Iterable[RunStanding]) -> Metric:
    family = GaugeMetricFamily(
        "burnish_training_stage", "1 for the stage of the run under way.", labels=["route", "stage"]
    )
    for run in runs:
        if run.stage is not None:
            family.add_metric([run.route, run.stage], 1)
    return family


def _batches(standing: Standing) -> Iterable[Metric]:
    by_state = Counter(dict.fromkeys(BATCH_STATES, 0))
    for one in standing.jobs:
        if one.kind == BATCH and one.state in ENDED:
            by_state[STATUS[one.state]] += one.count
    by_state.update(status_of(job) for job in standing.open_batches)
    family = GaugeMetricFamily(
        "burnish_batches", "Batches on record, by OpenAI's word for their state.", labels=["state"]
    )
    for state, count in by_state.items():
        family.add_metric([state], count)
    lines = GaugeMetricFamily(
        "burnish_batch_lines", "Lines of the batches that have not ended.", labels=["state"]
    )
    for state, count in _lines(standing.open_batches).items():
        lines.add_metric([state], count)
    yield from (family, lines)


def _lines(batches: Iterable[Job]) -> dict[str, int]:
    total = Counter(done=0, failed=0, left=0)
    for job in batches:
        done, failed = int(job.progress.get("completed", 0)), int(job.progress.get("failed", 0))
        total.update(done=done, failed=failed, left=int(job.progress.get("total", 0)) - done - failed)
    return dict(total)


# -- who and what is there -------------------------------------------------------------------------
def _alive(standing: Standing) -> Iterable[Metric]:
    yield GaugeMetricFamily("burnish_workers", "Training workers that are alive.", standing.workers)
    yield GaugeMetricFamily("burnish_gateways", "Gateways that are alive.", standing.gateways)
    versions = GaugeMetricFamily("burnish_adapter_versions", "Adapter versions, by state.", labels=["state"])
    for state in VersionState:
        versions.add_metric([state.value], standing.versions.get(state.value, 0))
    yield versions
