from __future__ import annotations

import hashlib
import re

import pytest
import sqlalchemy as sa

from adapters import schema
from adapters.changes import events
from adapters.database import Database
from adapters.errors import InvalidRequest, NotFound
from adapters.keys import Keys, Scope, digest_of
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
