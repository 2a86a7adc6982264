"""What an experiment has seen: sufficient sums for each variant, one entry for each unit or voice.

Owns the queries over `observations` and `feedback`. Reads everything anew at each look, so that late feedback, changed
minds and forgotten users need no code of their own. Does not know what is concluded (`verdicts`).

How an answer went is counted by unit: who keeps a variant. What was said of it is counted by voice, whose last word on
an answer stands: whoever says much is one entry, the mean of what they said (promise 10). Somebody who met two
variants is an entry in each: their words go together, which makes intervals wider than they need be, never narrower.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from adapters import schema
from adapters.experiment_records import Experiment, shares_by_epoch
from adapters.observations import COLUMNS
from adapters.plans import Metric
from adapters.policy import Score
from adapters.statistics import Sums


@dataclass(frozen=True, slots=True)
class Voice:
    """What one voice said of one variant's answers, by one score."""

    name: str
    key: str  # the API key by which it came; "" while no keys are in use
    value: float  # the mean, 0 to 1, 1 the best
    before: float | None  # the same end user's mean on this route before the experiment began


@dataclass(frozen=True, slots=True)
class ArmEvidence:
    """Of one variant."""

    answers: int = 0
    units: int = 0
    metrics: dict[Metric, Sums] = field(default_factory=dict, hash=False)
    scores: dict[str, Sums] = field(default_factory=dict, hash=False)
    #: The deciding score without the voices of each one key, where several keys have given any.
    without_key: dict[str, Sums] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Epoch:
    """Units by the variant that they got, of those that first came while the shares were these."""

    shares: dict[str, float] = field(hash=False)
    units: dict[str, int] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Evidence:
    arms: dict[str, ArmEvidence] = field(hash=False)
    epochs: tuple[Epoch, ...] = ()

    def arm(self, variant: str) -> ArmEvidence:
        return self.arms.get(variant, ArmEvidence())


def gather(connection: Connection, experiment: Experiment, scores: Sequence[Score]) -> Evidence:
    """The evidence so far. `scores`: the plan's, the deciding one first."""
    measured = _measured(connection, experiment)
    heard = _voices(connection, experiment, scores)
    cap, first = experiment.plan.max_share_per_key, scores[0].name
    voices = {matter: capped(some, cap) for matter, some in heard.items()}
    usual = {score.name: _usual(voices, score.name) for score in scores}
    arms = {}
    for variant in experiment.variants:
        said = {score.name: voices.get((variant, score.name), ()) for score in scores}
        arms[variant] = replace(
            measured.get(variant, ArmEvidence()),
            scores={name: _sums(some, usual[name]) for name, some in said.items()},
            without_key=_without_each_key(said[first], usual[first]),
        )
    return Evidence(arms, _epochs(connection, experiment))


def newest(connection: Connection, experiment: Experiment) -> tuple[int, int]:
    """Grows whenever there is something new to look at: the last numbers of observations and of feedback."""
    seen, said = schema.observations, schema.feedback
    observed = sa.select(sa.func.max(seen.c.number)).where(seen.c.experiment == experiment.id)
    told = sa.select(sa.func.max(said.c.number)).where(said.c.route == experiment.route)
    return (connection.execute(observed).scalar() or 0, connection.execute(told).scalar() or 0)


def capped(voices: Sequence[Voice], most: float) -> tuple[Voice, ...]:
    """The voices with no key's share of what is left above `most`; which of a key's voices stay, a hash decides.

    Where there are fewer keys than 1 / most, none of them stays: the share cannot be had otherwise.
    """
    if most >= 1:
        return tuple(voices)
    of_key: dict[str, list[Voice]] = defaultdict(list)
    for voice in voices:
        of_key[voice.key].append(voice)
    each = _most_each([len(some) for some in of_key.values()], most)
    return tuple(voice for some in of_key.values() for voice in sorted(some, key=_lot)[:each])


# -- pure ------------------------------------------------------------------------------------------
def _most_each(counts: Sequence[int], most: float) -> int:
    """How many voices a key may keep. What one key gives up makes the others' shares larger: again, until all fit."""
    left = sum(counts)
    while True:
        each = int(most * left + 1e-9)
        fewer = sum(min(count, each) for count in counts)
        if fewer == left:
            return each
        left = fewer


