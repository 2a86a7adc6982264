"""vLLM's /v1/messages in Anthropic's shape: the message, and the events of a text answer.

Follows vllm/entrypoints/anthropic/{protocol,serving}.py without tools or thinking.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from loadtests.fake_engine.generation import Generation
from loadtests.fake_engine.replies import Stream, named_event


@dataclass(frozen=True, slots=True)
class MessageReply:
    generation: Generation

    def whole(self) -> bytes:
        reason, sequence = self._stop()
        message = self._message([{"type": "text", "text": self.generation.text}])
        message["stop_reason"] = reason
        if sequence is not None:
            message["stop_sequence"] = sequence
        return orjson.dumps({**message, "usage": self._usage(self.generation.completion_tokens)})

    def stream(self) -> Stream:
        reason, sequence = self._stop()
        nothing_yet = {"stop_reason": None, "stop_sequence": None, "usage": self._usage(0)}
        head = [_event("message_start", message={**self._message([]), **nothing_yet})]
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        tail = [
            _event("content_block_stop", index=0),
            _event("message_delta", delta=delta, usage=self._usage(self.generation.completion_tokens)),
        ]
        failure = {"type": "internal_error", "message": "Internal server error"}
        return Stream(
            [], head, self._steps(), tail, [_event("message_stop")], error=[_event("error", error=failure)]
        )

    def _steps(self) -> Iterator[list[bytes]]:
        start = [_event("content_block_start", content_block={"type": "text", "text": ""}, index=0)]
        for token in self.generation.tokens:
            if not token.text:
                yield []
                continue
            delta = {"type": "text_delta", "text": token.text}
            yield [*start, _event("content_block_delta", delta=delta, index=0)]
            start = []

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.generation.id}",
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.generation.model,
        }

    def _usage(self, output_tokens: int) -> dict[str, int]:
        return {"input_tokens": self.generation.prompt_tokens, "output_tokens": output_tokens}

    def _stop(self) -> tuple[str, str | None]:
        if self.generation.speech.finish_reason == "length":
            return "max_tokens", None
        if self.generation.speech.stop_reason is not None:
            return "stop_sequence", self.generation.speech.stop_reason
        return "end_turn", None


def _event(kind: str, **fields: Any) -> bytes:
    return named_event(kind, {"type": kind, **fields})
