"""Training files: what each format becomes, and how each bad line is named."""

from __future__ import annotations

import io
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidRequest, RowError
from adapters.rows import (
    MAX_LINE_BYTES,
    Row,
    RowKind,
    bounded_lines,
    check_lines,
    examine,
    parse_training,
    row_id,
)

USER = {"role": "user", "content": "Who wrote Emma?"}
ANSWER = {"role": "assistant", "content": "Jane Austen."}
WRONG = {"role": "assistant", "content": "A cat."}

CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def lines(*values: Any) -> list[bytes]:
    return [value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n" for value in values]


def parsed(*values: Any, method: str = "auto") -> list[Row]:
    return list(parse_training(lines(*values), method))


def problem(*values: Any, method: str = "auto") -> str:
    """The one problem of a file, as a person reads it."""
    found = check_lines(lines(*values), method)
    assert len(found) == 1, found
    with pytest.raises(RowError) as caught:
        parsed(*values, method=method)
    assert found[0].message in caught.value.message
    assert caught.value.param == found[0].param
    return str(found[0])


# -- the formats -----------------------------------------------------------------------------------
def test_a_conversation_is_a_demonstration_of_its_last_message() -> None:
    (row,) = parsed({"messages": [USER, ANSWER], "tools": TOOLS, "parallel_tool_calls": False})
    assert (row.kind, row.prompt, row.answer, row.tools) == (RowKind.DEMONSTRATION, [USER], ANSWER, TOOLS)
    assert row.rejected is None
    assert row.liked is None


def test_every_answer_of_a_conversation_is_a_row_unless_its_weight_is_0() -> None:
    second = {"role": "user", "content": "And Dracula?"}
    third = {"role": "assistant", "content": "Bram Stoker.", "weight": 1}
    both = parsed({"messages": [USER, ANSWER, second, third]})
    assert [row.answer["content"] for row in both] == ["Jane Austen.", "Bram Stoker."]
    assert both[1].prompt == [USER, ANSWER, second]
    assert both[0].unit == both[1].unit, "rows of one conversation must not be on both sides of the split"
    (one,) = parsed({"messages": [USER, {**ANSWER, "weight": 0}, second, third]})
    assert one.answer == {"role": "assistant", "content": "Bram Stoker."}
    assert one.prompt == [USER, ANSWER, second]


def test_calls_and_their_results_stay_in_the_conversation() -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": "found"}
    rows = parsed({"messages": [USER, CALL, result, ANSWER], "tools": TOOLS})
    assert [row.answer for row in rows] == [CALL, ANSWER]
    assert rows[1].prompt == [USER, CALL, result]


def test_openai_preferences_have_two_names() -> None:
    new = {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [WRONG]}
    old = {
        "input": {"messages": [USER]},
        "preferred_completion": [ANSWER],
        "non_preferred_completion": [WRONG],
    }
    first, second = parsed(new, old)
    assert first == second
    assert (first.kind, first.prompt, first.answer, first.rejected) == (
        RowKind.PREFERENCE,
        [USER],
        ANSWER,
        WRONG,
    )


def test_alpaca_joins_instruction_and_input_into_what_a_user_says() -> None:
    bare, more, told = parsed(
        {"instruction": "Who wrote Emma?", "input": "", "output": "Jane Austen."},
        {"instruction": "Name the author.", "input": "Emma", "output": "Jane Austen."},
        {"instruction": "Who wrote Emma?", "output": "Jane Austen.", "system": "Be brief."},
    )
    assert (bare.prompt, bare.answer) == ([USER], ANSWER)
    assert more.prompt == [{"role": "user", "content": "Name the author.\n\nEmma"}]
    assert told.prompt == [{"role": "system", "content": "Be brief."}, USER]


@pytest.mark.parametrize("prompt", ["Who wrote Emma?", [USER]])
@pytest.mark.parametrize("completion", ["Jane Austen.", ANSWER, [ANSWER]])
def test_text_and_messages_are_the_same_row(prompt: Any, completion: Any) -> None:
    (row,) = parsed({"prompt": prompt, "completion": completion})
    assert (row.kind, row.prompt, row.answer) == (RowKind.DEMONSTRATION, [USER], ANSWER)
    assert row.id == parsed({"messages": [USER, ANSWER]})[0].id


def test_raw_text_stays_text() -> None:
    (row,) = parsed({"prompt": "Once upon", "completion": " a time", "raw": True})
    assert (row.prompt, row.answer["content"]) == ("Once upon", " a time")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who wrote Emma?", "chosen": "Jane Austen.", "rejected": "A cat."},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG]},
        {"prompt": "Who wrote Emma?", "chosen": [USER, ANSWER], "rejected": [USER, WRONG]},
        {"chosen": [USER, ANSWER], "rejected": [USER, WRONG]},
    ],
)
def test_a_preference_may_repeat_its_prompt(row: dict[str, Any]) -> None:
    (found,) = parsed(row)
    assert (found.kind, found.prompt, found.answer, found.rejected) == (
        RowKind.PREFERENCE,
        [USER],
        ANSWER,
        WRONG,
    )


