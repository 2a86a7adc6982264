"""Token ids of prompts and answers, by the model's own tokenizer and the chat template that its engine uses.

Owns the one way from messages to ids: for training labels, for parity with the engine and for likelihoods. A prompt is
rendered as vLLM renders a chat request, and raw text as its /v1/completions tokenizes it. Knows neither datasets nor
models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from adapters.messages import Message, assistant_message
from adapters.rows import Prompt

Tools = list[Any] | None


class Rendering:
    """`template`: the file that the engine is given in place of the tokenizer's own template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | Path, template: Path | None = None) -> None:
        """A folder's tokenizer is loaded from it, and what ends an answer is read there too."""
        folder = tokenizer if isinstance(tokenizer, Path) else None
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, Path) else tokenizer
        self.template = template.read_text() if template is not None else self.tokenizer.chat_template
        self.stops = _stop_ids(self.tokenizer, folder)

    def prompt_text(self, prompt: Prompt, tools: Tools = None) -> str:
        """What the model reads before it answers; raw text as it is."""
        return prompt if isinstance(prompt, str) else self._render(prompt, tools, generate=True)

    def prompt_ids(self, prompt: Prompt, tools: Tools = None) -> list[int]:
        # A template writes its special tokens itself; before raw text the tokenizer puts its own, as vLLM lets it.
        return self._tokenize(self.prompt_text(prompt, tools), special=isinstance(prompt, str))

    def ids(self, prompt: Prompt, answer: Message, tools: Tools = None) -> tuple[list[int], list[int]]:
        """The ids of the prompt, and those that the model should say next, with what ends its turn at their end.

        The first are always the whole prompt's, as the engine sees them, whatever the template makes of the finished
        conversation.
        """
        first = self.prompt_ids(prompt, tools)
        said = None if isinstance(prompt, str) else self._said(prompt, answer, tools)
        if said is None:
            return first, [*self._tokenize(_text(answer)), *self.stops[:1]]
        ids = self._tokenize(self.prompt_text(prompt, tools) + said)
        if ids[: len(first)] == first:
            return first, self._ended(ids[len(first) :])
        return first, self._ended(self._tokenize(said))  # else the ids would merge across the border

    def _said(self, prompt: list[Message], answer: Message, tools: Tools) -> str | None:
        """What of the whole conversation's text comes after the prompt's; None where that cannot be told.

        Templates may know of no calls, open the turn otherwise than a finished one looks (an empty `<think>`), or
        change earlier turns once the conversation is longer. What every turn begins with is what two others have in
        common with it: an answer may go on as the opening does.
        """
        whole, asked = self._finished(prompt, answer, tools), self.prompt_text(prompt, tools)
        if answer.get("tool_calls") and whole == self._finished(
            prompt, {**answer, "tool_calls": None}, tools
        ):
            return None
        if whole.startswith(asked):
            return whole[len(asked) :]
        before = self._render(prompt, tools, generate=False)
        if whole.startswith(before) and asked.startswith(before):
            two = [self._finished(prompt, assistant_message(word), tools) for word in "xy"]
            return whole[_common_length(whole, asked, *two) :]
        return None

    def _finished(self, prompt: list[Message], answer: Message, tools: Tools) -> str:
        return self._render([*prompt, answer], tools, generate=False)

    def _ended(self, ids: list[int]) -> list[int]:
        """Up to the last token that ends a turn; where the template writes none, one is put there."""
        last = max((index for index, id in enumerate(ids) if id in self.stops), default=None)
        return [*ids, *self.stops[:1]] if last is None else ids[: last + 1]

    def _render(self, messages: Sequence[Message], tools: Tools, *, generate: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            [self._message(message) for message in messages],
            tools=tools or None,
            chat_template=self.template,
            add_generation_prompt=generate,
            tokenize=False,
        )
        return str(text)

    def _message(self, message: Message) -> Message:
        """As vLLM hands it to a template: arguments of calls as objects, `developer` only to those that know it."""
        made = {**message, "content": message.get("content") or ""}
        if made.get("role") == "developer" and "developer" not in (self.template or ""):
            made["role"] = "system"
        if message.get("tool_calls"):
            made["tool_calls"] = [_call(call) for call in message["tool_calls"]]
        return made

    def _tokenize(self, text: str, special: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])


def load_tokenizer(weights: Path) -> PreTrainedTokenizerBase:
    """From a folder of this machine, never from elsewhere."""
    return AutoTokenizer.from_pretrained(str(weights), local_files_only=True)


def _stop_ids(tokenizer: PreTrainedTokenizerBase, folder: Path | None) -> list[int]:
    """The tokens that end an answer, the tokenizer's own first; engines also stop at the generation config's."""
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    file = None if folder is None else folder / "generation_config.json"
    if file is not None and file.is_file():
        more = json.loads(file.read_text()).get("eos_token_id")
        found += more if isinstance(more, list) else [more]
    return list(dict.fromkeys(id for id in found if id is not None))


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except json.JSONDecodeError:
            return call
    return {**call, "function": {**function, "arguments": arguments or {}}}


def _common_length(*texts: str) -> int:
    """How many characters all of them begin with."""
    columns = enumerate(zip(*texts, strict=False))
    return next((index for index, letters in columns if len({*letters}) > 1), min(map(len, texts)))


def _text(answer: Message) -> str:
    """The words of an answer alone, parts joined; calls as JSON where no template can say them."""
    content = answer.get("content") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    calls = [call.get("function", {}) for call in answer.get("tool_calls") or ()]
    return "\n".join([*([content] if content else []), *map(json.dumps, calls)])
