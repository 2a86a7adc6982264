"""Who is let in, what a pass opens, and how much a key may ask for."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from adapters.errors import NotFound, Unauthorized
from adapters.keys import PASS_PREFIX, UNLIMITED, Key, Quota, Scope, digest_of
from adapters.versions import VersionState
from gateway import access, routing
from tests.unit.gateway.test_routing import ONE, snapshot

SECRET = PASS_PREFIX + "x" * 43
PASS = Key(
    id="pass_1",
    name="run-1",
    prefix=PASS_PREFIX,
    digest=digest_of(SECRET),
    scopes=frozenset({Scope.INFERENCE, Scope.EVALUATE}),
    created=0.0,
    revoked=None,
    records=False,
    expires=time.time() + 86400.0,  # the whole suite has its time
)


def with_key(key: Key, *, keyed: bool) -> routing.Snapshot:
    return replace(routing.EMPTY, keys={key.digest: key}, keyed=keyed)


def authorize(built: routing.Snapshot, secret: str, scope: Scope = Scope.INFERENCE) -> access.Caller:
    return access.authorize(built, f"Bearer {secret}".encode(), b"", scope)


@pytest.mark.parametrize("keyed", [True, False])
def test_a_pass_may_evaluate_whether_or_not_keys_are_in_use(keyed: bool) -> None:
    caller = authorize(with_key(PASS, keyed=keyed), SECRET)
    assert (caller.key_id, caller.may_evaluate, caller.records) == ("pass_1", True, False)
    assert not caller.is_admin


@pytest.mark.parametrize("keyed", [True, False])
def test_a_pass_that_is_over_or_unknown_is_nobody(keyed: bool) -> None:
    over = with_key(replace(PASS, expires=time.time() - 1), keyed=keyed)
    for secret in (SECRET, PASS_PREFIX + "y" * 43):
        with pytest.raises(Unauthorized):
            authorize(over, secret)


def test_nobody_may_evaluate_without_a_pass() -> None:
    assert not authorize(routing.EMPTY, "none").may_evaluate
    assert Scope.EVALUATE not in access.ANYBODY.scopes
    admin = replace(PASS, scopes=frozenset({Scope.ADMIN}), expires=None, digest=digest_of("sk-a"))
    assert not authorize(with_key(admin, keyed=True), "sk-a").may_evaluate


def test_promise_04_a_candidate_answers_to_an_evaluation_alone() -> None:
    built = snapshot(replace(ONE, state=VersionState.CANDIDATE))
    assert routing.resolve(built, "support@1", may_evaluate=True).version is not None
    with pytest.raises(NotFound, match="it is being evaluated"):
        routing.resolve(built, "support@1")
    assert "support@1" not in [model.id for model in built.models]


PERSON = replace(
    PASS,
    id="key_1",
    scopes=frozenset({Scope.INFERENCE}),
    digest=digest_of("sk-a"),
    expires=None,
    limits=Quota(requests_per_minute=60),
)


def test_a_caller_may_ask_for_what_its_key_says() -> None:
    assert authorize(with_key(PERSON, keyed=True), "sk-a").quota == Quota(requests_per_minute=60)
    assert authorize(routing.EMPTY, "none").quota == Quota(), "those without a key go by the settings"


def test_a_pass_has_no_limits_whatever_its_row_says() -> None:
    limited = replace(PASS, limits=Quota(1, 1, 1))
    assert authorize(with_key(limited, keyed=True), SECRET).quota == UNLIMITED


def test_background_work_goes_on_as_the_key_that_ordered_it() -> None:
    built = with_key(PERSON, keyed=True)
    assert access.caller_of(built, "key_1") == authorize(built, "sk-a")


def test_background_work_of_a_key_that_is_gone_ends() -> None:
    with pytest.raises(Unauthorized):
        access.caller_of(with_key(PERSON, keyed=True), "key_2")
    over = with_key(replace(PASS, expires=time.time() - 1), keyed=False)
    with pytest.raises(Unauthorized):
        access.caller_of(over, "pass_1")


@pytest.mark.parametrize("keyed", [True, False])
def test_background_work_that_needed_no_key_goes_on_when_keys_come_into_use(keyed: bool) -> None:
    assert access.caller_of(with_key(PERSON, keyed=keyed), None) is access.ANYBODY
