"""SmolLM2's chat template: its own to the byte where that can, and what OpenAI's clients send beyond it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.base_weights import SMOLLM2_TEMPLATE

TEMPLATE = Path(SMOLLM2_TEMPLATE).read_text()

OWN = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}


def render(messages: list[dict[str, Any]], template: str = TEMPLATE, **more: Any) -> str:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    tools = more.pop("tools", None)
    rendered, _ = utils.render_jinja_template(
        conversations=[messages],
        tools=tools,
        chat_template=template,
        **({"add_generation_prompt": False} | more),
    )
    return str(rendered[0])


PLAIN = {
    "one question": [{"role": "user", "content": "hi"}],
    "a system prompt": [
        {"role": "system", "content": "Be <brief> & 'kind'."},
        {"role": "user", "content": "é\n\n x "},
    ],
    "an empty system prompt": [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}],
    "several turns": [
        {"role": "user", "content": " a "},
        {"role": "assistant", "content": "\nb\n"},
        {"role": "user", "content": ""},
    ],
    "a late system prompt": [{"role": "user", "content": "a"}, {"role": "system", "content": "late"}],
}


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_conversations_render_as_the_models_own_template_does(name: str, prompt: bool) -> None:
    own = render(PLAIN[name], OWN, add_generation_prompt=prompt)
    assert render(PLAIN[name], add_generation_prompt=prompt) == own


def test_a_developer_message_is_a_system_message() -> None:
    developer = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert render(developer) == render(system)


def test_text_parts_are_joined_and_null_content_is_empty() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert render([{"role": "user", "content": parts}]).endswith("user\none two<|im_end|>\n")
    assert render([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]).endswith(
        "assistant\n<|im_end|>\n"
    )


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_tools_stand_in_the_one_system_message(system: str | None) -> None:
    messages = [{"role": "user", "content": "Rain?"}]
    text = render(([{"role": "system", "content": system}] if system else []) + messages, tools=[TOOL])
    assert text.count("<|im_start|>system\n") == 1
    assert text.startswith(f"<|im_start|>system\n{system or 'You are a helpful AI assistant named SmolLM'}")
    inside = text.split("<tools>\n")[1].split("\n</tools>")[0]
    assert json.loads(inside) == TOOL
    assert text.endswith("<|im_start|>user\nRain?<|im_end|>\n")


@pytest.mark.parametrize("arguments", ['{"city": "Köln"}', {"city": "Köln"}], ids=["text", "object"])
def test_calls_render_in_the_hermes_format(arguments: object) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    text = render(
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    )
    expected = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
    assert text.endswith(f"<|im_start|>assistant\n{expected}<|im_end|>\n")


def test_answers_of_tools_share_one_user_turn() -> None:
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "Looking.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "sun"}]},
        {"role": "user", "content": "So?"},
    ]
    text = render(messages, tools=[TOOL], add_generation_prompt=True)
    assert "Looking.\n<tool_call>" in text
    assert text.endswith(
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response><|im_end|>\n"
        "<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n"
    )
