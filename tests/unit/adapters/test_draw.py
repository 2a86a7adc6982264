"""What becomes of people's words, over a real database and the real ways in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.artifacts import ArtifactStore
from adapters.completions import Completion, Completions, Status
from adapters.database import Database
from adapters.draw import draw_feedback, draw_file, rows_of
from adapters.errors import RowError
from adapters.feedback import Draft, Feedback, feedback_of_route, give
from adapters.feedback_files import import_rows
from adapters.forget import forget_user
from adapters.messages import assistant_message as answer
from adapters.policy import RoutePolicy, parse_policy
from adapters.registry import Registry
from adapters.routes import Routes
from adapters.rows import Row, RowKind, parse_training
from tests.judged import stored
from tests.migrated import migrated

POLICY = parse_policy(
    {
        "scores": [
            {"name": "stars", "kind": "number", "low": 1, "high": 5},
            {"name": "spam", "higher_is_better": False},
            {"name": "errors", "kind": "number", "low": 0, "high": 10, "higher_is_better": False},
        ]
    }
)
ASKED = [{"role": "user", "content": "What is the capital of France?"}]


class Route:
    """`support`: people judge its completions, and rows are drawn from that."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.left_out: Counter[str] = Counter()

    def say(self, judged: Completion, **parts: Any) -> Feedback:
        with self.db.begin() as connection:
            return give(connection, Draft(judged.id, **parts), judged.key_id)[0]

    def draw(self, policy: RoutePolicy | None = POLICY, **more: Any) -> list[Row]:
        self.left_out.clear()
        with self.db.read() as connection:
            return draw_feedback(connection, "support", policy, left_out=self.left_out, **more)

    def one(self) -> Row:
        (row,) = self.draw()
        return row


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = migrated(tmp_path / "burnish.db")
    Registry(database, ArtifactStore(tmp_path / "artifacts")).register_base("base-model", None)
    routes = Routes(database)
    routes.create("support", "base-model", "anna")
    routes.set_policy("support", POLICY, "anna")
    yield database
    database.close()


@pytest.fixture
def route(db: Database) -> Route:
    return Route(db)


# -- corrections ---------------------------------------------------------------------------------------
def test_a_correction_is_preferred_to_the_answer_that_was_given(db: Database, route: Route) -> None:
    judged = stored(db, key_id="k1", user="ann")
    word = route.say(judged, demonstration="Paris", user="bob")
    row = route.one()
    assert (row.kind, row.prompt, row.answer, row.rejected) == (
        RowKind.PREFERENCE, ASKED, answer("Paris"), answer("Lyon"),
    )  # fmt: skip
    assert (row.completion_id, row.feedback_id, row.created) == (judged.id, word.id, word.created)
    assert (row.unit, row.user, row.key_id, row.liked) == ("user:ann", "bob", "k1", None)


def test_a_correction_that_says_the_same_is_a_demonstration(db: Database, route: Route) -> None:
    route.say(stored(db), demonstration=" Lyon\n")
    row = route.one()
    assert (row.kind, row.rejected) == (RowKind.DEMONSTRATION, None)


@pytest.mark.parametrize("status", [Status.INCOMPLETE, Status.ERROR])
def test_promise_09_of_an_answer_that_broke_off_only_its_correction_is_learned(
    db: Database, route: Route, status: Status
) -> None:
    judged, whole = stored(db, status=status), stored(db)
    route.say(judged, value=True)
    route.say(judged, preferred_over=whole.id, user="bob")
    route.say(whole, preferred_over=judged.id, user="cem")
    assert route.draw() == []
    assert route.left_out == {
        "score of an answer that is not whole": 1,
        "preference between answers that are not both whole": 2,
    }
    route.say(judged, demonstration="Paris", user="dia")
    row = route.one()
    assert (row.kind, row.answer, row.rejected) == (RowKind.DEMONSTRATION, answer("Paris"), None)


