from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa

from adapters import schema
from adapters.completions import Completions, Status
from adapters.database import Database
from adapters.errors import BurnishError, Conflict, InvalidRequest, NotFound
from adapters.feedback import (
    Draft,
    Feedback,
    FeedbackStore,
    feedback_of,
    feedback_of_route,
    give,
    last_words,
)
from adapters.idempotency import REMEMBERED_SECONDS
from adapters.policy import parse_policy
from adapters.registry import Registry
from adapters.routes import Routes
from tests.judged import stored

SCORES = {
    "scores": [
        {"name": "stars", "kind": "number", "low": 1, "high": 5},
        {"name": "spam", "higher_is_better": False},
    ]
}


@pytest.fixture
def store(db: Database) -> FeedbackStore:
    return FeedbackStore(db)


@pytest.fixture
def route(db: Database, registry: Registry) -> str:
    """`support`, with two scores of its own."""
    routes = Routes(db)
    routes.create("support", "base-model", "anna")
    routes.set_policy("support", parse_policy(SCORES), "anna")
    return "support"


def said(db: Database, draft: Draft, key_id: str | None = None, **more: Any) -> Feedback:
    with db.begin() as connection:
        return give(connection, draft, key_id, **more)[0]


def refused(db: Database, draft: Draft, key_id: str | None = None, **more: Any) -> BurnishError:
    with pytest.raises(BurnishError) as caught, db.begin() as connection:
        give(connection, draft, key_id, **more)
    return caught.value


def count(db: Database, table: sa.Table = schema.feedback) -> int:
    with db.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


# -- what is stored --------------------------------------------------------------------------------
def test_feedback_takes_route_variant_digest_and_unit_from_the_completion(
    db: Database, store: FeedbackStore
) -> None:
    judged = stored(db, user="u1", key_id="key_a")
    made = said(db, Draft(judged.id, value=True, metadata={"page": "home"}), "key_a", now=5.0)
    assert (made.route, made.variant, made.digest, made.unit) == (
        judged.route, judged.variant, judged.digest, "user:u1",
    )  # fmt: skip
    assert (made.name, made.value, made.user, made.source, made.created) == ("rating", 1.0, "u1", "api", 5.0)
    assert made.id.startswith("fb_")
    assert store.get(made.id, "key_a") == made


def test_one_draft_may_say_several_things(db: Database) -> None:
    better, worse = stored(db, answer="Paris"), stored(db, answer="Lyon")
    made = said(
        db, Draft(better.id, value=False, comment="hm", demonstration="Paris!", preferred_over=worse.id)
    )
    assert (made.name, made.value, made.comment, made.preferred_over) == ("rating", 0.0, "hm", worse.id)
    assert made.demonstration == {"role": "assistant", "content": "Paris!"}


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"value": 1}, "rating"),
        ({"demonstration": "Paris", "comment": "no"}, "demonstration"),
        ({"comment": "no"}, "comment"),
    ],
)
def test_a_draft_without_a_name_is_called_by_what_it_says(
    db: Database, parts: dict[str, Any], name: str
) -> None:
    assert said(db, Draft(stored(db).id, **parts)).name == name


def test_a_preference_without_a_name_is_called_so(db: Database) -> None:
    one, other = stored(db), stored(db)
    assert said(db, Draft(one.id, preferred_over=other.id)).name == "preference"


def test_a_demonstration_may_call_tools(db: Database) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    made = said(db, Draft(stored(db).id, demonstration={"content": None, "tool_calls": [call]}))
    assert made.demonstration == {"role": "assistant", "tool_calls": [call]}