def test_kto_rows_are_liked_or_not() -> None:
    liked, not_liked = parsed(
        {"prompt": "Who wrote Emma?", "completion": "Jane Austen.", "label": True},
        {"prompt": [USER], "completion": [WRONG], "label": False},
    )
    assert (liked.kind, liked.liked, not_liked.liked) == (RowKind.LABEL, True, False)


def test_a_user_is_the_voice_of_a_row() -> None:
    (row,) = parsed({"messages": [USER, ANSWER], "user": "ann"})
    assert (row.user, row.unit) == ("ann", "user:ann")


def test_ids_do_not_depend_on_the_order_of_fields() -> None:
    turned = {"content": "Jane Austen.", "role": "assistant"}
    assert row_id(RowKind.DEMONSTRATION, [USER], ANSWER) == row_id(RowKind.DEMONSTRATION, [USER], turned)
    assert row_id(RowKind.DEMONSTRATION, [USER], ANSWER) == "row_409fd9e105eba0de755e1d66"


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_do_no_harm() -> None:
    row = json.dumps({"messages": [USER, ANSWER]}).encode()
    assert len(list(parse_training([b"\xef\xbb\xbf" + row + b"\r\n", b"\r\n", row]))) == 2


# -- what is wrong ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"{nope", "line 2: the line is not JSON"),
        (b'{"a": "\xff"}', "line 2: the line is not UTF-8 (byte 8)"),
        (b"[1]", "line 2: the line must be a JSON object"),
        ({}, "no format has these fields: none"),
        ({"question": "x"}, "no format has these fields: 'question'"),
        ({"messages": []}, "`messages` is empty"),
        ({"messages": "x"}, "`messages` must be a list"),
        ({"messages": [USER]}, "`messages[0].role` is 'user': the last message must be the assistant's"),
        ({"messages": [ANSWER]}, "`messages` has no answer to learn"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "`messages` has no answer to learn"),
        ({"messages": [USER, {**ANSWER, "weight": 2}]}, "`messages[1].weight` must be 0 or 1"),
        ({"messages": [{**USER, "weight": 1}, ANSWER]}, "`messages[0].weight` may stand on assistant"),
        ({"messages": [{"role": "human", "content": "x"}, ANSWER]}, "`messages[0].role` is 'human'"),
        ({"messages": [{"content": "x"}, ANSWER]}, "`messages[0].role` is missing"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "`messages[1].content` is empty"),
        ({"messages": [USER, {"role": "assistant"}]}, "`messages[1].content` must be a string"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": []}]}, "`messages[1].tool_calls` must be"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
            "`messages[0].content[0]` must be a part of type 'text'",
        ),
        (
            {"messages": [USER, {"role": "tool", "tool_call_id": "c9", "content": "x"}, ANSWER]},
            "`messages[1].tool_call_id` names no call",
        ),
        ({"messages": [USER, ANSWER], "tools": [{}]}, "`tools[0]` must be a function"),
        ({"messages": [USER, ANSWER], "user": 5}, "`user` must be a string"),
        ({"input": "x", "preferred_output": [ANSWER]}, "`input` must be an object"),
        (
            {"input": {"messages": [USER]}, "preferred_output": [ANSWER, ANSWER]},
            "`preferred_output` must hold one assistant message, not 2",
        ),
        (
            {"input": {"messages": [USER]}, "preferred_output": [ANSWER]},
            "`non_preferred_output` must be a string",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "`rejected` is the same"),
        ({"prompt": "a", "chosen": "b"}, "`rejected` must be a string"),
        ({"chosen": "a", "rejected": "b"}, "`prompt` is missing"),
        ({"prompt": "a", "completion": ""}, "`completion` is empty"),
        ({"completion": "a"}, "`prompt` is missing"),
        ({"prompt": "a", "completion": "b", "label": "yes"}, "`label` must be true or false"),
        ({"prompt": [USER], "completion": "b", "raw": True}, "`raw` goes with a prompt that is text"),
        ({"instruction": "a", "output": ""}, "`output` is empty"),
        ({"instruction": "a"}, "`output` must be a string"),
        ({"instruction": "a", "input": 3, "output": "b"}, "`input` must be a string"),
    ],
)
def test_a_bad_line_is_named_with_its_field(bad: Any, words: str) -> None:
    assert words in problem({"messages": [USER, ANSWER]}, bad)


