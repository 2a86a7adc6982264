"""vLLM's /v1/completions: several prompts, echo, logprobs and prompt_logprobs included.

Follows vllm/entrypoints/openai/completion/{protocol,serving}.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from loadtests.fake_engine.errors import error_object
from loadtests.fake_engine.generation import Generation
from loadtests.fake_engine.language import Token
from loadtests.fake_engine.replies import (
    DONE,
    SYSTEM_FINGERPRINT,
    Stream,
    data_event,
    full_usage,
    wants_usage,
)


@dataclass(frozen=True, slots=True)
class CompletionReply:
    generation: Generation

    @property
    def id(self) -> str:
        return f"cmpl-{self.generation.id}"

    def whole(self) -> bytes:
        generation = self.generation
        places = [(prompt, n) for prompt in range(len(generation.prompts)) for n in range(generation.n)]
        return orjson.dumps(
            {
                "id": self.id,
                "object": "text_completion",
                "created": generation.created,
                "model": generation.model,
                "choices": [self._choice(index, prompt) for index, (prompt, _) in enumerate(places)],
                "service_tier": None,
                "system_fingerprint": SYSTEM_FINGERPRINT,
                "usage": full_usage(generation.usage()),
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )

    def _choice(self, index: int, prompt: int) -> dict[str, Any]:
        generation = self.generation
        top = generation.body.get("prompt_logprobs")
        if top is None and self._echoes:
            top = generation.body.get("logprobs")
        return {
            "index": index,
            "text": (self._echo_text(prompt) if self._echoes else "") + "".join(t.text for t in self._said),
            "logprobs": self._logprobs(prompt, 0, self._said, self._echoes),
            "finish_reason": generation.speech.finish_reason,
            "stop_reason": generation.speech.stop_reason,
            "token_ids": None,
            "prompt_logprobs": None if top is None else generation.prompt_logprobs(prompt, top),
            "prompt_token_ids": None,
            "routed_experts": None,
        }

    def stream(self) -> Stream:
        include, _ = wants_usage(self.generation.body)
        usage = self._event([], usage=self.generation.usage(), system_fingerprint=SYSTEM_FINGERPRINT)
        error = json.dumps(error_object(500, "InternalServerError", "Internal server error"))
        failed = [b"data: " + error.encode() + b"\n\n", DONE]
        return Stream([], [], self._steps(include), [usage] if include else [], [DONE], failed)

    def _steps(self, include_usage: bool) -> Iterator[list[bytes]]:
        generation = self.generation
        final = len(generation.tokens) - 1
        for position in range(final + 1):
            extra: dict[str, Any] = {}
            if position == final and not include_usage:
                extra["system_fingerprint"] = SYSTEM_FINGERPRINT
            if wants_usage(generation.body)[1]:
                extra["usage"] = generation.usage(position + 1)
            yield [
                self._event([self._step(prompt * generation.n + n, prompt, position)], **extra)
                for prompt in range(len(generation.prompts))
                for n in range(generation.n)
            ]

    def _step(self, index: int, prompt: int, position: int) -> dict[str, Any]:
        generation = self.generation
        echoes = self._echoes and position == 0
        tokens = self._said[position : position + 1]
        final = position == len(generation.tokens) - 1
        return {
            "index": index,
            "text": (self._echo_text(prompt) if echoes else "") + "".join(token.text for token in tokens),
            "logprobs": self._logprobs(prompt, position, tokens, echoes),
            "finish_reason": generation.speech.finish_reason if final else None,
            "stop_reason": generation.speech.stop_reason if final else None,
            "prompt_token_ids": None,
            "token_ids": None,
        }

    def _event(self, choices: list[dict[str, Any]], **extra: Any) -> bytes:
        chunk = {
            "id": self.id,
            "object": "text_completion",
            "created": self.generation.created,
            "model": self.generation.model,
            "choices": choices,
        }
        return data_event(chunk | extra)

    @property
    def _echoes(self) -> bool:
        return bool(self.generation.body.get("echo"))

    @property
    def _said(self) -> tuple[Token, ...]:
        """The tokens shown; with echo and max_tokens 0 vLLM makes one and shows none."""
        if self._echoes and self.generation.body.get("max_tokens") == 0:
            return ()
        return self.generation.tokens

    def _echo_text(self, prompt: int) -> str:
        given = self.generation.prompts[prompt]
        return given if isinstance(given, str) else "".join(t.text for t in self.generation.prompt_of(prompt))

    def _logprobs(
        self, prompt: int, start: int, tokens: Sequence[Token], with_prompt: bool
    ) -> dict[str, Any] | None:
        top = self.generation.body.get("logprobs")
        if top is None:
            return None
        given = self.generation.prompt_of(prompt)
        shown = [*given, *tokens] if with_prompt else list(tokens)
        first = 0 if with_prompt else len(given) + start
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        for position, token in enumerate(shown, start=first):
            ranked = self.generation.ranked(position, token, top) if position else []
            values.append(ranked[0][1] if ranked else None)
            tops.append({other.text: value for other, value in ranked} if ranked else None)
        return {
            "text_offset": self._offsets(shown, start, given if self._echoes and not with_prompt else ()),
            "token_logprobs": values,
            "tokens": [token.text for token in shown],
            "top_logprobs": tops,
        }

    def _offsets(self, shown: Sequence[Token], start: int, echoed: Sequence[Token]) -> list[int]:
        offset = sum(len(token.text) for token in (*echoed, *self.generation.tokens[:start]))
        offsets = []
        for token in shown:
            offsets.append(offset)
            offset += len(token.text)
        return offsets
