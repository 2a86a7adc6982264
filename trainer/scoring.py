"""From what each side said, and how likely it found the accepted answers, to the measures that the gate judges. Pure.

Owns which measures a kind of row asks for and what each may decide:

    primary   exact match with written and with better answers; chrF with what was written, and its likelihood;
              preference accuracy for pairs; the margin between liked and disliked answers for thumbs
    guard     the answer's form, length, end, repetition and refusals; likelihood of the better answers of pairs;
              the regression set
    report    ROUGE-L, JSON match, a judge's word, and whatever the run's method does not learn

Liked answers are not what the next model must say word for word, so nothing is matched with them. Does not know how
an answer is come by, nor what is good enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.policy import FormatCheck
from adapters.rows import Row, RowKind
from trainer import measures
from trainer.measures import Answer, Measure, Pair, Role

DISPLACEMENT = 10.0
"""Learning from pairs may lower the likelihood of both answers (Razin et al. 2024, "likelihood displacement"); this
many times the margin, in nats a token, is where it has gone too far."""

SIDES = ("candidate", "incumbent", "base")


@dataclass(frozen=True, slots=True)
class Told:
    """What one side has shown, by row id. What is missing was not to be had."""

    spoken: dict[str, Answer] = field(default_factory=dict)
    accepted_nll: dict[str, float] = field(default_factory=dict)
    """Of each row's answer, liked or not."""
    rejected_nll: dict[str, float] = field(default_factory=dict)


Value = Callable[[Told, Row], float | None]


def score(
    rows: Sequence[Row],
    told: Mapping[str, Told],
    reference_tokens: Mapping[str, int],
    form: FormatCheck,
    method: str,
) -> tuple[Measure, ...]:
    """The measures of the held-out rows; `told` by side (see SIDES), without the sides that there are not.

    `method`: a supervised run learns every accepted answer as what to say, the others do not.
    """
    made = _Scores(told)
    accepted = [row for row in rows if has_reference(row)]
    pairs = [row for row in rows if row.kind is RowKind.PREFERENCE]
    matched = [row for row in accepted if row.kind is not RowKind.LABEL]
    learned = [row for row in accepted if method == "supervised" or row.kind is RowKind.DEMONSTRATION]
    written = [row for row in learned if row.kind is not RowKind.LABEL]
    unlearned = [] if method == "supervised" else pairs
    nats: dict[str, Any] = {"higher_is_better": False, "worst": None, "best": 0.0}
    made.add("exact_match", Role.PRIMARY, matched, _answer(_exact))
    made.add("chrf", Role.PRIMARY, written, _answer(_chrf))
    made.add("nll", Role.PRIMARY, learned, _nll, **nats)
    made.add("preference_accuracy", Role.PRIMARY, pairs, _prefers)
    _add_label_margin(made, rows, Role.PRIMARY if method == "kto" else Role.REPORT)
    made.add("ended", Role.GUARD, rows, _answer(lambda answer, row: measures.ended(answer)))
    made.add(
        "length", Role.GUARD, accepted, _answer(lambda a, r: measures.length_kept(a, reference_tokens[r.id]))
    )
    made.add(
        "repetition", Role.GUARD, rows, _answer(_repetition), higher_is_better=False, worst=1.0, best=0.0
    )
    made.add("refusals", Role.GUARD, rows, _answer(_refusal), higher_is_better=False, worst=1.0, best=0.0)
    if form != FormatCheck():
        made.add("format", Role.GUARD, rows, _answer(lambda answer, row: measures.complies(answer, form)))
    made.add("chosen_nll", Role.GUARD, unlearned, _nll, margin=DISPLACEMENT, **nats)
    made.add("chosen_chrf", Role.REPORT, unlearned, _answer(_chrf))
    made.add("rouge_l", Role.REPORT, matched, _answer(_rouge))
    made.add("json_match", Role.REPORT, [row for row in accepted if _is_json(row)], _answer(_json))
    return tuple(made.measures)


