"""The end of a run: what the gate let through is published, what it did not is put away, in one transaction.

Owns that one step: the candidate's state and approval, the route's default, and the job's end are committed together
under the job's token, or not at all (promise 8). The model card and the result file are written in between, once it is
sure that the job is ours; without the commit they lie unused. Decides nothing: the verdict is `gate`'s.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.engine import Connection

from adapters.changes import changing
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest
from adapters.experiment_records import open_experiment_of
from adapters.experiments import begin
from adapters.files import Files, Purpose, StoredFile, insert_file
from adapters.jobs import Job, JobState, check, finish
from adapters.placements import PlacementState, placements_of
from adapters.policy import Release
from adapters.records import existing_version
from adapters.registry import settle
from adapters.routes import Route, find_route, insert_route, move_route
from adapters.settings import Settings
from adapters.versions import VersionRecord
from trainer import card
from trainer.evaluate import Contest
from trainer.gate import Outcome, Verdict


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found about a candidate, and against whom."""

    contest: Contest
    verdict: Verdict
    counts: dict[str, Any] = field(hash=False)  # of the evaluation: the cap, what was cut, what was refused
    parity: dict[str, Any] = field(hash=False)
    #: Of lm-evaluation-harness, where tasks are named: by side, task and metric.
    tasks: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict, hash=False)
    #: Of the load test, where the route's policy asks for one and it came to that.
    load_test: dict[str, Any] = field(default_factory=dict, hash=False)

    def report(self) -> dict[str, Any]:
        return {
            **self.verdict.report(),
            "candidate": self.contest.candidate,
            "incumbent": self.contest.incumbent,
            "base": self.contest.base,
            "evaluation": self.counts,
            "parity": self.parity,
            "tasks": self.tasks,
            "load_test": _load_test(self.load_test),
        }


@dataclass(frozen=True, slots=True)
class Origin:
    """What the candidate was made from."""

    method: str
    dataset: str  # sha256:…
    trained_tokens: int
    data: dict[str, Any] = field(hash=False)  # the dataset's report
    manifest: dict[str, Any] = field(hash=False)
    steps_csv: bytes = b""  # the numbers of each step, for OpenAI's result file


def publish(
    db: Database, settings: Settings, job: Job, proof: Proof, origin: Origin, now: float | None = None
) -> Job:
    """Publishes or rejects the candidate, and ends the job, which `job.token` must still hold.

    Without a pass the job has failed with code "gate_failed" or "gate_inconclusive", unless it was ordered with
    `gate: "report"`: then its creator's word stands for the gate's, on record. Raises StaleWorker, Conflict.
    """
    at = time.time() if now is None else now
    overridden = proof.verdict.outcome is not Outcome.PASS and job.payload.get("gate") == "report"
    passed = proof.verdict.outcome is Outcome.PASS or overridden
    approval = _approval(job, proof, overridden, at)
    with changing(db) as connection:
        check(connection, job.id, job.token)
        version = existing_version(connection, proof.contest.candidate)
        card.write(settings.card(version.ref), card.text(version, job, proof.report(), origin, approval))
        steps = _steps_file(db, settings, job, origin, at)
        if steps is not None:
            insert_file(connection, steps)
        if passed:
            _refuse_unheld(connection, version)
        reason = None if passed else _reason(proof.verdict)
        settled = settle(connection, version.ref, passed, approval, reason, job.id, at)
        released = _release(connection, job, settled, proof.contest, at) if passed else None
        result = _result(settled, proof, origin, released, steps)
        if passed:
            return finish(connection, job.id, job.token, state=JobState.SUCCEEDED, result=result, now=at)
        code = "gate_failed" if proof.verdict.outcome is Outcome.FAIL else "gate_inconclusive"
        error = {"code": code, "message": f"{version.ref}: {reason}"}
        return finish(
            connection, job.id, job.token, state=JobState.FAILED, result=result, error=error, now=at
        )


