from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest
import sqlalchemy as sa

from adapters import schema
from adapters.changes import events
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest, NotFound
from adapters.keys import MAX_LIMIT, UNLIMITED, Keys, Quota, Scope, digest_of
from adapters.registry import Registry


@pytest.fixture
def keys(db: Database) -> Keys:
    return Keys(db)


def test_a_key_is_made_with_a_secret_that_is_shown_once(keys: Keys) -> None:
    key, secret = keys.create("laptop", ["inference"], "anna", now=4.0)
    assert re.fullmatch(r"sk-burnish-[A-Za-z0-9_-]{43}", secret)
    assert (key.name, key.scopes, key.created, key.revoked) == ("laptop", {Scope.INFERENCE}, 4.0, None)
    assert key.digest == digest_of(secret) == "sha256:" + hashlib.sha256(secret.encode()).hexdigest()
    assert secret.startswith(key.prefix)
    assert keys.list() == (key,)


def test_promise_12_no_table_holds_a_secret(db: Database, keys: Keys) -> None:
    key, secret = keys.create("laptop", ["inference", "admin"], "anna")
    with db.read() as connection:
        rows = [str(row) for t in schema.metadata.sorted_tables for row in connection.execute(sa.select(t))]
    assert any(key.id in row for row in rows)
    hidden = secret[len(key.prefix) :]
    assert not any(hidden in row or secret in row for row in rows)
    assert hidden not in repr(key)
    assert key.digest not in repr(key)


def test_two_keys_have_nothing_in_common(keys: Keys) -> None:
    (one, first), (two, second) = (keys.create("same", ["admin"], "anna") for _ in range(2))
    assert first != second
    assert (one.id, one.digest) != (two.id, two.digest)


