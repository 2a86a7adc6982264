"""A judge's word: who is asked what, and what two words together are worth."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.trainer.tiny import row
from trainer.judging import question_of, wins_of


def worth(first: str | None, second: str | None) -> dict[str, float]:
    """Of one row: the word where the candidate stood first, and the one where it stood second."""
    return wins_of([("row", True), ("row", False)], [first, second])


# -- the question ----------------------------------------------------------------------------------
def test_a_judge_sees_the_conversation_and_both_answers() -> None:
    prompt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What?"}]},
    ]
    body = question_of(row(prompt), "the first", "the second")
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert "<conversation>\nsystem: Be brief.\nuser: What?\n</conversation>" in message["content"]
    assert "<answer_a>\nthe first\n</answer_a>" in message["content"]
    assert "<answer_b>\nthe second\n</answer_b>" in message["content"]
    assert (body["temperature"], body["max_tokens"]) == (0, 16)
    assert "model" not in body


def test_swapped_sides_are_another_question() -> None:
    asked = row("What?")
    assert question_of(asked, "one", "two") != question_of(asked, "two", "one")


def test_what_looks_like_a_place_in_the_prompt_is_shown_as_it_is() -> None:
    body = question_of(row("$second costs $5"), "$conversation", "${first} $$")
    text = body["messages"][0]["content"]
    for shown in ("user: $second costs $5", "\n$conversation\n", "\n${first} $$\n"):
        assert shown in text


# -- the words -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("first", "second", "share"),
    [
        ("A", "B", 1.0),
        ("B", "A", 0.0),
        ("A", "A", 0.5),  # it likes what stands first
        ("B", "B", 0.5),
        ("TIE", "TIE", 0.5),
        ("A", "TIE", 0.75),
        ("TIE", "A", 0.25),
    ],
)
def test_two_words_with_the_sides_swapped_are_the_candidates_share(
    first: str, second: str, share: float
) -> None:
    assert worth(first, second) == {"row": share}


@pytest.mark.parametrize(
    "word", ["A", "a", " A.", "**A**", "Answer A", "Answer A is better because", "The better one: A\n"]
)
def test_a_word_is_understood_however_it_is_wrapped(word: str) -> None:
    assert worth(word, "B") == {"row": 1.0}


@pytest.mark.parametrize("word", ["TIE", "tie", "A tie.", "It is a tie between A and B"])
def test_a_tie_is_one_however_it_is_said(word: str) -> None:
    assert worth(word, word) == {"row": 0.5}


@pytest.mark.parametrize(
    "word", [None, "", "neither", "both A and B", "B beats A", "Better: C", "Absolutely"]
)
def test_a_row_without_two_clear_words_is_left_out(word: str | None) -> None:
    assert worth("A", word) == {}
    assert worth(word, "B") == {}


def test_a_row_that_was_asked_once_is_left_out() -> None:
    assert wins_of([("one", True), ("two", True), ("two", False)], ["A", "A", "B"]) == {"two": 1.0}


def test_rows_are_told_apart_in_whatever_order_the_words_come() -> None:
    words = {("one", True): "A", ("one", False): "B", ("two", True): "B", ("two", False): "A"}
    for order in itertools.permutations(words):
        assert wins_of(order, [words[asked] for asked in order]) == {"one": 1.0, "two": 0.0}


def test_a_word_for_each_question_is_expected() -> None:
    with pytest.raises(ValueError, match="shorter"):
        wins_of([("row", True), ("row", False)], ["A"])
