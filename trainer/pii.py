"""Secrets and personal data in text: where they are, told by patterns with checksums where there are any.

Owns the patterns. Presidio finds more (names, places), and is asked beside them where it is installed and set. A
pattern that is too keen costs a row, one that is too lax teaches a model somebody's key: so keys are matched widely,
numbers only where their form or their check digits tell.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from adapters.errors import InvalidRequest

PRESIDIO_KINDS = (
    "CREDIT_CARD",
    "CRYPTO",
    "EMAIL_ADDRESS",
    "IBAN_CODE",
    "IP_ADDRESS",
    "PERSON",
    "PHONE_NUMBER",
    "US_SSN",
    "US_PASSPORT",
    "MEDICAL_LICENSE",
)
PRESIDIO_SCORE = 0.6


@dataclass(frozen=True, slots=True)
class Found:
    kind: str
    start: int
    end: int


def _luhn(text: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1)."""
    digits = [int(char) for char in text if char.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 14 <= len(digits) <= 19 and (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _iban(text: str) -> bool:
    """The check digits of bank accounts (ISO 13616: 97-10). The last groups may be words that follow."""
    groups = text.split(" ")
    beginnings = ("".join(groups[:count]) for count in range(1, len(groups) + 1))
    return any(len(plain) >= 15 and _mod_97(plain[4:] + plain[:4]) == 1 for plain in beginnings)


def _mod_97(text: str) -> int:
    return int("".join(str(int(char, 36)) for char in text)) % 97


def _mixed(value: str) -> bool:
    """A random value: letters and digits both, not one word or one number."""
    return any(char.isdigit() for char in value) and any(char.isalpha() for char in value)


#: kind, pattern (the group in it, if there is one, is what is found), and what else that must show. Numbers are looked
#: for ahead, so that one which does not hold hides none that begins within it. No pattern may read far from each of many
#: places: people's texts can be long, and made to be slow.
PATTERNS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool] | None], ...] = (
    ("private key", re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"), None),
    ("API key", re.compile(r"\b(?:sk|pk|rk|brn)[-_](?:[A-Za-z0-9]+[-_]){0,8}[A-Za-z0-9]{20,}\b"), None),
    ("AWS key", re.compile(r"\b(?:AKIA|ASIA|AGPA|AROA)[A-Z0-9]{16}\b"), None),
    ("GitHub token", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})\b"), None),
    ("GitLab token", re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}"), None),
    ("Slack token", re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"), None),
    ("Google key", re.compile(r"\bAIza[A-Za-z0-9_-]{35}"), None),
    ("Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"), None),
    ("web token", re.compile(r"(?<![\w-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"), None),
    ("bearer token", re.compile(r"(?i)\bbearer\s+([A-Za-z0-9._~+/-]{20,}=*)"), _mixed),
    (
        "password",
        re.compile(r"(?i)(?:password|passwd|passphrase|(?:api|access|secret|private)[_-]?key|secret|token)[\"']?\s*[:=]"
                   r"\s*[\"']?([^\s\"',;]{8,})"),
        _mixed,
    ),
    ("URL with password", re.compile(r"\b[a-z][a-z0-9+.-]{0,30}://[^\s/:@]+:[^\s/:@]+@\S+"), None),
    (
        "e-mail address",
        re.compile(r"\b[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,24}\b"),
        None,
    ),
    ("IBAN", re.compile(r"\b(?=([A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b))"), _iban),
    (
        "card number",
        re.compile(r"(?<!\d)(?<!\d\.)(?=([2-6](?:\d{13,18}|\d{3}(?:[ -]\d{4}){3}|\d{3}[ -]\d{6}[ -]\d{4,5})"
                   r"(?!\.?\d)))"),
        _luhn,
    ),
    ("social security number", re.compile(r"(?<!\d)(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?!\d)"), None),
    (
        "phone number",
        re.compile(r"(?<![\w+.])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,12}|"
                   r"\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-])"),
        None,
    ),
)  # fmt: skip

Detector = Callable[[str], list[Found]]


def detector(mode: str) -> Detector | None:
    """By the setting training.pii: "regex", "presidio" (both) or "off" (None). Raises InvalidRequest."""
    if mode == "off":
        return None
    if mode == "regex":
        return find
    analyze = _presidio()
    return lambda text: [*find(text), *analyze(text)]


def find(text: str) -> list[Found]:
    return list(_matches(text))


def masked(text: str, found: list[Found]) -> str:
    """The text with each find replaced by its kind in brackets."""
    shown, at = "", 0
    for match in sorted(found, key=lambda match: match.start):
        if match.start >= at:
            shown += f"{text[at : match.start]}[{match.kind}]"
        at = max(at, match.end)
    return shown + text[at:]


def _matches(text: str) -> Iterator[Found]:
    for kind, pattern, holds in PATTERNS:
        for match in pattern.finditer(text):
            group = match.lastindex or 0
            if holds is None or holds(match[group]):
                yield Found(kind, *match.span(group))


@functools.cache
def _presidio() -> Detector:
    try:
        from presidio_analyzer import AnalyzerEngine

        engine: Any = AnalyzerEngine()
    except ImportError:
        raise _missing("it is not installed: pip install 'burnish[presidio]'") from None
    except (OSError, SystemExit, ValueError) as error:
        raise _missing(f"its language model cannot be loaded ({str(error)[:120]})") from None

    def analyze(text: str) -> list[Found]:
        results = engine.analyze(text=text, language="en", entities=list(PRESIDIO_KINDS))
        return [
            Found(result.entity_type.lower().replace("_", " "), result.start, result.end)
            for result in results
            if result.score >= PRESIDIO_SCORE
        ]

    return analyze


def _missing(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"training.pii is 'presidio', and {why}; or set it to 'regex'.",
        param="training.pii",
        code="presidio_unavailable",
    )
