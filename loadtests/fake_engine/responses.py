"""vLLM's /v1/responses: the object, and the events of a plain text answer in vLLM's order.

Follows vllm/entrypoints/openai/responses/{protocol,serving,streaming_events}.py without tools or reasoning.
vLLM ends a cut-off stream with `response.completed` whose status is `incomplete`; so does this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from loadtests.fake_engine.generation import Generation
from loadtests.fake_engine.language import Token
from loadtests.fake_engine.replies import Stream, named_event, random_id


@dataclass(frozen=True, slots=True)
class ResponsesReply:
    generation: Generation
    id: str = field(default_factory=lambda: f"resp_{random_id()}")
    item_id: str = field(default_factory=lambda: f"msg_{random_id()}")

    def whole(self) -> bytes:
        return orjson.dumps(self.object())

    def object(self) -> dict[str, Any]:
        """The finished response."""
        done = "incomplete" if self.generation.speech.finish_reason == "length" else "completed"
        return self._object(done, [self._item("completed")], self._usage())

    def stream(self) -> Stream:
        started = self._object("in_progress", [], None)
        place = {"output_index": 0}
        part = {"content_index": 0, "item_id": self.item_id, **place}
        count = len(self.generation.tokens)
        opening = [
            _event("response.created", {"response": started}, 0),
            _event("response.in_progress", {"response": started}, 1),
        ]
        empty = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        head = [
            _event("response.output_item.added", {"item": self._item("in_progress"), **place}, 2),
            _event("response.content_part.added", {**part, "part": empty}, 3),
        ]
        tail = [
            _event(
                "response.output_text.done", {**part, "text": self.generation.text, "logprobs": []}, count + 4
            ),
            _event("response.content_part.done", {**part, "part": self._part()}, count + 5),
            _event("response.output_item.done", {"item": self._item("completed"), **place}, count + 6),
        ]
        last = [_event("response.completed", {"response": self.object()}, count + 7)]
        # vLLM fails to put its own error into an event here, and the stream just stops.
        return Stream(opening, head, self._steps(part), tail, last, error=[])

    def _steps(self, part: dict[str, Any]) -> Iterator[list[bytes]]:
        for position, token in enumerate(self.generation.tokens):
            logprobs = [
                {"token": entry["token"], "logprob": entry["logprob"], "top_logprobs": []}
                for entry in self._logprobs(position, (token,)) or []
            ]
            delta = {**part, "delta": token.text, "logprobs": logprobs}
            yield [_event("response.output_text.delta", delta, position + 4)]

    def _part(self) -> dict[str, Any]:
        return {
            "annotations": [],
            "text": self.generation.text,
            "type": "output_text",
            "logprobs": self._logprobs(0, self.generation.tokens),
        }

    def _item(self, status: str) -> dict[str, Any]:
        content = [self._part()] if status == "completed" and self.generation.text else []
        return {
            "id": self.item_id,
            "content": content,
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def _logprobs(self, start: int, tokens: tuple[Token, ...]) -> list[dict[str, Any]] | None:
        if "message.output_text.logprobs" not in (self.generation.body.get("include") or ()):
            return None
        offset = self.generation.prompt_tokens + start
        return [
            {
                "token": token.text,
                "bytes": list(token.text.encode()),
                "logprob": self.generation.log_probability(offset + position, token),
                "top_logprobs": [],
            }
            for position, token in enumerate(tokens)
        ]

    def _usage(self) -> dict[str, Any]:
        spoken, prompt = self.generation.completion_tokens, self.generation.prompt_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {
                "cached_tokens": 0,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [prompt],
                "cached_tokens_per_turn": [0],
            },
            "output_tokens": spoken,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [spoken],
                "tool_output_tokens_per_turn": [0],
            },
            "total_tokens": prompt + spoken,
        }

    def _object(
        self, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        body = self.generation.body
        tools = body.get("tools") or []
        return {
            "id": self.id,
            "created_at": self.generation.created,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.get("instructions"),
            "metadata": body.get("metadata"),
            "model": self.generation.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": body.get("parallel_tool_calls", True),
            "temperature": body.get("temperature", 1.0),
            "tool_choice": body.get("tool_choice", "auto") if tools else "none",
            "tools": tools,
            "top_p": body.get("top_p", 1.0),
            "background": False,
            "max_output_tokens": body.get("max_output_tokens") or len(self.generation.tokens),
            "max_tool_calls": body.get("max_tool_calls"),
            "previous_response_id": body.get("previous_response_id"),
            "prompt": None,
            "reasoning": body.get("reasoning"),
            "service_tier": body.get("service_tier", "auto"),
            "status": status,
            "text": body.get("text"),
            "top_logprobs": body.get("top_logprobs"),
            "truncation": body.get("truncation", "disabled"),
            "usage": usage,
            "user": body.get("user"),
            "presence_penalty": body.get("presence_penalty", 0.0),
            "frequency_penalty": body.get("frequency_penalty", 0.0),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }


def _event(kind: str, fields: dict[str, Any], number: int) -> bytes:
    return named_event(kind, {**fields, "sequence_number": number, "type": kind})