def test_the_correction_of_a_request_without_an_answer_is_a_demonstration(db: Database, route: Route) -> None:
    route.say(stored(db, answer=None), demonstration="Paris")
    assert route.one().kind is RowKind.DEMONSTRATION


def test_each_voice_corrects_once_its_last_word_counts(db: Database, route: Route) -> None:
    judged = stored(db)
    for user, words in (("ann", "Pairs"), ("bob", "Paris, France"), ("ann", "Paris")):
        route.say(judged, demonstration=words, user=user)
    assert [(row.user, row.answer["content"]) for row in route.draw()] == [
        ("bob", "Paris, France"),
        ("ann", "Paris"),
    ]


# -- answers that ended at max_tokens ------------------------------------------------------------------
@pytest.mark.parametrize("reason", ["length", "max_tokens"])
def test_an_answer_that_was_cut_at_max_tokens_is_never_what_to_say(
    db: Database, route: Route, reason: str
) -> None:
    cut, whole = stored(db, answer="Ly", finish_reason=reason), stored(db, answer="Paris")
    route.say(cut, value=True)
    route.say(cut, preferred_over=whole.id)
    assert route.draw() == []
    assert sum(route.left_out.values()) == 2


def test_an_answer_that_was_cut_may_be_what_not_to_say(db: Database, route: Route) -> None:
    cut, whole = stored(db, answer="Ly", finish_reason="length"), stored(db, answer="Paris")
    route.say(cut, value=False)
    route.say(cut, demonstration="Paris", user="bob")
    route.say(whole, preferred_over=cut.id)
    rows = route.draw()
    assert [(row.kind, row.liked) for row in rows] == [
        (RowKind.PREFERENCE, None), (RowKind.LABEL, False), (RowKind.PREFERENCE, None),
    ]  # fmt: skip
    assert [row.rejected for row in rows] == [answer("Ly"), None, answer("Ly")]


# -- preferences ---------------------------------------------------------------------------------------
def test_a_preference_takes_the_better_answer_from_one_and_the_worse_from_the_other(
    db: Database, route: Route
) -> None:
    better, worse = stored(db, answer="Paris", user="ann"), stored(db, answer="Lyon", user="bob")
    route.say(better, preferred_over=worse.id)
    row = route.one()
    assert (row.kind, row.answer, row.rejected) == (RowKind.PREFERENCE, answer("Paris"), answer("Lyon"))
    assert (row.completion_id, row.unit) == (better.id, "user:ann")


def test_a_preference_between_equal_answers_says_nothing(db: Database, route: Route) -> None:
    one, other = stored(db, answer="Lyon"), stored(db, answer="Lyon ")
    route.say(one, preferred_over=other.id)
    assert route.draw() == []
    assert route.left_out == {"preference between equal answers": 1}


def test_a_preference_over_a_deleted_completion_is_left_out_and_counted(db: Database, route: Route) -> None:
    one, other = stored(db, answer="Paris"), stored(db)
    route.say(one, preferred_over=other.id)
    assert Completions(db).delete(other.id, None)
    assert route.draw() == []
    assert route.left_out == {"preference between answers that are not both whole": 1}


# -- labels --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "value", "liked"),
    [
        ("rating", True, True),
        ("rating", False, False),
        ("spam", True, False),
        ("spam", False, True),
        ("stars", 5, True),
        ("stars", 3.5, True),
        ("stars", 1, False),
        ("errors", 0, True),
        ("errors", 9, False),
    ],
)
def test_a_score_labels_the_answer_by_its_direction(
    db: Database, route: Route, name: str, value: float, liked: bool
) -> None:
    judged = stored(db, user="ann")
    route.say(judged, name=name, value=value)
    row = route.one()
    assert (row.kind, row.answer, row.liked) == (RowKind.LABEL, answer("Lyon"), liked)
    assert (row.prompt, row.user, row.completion_id) == (ASKED, "ann", judged.id)


