"""The load that a new version has to stand before it takes traffic, where a route's policy asks for that.

Pure values, kept with the policy as JSON. Owns what may be asked for; the targets' names and units are those of
`burnish loadtest`, which does the work. Does not know how it is run (`trainer.endurance`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from adapters.sections import Section, wrong

#: What `burnish loadtest --target` knows (loadtests/targets.py) of a chat; a test compares the two.
LATENCIES = ("ttft", "itl", "total")
PERCENTILES = ("p50", "p95", "p99")
TARGETS = (
    *(f"{latency}_{percentile}" for latency in LATENCIES for percentile in PERCENTILES),
    "tokens_per_second_p5",
    "tokens_per_second_p50",
    "answer_tokens_per_second",
    "requests_per_second",
    "error_rate",
)

LIMIT = re.compile(r"\d+(\.\d+)?(ms|s|/s|%)?")

MOST_USERS = 8
"""An evaluation has no more places: whoever waits beyond them would measure the waiting."""


@dataclass(frozen=True, slots=True)
class LoadTest:
    """Users who ask the version one question after another."""

    targets: tuple[tuple[str, str], ...] = ()  # as `ttft_p95`, `500ms`
    users: int = 4
    seconds: float = 30.0
    prompt_tokens: int = 64  # medians
    answer_tokens: int = 32


def parse_load_test(value: Any, where: str) -> LoadTest | None:
    """From JSON; None where none is asked for. Raises InvalidRequest."""
    if value is None:
        return None
    section = Section(value, where, LoadTest)
    users = section.count("users")
    if users > MOST_USERS:
        raise section.wrong(
            "users", f"may be {MOST_USERS} at most: a version that is not published yet has no more places"
        )
    return LoadTest(
        targets=_targets(section),
        users=users,
        seconds=section.number_between("seconds", above=1, most=3600),
        prompt_tokens=section.count("prompt_tokens"),
        answer_tokens=section.count("answer_tokens"),
    )


def load_test_json(load_test: LoadTest | None) -> dict[str, Any] | None:
    if load_test is None:
        return None
    return {
        "targets": dict(load_test.targets),
        "users": load_test.users,
        "seconds": load_test.seconds,
        "prompt_tokens": load_test.prompt_tokens,
        "answer_tokens": load_test.answer_tokens,
    }


def _targets(section: Section) -> tuple[tuple[str, str], ...]:
    given = section.mapping("targets") or {}
    if not given:
        raise section.wrong("targets", 'must name one at least, such as {"ttft_p95": "500ms"}')
    for name, limit in given.items():
        if name not in TARGETS:
            raise wrong(f"{section.where}.targets.{name}", f"is no target; there are {', '.join(TARGETS)}")
        if not isinstance(limit, str) or LIMIT.fullmatch(limit) is None:
            raise wrong(
                f"{section.where}.targets.{name}", 'must be a text such as "500ms", "1.5s", "20" or "1%"'
            )
    return tuple(given.items())
