"""The one way from messages to ids: what the engine reads, then what the model should say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from adapters.base_weights import SMOLLM2_TEMPLATE
from adapters.messages import Message
from tests.unit.trainer.tiny import CHATML, said, tokenizer, write_weights
from trainer.rendering import Rendering

OPENING = "{{ '<|im_start|>assistant\\n' }}"
THINKS = CHATML.replace(OPENING, "{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}")
"""Its opening of a turn is longer than what a finished turn begins with, as Qwen3's without thinking."""

COUNTS = "{{ messages|length }} messages\n" + CHATML
"""It changes earlier text once the conversation is longer."""

ENDLESS = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""It writes nothing that ends a turn."""

END = "<|im_end|>"

CONTENTS = st.one_of(
    st.text(max_size=20),
    st.text("<think>/|im_stard\n xy", max_size=20),
    st.lists(st.sampled_from(["<|im_start|>", "<|im_end|>", "<think>", "</think>", "\n", "a"])).map("".join),
)


def ask(*contents: str) -> list[Message]:
    """A conversation in which user and assistant take turns."""
    return [{"role": ("user", "assistant")[n % 2], "content": each} for n, each in enumerate(contents)]


def decoded(rendering: Rendering, ids: list[int]) -> str:
    return str(rendering.tokenizer.decode(ids))


def with_bos(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that begins every text with a token of its own, as Llama's does."""
    made = tokenizer(template)
    begin = ("<|endoftext|>", made.convert_tokens_to_ids("<|endoftext|>"))
    post = processors.TemplateProcessing(single=f"{begin[0]} $A", pair=None, special_tokens=[begin])
    made.backend_tokenizer.post_processor = post
    return made


def merging() -> PreTrainedTokenizerFast:
    """A tokenizer to which a line's end and the `y` after it are one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate([END, *alphabet, "Ċy"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "y")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, chat_template=CHATML)


# -- prompt and answer -----------------------------------------------------------------------------
def test_an_answer_follows_the_prompt_that_the_engine_sees() -> None:
    rendering = Rendering(tokenizer())
    prompt, answer = rendering.ids(ask("What?"), said("yes"))
    asked = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    assert rendering.prompt_text(ask("What?")) == decoded(rendering, prompt) == asked
    assert decoded(rendering, answer) == "yes<|im_end|>"


@given(contents=st.lists(CONTENTS, min_size=1, max_size=3), answer=CONTENTS)
@example(contents=["What?"], answer="<b>bold</b>")
@example(contents=["What?"], answer="<think>\n\n</think>\n\nyes")
@pytest.mark.parametrize("template", [CHATML, THINKS, COUNTS])
def test_whatever_is_said_the_prompt_is_whole_and_nothing_of_the_answer_is_lost(
    template: str, contents: list[str], answer: str
) -> None:
    rendering = Rendering(tokenizer(template))
    prompt = ask(*contents)
    first, then = rendering.ids(prompt, said(answer))
    assert first == rendering.prompt_ids(prompt)
    assert decoded(rendering, first) == rendering.prompt_text(prompt)
    assert decoded(rendering, then).removeprefix("<think>\n\n</think>\n\n") == (answer + END).removeprefix(
        "<think>\n\n</think>\n\n"  # which the prompt has said already
    )


@given(prompt=st.text(max_size=30), answer=st.text(max_size=30))
def test_raw_text_is_read_and_said_as_it_is(prompt: str, answer: str) -> None:
    rendering = Rendering(tokenizer())
    first, then = rendering.ids(prompt, said(answer))
    assert decoded(rendering, first) == rendering.prompt_text(prompt) == prompt
    assert decoded(rendering, then) == answer + END


def test_ids_that_would_merge_across_the_border_are_kept_apart() -> None:
    """The engine's prompt ends before the answer, so that no token can be half of each."""
    rendering = Rendering(merging())
    prompt, answer = rendering.ids(ask("What?"), said("yes"))
    assert prompt == rendering.prompt_ids(ask("What?"))
    assert decoded(rendering, prompt + answer).endswith("assistant\nyes<|im_end|>")
    assert decoded(rendering, answer) == "yes<|im_end|>"


def test_a_turn_that_opens_with_no_thoughts_is_answered_after_them() -> None:
    rendering = Rendering(tokenizer(THINKS))
    prompt, answer = rendering.ids(ask("What?"), said("<b>yes</b>"))
    assert decoded(rendering, prompt).endswith("assistant\n<think>\n\n</think>\n\n")
    assert decoded(rendering, answer) == "<b>yes</b><|im_end|>"


def test_a_template_that_changes_earlier_turns_leaves_the_prompt_as_the_engine_sees_it() -> None:
    rendering = Rendering(tokenizer(COUNTS))
    prompt, answer = rendering.ids(ask("What?", "This.", "And?"), said("yes"))
    assert decoded(rendering, prompt).startswith("3 messages\n")
    assert decoded(rendering, answer) == "yes<|im_end|>"


def test_the_engines_template_outweighs_the_tokenizers_own(tmp_path: Path) -> None:
    (tmp_path / "other.jinja").write_text(ENDLESS)
    rendering = Rendering(tokenizer(), tmp_path / "other.jinja")
    assert rendering.prompt_text(ask("What?")) == "user: What?\nassistant: "


# -- what ends a turn ------------------------------------------------------------------------------
def test_what_the_template_writes_after_a_turn_is_not_learned() -> None:
    rendering = Rendering(tokenizer())
    assert rendering.ids(ask("What?"), said("yes"))[1][-1] == rendering.tokenizer.eos_token_id


