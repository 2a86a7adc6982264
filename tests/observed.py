"""Answers in experiments, and what was said of them, for tests: what a gateway would have written, without one."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.completions import Completion, insert_completions
from adapters.database import Database
from adapters.experiment_records import Experiment
from adapters.feedback import Feedback, insert_feedback
from adapters.observations import Observation
from adapters.plans import Plan, parse_plan
from adapters.registry import Registry
from adapters.versions import VersionState
from tests.judged import completion
from tests.lora import TINY_CONFIG, write_lora


def plan(*challengers: str, **parts: Any) -> Plan:
    """A plan that is soon sure: least voices and no patience, unless `parts` say otherwise."""
    soon = {"least_voices": 10, "expected_voices": 100, "step_seconds": 10, "step_units": 10}
    return parse_plan({"challengers": list(challengers) or ["support@2"], **soon, **parts})


def proved_versions(registry: Registry, folder: Path, count: int = 3) -> list[str]:
    """Of `support`: the first one makes the route."""
    refs = []
    for seed in range(count):
        lora = write_lora(folder / f"proved-{seed}", TINY_CONFIG, seed=seed)
        refs.append(registry.import_adapter("support", lora, "base-model", TINY_CONFIG, "anna").ref)
        registry.set_state(refs[-1], VersionState.PROVED, None, "reconciler")
    return refs


def answer(
    experiment: Experiment,
    variant: str,
    user: str,
    *,
    epoch: int | None = None,
    failed_over: bool = False,
    error: float = 0.0,
    shadow_of: str | None = None,
    key_id: str | None = None,
    created: float = 2000.0,
    **measured: float,
) -> Completion:
    """One that counts; `measured` by the columns of observations."""
    made = completion(user=user, route=experiment.route, variant=variant, key_id=key_id, created=created)
    observation = Observation(
        id=made.id,
        experiment=experiment.id,
        epoch=experiment.epoch if epoch is None else epoch,
        variant=variant,
        unit=f"user:{user}",
        created=created,
        failed_over=failed_over,
        error=error,
        shadow_of=shadow_of,
        **measured,
    )
    return replace(made, observation=observation)


def word(
    judged: Completion,
    value: float,
    *,
    name: str = "rating",
    user: str | None = None,
    key_id: str | None = None,
    created: float = 3000.0,
) -> Feedback:
    """Of the completion's own user, if nobody else is named."""
    return Feedback(
        id=f"fb_{secrets.token_hex(12)}",
        created=created,
        completion_id=judged.id,
        name=name,
        value=value,
        comment=None,
        demonstration=None,
        preferred_over=None,
        metadata={},
        key_id=key_id or judged.key_id,
        user=user or judged.user,
        route=judged.route,
        variant=judged.variant,
        digest=judged.digest,
        unit=judged.unit,
        source="api",
    )


def write(db: Database, answers: Iterable[Completion], words: Iterable[Feedback] = ()) -> None:
    with db.begin() as connection:
        insert_completions(connection, list(answers))
        insert_feedback(connection, list(words))


def crowd(
    db: Database,
    experiment: Experiment,
    variant: str,
    of: int,
    *,
    liked: int = 0,
    told: bool = True,
    name: str = "u",
    **more: Any,
) -> list[Completion]:
    """So many users with an answer each, of whom the first `liked` like theirs, and the others do not."""
    users = [f"{name}-{variant}-{number}" for number in range(of)]
    answers = [answer(experiment, variant, user, **more) for user in users]
    words = [word(judged, float(number < liked)) for number, judged in enumerate(answers)]
    write(db, answers, words if told else ())
    return answers
