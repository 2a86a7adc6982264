"""How an answer behaves, whatever it says: whether it declines, repeats itself, and has the form that was wanted.

Pure. The trainer's gate and experiments judge by the same rules. Does not know what a good answer is.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from adapters.policy import FormatCheck

NGRAM = 4

#: How answers that decline begin, in English; the same for all sides, so that other languages merely show less.
#: Stricter than what `filters` keeps from being learned: a polite answer that helps is no refusal.
REFUSAL = re.compile(
    r"""(?:unfortunately|sorry|apologies|i\ apologi[sz]e|as\ an\ ai\b[^.]{0,60}?|(?:i['’]?m|i\ am)\ (?:\w+\ )?(?:sorry|afraid))?
        (?:[,.;:—-]|\ but|\ that)*\ ?
        (?: i\ (?:can(?:no|['’])t|can\ not|won['’]t|will\ not|must\ decline|(?:am|['’]m)\ (?:unable|not\ able))
          | (?:i['’]m|i\ am)\ (?:unable|not\ able))
        (?:\ to)?\ (?:help|assist|answer|do|provide|fulfil|comply|discuss|comment|create|generate|write|share)
      | as\ an\ ai\ (?:language\ )?model\b""",
    re.IGNORECASE | re.VERBOSE,
)

#: What text is that is no JSON.
INVALID = object()


def is_refusal(text: str) -> bool:
    """Whether it begins as answers do that decline. In English."""
    return REFUSAL.match(text.strip()) is not None


def repeated_share(text: str) -> float:
    """The share of 4-grams of words that were there before, 0 to 1."""
    words = text.split()
    total = len(words) - NGRAM + 1
    grams = set(zip(*(words[first:] for first in range(NGRAM)), strict=False))  # as long as the shortest
    return 1 - len(grams) / total if total > 0 else 0.0


def fits_form(text: str, form: FormatCheck) -> bool | None:
    """Whether an answer has the form that a route declares. None: its schema is none."""
    fits: bool | None = True
    if form.regex is not None:
        fits = re.fullmatch(form.regex, text.strip(), re.DOTALL) is not None
    if fits and form.json_schema is not None:
        fits = _fits_schema(text, form.json_schema)
    return fits


def json_value(text: str) -> Any:
    """INVALID for what is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return INVALID


def _fits_schema(text: str, schema: dict[str, Any]) -> bool | None:
    from jsonschema.exceptions import SchemaError
    from referencing.exceptions import Unresolvable

    value = json_value(text)
    try:
        return value is not INVALID and bool(_validator(json.dumps(schema)).is_valid(value))
    except (SchemaError, Unresolvable):
        return None


@lru_cache(maxsize=16)
def _validator(schema: str) -> Any:
    from jsonschema.validators import validator_for
    from referencing import Registry

    parsed = json.loads(schema)
    kind = validator_for(parsed)
    kind.check_schema(parsed)
    return kind(parsed, registry=Registry())  # an own registry: nothing is fetched
