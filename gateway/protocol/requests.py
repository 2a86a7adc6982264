"""What a client may ask: one `prepare_…` for each endpoint, from the parsed body to the body for the engine.

A prepared body has been checked against OpenAI's rules and the operator's limits and says what an engine needs
in an engine's words. `model` is left to the caller. Unknown fields pass: the engine may know them.
"""

from __future__ import annotations

from typing import Any

import orjson

from adapters.errors import InvalidRequest
from adapters.settings import Limits
from gateway.protocol import checks
from gateway.protocol.checks import Body

ROLES = ("system", "assistant", "user", "function", "tool", "developer")

PART_TYPES = (
    "text",
    "refusal",
    "image_url",
    "input_audio",
    "file",
    "audio_url",
    "video_url",
    "input_text",
    "output_text",
    "input_image",
    "thinking",
    "tool_reference",
    "image_embeds",
    "audio_embeds",
    "video_embeds",
)
"""The parts of a message that OpenAI or vLLM knows; whether a model can take one is the engine's to say."""

PRIVILEGED = ("priority", "kv_transfer_params", "vllm_xargs", "cache_salt", "request_id")
"""Fields that reach into the engine's scheduling and caches: for keys with the scope `admin`."""

GUIDED = ("regex", "grammar", "json", "choice", "structural_tag")
"""What vLLM can hold an answer to."""


def parse(raw: bytes) -> Body:
    """The body as a JSON object."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"We could not parse the JSON body of your request: {error}. The API expects a JSON payload.",
            code="invalid_json",
        ) from None
    if type(body) is not dict:
        raise InvalidRequest(
            f"Invalid body: expected a JSON object, but got {checks.json_name(body)} instead.",
            code="invalid_json",
        )
    return body


def model_name(body: Body) -> str:
    """The `model` that the client asks for."""
    name = body.get("model")
    if name is None:
        raise checks.missing("model")
    if type(name) is not str:
        raise checks.wrong_type("model", "a string", name)
    if not name:
        raise InvalidRequest("You must provide a model parameter.", param="model", code="invalid_value")
    return name


def refuse_privileged(body: Body) -> None:
    """Raises for a field that only a key with the scope `admin` may set."""
    for param in PRIVILEGED:
        if body.get(param) is not None:
            raise checks.unsupported(param, f"'{param}' needs a key with the scope 'admin'.")


def prepare_chat(body: Body, limits: Limits) -> None:
    """POST /v1/chat/completions. Changes `body` into what the engine gets."""
    _sampling(body, limits)
    checks.integer(body, "max_completion_tokens", 1, None)
    checks.integer(body, "max_tokens", 1, None)
    checks.boolean(body, "logprobs")
    checks.integer(body, "top_logprobs", 0, limits.max_logprobs)
    if body.get("top_logprobs") and body.get("logprobs") is not True:
        raise InvalidRequest(
            "'logprobs' must be true when 'top_logprobs' is set.", param="top_logprobs", code="invalid_value"
        )
    messages = checks.objects(body, "messages", limits.max_messages)
    for index, message in enumerate(messages):
        _message(message, f"messages[{index}]")
    if any(message["role"] == "developer" for message in messages):
        body["messages"] = [_as_system(message) for message in messages]
    _tools(body, limits)
    _response_format(body, limits)
    _guided(body, limits)
    _stream(body, asks_usage=True)
    _stored_here(body)


def prepare_completion(body: Body, limits: Limits) -> None:
    """POST /v1/completions. Changes `body` into what the engine gets."""
    _sampling(body, limits)
    checks.integer(body, "max_tokens", 0, None)
    checks.integer(body, "logprobs", 0, limits.max_logprobs)
    checks.integer(body, "best_of", 1, limits.max_best_of)
    checks.boolean(body, "echo")
    prompt = body.get("prompt")
    if prompt is None and body.get("prompt_embeds") is None:
        raise checks.missing("prompt")
    if prompt is not None and type(prompt) is not str and type(prompt) is not list:
        raise checks.wrong_type("prompt", "a string or an array", prompt)
    if type(prompt) is list and prompt and type(prompt[0]) is not int and len(prompt) > limits.max_prompts:
        raise checks.too_large("prompt", "an array", limits.max_prompts, len(prompt))
    _response_format(body, limits)
    _guided(body, limits)
    _stream(body, asks_usage=True)


def prepare_response(body: Body, limits: Limits) -> None:
    """POST /v1/responses. Changes `body` into what the engine gets; `previous_response_id` is the caller's."""
    _sampling(body, limits)
    checks.integer(body, "max_output_tokens", 1, None)
    checks.integer(body, "top_logprobs", 0, limits.max_logprobs)
    for param in ("instructions", "previous_response_id"):
        checks.string(body, param)
    checks.boolean(body, "store")
    checks.metadata(body)
    if body.get("background"):
        raise checks.unsupported(
            "background", "'background' is not supported: responses are answered at once."
        )
    if body.get("conversation") is not None:
        raise checks.unsupported(
            "conversation", "'conversation' is not supported; use 'previous_response_id'."
        )
    value = body.get("input")
    if value is None:
        raise checks.missing("input")
    if type(value) is not str:
        if type(value) is not list:
            raise checks.wrong_type("input", "a string or an array of objects", value)
        checks.objects(body, "input", limits.max_messages)
    _tools(body, limits)
    text = body.get("text")
    if text is not None and type(text) is not dict:
        raise checks.wrong_type("text", "an object", text)
    layout = (text or {}).get("format")
    if type(layout) is dict:
        checks.schema("text.format.schema", layout.get("schema"), limits)
    _guided(body, limits)
    _stream(body, asks_usage=False)


