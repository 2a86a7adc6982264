"""Objects that a person declares in JSON, read field by field: each has its default, and what is not known is refused.

Pure. Owns the words of these refusals, with the dotted `param` of the field. Does not know what is declared.
"""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import MISSING, fields
from enum import StrEnum
from typing import Any, TypeVar

from adapters.errors import InvalidRequest

E = TypeVar("E", bound=StrEnum)

MOST_COUNTED = 10**9
"""Nobody counts further, and neither do databases' columns and JSON's readers."""


class Section:
    """One object: its fields by their kind, each the default of `shape` where it is not given, or null."""

    def __init__(self, value: Any, where: str, shape: type) -> None:
        self.where = where
        self._values = json_object(value, where, shape)
        self._defaults = {field.name: field.default for field in fields(shape)}

    def flag(self, name: str) -> bool:
        value = self._value(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "must be true or false")
        return value

    def count(self, name: str, least: int = 1) -> int:
        value = self._value(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST_COUNTED:
            raise self.wrong(name, f"must be a whole number, at least {least} and at most {MOST_COUNTED}")
        return value

    def number(self, name: str, above: float = -math.inf) -> float | None:
        value = self._value(name)
        if value is None:
            return None
        if not is_number(value):
            raise self.wrong(name, "must be a number")
        if value <= above:
            raise self.wrong(name, f"must be above {above:g}")
        return float(value)

    def share(self, name: str) -> float:
        value = self.number(name)
        if value is None or not 0 < value < 1:
            raise self.wrong(name, "must be a number above 0 and below 1")
        return value

    def portion(self, name: str) -> float:
        """A share that may be nothing."""
        value = self.number(name)
        if value is None or not 0 <= value < 1:
            raise self.wrong(name, "must be a number, at least 0 and below 1")
        return value

    def number_between(self, name: str, above: float, most: float) -> float:
        value = self.number(name)
        if value is None or not above < value <= most:
            raise self.wrong(name, f"must be a number above {above:g} and at most {most:g}")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        value = self._value(name)
        if not isinstance(value, list | tuple) or not all(is_number(item) for item in value):
            raise self.wrong(name, "must be a list of numbers")
        return tuple(float(item) for item in value)

    def seconds(self, name: str) -> float:
        value = self.number(name)
        if value is None or value < 0:
            raise self.wrong(name, "must be a number of seconds, at least 0")
        return value

    def text(self, name: str) -> str | None:
        value = self._value(name)
        if value is not None and not (isinstance(value, str) and value):
            raise self.wrong(name, "must be a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._value(name)
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) and text for text in value):
            raise self.wrong(name, "must be a list of texts")
        return tuple(value)

    def choice(self, name: str, kind: type[E]) -> E:
        value = self._value(name)
        try:
            return kind(value)
        except ValueError:
            raise self.wrong(name, f"must be one of {', '.join(kind)}") from None

    def mapping(self, name: str) -> dict[str, Any] | None:
        value = self._values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "must be a JSON object")
        try:
            json.dumps(value, allow_nan=False)
        except (ValueError, RecursionError):
            raise self.wrong(name, "must be JSON: no NaN or infinity, and not so deep") from None
        return value

    def raw(self, name: str) -> Any:
        """As it was given; None where it was not."""
        return self._values.get(name)

    def _value(self, name: str) -> Any:
        """Null stands for the default, as does nothing."""
        value = self._values.get(name)
        default = self._defaults[name]
        return (None if default is MISSING else default) if value is None else value

    def wrong(self, name: str, problem: str) -> InvalidRequest:
        """What is wrong with one of the fields."""
        return wrong(f"{self.where}.{name}", problem)


def is_number(value: Any) -> bool:
    """A finite number, and no whole one beyond what a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def json_object(value: Any, where: str, shape: type) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong(where, "must be a JSON object")
    known = [field.name for field in fields(shape)]
    for name in value:
        if name not in known:
            raise _unknown(where, str(name), known)
    return value


def _unknown(where: str, name: str, known: Iterable[str]) -> InvalidRequest:
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean `{nearest[0]}`?" if nearest else f"it may be one of {', '.join(names)}"
    return InvalidRequest(
        f"unknown key `{where}.{name}`; {hint}", param=f"{where}.{name}", code="unknown_field"
    )


def wrong(where: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"`{where}` {problem}", param=where, code="invalid_value")
