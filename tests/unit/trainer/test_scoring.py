"""Which measures a kind of row asks for, and what each may decide."""

from __future__ import annotations

import pytest

from adapters.policy import FormatCheck
from adapters.rows import Row
from tests.unit.trainer.tiny import row
from trainer import scoring
from trainer.gate import Outcome, Rules, judge
from trainer.measures import Answer, Measure, Role
from trainer.scoring import Told

FORM = FormatCheck(regex="yes|no")


def told(rows: list[Row], text: str, nll: float, rejected_nll: float | None = None) -> Told:
    """One side that says the same to everything and finds all accepted answers equally likely."""
    return Told(
        {r.id: Answer(text, 2, False) for r in rows},
        {r.id: nll for r in rows},
        {} if rejected_nll is None else {r.id: rejected_nll for r in rows if r.rejected},
    )


def scored(rows: list[Row], method: str = "supervised", **sides: Told) -> dict[str, Measure]:
    lengths = {r.id: 2 for r in rows}
    return {m.name: m for m in scoring.score(rows, sides, lengths, FormatCheck(), method)}


def names(measures: dict[str, Measure], role: Role) -> set[str]:
    return {name for name, measure in measures.items() if measure.role is role}


WRITTEN = [row(f"q{i}") for i in range(10)]
PAIRS = [row(f"q{i}", rejected="no") for i in range(10)]
LABELS = [row(f"q{i}", liked=i % 2 == 0) for i in range(10)]
GUARDS = {"ended", "length", "repetition", "refusals"}


def test_written_answers_are_matched_and_weighed() -> None:
    made = scored(WRITTEN, candidate=told(WRITTEN, "yes", 1.0), base=told(WRITTEN, "no", 2.0))
    assert names(made, Role.PRIMARY) == {"exact_match", "chrf", "nll"}
    assert names(made, Role.GUARD) == GUARDS
    assert [p.candidate for p in made["exact_match"].pairs] == [1.0] * 10
    assert [p.base for p in made["exact_match"].pairs] == [0.0] * 10
    assert {p.incumbent for p in made["nll"].pairs} == {None}


def test_pairs_ask_which_answer_is_likelier_and_guard_the_better_ones_likelihood() -> None:
    made = scored(PAIRS, "dpo", candidate=told(PAIRS, "yes", 1.0, 2.0), base=told(PAIRS, "no", 1.5, 1.0))
    assert names(made, Role.PRIMARY) == {"exact_match", "preference_accuracy"}
    assert names(made, Role.GUARD) == GUARDS | {"chosen_nll"}
    assert {(p.candidate, p.base) for p in made["preference_accuracy"].pairs} == {(1.0, 0.0)}
    assert made["chosen_nll"].margin == scoring.DISPLACEMENT


def test_a_supervised_run_learns_the_better_answers_of_pairs_and_the_liked_ones() -> None:
    rows = [*PAIRS, *LABELS]
    side = told(rows, "yes", 1.0, 2.0)
    made = scored(rows, "supervised", candidate=side, base=side)
    assert len(made["nll"].pairs) == len(PAIRS) + 5
    assert "chosen_nll" not in made
    assert made["label_margin"].role is Role.REPORT
    assert len(made["exact_match"].pairs) == len(PAIRS)  # liked answers are not matched word for word


def test_thumbs_ask_whether_liked_answers_became_likelier_than_disliked_ones() -> None:
    def side(liked: float, disliked: float) -> Told:
        return Told({}, {r.id: liked if r.liked else disliked for r in LABELS}, {})

    knows = scored(LABELS, "kto", candidate=side(1.0, 3.0), base=side(2.0, 2.0))["label_margin"]
    assert knows.role is Role.PRIMARY
    assert judge([knows], Rules(), has_incumbent=False).outcome is Outcome.PASS
    likes_all = scored(LABELS, "kto", candidate=side(1.0, 1.0), base=side(2.0, 2.0))["label_margin"]
    assert judge([likes_all], Rules(), has_incumbent=False).outcome is Outcome.INCONCLUSIVE
    inverted = scored(LABELS, "kto", candidate=side(3.0, 1.0), base=side(2.0, 2.0))["label_margin"]
    assert judge([inverted], Rules(), has_incumbent=False).outcome is Outcome.FAIL


def test_likes_alone_tell_nothing_apart() -> None:
    rows = [row(f"q{i}", liked=True) for i in range(10)]
    assert "label_margin" not in scored(rows, "kto", candidate=told(rows, "yes", 1.0))


def test_a_declared_form_is_guarded_on_every_row() -> None:
    sides = {"candidate": told(LABELS, "maybe", 1.0), "base": told(LABELS, "yes", 1.0)}
    made = {m.name: m for m in scoring.score(LABELS, sides, {r.id: 2 for r in LABELS}, FORM, "kto")}
    assert {(p.candidate, p.base) for p in made["format"].pairs} == {(0.0, 1.0)}
    assert len(made["format"].pairs) == len(LABELS)


def test_what_a_side_did_not_say_shows_as_missing() -> None:
    candidate = told(WRITTEN[:4], "yes", 1.0)
    made = scored(WRITTEN, candidate=candidate, base=told(WRITTEN, "no", 2.0))
    assert len(made["exact_match"].pairs) == 10
    assert sum(p.candidate is None for p in made["exact_match"].pairs) == 6


def test_an_incumbent_that_never_answers_is_missing_and_not_absent() -> None:
    sides = {"candidate": told(WRITTEN, "yes", 1.0), "incumbent": Told(), "base": told(WRITTEN, "no", 2.0)}
    made = scored(WRITTEN, **sides)
    assert judge(list(made.values()), Rules(), has_incumbent=True).outcome is Outcome.INCONCLUSIVE


def test_a_row_of_nobody_is_a_voice_of_its_own() -> None:
    assert scoring.unit_of(row("q", unit="")) == row("q", unit="").id
    assert scoring.unit_of(row("q", unit="user:anna")) == "user:anna"


def test_a_judges_word_is_reported_for_the_rival_that_there_is() -> None:
    made = scoring.judged(WRITTEN[:2], {WRITTEN[0].id: 0.75}, "incumbent")
    assert made.role is Role.REPORT
    assert [(p.candidate, p.incumbent) for p in made.pairs] == [(0.75, 0.25), (None, None)]


@pytest.mark.parametrize("name", ["exact_match", "nll"])
def test_references_that_are_json_are_also_compared_as_values(name: str) -> None:
    rows = [row(f"q{i}", '{"a": 1}') for i in range(3)]
    made = scored(rows, candidate=told(rows, '{"a":1}', 1.0), base=told(rows, "no", 1.0))
    assert [p.candidate for p in made["json_match"].pairs] == [1.0] * 3
    assert made["json_match"].role is Role.REPORT
    assert name in made
