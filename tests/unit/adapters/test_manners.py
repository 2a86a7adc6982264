"""How an answer behaves, whatever it says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.manners import INVALID, fits_form, is_refusal, json_value, repeated_share
from adapters.policy import FormatCheck


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I am sorry, I cannot do this.",
        "I can't assist with that request.",
        "Unfortunately, I am unable to provide that.",
        "As an AI language model, I have no opinion.",
        "I’m unable to help here.",
        "\n  i CANNOT share this.",
    ],
)
def test_a_refusal_is_known_by_how_it_begins(text: str) -> None:
    assert is_refusal(text)
    assert not is_refusal(f"Here it is. {text}")


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that. Try turning it off and on.",
        "You can't do this in Excel; use a macro.",
        "Sorry for the wait! Your order has shipped.",
        "I can help you with that.",
        "",
    ],
)
def test_politeness_is_no_refusal(text: str) -> None:
    assert not is_refusal(text)


def test_repetition_is_the_share_of_four_word_pieces_that_were_there_before() -> None:
    assert repeated_share("one two three four " * 8) == pytest.approx(1 - 4 / 29)
    assert repeated_share("a b c d a b c d") == pytest.approx(1 / 5)
    assert repeated_share("ha " * 103) == pytest.approx(0.99)
    for text in ("one two three four five", "too short", ""):
        assert repeated_share(text) == 0.0


@given(st.lists(st.sampled_from("ab"), min_size=4, max_size=60))
def test_saying_it_all_again_repeats_every_piece_of_it(words: list[str]) -> None:
    def repeated(said: list[str]) -> float:
        return repeated_share(" ".join(said)) * (len(said) - 3)

    assert 0.0 <= repeated_share(" ".join(words)) < 1.0
    assert repeated(words * 2) >= repeated(words) + len(words) - 3 - 1e-9


def test_the_form_is_the_routes_regex_and_schema() -> None:
    schema = {"type": "object", "required": ["item"], "properties": {"item": {"type": "string"}}}
    both = FormatCheck(regex=r"\{.{0,20}\}", json_schema=schema)
    assert fits_form('{"item": "lamp"}', both) is True
    assert fits_form('{"item": 3}', both) is False
    assert fits_form('{"item": "a very long lamp indeed"}', both) is False
    assert fits_form("lamp", FormatCheck(json_schema=schema)) is False
    assert fits_form("null", FormatCheck(json_schema={"type": "null"})) is True
    assert fits_form("whatever", FormatCheck()) is True


@pytest.mark.parametrize("schema", [{"$ref": "http://127.0.0.1:9/schema.json"}, {"type": "thing"}])
def test_a_schema_that_is_none_or_lies_elsewhere_cannot_tell(schema: dict[str, Any]) -> None:
    assert fits_form("{}", FormatCheck(json_schema=schema)) is None


@pytest.mark.parametrize("text", ["", "{", "Sure! {}", "[" * 100_000])
def test_what_is_no_json_has_no_value(text: str) -> None:
    assert json_value(text) is INVALID


def test_json_that_says_nothing_has_a_value() -> None:
    assert json_value("null") is None
