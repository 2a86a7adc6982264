from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters import schema
from adapters.database import Database
from adapters.responses import ResponseStore, StoredResponse


@pytest.fixture
def store(db: Database) -> ResponseStore:
    return ResponseStore(db)


def response(id: str = "resp_1", key_id: str | None = "key_a", created: float = 1.0) -> StoredResponse:
    item = {"type": "message", "role": "user", "content": "Grüße \u2028 😀"}
    return StoredResponse(id, created, key_id, [item], {"id": id, "previous_response_id": None})


def test_a_response_comes_back_as_it_was(store: ResponseStore) -> None:
    store.put(response())
    assert store.get("resp_1", "key_a") == response()


def test_the_response_it_goes_on_from_is_named(store: ResponseStore) -> None:
    assert response().previous_id is None
    later = StoredResponse("resp_2", 2.0, None, [], {"previous_response_id": "resp_1"})
    store.put(later)
    stored = store.get("resp_2", None)
    assert stored is not None
    assert stored.previous_id == "resp_1"


@pytest.mark.parametrize(("owner", "other"), [("key_a", "key_b"), ("key_a", None), (None, "key_a")])
def test_another_keys_response_is_as_unknown_as_one_that_never_was(
    store: ResponseStore, owner: str | None, other: str | None
) -> None:
    store.put(response(key_id=owner))
    assert store.get("resp_1", other) is None
    assert store.get("resp_9", other) is None
    assert store.delete("resp_1", other) is False
    assert store.get("resp_1", owner) is not None


def test_a_later_state_replaces_an_earlier_one(store: ResponseStore) -> None:
    store.put(response())
    done = StoredResponse("resp_1", 1.0, "key_a", [], {"status": "completed"})
    store.put(done)
    assert store.get("resp_1", "key_a") == done


def test_deleting_says_whether_there_was_one(store: ResponseStore) -> None:
    store.put(response())
    assert store.delete("resp_1", "key_a") is True
    assert store.delete("resp_1", "key_a") is False
    assert store.get("resp_1", "key_a") is None


@pytest.mark.parametrize("id", ["", "\0", "resp_1\0", "\ud800", "a/b", "'--"])
def test_an_id_that_can_be_nobodys_is_unknown_and_no_failure(store: ResponseStore, id: str) -> None:
    store.put(response())
    assert store.get(id, "key_a") is None
    assert store.delete(id, "key_a") is False


def test_old_responses_are_purged(store: ResponseStore) -> None:
    for age in range(5):
        store.put(response(f"resp_{age}", created=float(age)))
    assert store.purge(older_than=3.0) == 3
    assert [store.get(f"resp_{age}", "key_a") is not None for age in range(5)] == [False] * 3 + [True] * 2


def test_what_repeats_takes_little_room(db: Database, store: ResponseStore) -> None:
    store.put(StoredResponse("resp_1", 1.0, None, [], {"text": "the same words " * 1000}))
    with db.read() as connection:
        body = connection.execute(sa.select(schema.responses.c.body)).scalar_one()
    assert len(body) < 500


json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=st.lists(json, max_size=3), body=st.dictionaries(st.text(), json, max_size=4))
def test_any_json_survives(store: ResponseStore, items: list[Any], body: dict[str, Any]) -> None:
    stored = StoredResponse("resp_1", 1.0, None, items, body)
    store.put(stored)
    assert store.get("resp_1", None) == stored