def _lot(voice: Voice) -> bytes:
    return hashlib.blake2b(voice.name.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _usual(voices: Mapping[tuple[str, str], Sequence[Voice]], score: str) -> float:
    """What stands for the past of a voice that has none: the others' mean, which adjusts nothing."""
    known = [
        v.before for (_, name), some in voices.items() if name == score for v in some if v.before is not None
    ]
    return math.fsum(known) / len(known) if known else 0.0


def _sums(voices: Iterable[Voice], usual: float) -> Sums:
    every = list(voices)
    before = [usual if voice.before is None else voice.before for voice in every]
    return Sums.of([voice.value for voice in every], before)


def _without_each_key(voices: Sequence[Voice], usual: float) -> dict[str, Sums]:
    of_key: dict[str, list[Voice]] = defaultdict(list)
    for voice in voices:
        of_key[voice.key].append(voice)
    if len(of_key) < 2:
        return {}
    parts = [_sums(some, usual) for some in of_key.values()]
    before = accumulate(parts, initial=Sums())
    after = [*accumulate(reversed(parts), initial=Sums())][-2::-1]
    return {key: one + other for key, one, other in zip(of_key, before, after, strict=False)}


def scaled(score: Score, value: float) -> float:
    """From the score's own scale to 0 to 1, 1 the best."""
    low, high = score.bounds
    part = min(1.0, max(0.0, (value - low) / (high - low)))
    return part if score.higher_is_better else 1.0 - part


# -- queries ---------------------------------------------------------------------------------------
def _measured(connection: Connection, experiment: Experiment) -> dict[str, ArmEvidence]:
    """Answers, units and the sums of each metric, by variant. A unit's entry is the mean of its answers."""
    table = schema.observations
    means = [sa.func.avg(table.c[column]) for column in COLUMNS.values()]
    query = (
        sa.select(table.c.variant, sa.func.count(), *means)
        .where(_of(experiment, by_epoch=experiment.answers_by_epoch))
        .group_by(table.c.variant, table.c.unit)
    )
    rows_of: dict[str, list[Any]] = defaultdict(list)
    for row in connection.execute(query):
        rows_of[row[0]].append(row)
    return {
        variant: ArmEvidence(
            answers=sum(row[1] for row in rows),
            units=len(rows),
            metrics=_metric_sums(rows),
        )
        for variant, rows in rows_of.items()
    }


def _of(experiment: Experiment, *, by_epoch: bool) -> sa.ColumnElement[bool]:
    table = schema.observations
    is_its = table.c.experiment == experiment.id
    return sa.and_(is_its, table.c.epoch == experiment.epoch) if by_epoch else is_its


def _metric_sums(rows: Sequence[Any]) -> dict[Metric, Sums]:
    """Of rows of (variant, answers, mean of each metric), [units]; what was never measured is left out."""
    sums = {}
    for place, metric in enumerate(COLUMNS, 2):
        values = [row[place] for row in rows if row[place] is not None]
        if values:
            sums[metric] = Sums.of(values)
    return sums


def _voices(
    connection: Connection, experiment: Experiment, scores: Sequence[Score]
) -> dict[tuple[str, str], list[Voice]]:
    """By variant and score. Answers of a shadow were shown to nobody, and one that failed over is another's."""
    seen, said = schema.observations, schema.feedback
    names = {score.name: score for score in scores}
    latest = latest_words(
        said.join(seen, seen.c.id == said.c.completion_id),
        sa.and_(
            _of(experiment, by_epoch=experiment.words_by_epoch),
            ~seen.c.failed_over,
            said.c.name.in_(names),
        ),
        seen.c.variant,
    )
    means = (
        sa.select(latest.c.variant, latest.c.name, latest.c.voice,
                  sa.func.min(latest.c.key), sa.func.avg(latest.c.value))
        .where(latest.c.place == 1)
        .group_by(latest.c.variant, latest.c.name, latest.c.voice)
    )  # fmt: skip
    past = _past(connection, experiment, names)
    found: dict[tuple[str, str], list[Voice]] = defaultdict(list)
    for variant, name, voice, key, value in connection.execute(means):
        before = past.get((name, voice))
        found[variant, name].append(Voice(voice, key, scaled(names[name], float(value)), before))
    return found


def _past(
    connection: Connection, experiment: Experiment, scores: Mapping[str, Score]
) -> dict[tuple[str, str], float]:
    """What each end user in it said on this route before the experiment began, by score and voice, 0 to 1.

    Found by the users, of whom there are few, and not by the route, whose past is long.
    """
    said, seen, theirs = schema.feedback, schema.observations, schema.feedback.alias()
    spoke = (
        sa.select(theirs.c.end_user)
        .distinct()
        .join(seen, seen.c.id == theirs.c.completion_id)
        .where(seen.c.experiment == experiment.id, theirs.c.end_user.is_not(None))
        .subquery()
    )
    before = sa.and_(
        said.c.route == experiment.route, said.c.created < experiment.created, said.c.name.in_(scores)
    )
    latest = latest_words(said.join(spoke, spoke.c.end_user == said.c.end_user), before)
    means = (
        sa.select(latest.c.name, latest.c.voice, sa.func.avg(latest.c.value))
        .where(latest.c.place == 1)
        .group_by(latest.c.name, latest.c.voice)
    )
    rows = connection.execute(means)
    return {(name, voice): scaled(scores[name], float(value)) for name, voice, value in rows}


def latest_words(
    source: sa.FromClause, which: sa.ColumnElement[bool], *more: sa.ColumnElement[Any]
) -> sa.Subquery:
    """Values of scores with `place` 1 for the last word of a voice on an answer: `feedback.last_words` in SQL."""
    said = schema.feedback
    voice = sa.case((said.c.end_user.is_not(None), "user:" + said.c.end_user), else_=said.c.unit)
    matter = (said.c.completion_id, said.c.name, voice)
    place = sa.func.row_number().over(partition_by=matter, order_by=said.c.number.desc())
    key = sa.func.coalesce(said.c.key_id, "")
    columns = (*more, said.c.name, voice.label("voice"), key.label("key"), said.c.value, place.label("place"))
    return sa.select(*columns).select_from(source).where(which, said.c.value.is_not(None)).subquery()


def _epochs(connection: Connection, experiment: Experiment) -> tuple[Epoch, ...]:
    """Each unit counts once: in the epoch and for the variant in which it first came."""
    table = schema.observations
    of_it = sa.and_(table.c.experiment == experiment.id, table.c.shadow_of.is_(None))
    first = (
        sa.select(sa.func.min(table.c.number).label("number")).where(of_it).group_by(table.c.unit).subquery()
    )
    query = (
        sa.select(table.c.epoch, table.c.variant, sa.func.count())
        .join(first, first.c.number == table.c.number)
        .group_by(table.c.epoch, table.c.variant)
    )
    shares = shares_by_epoch(connection, experiment.id)
    units: dict[int, dict[str, int]] = defaultdict(dict)
    for epoch, variant, count in connection.execute(query):
        units[epoch][variant] = count
    return tuple(Epoch(shares[epoch], units[epoch]) for epoch in sorted(units) if epoch in shares)
