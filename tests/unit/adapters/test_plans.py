"""What a person may declare of an experiment, and what is refused in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidRequest
from adapters.plans import (
    CANARY_GUARDRAILS,
    GUARDRAILS,
    MAX_CHALLENGERS,
    WATCHABLE,
    OnPromote,
    Plan,
    Policy,
    parse_plan,
    plan_json,
)
from adapters.policy import RoutePolicy, changed_policy, parse_policy, policy_json

ONE = {"challengers": ["support@2"]}


def refused(value: Any, **more: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_plan(value, **more)
    return caught.value


def again(plan: Plan) -> Plan:
    """After a journey through a database, or over a wire."""
    return parse_plan(json.loads(json.dumps(plan_json(plan), allow_nan=False)))


# -- what is given and what is not -----------------------------------------------------------------
def test_what_is_not_given_has_its_default() -> None:
    assert parse_plan(ONE) == Plan((("support@2", None),))
    assert parse_plan({**ONE, "alpha": None, "scores": None, "guardrails": None}) == parse_plan(ONE)


def test_challengers_may_come_with_their_shares() -> None:
    plan = parse_plan({"challengers": {"support@2": 0.1, "base-model": None}})
    assert plan.variants == ("support@2", "base-model")
    assert plan.first_shares() == {"support@2": 0.1, "base-model": 1 / 3}


@pytest.mark.parametrize(
    ("policy", "share"), [("fixed", 0.5), ("test", 0.5), ("adaptive", 0.5), ("canary", 0.01), ("shadow", 0.0)]
)
def test_each_policy_begins_with_shares_of_its_own(policy: str, share: float) -> None:
    assert parse_plan({**ONE, "policy": policy}).first_shares() == {"support@2": share}


@pytest.mark.parametrize("policy", list(Policy))
def test_a_plan_is_the_same_after_it_was_kept(policy: Policy) -> None:
    plan = parse_plan({**ONE, "policy": policy.value})
    assert plan.guardrails == (tuple(sorted(CANARY_GUARDRAILS)) if policy is Policy.CANARY else GUARDRAILS)
    assert again(plan) == plan


@pytest.mark.parametrize("policy", list(Policy))
def test_a_guardrail_that_was_taken_away_stays_away(policy: Policy) -> None:
    plan = parse_plan(
        {**ONE, "policy": policy.value, "guardrails": {"error_rate": None, "score": None, "output_tokens": 1}}
    )
    assert dict(plan.guardrails) == {"inter_token_seconds": 0.5, "output_tokens": 1.0, "ttft_seconds": 0.5}
    assert again(plan) == plan


shares = st.floats(1e-6, 1 - 1e-6)
seconds = st.floats(0, 1e9)


@given(
    shares=st.lists(st.floats(1e-6, 0.12), min_size=1, max_size=MAX_CHALLENGERS),
    policy=st.sampled_from(["fixed", "test", "adaptive"]),
    numbers=st.fixed_dictionaries(
        {},
        optional={
            "alpha": shares,
            "guardrail_alpha": shares,
            "minimal_effect": st.floats(0, 0.99),
            "max_share_per_key": st.floats(1e-6, 1),
            "least_voices": st.integers(10, 10**6),
            "expected_voices": st.integers(10, 10**6),
            "horizon_seconds": seconds,
            "hold_back": st.floats(0, 0.99),
            "hold_back_seconds": seconds,
            "floor": st.floats(0, 0.1),
            "reallocate_seconds": seconds,
            "steps": st.lists(shares, min_size=1, max_size=5, unique=True).map(sorted),
            "scores": st.lists(st.text("abc", min_size=1), min_size=1, unique=True),
            "on_promote": st.sampled_from([each.value for each in OnPromote]),
            "guardrails": st.dictionaries(
                st.sampled_from(WATCHABLE), st.none() | st.floats(0, 10) | st.integers(0, 3)
            ),
        },
    ),
)
def test_whatever_can_be_declared_is_the_same_after_it_was_kept(
    shares: list[float], policy: str, numbers: dict[str, Any]
) -> None:
    challengers = {f"support@{n}": share for n, share in enumerate(shares, 2)}
    plan = parse_plan({"challengers": challengers, "policy": policy, **numbers})
    assert again(plan) == plan


# -- what is refused -------------------------------------------------------------------------------
NOT_A_SHARE = [0, 1, -0.1, 1.5, "much", True, float("nan"), [0.5]]
NOT_A_PORTION = [1, -0.1, "much", True, float("inf")]
NOT_SECONDS = [-1, "soon", True, float("inf"), 10**400]
NOT_A_COUNT = [0, -1, 1.5, "many", True]

WRONG = {
    "policy": ["blind", 3, ["test"]],
    "on_promote": ["wait", True],
    "scores": [[], ["rating", "rating"], "rating", [3], [""]],
    "alpha": NOT_A_SHARE,
    "guardrail_alpha": NOT_A_SHARE,
    "minimal_effect": NOT_A_PORTION,
    "hold_back": NOT_A_PORTION,
    "max_share_per_key": [0, 1.1, "much", True],
    "shadow_share": [0, 1.1, "much", True],
    "floor": [*NOT_A_PORTION, 0.5],
    "least_voices": [*NOT_A_COUNT, 9],
    "expected_voices": [*NOT_A_COUNT, 9],
    "step_units": NOT_A_COUNT,
    "shadow_requests": NOT_A_COUNT,
    "shadow_at_once": NOT_A_COUNT,
    "horizon_seconds": NOT_SECONDS,
    "hold_back_seconds": NOT_SECONDS,
    "reallocate_seconds": NOT_SECONDS,
    "step_seconds": NOT_SECONDS,
    "steps": [[], [0.5, 0.1], [0.1, 0.1], [0, 0.5], [0.5, 1], "0.5", ["0.5"], [float("nan")]],
    "guardrails": [{"speed": 1}, ["error_rate"], "none", {"error_rate": float("nan")}],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_each_field_refuses_what_it_cannot_be_and_says_where(name: str, value: Any) -> None:
    error = refused({**ONE, name: value})
    assert error.param == f"plan.{name}"
    assert error.code == "invalid_value"
    assert "must" in error.message or "may hold" in error.message or "knows no" in error.message


def test_every_field_has_a_wrong_value_to_be_refused() -> None:
    assert {*WRONG, "challengers"} == set(plan_json(Plan()))


@pytest.mark.parametrize("tolerated", [-0.1, "little", True, 10**400])
def test_a_guardrails_tolerance_is_a_number_from_zero_up(tolerated: Any) -> None:
    assert refused({**ONE, "guardrails": {"error_rate": tolerated}}).param == "plan.guardrails.error_rate"


def test_an_unknown_key_is_refused_with_the_nearest_right_name() -> None:
    error = refused({**ONE, "challenger": ["support@3"]})
    assert (error.param, error.code) == ("plan.challenger", "unknown_field")
    assert "did you mean `challengers`?" in error.message


@pytest.mark.parametrize("value", [[], "test", 3])
def test_a_plan_is_an_object(value: Any) -> None:
    assert refused(value).param == "plan"


@pytest.mark.parametrize(
    ("challengers", "param", "words"),
    [
        (None, "", "at least one variant"),
        ([], "", "at least one variant"),
        ({}, "", "at least one variant"),
        ("support@2", "", "a list of variants"),
        ([3], "", "must name variants"),
        ([""], "", "must name variants"),
        (["support@2", "support@2"], "", "names a variant twice"),
        ([f"support@{n}" for n in range(2, 11)], "", "at most 8 variants"),
        ({"support@2": "half"}, ".support@2", "a share of the traffic"),
        ({"support@2": 1}, ".support@2", "a share of the traffic"),
        ({"support@2": -0.1}, ".support@2", "a share of the traffic"),
        ({"support@2": True}, ".support@2", "a share of the traffic"),
        ({"support@2": 10**400}, ".support@2", "a share of the traffic"),
        ({"support@2": 0}, "", "a share above 0"),
        ({"support@2": 0.5, "support@3": 0.5}, "", "leave the control a share"),
        ({"support@2": 0.9, "support@3": None}, "", "leave the control a share"),
        ({"a": 0.1, "b": 0.2, "c": 0.7}, "", "leave the control a share"),  # 0.9999999999999999
    ],
)
def test_challengers_that_cannot_be_are_refused(challengers: Any, param: str, words: str) -> None:
    error = refused({"challengers": challengers})
    assert error.param == f"plan.challengers{param}"
    assert words in error.message


@pytest.mark.parametrize("policy", ["canary", "shadow"])
def test_one_challenger_alone_goes_by_steps_or_in_the_shadow(policy: str) -> None:
    error = refused({"challengers": ["support@2", "support@3"], "policy": policy})
    assert "one variant only" in error.message


def test_nobody_is_shown_what_answers_in_the_shadow() -> None:
    error = refused({"challengers": {"support@2": 0.1}, "policy": "shadow"})
    assert error.param == "plan.challengers"
    assert "nobody is shown its answers" in error.message


def test_the_place_of_the_plan_is_part_of_the_words() -> None:
    assert refused({"alpha": 2}, where="policy.experiment", template=True).param == "policy.experiment.alpha"


# -- the template of a route -----------------------------------------------------------------------
def test_a_routes_template_names_no_challengers_and_is_kept() -> None:
    policy = parse_policy({"experiment": {"policy": "canary", "on_promote": "act"}})
    assert policy.experiment.policy is Policy.CANARY
    assert parse_policy(json.loads(json.dumps(policy_json(policy)))) == policy
    assert policy.experiment.of(["support@7"]).first_shares() == {"support@7": 0.01}
    assert parse_policy({}) == RoutePolicy()
    with pytest.raises(InvalidRequest) as caught:
        parse_policy({"experiment": ONE})
    assert caught.value.param == "policy.experiment.challengers"


def test_a_template_is_refused_if_it_could_not_be_for_one_challenger() -> None:
    assert refused({"floor": 0.5}, template=True).param == "plan.floor"


def test_a_template_changes_key_by_key() -> None:
    policy = parse_policy({"experiment": {"policy": "fixed", "alpha": 0.01}})
    changed = changed_policy(policy, {"experiment": {"alpha": 0.1}})
    assert (changed.experiment.policy, changed.experiment.alpha) == (Policy.FIXED, 0.1)
    assert changed_policy(policy, {"experiment": None}) == RoutePolicy()


def test_another_policy_brings_its_own_guardrails_and_leaves_what_a_person_declared() -> None:
    policy = parse_policy({"experiment": {"guardrails": {"error_rate": None, "output_tokens": 1.0}}})
    canary = changed_policy(policy, {"experiment": {"policy": "canary"}})
    assert dict(canary.experiment.guardrails) == {
        "score": 0.02, "ttft_seconds": 0.5, "inter_token_seconds": 0.5, "output_tokens": 1.0,
    }  # fmt: skip
    back = changed_policy(canary, {"experiment": {"policy": "test"}})
    assert back == policy
    assert changed_policy(policy, {"experiment": {"guardrails": None}}).experiment == Plan()
