"""The value checks that every endpoint's request goes through, with OpenAI's wording and codes.

Each check takes the parsed body and raises InvalidRequest naming the field. Knows no endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from adapters.errors import InvalidRequest
from adapters.settings import Limits

Body = dict[str, Any]

MAX_METADATA, MAX_METADATA_NAME_CHARS, MAX_METADATA_VALUE_CHARS = 16, 64, 512
"""OpenAI's own bounds."""

_JSON_NAMES = {
    bool: "boolean",
    int: "integer",
    float: "decimal",
    str: "string",
    list: "array",
    dict: "object",
    type(None): "null",
}
_ARTICLES = {"integer": "an integer", "array": "an array", "object": "an object"}


def json_name(value: object) -> str:
    """What JSON calls the type of a parsed value, with its article."""
    name = _JSON_NAMES.get(type(value), "value")
    return "null" if name == "null" else _ARTICLES.get(name, f"a {name}")


def wrong_type(param: str, expected: str, value: object) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid type for '{param}': expected {expected}, but got {json_name(value)} instead.",
        param=param,
        code="invalid_type",
    )


def missing(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
    )


def unsupported(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(why, param=param, code="unsupported_parameter")


def too_large(param: str, what: str, most: int, got: int) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{param}': {what} of at most {most} is allowed here, but got {got}.",
        param=param,
        code="above_max_value",
    )


def number(body: Body, param: str, low: float, high: float) -> None:
    """`param`, if given, is a number within [low, high]."""
    value = body.get(param)
    if value is None:
        return
    if type(value) is not float and type(value) is not int:
        raise wrong_type(param, "a decimal", value)
    _within(param, value, low, high, "decimal")


def integer(body: Body, param: str, low: int, high: int | None) -> None:
    """`param`, if given, is a whole number of at least `low` and, where `high` is given, at most that."""
    value = body.get(param)
    if value is None:
        return
    if type(value) is not int:
        raise wrong_type(param, "an integer", value)
    _within(param, value, low, high, "integer")


def boolean(body: Body, param: str) -> None:
    value = body.get(param)
    if value is not None and value is not True and value is not False:
        raise wrong_type(param, "a boolean", value)


def string(body: Body, param: str) -> None:
    value = body.get(param)
    if value is not None and type(value) is not str:
        raise wrong_type(param, "a string", value)


def metadata(body: Body, param: str = "metadata") -> None:
    """`metadata`, if given, is at most 16 texts of at most 512 characters, with names of at most 64."""
    value = body.get(param)
    if value is None:
        return
    if type(value) is not dict:
        raise wrong_type(param, "an object", value)
    if len(value) > MAX_METADATA:
        raise too_large(param, "an object", MAX_METADATA, len(value))
    for name, text_value in value.items():
        if type(text_value) is not str:
            raise wrong_type(f"{param}.{name}", "a string", text_value)
        if len(name) > MAX_METADATA_NAME_CHARS or len(text_value) > MAX_METADATA_VALUE_CHARS:
            raise too_large(
                f"{param}.{name[:MAX_METADATA_NAME_CHARS]}",
                f"a name of at most {MAX_METADATA_NAME_CHARS} characters and a value",
                MAX_METADATA_VALUE_CHARS,
                len(text_value),
            )


def plain_metadata(pairs: dict[str, str] | None) -> dict[str, str]:
    """The metadata of a job or a batch, which databases must be able to compare: OpenAI's bounds, and no NUL."""
    pairs = pairs or {}
    if len(pairs) > MAX_METADATA or any(
        len(name) > MAX_METADATA_NAME_CHARS or len(value) > MAX_METADATA_VALUE_CHARS
        for name, value in pairs.items()
    ):
        raise InvalidRequest(
            f"'metadata' has at most {MAX_METADATA} keys of {MAX_METADATA_NAME_CHARS} characters, "
            f"with values of {MAX_METADATA_VALUE_CHARS}.",
            param="metadata",
            code="invalid_value",
        )
    if any("\x00" in text for pair in pairs.items() for text in pair):
        raise InvalidRequest("'metadata' must not hold NUL.", param="metadata", code="invalid_value")
    return pairs


def one_of(param: str, value: object, allowed: Iterable[str]) -> None:
    """`value` is one of the strings of `allowed`, in the order in which the error lists them."""
    names = list(allowed)
    if type(value) is not str:
        raise wrong_type(param, f"one of {_listed(names)}", value)
    if value not in names:
        raise InvalidRequest(
            f"Invalid value: '{value}'. Supported values are: {_listed(names)}.",
            param=param,
            code="invalid_value",
        )