@pytest.mark.parametrize(
    ("demonstration", "param"),
    [
        ("  ", "demonstration"),
        ({"role": "user", "content": "x"}, "demonstration.role"),
        ({"content": ""}, "demonstration.content"),
        ({"tool_calls": []}, "demonstration.tool_calls"),
        ({"tool_calls": [{"id": "c"}]}, "demonstration.tool_calls[0]"),
    ],
)
def test_a_demonstration_that_answers_nothing_is_refused(
    db: Database, demonstration: Any, param: str
) -> None:
    error = refused(db, Draft(stored(db).id, demonstration=demonstration))
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize("draft", [{}, {"comment": "  "}, {"name": "rating"}, {"metadata": {"a": "b"}}])
def test_a_draft_that_says_nothing_is_refused(db: Database, draft: dict[str, Any]) -> None:
    error = refused(db, Draft(stored(db).id, **draft))
    assert (error.status, error.code) == (400, "missing_required_parameter")


def test_half_an_emoji_and_nul_are_no_text(db: Database) -> None:
    for text in ("\x00", "\ud83d"):
        assert refused(db, Draft(stored(db).id, comment=text)).param == "comment"
        assert refused(db, Draft(stored(db).id, value=1, user=text)).param == "user"


# -- scores ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [True, False, 0, 1, 1.0])
def test_a_boolean_score_takes_true_false_0_and_1(db: Database, value: Any) -> None:
    assert said(db, Draft(stored(db).id, value=value)).value == float(value)


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan")])
def test_a_boolean_score_takes_nothing_else(db: Database, value: Any) -> None:
    error = refused(db, Draft(stored(db).id, value=value))
    assert (error.status, error.param, error.code) == (400, "value", "invalid_value")


@pytest.mark.parametrize("value", [1, 5, 3.5])
def test_a_score_by_number_takes_what_is_within_its_bounds(db: Database, route: str, value: Any) -> None:
    assert said(db, Draft(stored(db).id, name="stars", value=value)).value == value


@pytest.mark.parametrize("value", [0.9, 6, True, float("inf"), float("nan"), 10**400])
def test_a_score_by_number_takes_nothing_else(db: Database, route: str, value: Any) -> None:
    assert refused(db, Draft(stored(db).id, name="stars", value=value)).param == "value"


def test_an_undeclared_score_is_refused_naming_those_there_are(db: Database, route: str) -> None:
    error = refused(db, Draft(stored(db).id, name="star", value=3))
    assert (error.status, error.param, error.code) == (400, "name", "unknown_score")
    assert "stars, spam, rating" in error.message
    assert refused(db, Draft(stored(db).id, name="comment", value=3)).code == "unknown_score"
    assert refused(db, Draft(stored(db).id, name="star", comment="x")).code == "unknown_score"


def test_a_model_without_a_route_has_the_rating_alone(db: Database) -> None:
    judged = stored(db, route="base-model")
    assert said(db, Draft(judged.id, value=1)).name == "rating"
    assert refused(db, Draft(judged.id, name="stars", value=1)).code == "unknown_score"


# -- whose -----------------------------------------------------------------------------------------
def test_foreign_and_unknown_completions_are_the_same_404(db: Database) -> None:
    foreign = stored(db, key_id="key_a")
    errors = [
        refused(db, Draft(foreign.id, value=1), "key_b"),
        refused(db, Draft("chatcmpl-nothing", value=1), "key_b"),
        refused(db, Draft(foreign.id, value=7), "key_b"),
        refused(db, Draft("\x00", value=1), "key_b"),
    ]
    assert all(isinstance(error, NotFound) for error in errors)
    assert {(error.status, error.code, error.param) for error in errors} == {
        (404, "completion_not_found", "completion_id")
    }
    assert errors[0].message.replace(foreign.id, "ID") == errors[1].message.replace("chatcmpl-nothing", "ID")
    assert count(db) == 0


def test_an_admin_may_judge_anybodys_completion(db: Database) -> None:
    assert said(db, Draft(stored(db, key_id="key_a").id, value=1), "key_b", all_keys=True).key_id == "key_b"


def test_a_key_sees_what_it_said_and_an_admin_everything(db: Database, store: FeedbackStore) -> None:
    judged = stored(db, key_id="key_a")
    own = said(db, Draft(judged.id, value=1), "key_a")
    other = said(db, Draft(judged.id, value=0), "key_b", all_keys=True)
    assert store.list("key_a")[0] == (own,)
    assert store.list(None, all_keys=True)[0] == (other, own)
    assert store.get(other.id, "key_a") is None
    assert store.get("\x00", "key_a") is None