def prepare_message(body: Body, limits: Limits) -> None:
    """POST /v1/messages (Anthropic). Changes `body` into what the engine gets."""
    checks.number(body, "temperature", 0, 2)
    checks.number(body, "top_p", 0, 1)
    if body.get("max_tokens") is None:
        raise checks.missing("max_tokens")
    checks.integer(body, "max_tokens", 1, None)
    for index, message in enumerate(checks.objects(body, "messages", limits.max_messages)):
        checks.one_of(f"messages[{index}].role", message.get("role"), ("user", "assistant", "system"))
    for index, tool in enumerate(_tool_list(body, limits)):
        checks.schema(f"tools[{index}].input_schema", tool.get("input_schema"), limits)
    checks.schema("output_config", body.get("output_config"), limits)
    _template(body, limits)
    _stream(body, asks_usage=False)


def prepare_count(body: Body, limits: Limits) -> None:
    """POST /v1/messages/count_tokens (Anthropic)."""
    checks.objects(body, "messages", limits.max_messages)
    _template(body, limits)


def prepare_embedding(body: Body, limits: Limits) -> None:
    """POST /v1/embeddings."""
    value = body.get("input")
    if value is None:
        raise checks.missing("input")
    if type(value) is list and value and type(value[0]) is not int and len(value) > 2048:
        raise checks.too_large("input", "an array", 2048, len(value))
    checks.integer(body, "dimensions", 1, None)


def _sampling(body: Body, limits: Limits) -> None:
    checks.number(body, "temperature", 0, 2)
    checks.number(body, "top_p", 0, 1)
    checks.number(body, "presence_penalty", -2, 2)
    checks.number(body, "frequency_penalty", -2, 2)
    checks.integer(body, "n", 1, limits.max_n)
    checks.integer(body, "seed", -(2**63), 2**63 - 1)
    checks.integer(body, "prompt_logprobs", 0, limits.max_logprobs)
    if body.get("temperature") == 0 and (body.get("n") or 1) > 1:
        # vLLM refuses several greedy answers; the likeliest token alone is the same thing.
        body["temperature"], body["top_k"] = 1, 1
    checks.stop(body, limits.max_stop)
    checks.logit_bias(body, limits.max_logit_bias)
    _template(body, limits)


def _template(body: Body, limits: Limits) -> None:
    for param in ("chat_template", "chat_template_kwargs"):
        if body.get(param) is not None and not limits.allow_chat_template:
            raise checks.unsupported(
                param, f"'{param}' is not allowed here (the setting limits.allow_chat_template allows it)."
            )


def _message(message: Body, where: str) -> None:
    role = message.get("role")
    if role is None:
        raise checks.missing(f"{where}.role")
    checks.one_of(f"{where}.role", role, ROLES)
    content = message.get("content")
    if content is not None and type(content) is not str:
        _parts(content, f"{where}.content")
    elif content is None and role != "assistant":
        raise InvalidRequest(
            f"Invalid value for 'content': expected a string, got null. (role '{role}')",
            param=f"{where}.content",
            code="invalid_type",
        )
    if role == "tool" and type(message.get("tool_call_id")) is not str:
        raise checks.missing(f"{where}.tool_call_id")


