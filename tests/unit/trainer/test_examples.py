"""Rows as token ids: where the loss is, and that there is any."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.errors import InvalidRequest
from tests.unit.trainer.tiny import CHATML, row, tokenizer
from trainer import examples
from trainer.examples import MASKED, Example, example_of, examples_of, lengths_of
from trainer.rendering import Rendering

REFUSES = "{{ raise_exception('roles must alternate') }}"


@pytest.fixture(scope="module")
def rendering() -> Rendering:
    return Rendering(tokenizer())


def text(rendering: Rendering, ids: list[int]) -> str:
    return str(rendering.tokenizer.decode(ids))


def only(rendering: Rendering, *given: Any, **more: Any) -> Example:
    found = example_of(row(*given, **more), rendering)
    assert found is not None
    return found


def test_the_loss_is_on_the_answers_tokens_and_what_ends_its_turn_alone(rendering: Rendering) -> None:
    (made,) = examples.supervised([only(rendering, "What?", "yes")])
    learned = [id for id, label in zip(made["input_ids"], made["labels"], strict=True) if label != MASKED]
    assert text(rendering, learned) == "yes<|im_end|>"
    assert [label for label in made["labels"] if label != MASKED] == learned
    whole = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    assert text(rendering, made["input_ids"]) == whole


def test_earlier_answers_of_a_conversation_are_read_and_not_learned(rendering: Rendering) -> None:
    turns = [("user", "one"), ("assistant", "two"), ("user", "three")]
    prompt = [{"role": role, "content": content} for role, content in turns]
    (made,) = examples.supervised([only(rendering, prompt, "four")])
    learned = [label for label in made["labels"] if label != MASKED]
    assert text(rendering, learned) == "four<|im_end|>"
    assert "two" in text(rendering, made["input_ids"])


def test_a_pair_is_two_answers_after_one_prompt(rendering: Rendering) -> None:
    (made,) = examples.pairs([only(rendering, "What?", "yes", "no")])
    assert {*made} == {"prompt_ids", "chosen_ids", "rejected_ids"}
    assert text(rendering, made["prompt_ids"]).endswith("<|im_start|>assistant\n")
    assert text(rendering, made["chosen_ids"]) == "yes<|im_end|>"
    assert text(rendering, made["rejected_ids"]) == "no<|im_end|>"


def test_an_answer_without_a_worse_one_stands_against_itself(rendering: Rendering) -> None:
    (made,) = examples.pairs([only(rendering, "What?", "yes")])
    assert made["rejected_ids"] == made["chosen_ids"]


def test_a_worse_answer_is_read_no_further_than_the_better_one_is_long(rendering: Rendering) -> None:
    worse = "x" * 500
    assert len(only(rendering, "What?", "y" * 99, worse).rejected_ids or ()) == 100  # and what ends its turn
    assert len(only(rendering, "What?", "yes", worse).rejected_ids or ()) == 32
    assert text(rendering, only(rendering, "What?", "y" * 99, "no").rejected_ids or []) == "no<|im_end|>"


def test_a_label_is_one_answer_liked_or_not(rendering: Rendering) -> None:
    rows = [only(rendering, "What?", "yes", liked=True), only(rendering, "What?", "no", liked=False)]
    good, bad = examples.labels(rows)
    assert {*good} == {"prompt_ids", "completion_ids", "label"}
    assert (good["label"], bad["label"]) == (True, False)
    assert text(rendering, bad["completion_ids"]) == "no<|im_end|>"


def test_an_example_knows_what_a_step_reads_for_it(rendering: Rendering) -> None:
    prompt = len(rendering.prompt_ids([{"role": "user", "content": "What?"}]))
    pair = only(rendering, "What?", "yes", "never")
    assert pair.longest == prompt + len("never") + 1
    assert pair.tokens == 2 * prompt + len("yes") + len("never") + 2
    single = only(rendering, "What?", "yes")
    assert (single.longest, single.tokens) == (prompt + 4, prompt + 4)


def test_lengths_are_those_of_the_longest_text_and_of_the_shortest_answer(rendering: Rendering) -> None:
    pair = row("What?", "yes", "never")
    assert lengths_of(pair, rendering) == (only(rendering, "What?", "yes", "never").longest, len("yes") + 1)
    assert lengths_of(pair, Rendering(tokenizer(REFUSES))) is None


def test_what_does_not_fit_is_left_out_and_never_cut(rendering: Rendering) -> None:
    rows = [row("short", "yes"), row("long", "y" * 200), row("exact", "yes")]
    longest = only(rendering, "exact", "yes").longest
    kept = examples_of(rows, rendering, max_length=longest)
    assert [text(rendering, example.answer_ids) for example in kept] == ["yes<|im_end|>"] * 2
    assert len(examples_of(rows, rendering, max_length=longest + 200)) == 3


def test_a_conversation_that_the_template_refuses_is_left_out() -> None:
    alternating = CHATML.replace("{% for", "{% if messages|length > 2 %}" + REFUSES + "{% endif %}{% for", 1)
    rendering = Rendering(tokenizer(alternating))
    long = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    assert len(examples_of([row("one", "yes"), row(long, "yes")], rendering, 512)) == 1


@pytest.mark.parametrize("template", [CHATML, REFUSES])
def test_a_run_whose_labels_are_all_masked_fails_before_its_first_step(template: str) -> None:
    rows = [row(f"question {i}", "a long answer") for i in range(3)]
    with pytest.raises(InvalidRequest) as caught:
        examples_of(rows, Rendering(tokenizer(template)), max_length=16)
    assert (caught.value.code, caught.value.param) == ("all_labels_masked", "hyperparameters.max_length")
    assert "every label is masked" in caught.value.message


def test_no_rows_at_all_are_all_labels_masked(rendering: Rendering) -> None:
    with pytest.raises(InvalidRequest, match="The 0 rows have up to 0 tokens"):
        examples_of([], rendering, 512)