def test_a_score_in_the_middle_of_its_scale_says_nothing(db: Database, route: Route) -> None:
    judged = stored(db)
    route.say(judged, name="stars", value=3)
    assert route.draw() == []
    assert route.left_out == {"scores that say nothing or contradict each other": 1}
    route.say(judged, value=True)  # by the same voice: this one says something
    assert route.one().liked is True


def test_a_voice_that_says_this_and_that_says_nothing(db: Database, route: Route) -> None:
    judged = stored(db)
    route.say(judged, value=True)
    route.say(judged, name="spam", value=True)
    assert route.draw() == []
    assert route.left_out == {"scores that say nothing or contradict each other": 2}


def test_a_score_that_the_route_does_not_declare_any_more_says_nothing(db: Database, route: Route) -> None:
    route.say(stored(db), name="spam", value=False)
    assert route.draw(None) == []
    assert sum(route.left_out.values()) == 1


def test_promise_10_of_several_voices_most_decide_and_it_is_one_label(db: Database, route: Route) -> None:
    judged = stored(db, user="ann")
    route.say(judged, value=True)
    for user in ("bob", "cem"):
        route.say(judged, value=False, user=user)
    row = route.one()
    assert (row.liked, row.user, row.unit) == (False, "bob", "user:ann")


def test_promise_10_voices_that_are_even_say_nothing(db: Database, route: Route) -> None:
    judged = stored(db)
    route.say(judged, value=True, user="ann")
    route.say(judged, value=False, user="bob")
    assert route.draw() == []
    assert route.left_out == {"scores that say nothing or contradict each other": 2}


def test_promise_10_a_voice_that_clicks_often_is_one_voice(db: Database, route: Route) -> None:
    judged = stored(db)
    for value in (True, False, True, True):
        route.say(judged, value=value, user="ann")
    for user in ("bob", "cem"):
        route.say(judged, value=False, user=user)
    assert route.one().liked is False


def test_whoever_corrects_has_said_more_than_by_a_score(db: Database, route: Route) -> None:
    judged = stored(db)
    route.say(judged, value=False, demonstration="Paris", user="ann")
    assert [row.kind for row in route.draw()] == [RowKind.PREFERENCE]
    route.say(judged, value=True, user="bob")
    assert [(row.kind, row.user) for row in route.draw()] == [
        (RowKind.PREFERENCE, "ann"), (RowKind.LABEL, "bob"),
    ]  # fmt: skip


def test_a_comment_alone_is_no_row(db: Database, route: Route) -> None:
    route.say(stored(db), comment="hm")
    assert route.draw() == []


# -- where it comes from -------------------------------------------------------------------------------
def test_other_routes_and_older_feedback_are_not_drawn(db: Database, route: Route) -> None:
    route.say(stored(db, route="sales"), value=True)
    first = route.say(stored(db), value=True)
    second = route.say(stored(db), value=True)
    assert first.number is not None
    assert [row.feedback_id for row in route.draw(since=first.number)] == [second.id]
    assert [row.feedback_id for row in route.draw()] == [first.id, second.id]


def test_a_deleted_completion_takes_what_was_said_of_it_along(db: Database, route: Route) -> None:
    judged = stored(db)
    route.say(judged, value=True)
    assert Completions(db).delete(judged.id, None)
    assert route.draw() == []


def test_promise_06_a_forgotten_user_is_in_no_row(db: Database, route: Route, tmp_path: Path) -> None:
    own, others = stored(db, user="ann"), stored(db, user="bob", answer="Paris")
    route.say(own, value=True)
    route.say(others, demonstration="Paris!", user="ann")
    route.say(others, preferred_over=own.id)
    route.say(others, value=True)
    forget_user(db, Routes(db), "ann", "anna", run_root=tmp_path / "runs")
    row = route.one()
    assert (row.user, row.answer) == ("bob", answer("Paris"))