def regressions(cases: Sequence[Row], told: Mapping[str, Told]) -> Measure:
    """The guard of the regression set: of cases that the rival answers right, how many the candidate does."""
    made = _Scores(told)
    made.add("regressions", Role.GUARD, cases, _answer(_exact))
    return made.measures[0]


def judged(rows: Sequence[Row], wins: Mapping[str, float], rival: str) -> Measure:
    """A judge's word, for the report: the share of rows on which it takes the candidate's answer, a tie as a half."""
    pairs = [(row, wins.get(row.id)) for row in rows]
    made = tuple(
        Pair(unit_of(row), win, None, None, row.key_id)
        if win is None
        else Pair(
            unit_of(row),
            win,
            1 - win if rival == "incumbent" else None,
            1 - win if rival == "base" else None,
            row.key_id,
        )
        for row, win in pairs
    )
    return Measure("judge", Role.REPORT, made)


def has_reference(row: Row) -> bool:
    """Whether the row's answer is one that may be said."""
    return row.kind is not RowKind.LABEL or row.liked is True


def unit_of(row: Row) -> str:
    """Whose voice it is; a row of nobody in particular is its own."""
    return row.unit or row.id


class _Scores:
    """Measures in the making."""

    def __init__(self, told: Mapping[str, Told]) -> None:
        self.told = told
        self.measures: list[Measure] = []

    def add(
        self,
        name: str,
        role: Role,
        rows: Sequence[Row],
        value: Value,
        *,
        higher_is_better: bool = True,
        worst: float | None = 0.0,
        best: float | None = 1.0,
        margin: float = 1.0,
    ) -> None:
        pairs = tuple(self._pair(row, value) for row in rows)
        if pairs:
            self.measures.append(Measure(name, role, pairs, higher_is_better, worst, best, margin))

    def _pair(self, row: Row, value: Value) -> Pair:
        candidate, incumbent, base = (
            value(self.told[side], row) if side in self.told else None for side in SIDES
        )
        return Pair(unit_of(row), candidate, incumbent, base, row.key_id)


def _add_label_margin(made: _Scores, every: Sequence[Row], role: Role) -> None:
    """By how much likelier the liked answers are than the disliked, in nats a token, both kinds weighing the same."""
    rows = [row for row in every if row.kind is RowKind.LABEL]
    weights = measures.balanced([(unit_of(row), row.liked is True) for row in rows])
    weight = {row.id: each for row, each in zip(rows, weights, strict=False)}

    def value(told: Told, row: Row) -> float | None:
        loss = told.accepted_nll.get(row.id)
        return None if loss is None else weight[row.id] * (-loss if row.liked else loss)

    if weights:
        made.add("label_margin", role, rows, value, worst=None, best=None)


def _answer(value: Callable[[Answer, Row], float | None]) -> Value:
    """A value of what was said; None where nothing was."""

    def of(told: Told, row: Row) -> float | None:
        answer = told.spoken.get(row.id)
        return None if answer is None else value(answer, row)

    return of


def _nll(told: Told, row: Row) -> float | None:
    return told.accepted_nll.get(row.id)


def _prefers(told: Told, row: Row) -> float | None:
    return measures.prefers(told.accepted_nll.get(row.id), told.rejected_nll.get(row.id))


def _exact(answer: Answer, row: Row) -> float:
    return measures.exact_match(answer, measures.text_of(row.answer))


def _chrf(answer: Answer, row: Row) -> float | None:
    return measures.chrf(answer, measures.text_of(row.answer))


def _rouge(answer: Answer, row: Row) -> float | None:
    return measures.rouge_l(answer, measures.text_of(row.answer))


def _json(answer: Answer, row: Row) -> float | None:
    return measures.json_match(answer, measures.text_of(row.answer))


def _is_json(row: Row) -> bool:
    return measures.json_match(Answer("", 0, False), measures.text_of(row.answer)) is not None


def _repetition(answer: Answer, row: Row) -> float:
    return measures.repetition(answer, measures.text_of(row.answer) if has_reference(row) else None)


def _refusal(answer: Answer, row: Row) -> float:
    return measures.refusal(answer, measures.text_of(row.answer) if has_reference(row) else None)
