"""Which method the data ask for, what each takes, and what it makes of rows of other kinds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidRequest
from adapters.rows import Row, RowKind, row_id
from tests.unit.trainer.tiny import row, said
from trainer.methods import METHODS, Choice, choose_method, convert, kinds_of, usable

ROWS = st.lists(st.sampled_from("dplx"), max_size=40).map(
    lambda kinds: [ROW[kind](number) for number, kind in enumerate(kinds)]
)
ROW = {
    "d": lambda number: row(f"q{number}", unit="user:ann", key_id="k1", created=float(number)),
    "p": lambda number: row(f"q{number}", rejected="no"),
    "l": lambda number: row(f"q{number}", liked=True),
    "x": lambda number: row(f"q{number}", liked=False),
}


def rows(demonstrations: int = 0, pairs: int = 0, liked: int = 0, disliked: int = 0) -> list[Row]:
    counts = "d" * demonstrations + "p" * pairs + "l" * liked + "x" * disliked
    return [ROW[kind](number) for number, kind in enumerate(counts)]


def refused(given: Sequence[Row], asked: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        choose_method(given, asked)
    assert (caught.value.code, caught.value.param) == ("nothing_to_learn", "method")
    return caught.value.message


# -- what "auto" is ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "method"),
    [
        (rows(demonstrations=1), "supervised"),
        (rows(pairs=1), "dpo"),
        (rows(liked=1), "supervised"),
        (rows(demonstrations=3, pairs=1), "dpo"),  # a quarter
        (rows(demonstrations=4, pairs=1), "supervised"),
        (rows(liked=3, pairs=1, disliked=9), "dpo"),
        (rows(liked=5, disliked=1), "kto"),
        (rows(demonstrations=1, liked=5, disliked=1), "supervised"),
        (rows(demonstrations=1, liked=5, disliked=2), "kto"),
        (rows(demonstrations=4, pairs=1, disliked=5), "supervised"),
        (rows(demonstrations=4, pairs=1, disliked=6), "kto"),
    ],
)
def test_auto_is_what_the_data_ask_for(given: list[Row], method: str) -> None:
    choice = choose_method(given)
    assert (choice.method, choice.asked) == (method, "auto")


def test_the_choice_says_why_in_numbers() -> None:
    assert choose_method(rows(demonstrations=3, pairs=1)).why == (
        "1 of 4 accepted answers stand against a worse one"
    )
    assert choose_method(rows(liked=2, disliked=3)).why == "3 dislikes, 2 likes and few written answers"
    assert choose_method(rows(liked=2), "supervised") == Choice("supervised", "supervised", "asked for")


@given(ROWS)
def test_auto_takes_a_method_that_can_learn_or_says_that_none_can(given: list[Row]) -> None:
    kinds = kinds_of(given)
    if not kinds.accepted:
        assert "only learn what not to say" in refused(given, "auto")
        return
    choice = choose_method(given)
    assert choice.method in METHODS
    assert convert(usable(given, choice)[0], choice.method)
    assert choose_method(given, choice.method).method == choice.method


# -- what is refused -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("asked", "given", "why"),
    [
        ("supervised", rows(disliked=3), "no demonstration, correction, preference or liked answer"),
        ("dpo", rows(demonstrations=3, liked=1, disliked=1), "no correction or preference"),
        ("kto", rows(disliked=3), "only learn what not to say"),
        ("auto", rows(disliked=3), "only learn what not to say"),
        ("auto", [], "only learn what not to say"),
    ],
)
def test_a_method_that_cannot_learn_from_the_rows_is_refused(asked: str, given: list[Row], why: str) -> None:
    assert why in refused(given, asked)


@pytest.mark.parametrize(
    ("asked", "given"),
    [("supervised", rows(pairs=1)), ("dpo", rows(pairs=1, liked=9)), ("kto", rows(demonstrations=1))],
)
def test_a_method_that_was_asked_for_is_taken_where_it_can_learn(asked: str, given: list[Row]) -> None:
    assert choose_method(given, asked).method == asked


# -- what it learns from -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "asked", "kinds", "left_out"),
    [
        ("supervised", "auto", "dpl", {"disliked answers, which supervised cannot learn from": 1}),
        ("dpo", "auto", "dpl", {"disliked answers, which dpo cannot learn from": 1}),
        (
            "dpo",
            "dpo",
            "p",
            {
                "disliked answers, which dpo cannot learn from": 1,
                "answers without a worse one, while dpo was asked for": 2,
            },
        ),
        ("kto", "auto", "dplx", {}),
    ],
)
def test_each_method_leaves_out_what_it_cannot_use_and_counts_it(
    method: str, asked: str, kinds: str, left_out: dict[str, int]
) -> None:
    given = rows(1, 1, 1, 1)
    kept, counts = usable(given, Choice(method, asked, ""))
    assert (kept, counts) == (
        [each for each, kind in zip(given, "dplx", strict=True) if kind in kinds],
        left_out,
    )


# -- conversions ---------------------------------------------------------------------------------------
def test_supervised_learns_what_should_be_said() -> None:
    made = convert(rows(1, 1, 1, 1), "supervised")
    assert [(each.kind, each.answer, each.rejected, each.liked) for each in made] == [
        (RowKind.DEMONSTRATION, said("yes"), None, None)
    ] * 3


def test_dpo_takes_pairs_as_they_are_and_demonstrations_beside_them() -> None:
    given = rows(1, 1, 1, 1)
    made = convert(given, "dpo")
    assert made[1] is given[1]
    assert [each.kind for each in made] == [
        RowKind.DEMONSTRATION, RowKind.PREFERENCE, RowKind.DEMONSTRATION,
    ]  # fmt: skip


def test_kto_likes_the_better_answer_and_dislikes_the_worse() -> None:
    made = convert(rows(1, 1, 1, 1), "kto")
    assert all(each.kind is RowKind.LABEL and each.rejected is None for each in made)
    assert [(each.answer["content"], each.liked) for each in made] == [
        ("yes", True), ("yes", True), ("no", False), ("yes", True), ("yes", False),
    ]  # fmt: skip


def test_rows_that_become_the_same_are_one() -> None:
    assert len(convert([row("q"), row("q", liked=True), row("q", rejected="no")], "supervised")) == 1


@given(ROWS, st.sampled_from(METHODS))
def test_a_converted_row_has_the_id_of_what_it_says_and_keeps_where_it_comes_from(
    given: list[Row], method: str
) -> None:
    made = convert(given, method)
    by_prompt = {str(each.prompt): each for each in given}
    for each in made:
        assert each.id == row_id(each.kind, each.prompt, each.answer, each.rejected, each.liked, each.tools)
        source = by_prompt[str(each.prompt)]
        assert (each.unit, each.key_id, each.created) == (source.unit, source.key_id, source.created)
    assert len({each.id for each in made}) == len(made)
    assert convert(made, method) == made
