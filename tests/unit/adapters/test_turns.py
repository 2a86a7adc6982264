"""What was asked and answered, read off the bodies of every API, as the engine read them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.turns import CHAT, MESSAGES, RESPONSES, TEXT, answer_of, conversation_unit, prompt_of, tools_of
from tests.unit.adapters.test_completions import completion

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
FUNCTION = {"name": "f", "description": "does", "parameters": {"type": "object"}}


def asked(endpoint: str, request: dict[str, Any], output: dict[str, Any] | None = None) -> Any:
    return completion("c", endpoint=endpoint, request=request, output=output)


def said(message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def test_a_chat_is_its_messages_without_what_no_template_sees() -> None:
    messages = [
        {"role": "developer", "content": "Be brief.", "unknown": 1},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "7"},
    ]
    image = [{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text", "text": "?"}]
    given = asked(CHAT, {"messages": [*messages, {"role": "user", "content": image}], "tools": [FUNCTION]})
    assert prompt_of(given) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "7"},
        {"role": "user", "content": image},
    ]


def test_the_first_choice_is_the_answer() -> None:
    output = {
        "choices": [
            {"index": 1, "message": {"role": "assistant", "content": "second"}},
            {"index": 0, "message": {"role": "assistant", "content": "first", "refusal": None}},
        ]
    }
    assert answer_of(asked(CHAT, {"messages": []}, output)) == {"role": "assistant", "content": "first"}
    calls = said({"role": "assistant", "content": None, "tool_calls": [CALL]})
    assert answer_of(asked(CHAT, {"messages": []}, calls)) == {
        "role": "assistant",
        "content": None,
        "tool_calls": [CALL],
    }


@pytest.mark.parametrize("output", [None, {}, {"choices": []}, said(None), said({"content": ""})])
def test_where_nothing_was_said_there_is_no_answer(output: dict[str, Any] | None) -> None:
    assert answer_of(asked(CHAT, {"messages": []}, output)) is None


def test_a_text_completion_is_a_text_and_its_continuation() -> None:
    output = {"choices": [{"index": 0, "text": "Once upon a time"}]}
    given = asked(TEXT, {"prompt": ["Once", "Twice"], "echo": True}, output)
    assert prompt_of(given) == "Once"
    assert answer_of(given) == {"role": "assistant", "content": " upon a time"}
    assert answer_of(asked(TEXT, {"prompt": "Once"}, output)) == {
        "role": "assistant",
        "content": "Once upon a time",
    }


def test_token_ids_are_no_words_and_nothing_is_learned_from_them() -> None:
    given = asked(TEXT, {"prompt": [1, 2, 3]}, {"choices": [{"index": 0, "text": "x"}]})
    assert prompt_of(given) == ""
    assert answer_of(given) is None


def test_a_response_is_read_as_the_engine_reads_it() -> None:
    request = {
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
            {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"a":1}'},
            {"type": "function_call", "call_id": "call_2", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "sun"},
        ],
        "tools": [{"type": "function", **FUNCTION}, {"type": "web_search"}],
    }
    second = {**CALL, "id": "call_2", "function": {"name": "f", "arguments": "{}"}}
    output = {
        "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Sunny."}]},
            {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"a":1}'},
        ]
    }
    given = asked(RESPONSES, request, output)
    assert prompt_of(given) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Wait.", "tool_calls": [CALL, second]},
        {"role": "tool", "content": "sun", "tool_call_id": "call_1"},
    ]
    assert answer_of(given) == {"role": "assistant", "content": "Sunny.", "tool_calls": [CALL]}
    assert tools_of(given) == [{"type": "function", "function": FUNCTION}]
    assert prompt_of(asked(RESPONSES, {"input": "hi"})) == [{"role": "user", "content": "hi"}]


def test_an_anthropic_message_is_read_as_the_engine_reads_it() -> None:
    use = {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}}
    request = {
        "system": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}],
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "…"}, use]},
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "call_1",
                        "content": [{"type": "text", "text": "sun"}],
                    },
                    {"type": "text", "text": "Well?"},
                ],
            },
        ],
        "tools": [{"name": "f", "description": "does", "input_schema": {"type": "object"}}],
    }
    given = asked(MESSAGES, request, {"content": [{"type": "text", "text": "Sunny."}, use]})
    assert prompt_of(given) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "sun", "tool_call_id": "call_1"},
        {"role": "user", "content": "Well?"},
    ]
    assert answer_of(given) == {"role": "assistant", "content": "Sunny.", "tool_calls": [CALL]}
    assert tools_of(given) == [{"type": "function", "function": {**FUNCTION}}]


def test_an_imported_row_is_read_by_what_is_in_it() -> None:
    chat = asked("import", {"messages": [{"role": "user", "content": "q"}]}, said({"content": "a"}))
    assert (prompt_of(chat), answer_of(chat)) == (
        [{"role": "user", "content": "q"}],
        {"role": "assistant", "content": "a"},
    )
    text = asked("import", {"prompt": "q"}, said({"role": "assistant", "content": "a"}))
    assert (prompt_of(text), answer_of(text)) == ("q", {"role": "assistant", "content": "a"})


@given(
    endpoint=st.sampled_from([CHAT, TEXT, RESPONSES, MESSAGES, "/v1/embeddings", "import"]),
    request=st.dictionaries(
        st.sampled_from(["messages", "input", "prompt", "instructions", "system", "tools"]), JSON
    ),
    output=st.none() | st.dictionaries(st.sampled_from(["choices", "output", "content"]), JSON),
)
def test_no_body_is_too_strange(
    endpoint: str, request: dict[str, Any], output: dict[str, Any] | None
) -> None:
    given = asked(endpoint, request, output)
    prompt_of(given)
    answer_of(given)
    tools_of(given)
    assert conversation_unit(request, None).startswith("conversation:")


def test_all_turns_of_a_conversation_are_one_voice() -> None:
    system, first = {"role": "system", "content": "s"}, {"role": "user", "content": "hello"}
    later = [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "more"}]
    one = conversation_unit({"messages": [system, first]}, None)
    assert one == conversation_unit({"messages": [system, first, *later], "temperature": 1}, None)
    assert one != conversation_unit({"messages": [system, {"role": "user", "content": "hullo"}]}, None)
    assert one != conversation_unit({"messages": [first]}, None)
    assert conversation_unit({"input": "a"}, None) != conversation_unit({"input": "b"}, None)
    assert conversation_unit({"prompt": "a"}, None) != conversation_unit({"prompt": "b"}, None)


def test_a_named_user_is_the_voice() -> None:
    assert conversation_unit({"messages": []}, "ada") == "user:ada"
