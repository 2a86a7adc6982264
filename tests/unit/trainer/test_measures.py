"""What one answer is worth."""

from __future__ import annotations

import pytest

from adapters.policy import FormatCheck
from trainer import measures
from trainer.measures import Answer


def answer(text: str, tokens: int = 10, truncated: bool = False) -> Answer:
    return Answer(text, tokens, truncated)


CUT = answer('{"item":"lamp"}', truncated=True)


@pytest.mark.parametrize(
    ("said", "reference", "value"),
    [
        ("yes", "yes", 1.0),
        (" yes\n", "yes", 1.0),
        ("a  b\nc", "a b c", 1.0),
        ("Yes", "yes", 0.0),
        ('{"a": 1}', '{"a":1}', 0.0),
        ("", "yes", 0.0),
    ],
)
def test_exact_match_looks_past_white_space_alone(said: str, reference: str, value: float) -> None:
    assert measures.exact_match(answer(said), reference) == value


@pytest.mark.parametrize(
    ("said", "cut", "begins"),
    [
        ("the red", True, True),
        (" the  re", True, True),
        ("", True, True),
        ("the r\ufffd", True, True),
        ("the blue", True, False),
        ("The red", True, False),
        ("the red lamp", True, True),  # its end may come next
        ("the red lamp, please", True, False),
        ("the red", False, False),
        ("the red lamp\n", False, True),
    ],
)
def test_an_answer_begins_right_if_it_may_still_become_the_reference(
    said: str, cut: bool, begins: bool
) -> None:
    assert measures.begins(answer(said, truncated=cut), "the red  lamp") is begins


def test_json_is_compared_as_a_value_where_the_reference_is_one() -> None:
    assert measures.json_match(answer('{"b": 2, "a": 1}'), '{"a":1,"b":2}') == 1.0
    assert measures.json_match(answer("Sure! {}"), "{}") == 0.0
    assert measures.json_match(answer("12"), "12") is None
    assert measures.json_match(answer("{}"), "plain words") is None


def test_a_cut_answer_is_never_taken_for_a_whole_one() -> None:
    reference = '{"item":"lamp"}'
    assert measures.exact_match(CUT, reference) == 0.0
    assert measures.json_match(CUT, reference) == 0.0
    assert measures.chrf(CUT, reference) is None
    assert measures.rouge_l(CUT, reference) is None
    assert measures.ended(CUT) == 0.0
    assert measures.length_kept(CUT, 10) == 0.0
    assert measures.complies(CUT, FormatCheck(regex=".*")) == 0.0


def test_chrf_and_rouge_are_those_of_the_libraries() -> None:
    assert measures.chrf(answer("the cat sat"), "the cat sat") == pytest.approx(1.0)
    assert measures.chrf(answer("xyz"), "the cat") == 0.0
    assert measures.rouge_l(answer("a c"), "a b c") == pytest.approx(0.8)


def test_repetition_is_what_goes_beyond_the_references_own() -> None:
    loop = "one two three four " * 8
    assert measures.repetition(answer(loop), None) == pytest.approx(1 - 4 / 29)
    assert measures.repetition(answer(loop), loop) == 0.0
    assert measures.repetition(answer(loop, truncated=True), "one two three four five") > 0.8
    assert measures.repetition(answer("short"), None) == 0.0


def test_a_refusal_counts_where_the_accepted_answer_is_none() -> None:
    refusal = "I'm sorry, but I can't help with that."
    assert measures.refusal(answer(refusal), "Lyon") == 1.0
    assert measures.refusal(answer(refusal), None) == 1.0
    assert measures.refusal(answer(refusal), refusal) == 0.0
    assert measures.refusal(answer("I'm sorry to hear that. Try again."), None) == 0.0


def test_an_answer_of_half_or_twice_the_length_has_drifted() -> None:
    kept = [measures.length_kept(answer("x", tokens), 100) for tokens in (33, 34, 100, 216, 217)]
    assert kept == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert measures.length_kept(answer("x", 1), 12) == 1.0


def test_the_form_is_the_routes() -> None:
    form = FormatCheck(regex=r"[A-Z]+-\d+")
    assert measures.complies(answer(" AB-12\n"), form) == 1.0
    assert measures.complies(answer("AB-12 or so"), form) == 0.0


def test_a_schema_that_is_none_leaves_a_hole_that_shows() -> None:
    assert measures.complies(answer("{}"), FormatCheck(json_schema={"type": "thing"})) is None


def test_likelihood_is_nats_a_token_and_preference_goes_by_it() -> None:
    assert measures.nll([-1.0, -3.0]) == 2.0
    assert measures.nll([]) is None
    assert measures.nll(None) is None
    assert measures.prefers(1.0, 2.0) == 1.0
    assert measures.prefers(2.0, 1.0) == 0.0
    assert measures.prefers(1.0, 1.0) == 0.5
    assert measures.prefers(None, 1.0) is None


def test_liked_and_disliked_weigh_the_same_however_many_there_are() -> None:
    rows = [("a", True), ("a", True), ("b", True), ("c", False)]
    weights = measures.balanced(rows)
    rows_of = {"a": 2, "b": 1, "c": 1}
    for kind in (True, False):
        voice = [w / rows_of[unit] for (unit, liked), w in zip(rows, weights, strict=True) if liked is kind]
        assert sum(voice) == pytest.approx(1.5)
    assert measures.balanced([("a", True), ("b", True)]) == ()


def test_a_call_is_compared_by_name_and_arguments_whatever_their_spelling() -> None:
    def call(arguments: str) -> dict[str, object]:
        made = {"id": "1", "type": "function", "function": {"name": "order", "arguments": arguments}}
        return {"role": "assistant", "content": None, "tool_calls": [made]}

    assert measures.text_of(call('{"b":1,"a":2}')) == measures.text_of(call('{"a": 2, "b": 1}'))
    assert measures.text_of(call("{}")) == "order({})"
    parts = {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert measures.text_of(parts) == "ab"
