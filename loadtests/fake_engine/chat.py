"""vLLM's /v1/chat/completions: the body, and the chunks of a stream, field for field.

Follows vllm/entrypoints/openai/chat_completion/{protocol,serving}.py without a tool or reasoning parser.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
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
class ChatReply:
    generation: Generation

    @property
    def id(self) -> str:
        return f"chatcmpl-{self.generation.id}"

    def whole(self) -> bytes:
        generation = self.generation
        top = generation.body.get("prompt_logprobs")
        return orjson.dumps(
            {
                "id": self.id,
                "object": "chat.completion",
                "created": generation.created,
                "model": generation.model,
                "choices": [self._choice(index) for index in range(generation.n)],
                "service_tier": None,
                "system_fingerprint": SYSTEM_FINGERPRINT,
                "usage": full_usage(generation.usage()),
                "prompt_logprobs": None if top is None else generation.prompt_logprobs(0, top),
                "prompt_token_ids": None,
                "prompt_text": None,
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )

    def _choice(self, index: int) -> dict[str, Any]:
        generation = self.generation
        message = {
            "role": "assistant",
            "content": generation.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(0, generation.tokens),
            "finish_reason": generation.speech.finish_reason,
            "stop_reason": generation.speech.stop_reason,
            "token_ids": None,
            "routed_experts": None,
        }

    def stream(self) -> Stream:
        generation = self.generation
        include, _ = wants_usage(generation.body)
        first = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        head = [
            self._chunk({"index": index, **first}, 0, prompt_token_ids=None, prompt_text=None)
            for index in range(generation.n)
        ]
        tail = (
            [self._event([], usage=generation.usage(), system_fingerprint=SYSTEM_FINGERPRINT)]
            if include
            else []
        )
        # vLLM writes this one with json.dumps, spaces and all.
        error = json.dumps(error_object(500, "InternalServerError", "Internal server error"))
        return Stream(
            [], head, self._steps(include), tail, [DONE], [b"data: " + error.encode() + b"\n\n", DONE]
        )

    def _steps(self, include_usage: bool) -> Iterator[list[bytes]]:
        generation = self.generation
        final = len(generation.tokens) - 1
        stamp = {} if include_usage else {"system_fingerprint": SYSTEM_FINGERPRINT}
        before, after = self._plain_chunk()
        plain = (
            generation.n == 1 and not generation.body.get("logprobs") and not wants_usage(generation.body)[1]
        )
        for position, token in enumerate(generation.tokens):
            if plain and position != final:
                yield [before + orjson.dumps(token.text) + after]
                continue
            choice: dict[str, Any] = {
                "delta": {"content": token.text},
                "logprobs": self._logprobs(position, (token,)),
                "finish_reason": None,
            }
            if position == final:
                choice |= {
                    "finish_reason": generation.speech.finish_reason,
                    "stop_reason": generation.speech.stop_reason,
                }
            choice["token_ids"] = None
            extra = stamp if position == final else {}
            yield [
                self._chunk({"index": index, **choice}, position + 1, **extra)
                for index in range(generation.n)
            ]

    def _plain_chunk(self) -> tuple[bytes, bytes]:
        """What stands before and after the text in a chunk of nothing else: most of a load test's chunks."""
        choice = {
            "index": 0,
            "delta": {"content": 0},
            "logprobs": None,
            "finish_reason": None,
            "token_ids": None,
        }
        before, _, after = self._event([choice]).partition(b'"content":0')
        return before + b'"content":', after

    def _chunk(self, choice: dict[str, Any], tokens: int, **extra: Any) -> bytes:
        if wants_usage(self.generation.body)[1]:
            usage = {**self.generation.usage(tokens), "completion_tokens_details": None}
            return self._event([choice], usage=usage, **extra)
        return self._event([choice], **extra)

    def _event(self, choices: list[dict[str, Any]], **extra: Any) -> bytes:
        chunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.generation.created,
            "model": self.generation.model,
            "choices": choices,
        }
        return data_event(chunk | extra)

    def _logprobs(self, start: int, tokens: tuple[Token, ...]) -> dict[str, Any] | None:
        body = self.generation.body
        if not body.get("logprobs"):
            return None
        offset, top = self.generation.prompt_tokens + start, body.get("top_logprobs") or 0
        return {"content": [self._content(offset + i, token, top) for i, token in enumerate(tokens)]}

    def _content(self, position: int, token: Token, top: int) -> dict[str, Any]:
        ranked = [_entry(other, value) for other, value in self.generation.ranked(position, token, top)]
        return {**ranked[0], "top_logprobs": ranked if top else []}


def _entry(token: Token, value: float) -> dict[str, Any]:
    return {"token": token.text, "logprob": value, "bytes": list(token.text.encode())}