def _as_system(message: Body) -> Body:
    """Chat templates know the older name of `developer` only; the client's own message stays as it is."""
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _stored_here(body: Body) -> None:
    """What says how to keep the answer is for the gateway; an engine behind it keeps nothing on our account."""
    checks.boolean(body, "store")
    checks.metadata(body)
    body.pop("metadata", None)
    if body.get("store") is not False:
        body.pop("store", None)


def _parts(content: object, where: str) -> None:
    if type(content) is not list:
        raise checks.wrong_type(where, "a string or an array of objects", content)
    for index, part in enumerate(content):
        if type(part) is not dict:
            raise checks.wrong_type(f"{where}[{index}]", "an object", part)
        if part.get("type") is None:
            raise checks.missing(f"{where}[{index}].type")
        checks.one_of(f"{where}[{index}].type", part["type"], PART_TYPES)


def _tools(body: Body, limits: Limits) -> None:
    for index, tool in enumerate(_tool_list(body, limits)):
        function = tool.get("function")
        holder: dict[str, Any] = function if type(function) is dict else tool
        where = f"tools[{index}].function" if holder is function else f"tools[{index}]"
        if tool.get("type") == "function" and type(holder.get("name")) is not str:
            raise checks.missing(f"{where}.name")
        checks.schema(f"{where}.parameters", holder.get("parameters"), limits)
    if body.get("tools") == []:  # OpenAI refuses an empty list; engines take it for none at all
        body.pop("tools")
        body.pop("tool_choice", None)


def _tool_list(body: Body, limits: Limits) -> list[Body]:
    tools = body.get("tools")
    if tools is None:
        return []
    if type(tools) is not list:
        raise checks.wrong_type("tools", "an array of objects", tools)
    if len(tools) > limits.max_tools:
        raise checks.too_large("tools", "an array", limits.max_tools, len(tools))
    for index, tool in enumerate(tools):
        if type(tool) is not dict:
            raise checks.wrong_type(f"tools[{index}]", "an object", tool)
    return tools


def _response_format(body: Body, limits: Limits) -> None:
    layout = body.get("response_format")
    if layout is None:
        return
    if type(layout) is not dict:
        raise checks.wrong_type("response_format", "an object", layout)
    kinds = ("json_object", "json_schema", "text", "structural_tag")
    if layout.get("type") is None:
        raise checks.missing("response_format.type")
    checks.one_of("response_format.type", layout["type"], kinds)
    if layout["type"] == "structural_tag":
        checks.schema("response_format", layout, limits)
    if layout["type"] == "json_schema":
        inner = layout.get("json_schema")
        if type(inner) is not dict:
            raise checks.missing("response_format.json_schema")
        where = "response_format.json_schema.schema"
        checks.schema(where, inner.get("schema"), limits)


def _guided(body: Body, limits: Limits) -> None:
    """vLLM's own `structured_outputs` and the older `guided_…` fields, within the limits."""
    outer = body.get("structured_outputs")
    if outer is not None and type(outer) is not dict:
        raise checks.wrong_type("structured_outputs", "an object", outer)
    asked = [(f"structured_outputs.{kind}", kind, value) for kind, value in (outer or {}).items()]
    asked += [(f"guided_{kind}", kind, body[f"guided_{kind}"]) for kind in GUIDED if f"guided_{kind}" in body]
    for param, kind, value in asked:
        if kind == "regex":
            checks.text(param, value, limits.max_pattern_chars)
        elif kind == "grammar":
            checks.text(param, value, limits.max_grammar_chars)
        elif kind == "choice" and value is not None:
            checks.schema(param, {"enum": value}, limits)
        elif kind in ("json", "structural_tag"):
            checks.schema(param, value, limits)


def _stream(body: Body, asks_usage: bool) -> None:
    """`stream` and its options; usage is always asked of the engine, whatever the client wants to see."""
    checks.boolean(body, "stream")
    options = body.get("stream_options")
    if options is not None and type(options) is not dict:
        raise checks.wrong_type("stream_options", "an object", options)
    if body.get("stream"):
        if asks_usage:
            body["stream_options"] = {**(options or {}), "include_usage": True}
    elif options is not None:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
            code="invalid_value",
        )


def wants_usage(body: Body) -> bool:
    """Whether the client asked to see the usage of a stream. To be read before the body is prepared."""
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True