def _load_test(report: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of it: neither its course second by second nor the machine's description."""
    kept = ("verdict", "reasons", "targets", "figures", "tries", "headroom")
    return {name: report[name] for name in kept if name in report}


def _approval(job: Job, proof: Proof, overridden: bool, at: float) -> dict[str, Any]:
    told = {"job": job.id, "outcome": proof.verdict.outcome.value, "report": proof.verdict.report(), "at": at}
    if overridden:
        reason = f"ordered with gate 'report', and the gate says {proof.verdict.outcome}"
        return {"kind": "override", "by": job.payload["actor"], "reason": reason, **told}
    return {"kind": "gate", "by": job.id, "reason": "; ".join(proof.verdict.reasons), **told}


def _refuse_unheld(connection: Connection, version: VersionRecord) -> None:
    """Promise 4: some engine has loaded it and its canary has passed there, and none has refused it."""
    states = {placement.state for placement in placements_of(connection, version.ref)}
    if PlacementState.PROVED not in states or PlacementState.FAILED in states:
        raise Conflict(
            f"{version.ref} is not held by the engines that would serve it", code="version_not_ready"
        )


def _release(
    connection: Connection, job: Job, version: VersionRecord, contest: Contest, at: float
) -> dict[str, Any]:
    """Makes the version its route's default, or a challenger of it, as the policy is; and says what was done."""
    name = job.payload.get("route") or version.name
    route = find_route(connection, name)
    if route is not None and route.variant == version.ref:  # the first of its name
        return {"route": name, "default": version.ref}
    release = Release(job.payload["release"])
    if release is Release.ASK or job.payload.get("route") is None:
        return _waits(name, route, "for a promotion")
    if route is None:
        insert_route(connection, Route(name, version.ref, (), at), job.id)
        return {"route": name, "default": version.ref}
    running = open_experiment_of(connection, name)
    if running is not None:
        return _waits(name, route, f"for a person, since experiment {running.name} is {running.state}")
    if route.variant != (contest.default or contest.incumbent or contest.base):
        # What it was shown to be better than serves no more.
        why = f"for a promotion: the default became {route.variant} while it was evaluated"
        return _waits(name, route, why)
    if release is Release.PROMOTE:
        move_route(connection, route, route.promoted(version.ref), job.id, at)
        return {"route": name, "default": version.ref}
    if release is Release.EXPERIMENT:
        return _experiment(connection, route, version, job, at)
    share = route.policy.training.challenger_share
    try:
        challenged = route.challenged(version.ref, share)
    except InvalidRequest as error:
        return _waits(name, route, f"for a share of the traffic: {error.message}")
    move_route(connection, route, challenged, job.id, at)
    return {"route": name, "default": route.variant, "challenger": version.ref, "share": share}


def _experiment(
    connection: Connection, route: Route, version: VersionRecord, job: Job, at: float
) -> dict[str, Any]:
    """The version as a challenger, in an experiment by the route's plan."""
    try:
        begun = begin(connection, route, route.policy.experiment.of([version.ref]), job.id, at)
    except (Conflict, InvalidRequest) as error:
        return _waits(route.name, route, f"for an experiment: {error.message}")
    share = begun.shares[version.ref]
    told = {"route": route.name, "default": route.variant, "challenger": version.ref, "share": share}
    return {**told, "experiment": begun.name}


def _waits(name: str, route: Route | None, why: str) -> dict[str, Any]:
    return {"route": name, "default": None if route is None else route.variant, "waits": why}


def _steps_file(db: Database, settings: Settings, job: Job, origin: Origin, at: float) -> StoredFile | None:
    """The result file in its place; without the commit that follows it is swept away like any other without a row."""
    if not origin.steps_csv:
        return None
    files = Files(db, settings.file_root)
    with files.stage() as staged:
        staged.write(origin.steps_csv)
        return files.place(staged, "step_metrics.csv", Purpose.FINE_TUNE_RESULTS, job.key_id, now=at)


def _result(
    version: VersionRecord,
    proof: Proof,
    origin: Origin,
    released: Mapping[str, Any] | None,
    steps: StoredFile | None,
) -> dict[str, Any]:
    return {
        "fine_tuned_model": version.ref,
        "method": origin.method,
        "dataset": origin.dataset,
        "trained_tokens": origin.trained_tokens,
        "result_files": [] if steps is None else [steps.id],
        "gate": proof.report(),
        "release": None if released is None else dict(released),
        "manifest": origin.manifest,
    }


def _reason(verdict: Verdict) -> str:
    says = "failed" if verdict.outcome is Outcome.FAIL else "is inconclusive"
    return f"its gate {says}: {'; '.join(verdict.reasons)}"