# -- preferences -----------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["itself", "unknown", "foreign", "other route", "other prompt"])
def test_a_preference_needs_another_own_completion_of_the_same_route_and_prompt(
    db: Database, what: str
) -> None:
    judged = stored(db, key_id="key_a")
    others = {
        "itself": judged.id,
        "unknown": "chatcmpl-nothing",
        "foreign": stored(db, key_id="key_b").id,
        "other route": stored(db, key_id="key_a", route="sales").id,
        "other prompt": stored(db, "Hello", key_id="key_a").id,
    }
    error = refused(db, Draft(judged.id, preferred_over=others[what]), "key_a")
    assert (error.status, error.param, error.code) == (400, "preferred_over", "invalid_preference")


# -- answers that were cut off ---------------------------------------------------------------------
@pytest.mark.parametrize("status", [Status.INCOMPLETE, Status.ERROR])
def test_what_was_cut_off_can_be_judged_and_corrected(db: Database, status: Status) -> None:
    judged = stored(db, answer=None, status=status)
    assert said(db, Draft(judged.id, value=0, demonstration="Paris")).value == 0.0


# -- idempotency -----------------------------------------------------------------------------------
def test_promise_02_the_same_key_and_body_change_nothing(db: Database) -> None:
    draft = Draft(stored(db).id, value=1, metadata={"a": "1", "b": "2"})
    again = Draft(draft.completion_id, value=1, metadata={"b": "2", "a": "1"})
    with db.begin() as connection:
        first, made = give(connection, draft, None, idempotency_key="k")
    with db.begin() as connection:
        second, made_again = give(connection, again, None, idempotency_key="k")
    assert (made, made_again) == (True, False)
    assert first == second
    assert count(db) == 1


def test_promise_02_a_changed_body_under_a_used_key_is_a_conflict(db: Database) -> None:
    judged = stored(db)
    said(db, Draft(judged.id, value=True), idempotency_key="k")
    for other in (Draft(judged.id, value=False), Draft(stored(db).id, value=True)):
        error = refused(db, other, idempotency_key="k")
        assert isinstance(error, Conflict)
        assert error.code == "idempotency_conflict"
    assert count(db) == 1


def test_one_keys_idempotency_is_not_anothers(db: Database) -> None:
    for key_id in ("key_a", "key_b", None):
        said(db, Draft(stored(db, key_id=key_id).id, value=1), key_id, idempotency_key="k")
    assert count(db) == 3


def test_refused_feedback_does_not_use_its_key_up(db: Database) -> None:
    judged = stored(db)
    refused(db, Draft(judged.id, value=7), idempotency_key="k")
    assert said(db, Draft(judged.id, value=1), idempotency_key="k").value == 1.0


@pytest.mark.parametrize("key", ["", "x" * 256, "a\x00b", "a\nb"])
def test_a_key_that_cannot_be_kept_is_refused(db: Database, key: str) -> None:
    error = refused(db, Draft(stored(db).id, value=1), idempotency_key=key)
    assert (error.status, error.param) == (400, "Idempotency-Key")


def test_a_repeat_after_its_completion_is_gone_finds_nothing(db: Database) -> None:
    draft = Draft(stored(db).id, value=1)
    said(db, draft, idempotency_key="k")
    assert Completions(db).delete(draft.completion_id, None)
    assert refused(db, draft, idempotency_key="k").code == "completion_not_found"


def test_keys_are_kept_thirty_days(db: Database, store: FeedbackStore) -> None:
    said(db, Draft(stored(db).id, value=1), idempotency_key="k", now=1000.0)
    assert store.purge_keys(1000.0 + REMEMBERED_SECONDS - 1) == 0
    assert store.purge_keys(1000.0 + REMEMBERED_SECONDS + 1) == 1
    assert count(db) == 1


