"""The task of `loadtests.learning`, and what it varies. The measurement itself needs a real engine and is run by hand."""

from __future__ import annotations

import json

import pytest

from adapters.rows import examine
from loadtests.learning import questions, rows, settings


def test_questions_differ_and_come_of_their_seed() -> None:
    asked = questions(1, 200, ["ada", "ben"])
    assert asked == questions(1, 200, ["ada", "ben"])
    assert asked != questions(2, 200, ["ada", "ben"])
    assert len({question.text for question in asked}) == 200
    assert {question.user for question in asked} == {"ada", "ben"}


def test_a_gold_answer_says_what_was_asked() -> None:
    for question in questions(3, 20, ["ada"]):
        gold = json.loads(question.gold)
        assert question.text == (
            f"{gold['name']} from {gold['city']} orders {gold['count']} {gold['color']} {gold['item']}s."
        )


@pytest.mark.parametrize("method", ["supervised", "dpo", "kto"])
def test_the_files_are_sound_for_their_method(method: str) -> None:
    checked = examine(rows(questions(1, 12, ["ada"]), method).encode().splitlines(keepends=True), method)
    assert checked.problem_count == 0
    assert checked.rows.total() == 12


def test_all_combinations_of_what_is_varied_are_tried() -> None:
    assert list(settings(["rank=8,16", "learning_rate=0.001"])) == [
        {"rank": 8, "learning_rate": 0.001},
        {"rank": 16, "learning_rate": 0.001},
    ]
    assert list(settings([])) == [{}]
