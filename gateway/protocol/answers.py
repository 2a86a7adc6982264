"""What an answer must hold: an engine's body, or one piece of its stream, made what OpenAI's schema requires.

Every function changes the parsed object in place and is a no-op on one that is right already. What vLLM 0.32
leaves out or does otherwise is named where it is put right. Knows no bytes, no connections.
"""

from __future__ import annotations

from typing import Any

Answer = dict[str, Any]


_ENGINE_ONLY = (
    "prompt_logprobs",
    "prompt_token_ids",
    "prompt_text",
    "kv_transfer_params",
    "ec_transfer_params",
    "metrics",
    "service_tier",
    "input_messages",
    "output_messages",
)
"""Keys of vLLM's answers that say nothing where they are null."""

_CHOICE_ONLY = ("stop_reason", "token_ids", "routed_experts", "prompt_token_ids", "prompt_logprobs")


def chat(answer: Answer, model: str) -> None:
    """A chat completion."""
    answer["model"] = model
    _drop_nulls(answer, _ENGINE_ONLY)
    for choice in answer.get("choices") or ():
        choice.setdefault("logprobs", None)
        _chat_logprobs(choice["logprobs"])
        _drop_nulls(choice, _CHOICE_ONLY)
        message = choice.get("message")
        if isinstance(message, dict):
            _chat_message(message)


def _chat_message(message: Answer) -> None:
    message.setdefault("content", None)
    message.setdefault("refusal", None)
    _drop_nulls(
        message, ("tool_calls", "function_call", "audio", "annotations", "reasoning", "reasoning_content")
    )
    if message.get("tool_calls") and message["content"] == "":
        message["content"] = None


def chat_chunk(chunk: Answer, model: str) -> None:
    """One chunk of a streamed chat completion."""
    chunk["model"] = model
    for choice in chunk.get("choices") or ():
        choice.setdefault("finish_reason", None)
        _chat_logprobs(choice.get("logprobs"))
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            continue
        for call in delta.get("tool_calls") or ():
            function = call.get("function")
            # vLLM opens a call with no `arguments`, or with null; clients add the pieces up with `+=`.
            if isinstance(function, dict) and function.get("arguments") is None:
                function["arguments"] = ""
        _drop_nulls(delta, ("tool_calls", "function_call", "reasoning", "reasoning_content"))


def completion(answer: Answer, model: str) -> None:
    """A text completion, or one chunk of a streamed one."""
    answer["model"] = model
    _drop_nulls(answer, _ENGINE_ONLY)
    for choice in answer.get("choices") or ():
        _drop_nulls(choice, _CHOICE_ONLY)
        choice.setdefault("logprobs", None)
        choice.setdefault("finish_reason", None)


def embedding(answer: Answer, model: str) -> None:
    """A list of embeddings."""
    answer["model"] = model


def message(answer: Answer, model: str) -> None:
    """An Anthropic message."""
    answer["model"] = model
    answer.setdefault("stop_sequence", None)
    answer["id"] = message_id(str(answer.get("id")))


def message_id(engine_id: str) -> str:
    """Anthropic's ids begin with `msg_`, where vLLM's begin with `chatcmpl-`."""
    return "msg_" + engine_id.removeprefix("chatcmpl-").removeprefix("msg_")


def count(answer: Answer, model: str) -> None:
    """Anthropic's count of tokens: nothing in it names the model."""


def response(answer: Answer, model: str, asked: Answer) -> None:
    """A response object of the responses API; `asked` is the client's own request."""
    answer["model"] = model
    _drop_nulls(answer, _ENGINE_ONLY)
    answer.setdefault("error", None)
    answer.setdefault("incomplete_details", None)
    answer["previous_response_id"] = asked.get("previous_response_id")
    answer["store"] = asked.get("store") is not False
    answer["metadata"] = answer.get("metadata") or asked.get("metadata") or {}
    answer["tool_choice"] = asked.get("tool_choice") or "auto"  # vLLM says "none" where there are no tools
    answer["text"] = answer.get("text") or asked.get("text") or {"format": {"type": "text"}}
    if answer.get("status") == "incomplete" and not answer["incomplete_details"]:
        answer["incomplete_details"] = {"reason": "max_output_tokens"}
    for item in answer.get("output") or ():
        output_item(item)


def output_item(item: Answer) -> None:
    """One item of a response's `output`."""
    _drop_nulls(item, ("async", "caller", "namespace"))
    for part in item.get("content") or ():
        if isinstance(part, dict) and part.get("type") == "output_text":
            output_text(part)


def output_text(part: Answer) -> None:
    """An `output_text` part: `annotations` and `logprobs` are arrays, where vLLM says null."""
    part["annotations"] = part.get("annotations") or []
    part["logprobs"] = part.get("logprobs") or []


def token_counts(usage: object) -> tuple[int | None, int | None]:
    """Of the prompt and of the answer, by a `usage` in whichever API's words; None where it does not say."""
    if not isinstance(usage, dict):
        return None, None
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    answer = usage.get("completion_tokens", usage.get("output_tokens"))
    return prompt if isinstance(prompt, int) else None, answer if isinstance(answer, int) else None


def usage(answer: Answer) -> Answer | None:
    """The usage an answer carries, in whichever API's words."""
    found = answer.get("usage")
    return found if isinstance(found, dict) else None


def _chat_logprobs(logprobs: Any) -> None:
    # OpenAI's schema requires `refusal`; vLLM has no such key.
    if isinstance(logprobs, dict):
        logprobs.setdefault("content", None)
        logprobs.setdefault("refusal", None)


def _drop_nulls(holder: Answer, names: tuple[str, ...]) -> None:
    for name in names:
        if holder.get(name, 0) is None or holder.get(name, 0) == []:
            del holder[name]
