"""Rows as token ids: what a trainer learns from, and where its loss is.

Owns that the loss is on the answer's tokens alone, that nothing is cut off in the middle, and that a run whose labels
are all masked fails before its first step. Knows the rendering, and neither models nor trainers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from adapters.errors import InvalidRequest
from adapters.rows import Row, RowKind
from trainer.rendering import Rendering

MASKED = -100
"""The label that no loss is taken of."""

LEAST_REJECTED_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Example:
    prompt_ids: list[int]
    answer_ids: list[int]
    rejected_ids: list[int] | None = None
    liked: bool | None = None

    @property
    def tokens(self) -> int:
        """That a step has to read for it."""
        rejected = 0 if self.rejected_ids is None else len(self.prompt_ids) + len(self.rejected_ids)
        return len(self.prompt_ids) + len(self.answer_ids) + rejected

    @property
    def longest(self) -> int:
        return len(self.prompt_ids) + max(len(self.answer_ids), len(self.rejected_ids or ()))


def example_of(row: Row, rendering: Rendering) -> Example | None:
    """None where the chat template refuses the conversation."""
    try:
        prompt, answer = rendering.ids(row.prompt, row.answer, row.tools)
        if row.kind is not RowKind.PREFERENCE or row.rejected is None:
            return Example(prompt, answer, None, row.liked)
        rejected = rendering.ids(row.prompt, row.rejected, row.tools)[1]
    except (
        jinja2.TemplateError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ):  # whatever a client has sent
        return None
    return Example(prompt, answer, rejected[: rejected_limit(len(answer))])


def rejected_limit(answer_tokens: int) -> int:
    """How much of a worse answer is read: where it differs shows early, and beyond the better answer's length its
    tokens only say that it is longer (LD-DPO, Liu et al. 2024, leaves them out for that). Each costs as much as one of
    the better answer."""
    return max(LEAST_REJECTED_TOKENS, answer_tokens)


def lengths_of(row: Row, rendering: Rendering) -> tuple[int, int] | None:
    """(tokens of the longest text of a row, tokens of its shortest answer); None for what cannot be rendered."""
    example = example_of(row, rendering)
    if example is None:
        return None
    answers = [example.answer_ids, *([] if example.rejected_ids is None else [example.rejected_ids])]
    return example.longest, min(map(len, answers))


def examples_of(rows: Iterable[Row], rendering: Rendering, max_length: int) -> list[Example]:
    """Those that fit. Raises InvalidRequest(code="all_labels_masked") where no answer's token is left to learn."""
    every = [example for row in rows if (example := example_of(row, rendering)) is not None]
    fitting = [example for example in every if example.answer_ids and example.longest <= max_length]
    if not fitting:
        longest = max((example.longest for example in every), default=0)
        raise InvalidRequest(
            f"No token of any answer is left to learn: every label is masked. The {len(every)} rows have up to "
            f"{longest} tokens and max_length is {max_length}.",
            param="hyperparameters.max_length",
            code="all_labels_masked",
        )
    return fitting


def supervised(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """For TRL's SFTTrainer: labels are its own ids on the answer, masked on the prompt."""
    return [
        {
            "input_ids": [*example.prompt_ids, *example.answer_ids],
            "labels": [*[MASKED] * len(example.prompt_ids), *example.answer_ids],
        }
        for example in examples
    ]


def pairs(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """For TRL's DPOTrainer. One without a worse answer stands against itself: its preference has no gradient, and the
    supervised term learns from it."""
    return [
        {
            "prompt_ids": example.prompt_ids,
            "chosen_ids": example.answer_ids,
            "rejected_ids": example.answer_ids if example.rejected_ids is None else example.rejected_ids,
        }
        for example in examples
    ]


def labels(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """For TRL's KTOTrainer: single answers, each liked or not."""
    return [
        {
            "prompt_ids": example.prompt_ids,
            "completion_ids": example.answer_ids,
            "label": example.liked is True,
        }
        for example in examples
    ]