def test_promise_02_many_at_once_with_one_key_make_one(db: Database) -> None:
    draft = Draft(stored(db).id, value=1)
    made: list[tuple[str, bool]] = []

    def work() -> None:
        with db.begin() as connection:
            feedback, new = give(connection, draft, None, idempotency_key="k")
        made.append((feedback.id, new))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id for id, _ in made}) == 1
    assert [new for _, new in made].count(True) == 1
    assert count(db) == 1
    assert count(db, schema.idempotency) == 1


# -- lists -----------------------------------------------------------------------------------------
def test_lists_go_by_cursor_both_ways(db: Database, store: FeedbackStore) -> None:
    ids = [said(db, Draft(stored(db).id, value=1)).id for _ in range(5)]

    def walk(newest_first: bool) -> list[str]:
        seen: list[str] = []
        has_more = True
        while has_more:
            page, has_more = store.list(
                None, limit=2, after=seen[-1] if seen else None, newest_first=newest_first
            )
            seen += [feedback.id for feedback in page]
        return seen

    assert walk(False) == ids
    assert walk(True) == ids[::-1]
    with pytest.raises(InvalidRequest):
        store.list(None, after="fb_nothing")


def test_lists_are_filtered(db: Database, store: FeedbackStore) -> None:
    one, other = stored(db, user="u1"), stored(db, user="u2", route="sales")
    first = said(db, Draft(one.id, value=1))
    second = said(db, Draft(other.id, comment="hm", user="u3"))
    assert store.list(None, completion_id=one.id)[0] == (first,)
    assert store.list(None, route="sales")[0] == (second,)
    assert store.list(None, name="comment")[0] == (second,)
    assert store.list(None, user="u1")[0] == (first,)
    assert store.list(None, user="u3")[0] == (second,)
    assert store.list(None, route="a\x00") == ((), False)


def test_what_was_said_is_found_by_route_and_by_completion(db: Database) -> None:
    one, other = stored(db), stored(db, route="sales")
    first, second = said(db, Draft(one.id, value=1)), said(db, Draft(one.id, value=0))
    third = said(db, Draft(other.id, value=0))
    with db.read() as connection:
        assert feedback_of_route(connection, "support") == (first, second)
        assert feedback_of_route(connection, "support", after_number=first.number or 0) == (second,)
        assert feedback_of_route(connection, "support", limit=1) == (first,)
        many = [one.id, other.id, *(f"no-{n}" for n in range(1200))]
        assert feedback_of(connection, many) == {one.id: (first, second), other.id: (third,)}


# -- last words ------------------------------------------------------------------------------------
def test_of_one_voices_words_on_one_score_the_last_counts(db: Database) -> None:
    judged = stored(db, user="u1")
    said(db, Draft(judged.id, value=1))
    said(db, Draft(judged.id, value=0, user="u1"))
    last = said(db, Draft(judged.id, value=1))
    another = said(db, Draft(judged.id, value=0, user="u2"))
    with db.read() as connection:
        assert last_words(feedback_of_route(connection, "support")) == (last, another)


def test_a_part_that_is_said_again_is_taken_off_and_the_others_stay(db: Database) -> None:
    judged = stored(db)
    first = said(db, Draft(judged.id, value=0, comment="wrong", demonstration="Paris"))
    second = said(db, Draft(judged.id, demonstration="Paris."))
    third = said(db, Draft(judged.id, value=1))
    with db.read() as connection:
        kept = last_words(feedback_of_route(connection, "support"))
    assert [feedback.id for feedback in kept] == [first.id, second.id, third.id]
    assert (kept[0].value, kept[0].demonstration, kept[0].comment) == (None, None, "wrong")


def test_a_preference_the_other_way_round_is_a_change_of_mind(db: Database) -> None:
    one, other = stored(db), stored(db)
    said(db, Draft(one.id, preferred_over=other.id))
    last = said(db, Draft(other.id, preferred_over=one.id))
    with db.read() as connection:
        assert last_words(feedback_of_route(connection, "support")) == (last,)