def test_errors_are_openai_errors() -> None:
    with pytest.raises(InvalidRequest, match=r"^Line 1: `output` is empty\.$") as caught:
        parsed({"instruction": "a", "output": ""})
    assert (caught.value.code, caught.value.param) == ("invalid_training_file", "output")


def test_a_json_array_and_utf_16_are_told_from_broken_json() -> None:
    pretty = b'[\n  {"instruction": "a"}\n]'.splitlines(keepends=True)
    assert "JSON array" in str(check_lines(pretty)[0])
    assert "JSON array" in problem([{"messages": [USER, ANSWER]}])
    assert "UTF-16" in problem('{"a": 1}'.encode("utf-16"))


def test_an_empty_file_is_a_problem_of_its_own() -> None:
    assert [str(found) for found in check_lines([])] == ["the file holds no rows"]
    assert [str(found) for found in check_lines([b"\n", b"  \n"])] == ["the file holds no rows"]


def test_lines_nested_out_of_all_reason_are_bad_lines() -> None:
    deep: Any = {"x": 1}
    for _ in range(400):
        deep = {"x": deep}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    assert "nested too deeply" in problem({"messages": [USER, ANSWER], "tools": [tool]})
    assert "not JSON" in problem(b'{"messages":' + b"[" * 5000)


def test_a_line_without_an_end_does_not_fill_memory() -> None:
    row = json.dumps({"messages": [USER, ANSWER]}).encode() + b"\n"
    stream = io.BytesIO(b"x" * (2 * MAX_LINE_BYTES + 5) + b"\n" + row)
    seen = list(bounded_lines(stream))
    assert max(len(line) for line in seen) == MAX_LINE_BYTES + 1
    assert [str(found) for found in check_lines(seen)] == [
        f"line 1: the line is longer than {MAX_LINE_BYTES} bytes"
    ]


def test_the_first_hundred_problems_are_shown_and_all_are_counted() -> None:
    found = examine(lines(*[{"messages": []}] * 250, {"messages": [USER, ANSWER]}))
    assert (len(found.problems), found.problem_count, found.lines) == (100, 250, 251)
    assert found.explain(2) == "line 1: `messages` is empty; line 2: `messages` is empty; and 248 more"


@pytest.mark.parametrize(
    ("method", "row"),
    [
        ("supervised", {"prompt": "a", "chosen": "b", "rejected": "c"}),
        ("supervised", {"prompt": "a", "completion": "b", "label": True}),
        ("dpo", {"prompt": "a", "completion": "b"}),
        ("kto", {"messages": [USER, ANSWER]}),
    ],
)
def test_a_row_that_the_method_cannot_learn_from_is_a_bad_line(method: str, row: Any) -> None:
    assert f"which method '{method}' cannot learn from" in problem(row, method=method)
    assert parsed(row)


def test_the_method_of_a_file_is_told_from_its_rows() -> None:
    sft, dpo = {"prompt": "a", "completion": "b"}, {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert examine(lines(sft, sft)).method == "supervised"
    assert examine(lines(dpo)).method == "dpo"
    assert examine(lines({**sft, "label": False})).method == "kto"
    assert examine(lines(sft, dpo)).method is None


FIELDS = ["messages", "prompt", "completion", "chosen", "rejected", "label", "instruction", "input", "output"]
FIELDS += [
    "role",
    "content",
    "tools",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "id",
    "weight",
    "raw",
    "user",
]

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(FIELDS) | st.text(max_size=3),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(
    st.lists(st.one_of(st.binary(max_size=60), anything.map(lambda v: json.dumps(v).encode())), max_size=6)
)
def test_whatever_a_file_holds_it_is_rows_or_problems(given_lines: list[bytes]) -> None:
    found = examine(given_lines)
    assert found.problem_count or found.rows
    for problem in found.problems:
        assert 0 <= problem.line <= len(given_lines)
        assert problem.message.isprintable()


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_text_goes_through_unchanged(prompt: str, completion: str) -> None:
    try:
        line = orjson.dumps({"prompt": prompt, "completion": completion})
    except orjson.JSONEncodeError:  # half a surrogate pair is no text
        return
    (row,) = parse_training([line], "supervised")
    assert (row.prompt, row.answer["content"]) == ([{"role": "user", "content": prompt}], completion)
