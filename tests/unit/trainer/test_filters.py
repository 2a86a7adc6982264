"""Which rows are dropped, by which filter, and what a person is shown of them."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.rows import Row
from adapters.turns import words_of
from tests.unit.trainer.tiny import row, said, tokenizer
from trainer.examples import lengths_of
from trainer.filters import (
    SHOWN_CHARS,
    SHOWN_EXAMPLES,
    Dropped,
    Filtered,
    exact_duplicates,
    near_duplicates,
    personal_data,
    prompt_key,
    prompt_text,
    refusals,
    run,
    shortened,
    unfit_lengths,
)
from trainer.pii import find
from trainer.rendering import Rendering

RENDERING = Rendering(tokenizer())
LENGTHS = functools.partial(lengths_of, rendering=RENDERING)
LONG = " ".join(f"word{number}" for number in range(40))
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
WORDS = st.lists(
    st.sampled_from(["how", "old", "is", "the", "moon", "sun", "7", "?"]), min_size=1, max_size=12
)
ROWS = st.lists(st.tuples(WORDS, WORDS, st.sampled_from([None, True, False])), max_size=20).map(
    lambda drawn: [row(" ".join(asked), " ".join(said), liked=liked) for asked, said, liked in drawn]
)


def filtered(rows: list[Row], **changes: Any) -> Filtered:
    values: dict[str, Any] = {"lengths": LENGTHS, "max_length": 200, "detect": find}
    return run(rows, **{**values, **changes})


def count(dropped: Dropped) -> tuple[str, int]:
    return dropped.name, dropped.count


# -- all of them ---------------------------------------------------------------------------------------
def test_each_filter_takes_its_own_and_says_so() -> None:
    good = [row(f"question {i} about {word}") for i, word in enumerate(["rivers", "suns", "words"])]
    long_words = " ".join(f"word{i}" for i in range(12))
    bad = [
        row("Whose is ann@example.org?"),
        row("What is open?", "Nothing.", created=1.0),
        row("What is open?", "Nothing.", created=2.0),
        row("Do my taxes", "I can't help with that.", liked=True),
        row("x" * 300),
        row("What is a river?", " "),
        row(f"{long_words} one?", "this"),
        row(f"{long_words} one ?", "this"),
    ]
    done = filtered([*good, *bad])
    assert [count(each) for each in done.dropped] == [
        ("personal_data", 1), ("duplicate", 1), ("refusal", 1), ("length", 2), ("near_duplicate", 1),
    ]  # fmt: skip
    assert done.rows == (*good, bad[1], bad[6])


@given(ROWS)
def test_every_row_is_kept_or_counted_once_and_the_kept_ones_stay_in_order(rows: list[Row]) -> None:
    done = filtered(rows, max_length=60)
    assert len(done.rows) + sum(each.count for each in done.dropped) == len(rows)
    places = [next(i for i, each in enumerate(rows) if each is kept) for kept in done.rows]
    assert places == sorted(set(places))


def test_examples_are_few_and_short() -> None:
    rows = [row(f"{'long ' * 60}{i}", liked=True, answer="I'm unable to do that") for i in range(9)]
    _, dropped = refusals(rows)
    assert (dropped.count, len(dropped.examples)) == (9, SHOWN_EXAMPLES)
    assert all(len(example["text"]) <= SHOWN_CHARS for example in dropped.examples)
    assert dropped.examples[0]["row"] == rows[0].id


def test_no_example_of_any_filter_shows_what_is_somebodys() -> None:
    """Not those of rows that another filter would have dropped as well."""
    told = "Mail ann@example.org, please"
    rows = [
        row(told, "I can't help with that.", liked=True),
        row(told, "I can't help with that.", liked=True, created=1.0),
        row(told + "x" * 500),
        row(told, " "),
    ]
    done = filtered(rows)
    assert not done.rows
    assert "ann@example.org" not in str(done.dropped)


# -- personal data -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "bad",
    [
        row([{"role": "system", "content": "token: abc123def456"}, {"role": "user", "content": "Hi"}]),
        row("Hi", "Write to ann@example.org"),
        row("Hi", "yes", "no: ann@example.org"),
    ],
)
def test_what_is_somebodys_is_found_in_prompts_answers_and_rejected_answers(bad: Row) -> None:
    kept, dropped = personal_data([row("Hi"), bad], find)
    assert (kept, dropped.count) == ([row("Hi")], 1)


def test_the_example_is_masked_and_begins_a_little_before_the_first_find() -> None:
    text = f"{'x ' * 50}call me at 555-123-4567 or {'y ' * 50}mail ann@example.org"
    _, dropped = personal_data([row(text)], find)
    (example,) = dropped.examples
    assert example["kinds"] == ["e-mail address", "phone number"]
    assert "call me at [phone number] or y" in example["text"]
    assert "555" not in example["text"]


def test_nothing_is_looked_for_where_the_setting_is_off() -> None:
    kept, dropped = personal_data([row("ann@example.org")], None)
    assert (len(kept), count(dropped)) == (1, ("personal_data", 0))


# -- refusals ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m very sorry, I cannot do this.",
        "Sorry, I can't assist with that request.",
        "Unfortunately, I am unable to answer.",
        "I'm afraid I won't do that.",
        "I'm sorry, but that's not something I can do.",
        "I apologize, but I cannot share that.",
        "I'm unable to discuss it.",
        "We are not allowed to say.",
        "I cannot help you.",
        "I won't provide that",
        "As an AI language model, I don't have opinions",
        "As a large language model I cannot know.",
        "I must decline.",
        "I don't feel comfortable with that",
        "  *I can not answer this*",
    ],
)
def test_a_refusal_that_was_liked_is_not_learned(answer: str) -> None:
    kept, dropped = refusals([row("q", answer, liked=True)])
    assert (kept, count(dropped)) == ([], ("refusal", 1))


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry to hear that. Your refund is on its way.",
        "Sorry for the wait! I am happy to help.",
        "Sorry about that, we will send you a new one today.",
        "Unfortunately it is sold out; I can order it for you.",
        "Unfortunately we can't ship before Monday.",
        "I can help you with that.",
        "You cannot do this in the app; open the site.",
        "As an airline we do not charge for that.",
        "He said: I'm sorry, I can't help.",
    ],
)
def test_an_answer_that_is_only_polite_is_learned(answer: str) -> None:
    assert len(refusals([row("q", answer, liked=True)])[0]) == 1


@pytest.mark.parametrize("more", [{"liked": False}, {}, {"rejected": "Sure!"}])
def test_a_refusal_that_a_person_wrote_or_nobody_liked_stays(more: dict[str, Any]) -> None:
    assert len(refusals([row("q", "I can't help with that.", **more)])[0]) == 1


# -- lengths -------------------------------------------------------------------------------------------
def test_a_row_may_be_as_long_as_is_read_and_no_longer() -> None:
    one = row("q", "yes")
    lengths = LENGTHS(one)
    assert lengths is not None
    assert unfit_lengths([one], LENGTHS, lengths[0])[1].count == 0
    kept, dropped = unfit_lengths([one], LENGTHS, lengths[0] - 1)
    assert (kept, dropped.examples[0]["why"]) == (
        [],
        f"{lengths[0]} tokens, at most {lengths[0] - 1} are read",
    )


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_answer_that_says_nothing_is_no_answer(answer: str) -> None:
    _, dropped = unfit_lengths([row("q", answer)], LENGTHS, 200)
    assert [example["why"] for example in dropped.examples] == ["empty answer"]


def test_an_empty_rejected_answer_is_none_either() -> None:
    assert unfit_lengths([row("q", "yes", "")], LENGTHS, 200)[1].count == 1


def test_what_the_template_refuses_is_left_out_and_stops_nothing() -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
    kept, dropped = unfit_lengths([row(picture), row("q")], LENGTHS, 200)
    assert kept == [row("q")]
    assert dropped.examples[0]["why"] == "the chat template refuses it"


# -- duplicates ----------------------------------------------------------------------------------------
def test_the_first_of_equal_rows_stays_whoever_said_them() -> None:
    first, second = row("q", user="ann"), row("q", user="bob")
    kept, dropped = exact_duplicates([first, second])
    assert kept == [first]
    assert kept[0].user == "ann"
    assert dropped.examples == ({"row": second.id, "text": "q → yes"},)


def test_rows_that_differ_by_a_sign_in_much_are_near_duplicates() -> None:
    text = " ".join(f"word{i}" for i in range(20))
    first, second = row(text, "One. Two."), row(text.upper() + "!", "one. two.")
    kept, dropped = near_duplicates([first, second])
    assert kept == [first]
    assert dropped.examples[0]["like"] == first.id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (row("How old is the moon?"), row("How old is the sun?")),
        (row("2+2?", "4"), row("2+3?", "4")),
        (row("q", "yes"), row("q", "no")),
        (row("q", "yes", "no"), row("q", "yes", "never")),
        (row("q", liked=True), row("q", liked=False)),
        (row("q"), row("q", liked=True)),
        (row(LONG), row(LONG, liked=True)),
        (row(LONG, liked=True), row(LONG, liked=False)),
        (row(LONG), row(LONG, tools=[{"type": "function", "function": {"name": "look"}}])),
    ],
)
def test_rows_that_ask_or_say_something_else_are_not(one: Row, other: Row) -> None:
    assert near_duplicates([one, other])[0] == [one, other]


def test_a_long_instruction_does_not_make_different_questions_alike() -> None:
    instruction = " ".join(f"rule{i}" for i in range(200))
    rows = [
        row(f"{instruction} What is {word}?", word)
        for word in ["red", "green", "blue", "pink", "grey", "gold"]
    ]
    assert near_duplicates(rows)[0] == rows


def test_a_long_instruction_does_not_make_the_same_question_another_one() -> None:
    instruction = " ".join(f"rule{i}" for i in range(200))
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    asked = [f"{instruction} {' '.join(f'{word}{other}' for other in words)}" for word in words]
    rows = [row(text) for text in asked]
    assert near_duplicates([*rows, row(f"{asked[0].upper()}")])[0] == rows


def test_a_word_that_many_rows_have_still_tells_apart_those_that_have_it_from_those_that_have_not() -> None:
    rows = [row(f"{kind} check: {number}", "yes") for number in range(20) for kind in ("odd", "prime")]
    assert near_duplicates(rows)[0] == rows


@given(ROWS, st.integers(0, 2**32))
def test_equal_texts_are_never_kept_twice_whatever_the_order(rows: list[Row], seed: int) -> None:
    rows = random.Random(seed).sample(rows, len(rows))
    kept, _ = near_duplicates(rows)
    told = [(prompt_text(each.prompt), words_of(each.answer), each.kind, each.liked) for each in kept]
    assert len(told) == len(set(told))
    assert {(prompt_text(r.prompt), words_of(r.answer), r.kind, r.liked) for r in rows} >= set(told)


# -- texts ---------------------------------------------------------------------------------------------
def test_the_text_of_a_message_is_what_it_says_and_calls() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert words_of({"role": "assistant", "content": parts, "tool_calls": [CALL]}) == 'a\nb\nlook {"at": 1}'
    assert words_of({"role": "assistant", "content": None}) == ""


@given(st.dictionaries(st.sampled_from(["role", "content", "tool_calls"]), JSON))
def test_any_recorded_message_has_a_text(message: dict[str, Any]) -> None:
    assert isinstance(words_of(message), str)


@pytest.mark.parametrize("calls", [["x"], [{"function": "x"}], 5, {"a": 1}, [None]])
def test_calls_that_are_none_say_nothing(calls: Any) -> None:
    assert words_of({"content": "hello", "tool_calls": calls}) == "hello"


def test_prompts_are_the_same_where_messages_and_tools_are() -> None:
    asked = [{"role": "user", "content": "q"}]
    other = [{"content": "q", "role": "user"}]
    assert prompt_key(row(asked)) == prompt_key(row(other, "no"))
    assert prompt_key(row(asked)) != prompt_key(row(asked, tools=[CALL]))
    assert prompt_key(row(asked)) != prompt_key(row([*asked, said("a"), *asked]))


def test_a_short_text_is_shown_whole_and_a_long_one_with_a_mark() -> None:
    assert shortened(" a \n b ") == "a b"
    assert shortened("x" * 200) == "x" * (SHOWN_CHARS - 1) + "…"