@pytest.mark.parametrize("scopes", [[], ["everything"], ["inference", "root"]])
def test_a_scope_that_is_none_is_refused(keys: Keys, scopes: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        keys.create("laptop", scopes, "anna")
    assert (caught.value.code, caught.value.param) == ("invalid_scope", "scopes")
    assert keys.list() == ()


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\0", "\ud800", "a" * 101])
def test_a_key_needs_a_name_that_can_be_shown(keys: Keys, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        keys.create(name, ["inference"], "anna")
    assert caught.value.param == "name"


def test_a_revoked_key_stays_on_record_and_is_revoked_once(db: Database, keys: Keys) -> None:
    key, _ = keys.create("laptop", ["inference"], "anna")
    assert keys.revoke(key.id, "bob", now=9.0).revoked == 9.0
    assert keys.revoke(key.id, "bob", now=10.0).revoked == 9.0
    assert [k.revoked for k in keys.list()] == [9.0]
    assert [(e.action, e.actor) for e in events(db)] == [("key.revoked", "bob"), ("key.created", "anna")]


def test_a_key_is_revoked_by_name_when_only_one_in_use_has_it(keys: Keys) -> None:
    first, _ = keys.create("laptop", ["inference"], "anna")
    second, _ = keys.create("laptop", ["inference"], "anna")
    with pytest.raises(InvalidRequest, match="2 keys are called 'laptop'; give the id"):
        keys.revoke("laptop", "anna")
    keys.revoke(first.id, "anna")
    assert keys.revoke("laptop", "anna").id == second.id
    with pytest.raises(NotFound) as caught:
        keys.revoke("laptop", "anna")
    assert caught.value.code == "key_not_found"


def test_a_pass_is_no_key_in_use(db: Database, keys: Keys, registry: Registry) -> None:
    made, secret = keys.create_pass("run-1", 60.0, now=100.0)
    assert secret.startswith("sk-burnish-pass-")
    assert made.scopes == {Scope.INFERENCE, Scope.EVALUATE}
    assert (made.expires, made.records) == (160.0, False)
    assert keys.list() == ()
    assert keys.list(passes=True) == (made,)
    rows = registry.snapshot_rows()
    assert (rows.keys, rows.keys_required) == ((made,), False)


def test_a_pass_goes_when_it_is_over(db: Database, keys: Keys) -> None:
    keys.create_pass("run-1", 60.0, now=100.0)
    person, _ = keys.create("laptop", ["inference"], "anna", now=100.0)
    second, _ = keys.create_pass("run-2", 60.0, now=161.0)
    assert keys.list(passes=True) == (person, second)
    keys.end_pass(second.id)
    keys.end_pass(second.id)
    keys.end_pass(person.id)
    assert keys.list(passes=True) == (person,)
    keys.create_pass("run-3", 60.0, now=161.0)
    keys.purge_passes(now=221.0)
    assert keys.list(passes=True) == (person,)


def test_a_person_makes_no_pass(keys: Keys) -> None:
    with pytest.raises(InvalidRequest) as caught:
        keys.create("laptop", ["inference", "evaluate"], "anna")
    assert caught.value.code == "invalid_scope"
    assert "inference, admin" in caught.value.message


# -- limits ----------------------------------------------------------------------------------------
def test_a_key_has_the_limits_it_was_made_with_and_no_others(keys: Keys) -> None:
    bare, _ = keys.create("laptop", ["inference"], "anna")
    assert bare.limits == Quota(None, None, None)
    limited, _ = keys.create("app", ["inference"], "anna", limits={"requests_per_minute": 60})
    assert limited.limits == Quota(requests_per_minute=60)
    assert keys.list() == (bare, limited)


def test_limits_change_one_by_one_and_go_back_to_the_settings(keys: Keys) -> None:
    key, _ = keys.create("app", ["inference"], "anna", limits={"requests_per_minute": 60})
    assert keys.change_limits("app", {"tokens_per_minute": 9}, "bob").limits == Quota(60, 9)
    assert keys.change_limits(key.id, {"requests_per_minute": 0}, "bob").limits == Quota(0, 9)
    back = {"requests_per_minute": None, "tokens_per_minute": None}
    assert keys.change_limits(key.id, back, "bob").limits == Quota()
    assert [each.limits for each in keys.list()] == [Quota()]


def test_changed_limits_are_an_event_and_a_new_revision_and_unchanged_ones_neither(
    db: Database, keys: Keys, registry: Registry
) -> None:
    key, _ = keys.create("app", ["inference"], "anna", limits={"requests_per_minute": 60})
    before = registry.revision()
    keys.change_limits(key.id, {"requests_per_minute": 60}, "bob")
    assert registry.revision() == before
    changed = keys.change_limits(key.id, {"requests_per_minute": 0, "concurrent_requests": 4}, "bob", now=9.0)
    assert registry.revision() == before + 1
    event, made = events(db, subject=key.id)
    assert (event.action, event.actor, event.at) == ("key.limited", "bob", 9.0)
    assert event.detail == {
        "from": {"requests_per_minute": 60},
        "to": {"requests_per_minute": 0, "concurrent_requests": 4},
    }
    assert made.detail["limits"] == {"requests_per_minute": 60}
    assert registry.snapshot_rows().keys == (changed,)


@pytest.mark.parametrize("limit", [-1, MAX_LIMIT + 1, True, 1.5, "60"])
def test_a_limit_is_a_whole_number(keys: Keys, limit: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        keys.create("app", ["inference"], "anna", limits={"tokens_per_minute": limit})
    assert caught.value.param == "limits.tokens_per_minute"
    assert keys.list() == ()


def test_a_limit_that_there_is_not_is_told_which_there_are(keys: Keys) -> None:
    keys.create("app", ["inference"], "anna")
    with pytest.raises(InvalidRequest, match="requests_per_minute, tokens_per_minute") as caught:
        keys.change_limits("app", {"rpm": 1}, "anna")
    assert (caught.value.param, caught.value.code) == ("limits.rpm", "unknown_field")


def test_a_revoked_or_unknown_key_is_not_limited(db: Database, keys: Keys) -> None:
    key, _ = keys.create("app", ["inference"], "anna")
    keys.revoke(key.id, "anna")
    with pytest.raises(Conflict):
        keys.change_limits(key.id, {"requests_per_minute": 1}, "anna")
    with pytest.raises(NotFound):
        keys.change_limits("app", {"requests_per_minute": 1}, "anna")
    assert [event.action for event in events(db)] == ["key.revoked", "key.created"]


def test_a_quota_has_the_defaults_where_it_says_nothing() -> None:
    defaults = Quota(60, 1000, None)
    assert Quota().over(defaults) == defaults
    assert Quota(requests_per_minute=5, concurrent_requests=2).over(defaults) == Quota(5, 1000, 2)
    assert UNLIMITED.over(defaults) == UNLIMITED
