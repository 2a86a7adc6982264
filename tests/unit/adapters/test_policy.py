from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidRequest
from adapters.policy import (
    RATING,
    Method,
    Release,
    RoutePolicy,
    Score,
    ScoreKind,
    changed_policy,
    parse_policy,
    policy_json,
)

WHOLE: dict[str, Any] = {
    "scores": [
        {"name": "stars", "kind": "number", "low": 1, "high": 5},
        {"name": "spam", "higher_is_better": False},
    ],
    "training": {
        "enabled": True,
        "min_new_rows": 30,
        "every_seconds": 86400,
        "cooldown_seconds": 0,
        "method": "dpo",
        "hyperparameters": {"n_epochs": 3, "rank": "auto", "learning_rate": 1e-3, "warmup_ratio": 0.1},
        "release": "ask",
        "judge_model": "llama3.2",
    },
    "format": {"json_schema": {"type": "object"}, "regex": "^\\{"},
}


def test_nothing_is_the_default_policy() -> None:
    assert parse_policy({}) == parse_policy(None) == RoutePolicy()


def test_a_policy_is_what_its_json_says_and_goes_back_to_it() -> None:
    policy = parse_policy(WHOLE)
    assert policy.scores[0] == Score("stars", ScoreKind.NUMBER, 1.0, 5.0)
    assert policy.training.method is Method.DPO
    assert policy.training.release is Release.ASK
    assert dict(policy.training.hyperparameters)["rank"] == "auto"
    assert parse_policy(json.loads(json.dumps(policy_json(policy)))) == policy


@pytest.mark.parametrize(
    ("value", "param", "words"),
    [
        (3, "policy", "must be a JSON object"),
        ({"trainin": {}}, "policy.trainin", "did you mean `training`?"),
        ({"training": {"enabeld": True}}, "policy.training.enabeld", "did you mean `enabled`?"),
        ({"training": {"xyzzy": 1}}, "policy.training.xyzzy", "it may be one of enabled, min_new_rows"),
        ({"training": {"enabled": 1}}, "policy.training.enabled", "must be true or false"),
        ({"training": {"min_new_rows": 0}}, "policy.training.min_new_rows", "at least 1"),
        ({"training": {"min_new_rows": True}}, "policy.training.min_new_rows", "whole number"),
        ({"training": {"every_seconds": 0}}, "policy.training.every_seconds", "must be above 0"),
        ({"training": {"cooldown_seconds": -1}}, "policy.training.cooldown_seconds", "at least 0"),
        ({"training": {"method": "ppo"}}, "policy.training.method", "one of auto, supervised, dpo, kto"),
        (
            {"training": {"release": []}},
            "policy.training.release",
            "one of promote, challenge, experiment, ask",
        ),
        ({"training": {"challenger_share": 1}}, "policy.training.challenger_share", "below 1"),
        ({"training": {"lm_eval_tasks": "arc"}}, "policy.training.lm_eval_tasks", "a list of texts"),
        ({"training": {"hyperparameters": 3}}, "policy.training.hyperparameters", "must be a JSON object"),
        ({"training": {"hyperparameters": {"rank": [1]}}}, "policy.training.hyperparameters.rank", "number"),
        ({"format": {"regex": "("}}, "policy.format.regex", "no regular expression"),
        ({"format": {"json_schema": {"minimum": float("nan")}}}, "policy.format.json_schema", "NaN"),
        ({"scores": {}}, "policy.scores", "must be a list"),
        ({"scores": [{}]}, "policy.scores[0].name", "1 to 63"),
        ({"scores": [{"name": "comment"}]}, "policy.scores[0].name", "none of comment"),
        ({"scores": [{"name": "a"}, {"name": "a"}]}, "policy.scores[1].name", "twice"),
        ({"scores": [{"name": "a", "kind": "number"}]}, "policy.scores[0].low", "must be given"),
        ({"scores": [{"name": "a", "low": 1}]}, "policy.scores[0].low", "kind 'number'"),
        ({"scores": [{"name": "a", "kinds": "number"}]}, "policy.scores[0].kinds", "did you mean `kind`?"),
    ],
)
def test_what_is_wrong_is_named(value: Any, param: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_policy(value)
    assert caught.value.param == param
    assert words in caught.value.message


def test_the_given_parts_replace_and_the_others_stay() -> None:
    policy = changed_policy(parse_policy(WHOLE), {"training": {"enabled": False}, "scores": []})
    assert policy == parse_policy(
        {**WHOLE, "scores": [], "training": {**WHOLE["training"], "enabled": False}}
    )


def test_hyperparameters_are_replaced_as_a_whole_and_null_is_the_default() -> None:
    policy = changed_policy(
        parse_policy(WHOLE),
        {"training": {"hyperparameters": {"rank": 4}, "every_seconds": None}, "format": None},
    )
    assert policy.training.hyperparameters == (("rank", 4),)
    assert policy.training.every_seconds is None
    assert policy.format == RoutePolicy().format


def test_rating_is_always_declared_and_may_be_declared_otherwise() -> None:
    assert RoutePolicy().score("rating") is RATING
    assert RoutePolicy().score("stars") is None
    stars = parse_policy({"scores": [{"name": "rating", "kind": "number", "low": 1, "high": 5}]})
    assert stars.score("rating") == Score("rating", ScoreKind.NUMBER, 1, 5)
    assert stars.score_names == ("rating",)


def test_the_better_half_of_a_scale_is_liked_and_its_middle_says_nothing() -> None:
    stars = Score("stars", ScoreKind.NUMBER, 1, 5)
    assert [stars.liked(value) for value in (1, 2.9, 3, 3.1, 5)] == [False, False, None, True, True]
    assert [RATING.liked(value) for value in (0, 1)] == [False, True]
    assert Score("spam", higher_is_better=False).liked(1) is False


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6), up=st.booleans(), liked=st.booleans())
def test_a_plain_yes_or_no_on_any_scale_is_read_back_as_such(
    low: float, width: float, up: bool, liked: bool
) -> None:
    score = Score("s", ScoreKind.NUMBER, low, low + width, up)
    assert score.liked(score.value_of(liked)) is liked