def test_feedback_whose_completion_is_gone_is_left_out_and_counted(db: Database, route: Route) -> None:
    judged = stored(db)
    route.say(judged, value=True, comment="hm")
    route.say(judged, demonstration="Paris", user="bob")
    with db.read() as connection:
        said = feedback_of_route(connection, "support")
    left_out: Counter[str] = Counter()
    assert rows_of(said, {}, POLICY, left_out) == []
    assert left_out == {"completion is gone or was not asked in words": 2}


def test_what_was_not_asked_in_words_is_left_out_and_counted(db: Database, route: Route) -> None:
    tokens = stored(db, endpoint="/v1/completions", request={"prompt": [1, 2, 3]})
    route.say(tokens, value=True)
    assert route.draw() == []
    assert route.left_out == {"completion is gone or was not asked in words": 1}


def test_raw_text_stays_raw_and_tools_stay_with_the_prompt(db: Database, route: Route) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    raw = stored(
        db, endpoint="/v1/completions", request={"prompt": "2+2="}, output={"choices": [{"text": "5"}]}
    )
    called = stored(db, request={"messages": ASKED, "tools": tools})
    route.say(raw, demonstration="4")
    route.say(called, value=True)
    first, second = route.draw()
    assert (first.prompt, first.answer, first.rejected) == ("2+2=", answer("4"), answer("5"))
    assert (second.prompt, second.tools) == (ASKED, tools)


def test_the_same_words_on_the_same_answer_have_the_same_id_whoever_says_them(
    db: Database, route: Route
) -> None:
    for user in ("ann", "bob"):
        route.say(stored(db, user=user), value=True)
    one, other = route.draw()
    assert one.id == other.id
    assert one.unit != other.unit


@pytest.mark.parametrize("calls", ["x", ["x"], [{"function": "x"}], 5])
def test_a_request_of_whatever_shape_can_be_corrected(db: Database, route: Route, calls: Any) -> None:
    odd = [{"role": "assistant", "content": "a", "tool_calls": calls}, *ASKED]
    route.say(stored(db, request={"messages": odd}, status=Status.ERROR, answer=None), demonstration="Paris")
    assert route.one().prompt == odd


# -- imported rows -------------------------------------------------------------------------------------
LINES = [
    b'{"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "a"}], "user": "ann"}',
    b'{"prompt": "b?", "completion": "b", "label": false}',
    b'{"prompt": "c?", "chosen": "c", "rejected": "d"}',
    b'{"prompt": "e = ", "completion": "f", "raw": true}',
]
KINDS = [RowKind.DEMONSTRATION, RowKind.LABEL, RowKind.PREFERENCE, RowKind.DEMONSTRATION]


def test_imported_rows_come_back_as_they_were(db: Database, route: Route) -> None:
    rows = list(parse_training(LINES))
    assert import_rows(db, "support", rows, now=5.0).new == 4
    drawn = route.draw()
    assert [row.kind for row in drawn] == KINDS
    for row, again in zip(rows, drawn, strict=True):
        assert (again.id, again.unit, again.user, again.key_id) == (row.id, row.unit, row.user, None)
        assert again.created == 5.0
    assert not route.left_out


def test_the_rows_of_a_file_are_drawn_in_their_order_whatever_their_kinds(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join(LINES))
    rows = draw_file(file)
    assert [row.kind for row in rows] == KINDS
    assert [row.unit.partition(":")[0] for row in rows] == ["user", *["conversation"] * 3]


def test_a_bad_line_of_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([LINES[0], b"{}"]))
    with pytest.raises(RowError, match="Line 2"):
        draw_file(file)


def test_rows_are_drawn_by_completion_in_the_order_of_the_first_word(db: Database, route: Route) -> None:
    one, other = stored(db), stored(db)
    for judged, user in ((one, "ann"), (other, "bob"), (one, "cem")):
        route.say(judged, demonstration=f"Paris, says {user}", user=user)
    assert [row.user for row in route.draw()] == ["ann", "cem", "bob"]