def objects(body: Body, param: str, most: int) -> list[Body]:
    """`param` is given and is an array of 1 to `most` objects."""
    value = body.get(param)
    if value is None:
        raise missing(param)
    if type(value) is not list:
        raise wrong_type(param, "an array of objects", value)
    if not value:
        raise InvalidRequest(
            f"Invalid '{param}': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            param=param,
            code="empty_array",
        )
    if len(value) > most:
        raise too_large(param, "an array", most, len(value))
    for index, item in enumerate(value):
        if type(item) is not dict:
            raise wrong_type(f"{param}[{index}]", "an object", item)
    return value


def stop(body: Body, most: int) -> None:
    """`stop` is a string or at most `most` strings."""
    value = body.get("stop")
    if value is None or type(value) is str:
        return
    if type(value) is not list:
        raise wrong_type("stop", "a string or an array of strings", value)
    if len(value) > most:
        raise too_large("stop", "an array", most, len(value))
    for index, item in enumerate(value):
        if type(item) is not str:
            raise wrong_type(f"stop[{index}]", "a string", item)


def logit_bias(body: Body, most: int) -> None:
    """`logit_bias` maps at most `most` token ids to numbers within [-100, 100]."""
    value = body.get("logit_bias")
    if value is None:
        return
    if type(value) is not dict:
        raise wrong_type("logit_bias", "an object", value)
    if len(value) > most:
        raise too_large("logit_bias", "an object", most, len(value))
    for token, bias in value.items():
        if not token.isdecimal():
            raise InvalidRequest(
                f"Invalid key in 'logit_bias': '{token}'. You should only be submitting non-negative integers.",
                param="logit_bias",
                code="invalid_type",
            )
        if type(bias) is not float and type(bias) is not int:
            raise wrong_type(f"logit_bias.{token}", "a decimal", bias)
        _within(f"logit_bias.{token}", bias, -100, 100, "decimal")


def schema(param: str, value: object, limits: Limits) -> None:
    """A JSON schema, as an object or as its text, small enough that compiling it starves nobody."""
    if value is None:
        return
    most_bytes, most_depth = limits.max_schema_bytes, limits.max_schema_depth
    if type(value) is str:
        text(param, value, most_bytes)
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise InvalidRequest(f"Invalid '{param}': not JSON.", param=param, code="invalid_value") from None
    if type(value) is not dict:
        raise wrong_type(param, "an object", value)
    size = len(orjson.dumps(value))
    if size > most_bytes:
        raise too_large(param, "a schema in bytes", most_bytes, size)
    deep = depth(value, most_depth + 1)
    if deep > most_depth:
        raise too_large(param, "a schema nested to a depth", most_depth, deep)
    for pattern in patterns(value):
        if len(pattern) > limits.max_pattern_chars:
            raise too_large(param, "a `pattern` in characters", limits.max_pattern_chars, len(pattern))


def text(param: str, value: object, most: int) -> None:
    """A regular expression or grammar short enough that compiling it starves nobody."""
    if value is None:
        return
    if type(value) is not str:
        raise wrong_type(param, "a string", value)
    if len(value) > most:
        raise too_large(param, "a length", most, len(value))


def depth(value: object, most: int) -> int:
    """How deeply objects and arrays nest in `value`, counting no further than `most`."""
    level, layer = 0, [value]
    while layer and level < most:
        layer = [
            child
            for item in layer
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        level += bool(layer)
    return level


def patterns(value: object) -> Iterable[str]:
    """Every `pattern` string of a JSON schema."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            found = item.get("pattern")
            if isinstance(found, str):
                yield found
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)


def _within(param: str, value: float, low: float, high: float | None, kind: str) -> None:
    if not value >= low:  # written so that NaN fails too
        raise InvalidRequest(
            f"Invalid '{param}': {kind} below minimum value. Expected a value >= {low}, but got {value} instead.",
            param=param,
            code=f"{kind}_below_min_value",
        )
    if high is not None and not value <= high:
        raise InvalidRequest(
            f"Invalid '{param}': {kind} above maximum value. Expected a value <= {high}, but got {value} instead.",
            param=param,
            code=f"{kind}_above_max_value",
        )


def _listed(names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])}, and {quoted[-1]}"
