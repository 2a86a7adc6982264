"""The load test that a policy asks for: what may be said, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.errors import InvalidRequest
from adapters.load_tests import TARGETS, LoadTest
from adapters.policy import changed_policy, parse_policy, policy_json
from loadtests.targets import KINDS, parse_target

WANTED = {"targets": {"ttft_p95": "500ms", "error_rate": "1%"}, "users": 3}


def test_a_policy_with_a_load_test_is_read_back_as_it_was() -> None:
    policy = parse_policy({"training": {"load_test": WANTED}})
    assert policy.training.load_test == LoadTest((("ttft_p95", "500ms"), ("error_rate", "1%")), users=3)
    assert parse_policy(policy_json(policy)) == policy


def test_null_takes_it_away_again() -> None:
    policy = parse_policy({"training": {"load_test": WANTED}})
    assert changed_policy(policy, {"training": {"load_test": None}}).training.load_test is None
    assert changed_policy(policy, {"training": {"enabled": True}}).training.load_test is not None


@pytest.mark.parametrize(
    ("value", "param", "words"),
    [
        (3, "policy.training.load_test", "must be a JSON object"),
        ({}, "policy.training.load_test.targets", "must name one at least"),
        ({"targets": {"ttft_p96": "1s"}}, "policy.training.load_test.targets.ttft_p96", "there are ttft_p50"),
        ({"targets": {"ttft_p95": 1}}, "policy.training.load_test.targets.ttft_p95", 'such as "500ms"'),
        ({"targets": {"ttft_p95": "fast"}}, "policy.training.load_test.targets.ttft_p95", 'such as "500ms"'),
        ({**WANTED, "users": 9}, "policy.training.load_test.users", "may be 8 at most"),
        ({**WANTED, "seconds": 0}, "policy.training.load_test.seconds", "above 1"),
        ({**WANTED, "user": 1}, "policy.training.load_test.user", "did you mean `users`?"),
    ],
)
def test_what_is_wrong_is_named(value: Any, param: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_policy({"training": {"load_test": value}})
    assert caught.value.param == param
    assert words in caught.value.message


def test_the_targets_are_those_that_a_load_test_of_chats_knows() -> None:
    assert set(TARGETS) == {name for name in KINDS if not name.startswith(("feedback", "batch"))}
    for limit, name in (
        ("500ms", "ttft_p95"),
        ("1.5s", "itl_p50"),
        ("20", "requests_per_second"),
        ("1%", "error_rate"),
    ):
        parse_policy({"training": {"load_test": {"targets": {name: limit}}}})
        parse_target(f"{name}={limit}")
