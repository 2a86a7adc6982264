"""Records as the JSON objects that the API and `--json` of the CLI show. Pure, and free of FastAPI.

Times are whole epoch seconds, as in OpenAI's objects. A key's digest never appears.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from adapters.changes import Event
from adapters.experiment_records import Experiment
from adapters.feedback import Feedback
from adapters.forget import Forgotten
from adapters.keys import Key
from adapters.lineage import Lineage
from adapters.placements import Placement
from adapters.plans import plan_json
from adapters.policy import policy_json
from adapters.routes import Route, shares_of
from adapters.versions import VersionRecord


def listing(data: Iterable[dict[str, Any]], *, has_more: bool = False) -> dict[str, Any]:
    """OpenAI's list object; nothing of ours but the audit log is long enough for more than one."""
    return {"object": "list", "data": list(data), "has_more": has_more}


def page(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page of a list that goes on: the SDK asks for the next one after `last_id`."""
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"object": "list", "data": data, **ends, "has_more": has_more}


def version_shape(version: VersionRecord, placements: Iterable[Placement]) -> dict[str, Any]:
    """`placements` may be those of every version."""
    return {
        "id": version.ref,
        "object": "adapter.version",
        "digest": version.digest,
        "base_model": version.base_model,
        "base_digest": version.base_digest,
        "rank": version.rank,
        "target_modules": list(version.target_modules),
        "size_bytes": version.size_bytes,
        "state": version.state.value,
        "reason": version.reason,
        "origin": version.origin,
        "approval": version.approval,
        "created": int(version.created),
        "placements": [
            {"engine": p.engine, "state": p.state.value, "reason": p.reason}
            for p in placements
            if p.ref == version.ref
        ],
    }


def lineage_shape(lineage: Lineage, completions: Sequence[str]) -> dict[str, Any]:
    """Where a version comes from; `completions` are the ids behind its dataset."""
    return {
        "job": lineage.job_id,
        "route": lineage.route,
        "method": lineage.method,
        "start_from": lineage.start_from,
        "dataset": lineage.dataset,
        "rows": lineage.rows,
        "completions": list(completions),
        "report": lineage.report,
        "gate": lineage.gate,
    }


def adapter_shape(
    name: str, versions: Sequence[VersionRecord], placements: Iterable[Placement]
) -> dict[str, Any]:
    """An adapter with all its versions, the removed ones too; there is at least one."""
    placed = list(placements)
    return {
        "id": name,
        "object": "adapter",
        "base_model": versions[0].base_model,
        "created": int(versions[0].created),
        "versions": [version_shape(version, placed) for version in versions],
    }


def route_shape(route: Route) -> dict[str, Any]:
    return {
        "id": route.name,
        "object": "route",
        "variant": route.variant,
        "challengers": shares_of(route),
        "history": list(route.history),
        "created": int(route.created),
        "policy": policy_json(route.policy),
    }


def experiment_shape(experiment: Experiment, current: dict[str, Any] | None = None) -> dict[str, Any]:
    """`current`: what there is to see of it, as `verdicts.look_json` has it; None where nobody has looked."""
    return {
        "id": experiment.id,
        "object": "experiment",
        "name": experiment.name,
        "route": experiment.route,
        "state": experiment.state.value,
        "policy": experiment.plan.policy.value,
        "plan": plan_json(experiment.plan),
        "control": experiment.control,
        "shares": experiment.shares,
        "dropped": experiment.dropped,
        "verdict": experiment.verdict,
        "actor": experiment.actor,
        "created": int(experiment.created),
        "ended": None if experiment.ended is None else int(experiment.ended),
        "current": current,
    }


def feedback_shape(feedback: Feedback) -> dict[str, Any]:
    """Booleans are 0 and 1: which a score is, its route's policy says."""
    return {
        "id": feedback.id,
        "object": "feedback",
        "created": int(feedback.created),
        "completion_id": feedback.completion_id,
        "name": feedback.name,
        "value": feedback.value,
        "comment": feedback.comment,
        "demonstration": feedback.demonstration,
        "preferred_over": feedback.preferred_over,
        "metadata": feedback.metadata,
        "user": feedback.user,
        "route": feedback.route,
        "variant": feedback.variant,
        "digest": feedback.digest,
        "source": feedback.source,
    }


def forgotten_shape(user: str, forgotten: Forgotten, *, dry_run: bool) -> dict[str, Any]:
    return {
        "id": user,
        "object": "user",
        "deleted": not dry_run,
        "completions": forgotten.completions,
        "feedback": forgotten.feedback,
        "responses": forgotten.responses,
        "jobs": list(forgotten.jobs),
        "stopped": list(forgotten.stopped),
        "versions": list(forgotten.versions),
        "quarantined": list(forgotten.quarantined),
        "routes": [{"id": m.route, "from": m.before, "to": m.after} for m in forgotten.routes],
    }


def key_shape(key: Key) -> dict[str, Any]:
    """Of its limits, null is what the settings say, and 0 none."""
    return {
        "id": key.id,
        "object": "api_key",
        "name": key.name,
        "prefix": key.prefix,
        "scopes": sorted(scope.value for scope in key.scopes),
        "records": key.records,
        "limits": asdict(key.limits),
        "created": int(key.created),
        "revoked": None if key.revoked is None else int(key.revoked),
    }


def event_shape(event: Event) -> dict[str, Any]:
    return {
        "id": event.id,
        "object": "event",
        "at": event.at,
        "actor": event.actor,
        "action": event.action,
        "subject": event.subject,
        "detail": event.detail,
    }