def test_an_end_is_put_where_the_template_writes_none() -> None:
    rendering = Rendering(tokenizer(ENDLESS))
    prompt, answer = rendering.ids(ask("What?"), said("yes"))
    assert decoded(rendering, prompt) == "user: What?\nassistant: "
    assert decoded(rendering, answer) == "yes\n<|im_end|>"


def test_what_the_generation_config_stops_at_ends_a_turn_too(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights")
    file = weights / "generation_config.json"
    end = tokenizer().eos_token_id
    for named in ([7, end], 7):
        file.write_text(json.dumps({"eos_token_id": named}))
        assert Rendering(weights).stops == [end, 7]
    for nothing in ("{}", '{"eos_token_id": null}'):
        file.write_text(nothing)
        assert Rendering(weights).stops == [end]
    file.unlink()
    assert Rendering(weights).stops == [end]


def test_a_turn_that_ends_with_the_generation_configs_token_gets_no_second_end(tmp_path: Path) -> None:
    """Llama 3's tokenizer names one end and its template writes another."""
    weights = write_weights(tmp_path / "weights")
    made = tokenizer(CHATML.replace("<|im_end|>", "<|endoftext|>"))
    made.save_pretrained(weights)
    stop = made.convert_tokens_to_ids("<|endoftext|>")
    (weights / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop]}))
    rendering = Rendering(weights)
    assert decoded(rendering, rendering.ids(ask("What?"), said("yes"))[1]) == "yes<|endoftext|>"


def test_a_tokenizer_without_an_end_puts_none() -> None:
    made = tokenizer(ENDLESS)
    made.eos_token = None
    rendering = Rendering(made)
    assert rendering.stops == []
    assert decoded(rendering, rendering.ids(ask("What?"), said("yes"))[1]) == "yes\n"


# -- the beginning ---------------------------------------------------------------------------------
def test_raw_text_begins_with_the_tokenizers_first_token_and_answers_do_not() -> None:
    rendering = Rendering(with_bos(CHATML))
    prompt, answer = rendering.ids("Once upon a time", said(" there was"))
    assert decoded(rendering, prompt) == "<|endoftext|>Once upon a time"
    assert decoded(rendering, answer) == " there was<|im_end|>"


def test_a_template_writes_its_first_token_itself_and_once() -> None:
    silent = Rendering(with_bos(CHATML))
    assert decoded(silent, silent.prompt_ids(ask("What?"))).startswith("<|im_start|>user")
    writes = Rendering(with_bos("<|endoftext|>" + CHATML))
    prompt, answer = writes.ids(ask("What?"), said("yes"))
    assert decoded(writes, prompt).count("<|endoftext|>") == 1
    assert decoded(writes, answer) == "yes<|im_end|>"


# -- roles, tools and parts ------------------------------------------------------------------------
DEVELOPER: list[Message] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "What?"},
]


def test_a_developer_is_the_system_to_a_template_that_knows_none() -> None:
    assert Rendering(tokenizer()).prompt_text(DEVELOPER).startswith("<|im_start|>system\nBe brief.")


def test_a_developer_stays_one_to_a_template_that_knows_it() -> None:
    knows = "{# developer #}" + CHATML
    assert Rendering(tokenizer(knows)).prompt_text(DEVELOPER).startswith("<|im_start|>developer\nBe brief.")


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def calls(arguments: str) -> Message:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": function}]}


def test_a_call_of_a_tool_is_learned_as_the_template_writes_it() -> None:
    rendering = Rendering(tokenizer(), SMOLLM2_TEMPLATE)
    prompt, answer = rendering.ids(ask("Weather?"), calls('{"city":  "Bern"}'), TOOLS)
    assert '<tools>\n{"type": "function"' in decoded(rendering, prompt)
    written = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
    assert decoded(rendering, answer) == written + END  # arguments as an object, as vLLM hands them on


def test_what_a_tool_answered_is_part_of_the_prompt() -> None:
    rendering = Rendering(tokenizer(), SMOLLM2_TEMPLATE)
    result: Message = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
    prompt, answer = rendering.ids([*ask("Weather?"), calls("{}"), result], said("Sunny."), TOOLS)
    assert "<tool_response>\nsunny\n</tool_response>" in decoded(rendering, prompt)
    assert decoded(rendering, answer) == "Sunny.<|im_end|>"


@pytest.mark.parametrize(("arguments", "shown"), [("", "{}"), ("{}", "{}"), ("{oops", "{oops")])
def test_arguments_that_are_no_object_are_shown_as_they_are(arguments: str, shown: str) -> None:
    rendering = Rendering(tokenizer(), SMOLLM2_TEMPLATE)
    answer = rendering.ids(ask("Weather?"), calls(arguments), TOOLS)[1]
    assert f'"arguments": {shown}}}' in decoded(rendering, answer)


def test_a_call_that_the_template_has_no_words_for_is_not_learned_as_silence() -> None:
    rendering = Rendering(tokenizer())
    answer = decoded(rendering, rendering.ids(ask("Weather?"), calls('{"city": "Bern"}'))[1])
    assert json.loads(answer.removesuffix(END)) == {"name": "weather", "arguments": '{"city": "Bern"}'}


def test_rendering_leaves_the_messages_as_they_were() -> None:
    prompt: list[Message] = [*DEVELOPER, calls('{"city": "Bern"}')]
    before = json.dumps(prompt)
    Rendering(tokenizer(), SMOLLM2_TEMPLATE).ids(prompt, calls("{}"), TOOLS)
    assert json.dumps(prompt) == before


def test_the_parts_of_an_answer_to_raw_text_are_joined() -> None:
    rendering = Rendering(tokenizer())
    parts: Any = [{"type": "text", "text": "there "}, {"type": "text", "text": "was"}]
    answer = rendering.ids("Once ", {"role": "assistant", "content": parts})[1]
    assert decoded(rendering, answer) == "there was<|im_end|>"
