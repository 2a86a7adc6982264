"""What a variant, or a mixture of variants, would score on a route, from what its experiments have logged.

Owns the query for `off_policy`: which answers can speak for the asked-for mixture. Only those that were split while all
of its variants had a share: where a variant had none, nothing that was logged says what it would have done. Begins no
experiment and decides nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from adapters import schema
from adapters.database import Database
from adapters.errors import InvalidRequest
from adapters.evidence import latest_words, scaled
from adapters.experiment_records import all_experiments, shares_by_epoch
from adapters.experiments import declared_score
from adapters.off_policy import Logged, OffPolicyValue, value
from adapters.policy import Score
from adapters.routes import existing_route
from adapters.statistics import CannotTell

DAY_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """The score from 0 to 1, 1 the best, that a route would have if its traffic were split by `target`."""

    route: str
    target: dict[str, float] = field(hash=False)
    score: str
    alpha: float
    rows: int  # judged answers that can speak for it
    value: OffPolicyValue | CannotTell


def estimate(
    db: Database,
    route: str,
    target: Mapping[str, float],
    *,
    score: str = "rating",
    alpha: float = 0.05,
    since: float | None = None,
) -> Estimate:
    """A first look before exposure: valid once, not to be repeated until it pleases. `since`: epoch seconds.

    Where the log cannot support it, `value` is CannotTell and says why. Raises NotFound for an unknown route,
    InvalidRequest for a target that is none, or a score that the route does not declare.
    """
    _check(target, alpha)
    with db.read() as connection:
        found = existing_route(connection, route)
        declared = declared_score(found.policy, score, "score")
        logged = _logged(connection, route, target, declared, since or 0.0)
    used = {variant: share for variant, share in target.items() if share > 0}
    judged: OffPolicyValue | CannotTell = CannotTell(
        f"no judged answer of {route!r} was split while {' and '.join(used)} had a share of its traffic; "
        "begin an experiment first"
    )
    if logged:
        judged = value(logged, used, alpha)
    return Estimate(route, dict(target), score, alpha, len(logged), judged)


def estimate_json(found: Estimate) -> dict[str, Any]:
    """As the API and the command show it."""
    told = asdict(found)
    is_refused = isinstance(found.value, CannotTell)
    return {
        **told,
        "value": None if is_refused else told["value"],
        "cannot_tell": found.value.reason if isinstance(found.value, CannotTell) else None,
    }


def _check(target: Mapping[str, float], alpha: float) -> None:
    shares = list(target.values())
    if not shares or min(shares) < 0 or abs(math.fsum(shares) - 1) > 1e-6:
        raise InvalidRequest(
            "the target's probabilities must be at least 0 and add up to 1",
            param="target",
            code="invalid_value",
        )
    if not 0 < alpha < 1:
        raise InvalidRequest("alpha must be above 0 and below 1", param="alpha", code="invalid_value")


def _logged(
    connection: Connection, route: str, target: Mapping[str, float], score: Score, since: float
) -> list[Logged]:
    used = [variant for variant, share in target.items() if share > 0]
    rows: list[Logged] = []
    for experiment in all_experiments(connection, route):
        shares = shares_by_epoch(connection, experiment.id)
        able = [n for n, of in shares.items() if all(of.get(variant, 0.0) > 0 for variant in used)]
        if able:
            rows += _rows(connection, experiment.id, able, shares, score, since)
    return rows


def _rows(
    connection: Connection,
    experiment: str,
    epochs: list[int],
    shares: Mapping[int, Mapping[str, float]],
    score: Score,
    since: float,
) -> list[Logged]:
    """One for each voice's last word on an answer, with what was known before its variant was chosen."""
    seen, said, asked = schema.observations, schema.feedback, schema.completions
    which = sa.and_(
        seen.c.experiment == experiment,
        seen.c.epoch.in_(epochs),
        seen.c.created >= since,
        ~seen.c.failed_over,
        said.c.name == score.name,
    )
    source = said.join(seen, seen.c.id == said.c.completion_id).join(asked, asked.c.id == seen.c.id)
    words = latest_words(source, which, seen.c.variant, seen.c.epoch, asked.c.prompt_tokens, asked.c.created)
    now = time.time()
    return [
        Logged(
            row.variant,
            shares[row.epoch][row.variant],
            scaled(score, row.value),
            row.voice,
            (math.log1p(row.prompt_tokens or 0), (now - row.created) / DAY_SECONDS),
        )
        for row in connection.execute(sa.select(words).where(words.c.place == 1))
    ]
