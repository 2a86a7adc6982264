from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.completions import Completion, Status, completions_by_id
from adapters.database import Database
from adapters.errors import NotFound
from adapters.feedback import Draft, Feedback, feedback_of_route, give
from adapters.feedback_files import ExportFormat, export_lines, good_rows, import_rows
from adapters.jobs import Jobs
from adapters.policy import parse_policy
from adapters.registry import Registry
from adapters.routes import Routes
from adapters.rows import Row, RowKind, parse_training
from tests.judged import stored

BASE = "base-model"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}

EVERY_FORMAT: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "look"},
            {"role": "assistant", "tool_calls": [CALL], "weight": 0},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
            {"role": "assistant", "content": "It rains."},
        ],
        "tools": [TOOL],
    },
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"prompt": "Once upon", "completion": " a time", "raw": True},
    {"prompt": "q", "completion": "a", "user": "u1"},
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    {"prompt": "raw q", "chosen": "good", "rejected": "bad", "raw": True},
    {
        "input": {"messages": [{"role": "user", "content": "q2"}], "tools": [TOOL]},
        "preferred_output": [{"role": "assistant", "tool_calls": [CALL]}],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    },
    {"prompt": "q", "completion": "yes", "label": True},
    {"prompt": [{"role": "user", "content": "q"}], "completion": "no", "label": False, "user": "u2"},
    {"prompt": "raw q", "completion": "no", "label": False, "raw": True},
]


@pytest.fixture
def routes(db: Database, registry: Registry) -> Routes:
    routes = Routes(db)
    for name in ("support", "other"):
        routes.create(name, BASE, "anna")
    return routes


def lines(*rows: dict[str, Any]) -> list[bytes]:
    return [json.dumps(row).encode() for row in rows]


def parsed(*rows: dict[str, Any]) -> list[Row]:
    return list(parse_training(lines(*rows)))


def exported(
    db: Database, route: str | None = "support", format: ExportFormat = ExportFormat.BURNISH
) -> list[Any]:
    with db.read() as connection:
        return [json.loads(line) for line in export_lines(connection, route, format)]


def what(rows: list[Row]) -> set[tuple[str, str | None]]:
    return {(row.id, row.user) for row in rows}


def recorded(db: Database, route: str = "support") -> list[tuple[Completion, Feedback]]:
    with db.read() as connection:
        said = feedback_of_route(connection, route)
        completions = completions_by_id(connection, [feedback.completion_id for feedback in said])
    return [(completions[feedback.completion_id], feedback) for feedback in said]


def said(db: Database, draft: Draft) -> Feedback:
    with db.begin() as connection:
        return give(connection, draft, None)[0]


# -- in --------------------------------------------------------------------------------------------
def test_each_kind_of_row_becomes_an_answer_and_what_is_said_of_it(db: Database, routes: Routes) -> None:
    rows = parsed(EVERY_FORMAT[0], EVERY_FORMAT[5], EVERY_FORMAT[9])
    assert import_rows(db, "support", rows, 7.0).new == 3
    (shown, first), (corrected, second), (labelled, third) = recorded(db)
    assert (shown.status, shown.endpoint, shown.output, shown.base_model) == (
        Status.IMPORTED, "import", None, BASE,
    )  # fmt: skip
    assert shown.request == {"messages": [{"role": "user", "content": "hi"}]}
    assert (first.name, first.demonstration) == (
        "demonstration", {"role": "assistant", "content": "Hello."},
    )  # fmt: skip
    assert corrected.output is not None
    assert corrected.output["choices"][0]["message"]["content"] == "bad"
    assert second.demonstration == {"role": "assistant", "content": "good"}
    assert labelled.output is not None
    assert (third.name, third.value, third.user, third.unit) == ("rating", 0.0, "u2", "user:u2")
    assert {feedback.source for _, feedback in recorded(db)} == {"import"}
    assert shown.id.startswith("imp_")
    assert len(shown.id) == 28


def test_the_same_file_again_changes_nothing(db: Database, routes: Routes) -> None:
    rows = parsed(*EVERY_FORMAT)
    first = import_rows(db, "support", rows, 1.0)
    before = recorded(db)
    again = import_rows(db, "support", rows, 2.0)
    assert (first.new, first.known) == (len(rows), 0)
    assert (again.new, again.known) == (0, len(rows))
    assert recorded(db) == before


def test_the_same_rows_for_another_route_or_of_another_user_are_others(db: Database, routes: Routes) -> None:
    row = EVERY_FORMAT[0]
    assert import_rows(db, "support", parsed(row, row), 1.0).new == 1
    assert import_rows(db, "other", parsed(row), 1.0).new == 1
    assert import_rows(db, "support", parsed({**row, "user": "u1"}), 1.0).new == 1
    assert import_rows(db, "support", parsed(row), 1.0, user="u2").new == 1
    assert [feedback.user for _, feedback in recorded(db)] == [None, "u1", "u2"]


def test_a_route_must_be_there(db: Database, routes: Routes) -> None:
    with pytest.raises(NotFound):
        import_rows(db, "gone", parsed(EVERY_FORMAT[0]), 1.0)


def test_a_label_is_an_end_of_the_routes_own_scale(db: Database, routes: Routes) -> None:
    scores = [{"name": "rating", "kind": "number", "low": 1, "high": 5}]
    routes.set_policy("support", parse_policy({"scores": scores}), "anna")
    import_rows(db, "support", parsed(*EVERY_FORMAT[8:10]), 1.0)
    assert [feedback.value for _, feedback in recorded(db)] == [5.0, 1.0]
    assert [row["label"] for row in exported(db)] == [True, False]


def test_a_file_can_make_a_training_job_due(db: Database, routes: Routes) -> None:
    training = {"enabled": True, "min_new_rows": 4}
    routes.set_policy("support", parse_policy({"training": training}), "anna")
    job = import_rows(db, "support", parsed(*EVERY_FORMAT), 1.0).job
    assert job is not None
    assert Jobs(db).get(job).route == "support"
    assert import_rows(db, "support", parsed(*EVERY_FORMAT), 2.0).job is None


def test_bad_lines_can_be_left_out() -> None:
    some = [*lines(EVERY_FORMAT[0]), b"{", b"", *lines({"prompt": "q"}, EVERY_FORMAT[5])]
    assert [row.kind for row in good_rows(some)] == [RowKind.DEMONSTRATION, RowKind.PREFERENCE]


# -- out -------------------------------------------------------------------------------------------
def test_what_is_exported_can_be_imported_and_is_the_same_rows(db: Database, routes: Routes) -> None:
    rows = parsed(*EVERY_FORMAT)
    import_rows(db, "support", rows, 1.0)
    first = exported(db)
    assert what(parsed(*first)) == what(rows)
    import_rows(db, "other", parsed(*first), 2.0)
    assert what(parsed(*exported(db, "other"))) == what(rows)


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1).filter(
    str.strip
)
made_rows = st.one_of(
    st.builds(lambda p, c: {"prompt": p, "completion": c}, words, words),
    st.builds(
        lambda p, c, label: {"prompt": p, "completion": c, "label": label}, words, words, st.booleans()
    ),
    st.builds(lambda p, c: {"prompt": p, "chosen": c, "rejected": c + "!"}, words, words),
)


@given(rows=st.lists(made_rows, min_size=1, max_size=5), raw=st.booleans())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_come_back_as_they_were(
    db: Database, routes: Routes, numbers: Iterator[int], rows: list[dict[str, Any]], raw: bool
) -> None:
    route = f"r{next(numbers)}"
    routes.create(route, BASE, "anna")
    given_rows = parsed(*({**row, "raw": raw} for row in rows))
    import_rows(db, route, given_rows, 1.0)
    assert what(parsed(*exported(db, route))) == what(given_rows)


@pytest.fixture
def numbers() -> Iterator[int]:
    return iter(range(10_000))


def test_recorded_requests_are_exported_by_what_was_said_of_them(db: Database, routes: Routes) -> None:
    one, other = stored(db, answer="Lyon", user="u1"), stored(db, answer="Paris", user="u1")
    said(db, Draft(one.id, value=False, demonstration="Paris."))
    said(db, Draft(other.id, preferred_over=one.id))
    said(db, Draft(other.id, comment="nice"))
    said(db, Draft(stored(db, answer="Rome", user="u1").id, value=False))
    rows = parsed(*exported(db))  # whoever corrects an answer has said more with it than by their thumb
    assert [row.kind for row in rows] == [RowKind.PREFERENCE, RowKind.PREFERENCE, RowKind.LABEL]
    assert [row.answer["content"] for row in rows] == ["Paris.", "Paris", "Rome"]
    assert {row.user for row in rows} == {"u1"}
    line = exported(db)[0]
    assert (line["completion_id"], line["route"]) == (one.id, "support")


def test_what_was_taken_back_or_cut_off_is_not_exported(db: Database, routes: Routes) -> None:
    judged = stored(db)
    said(db, Draft(judged.id, value=1))
    said(db, Draft(judged.id, value=0))
    cut = stored(db, status=Status.INCOMPLETE, answer="Pa")
    said(db, Draft(cut.id, value=1, demonstration="Paris"))
    rows = parsed(*exported(db))
    assert [(row.kind, row.liked) for row in rows] == [(RowKind.LABEL, False), (RowKind.DEMONSTRATION, None)]


def test_each_format_has_the_rows_that_fit_it(db: Database, routes: Routes) -> None:
    import_rows(db, "support", parsed(*EVERY_FORMAT), 1.0)
    by_format = {format: exported(db, format=format) for format in ExportFormat}
    assert {row["label"] for row in by_format[ExportFormat.KTO]} == {True, False}
    openai_pairs = [row for row in by_format[ExportFormat.PREFERENCE] if "raw" not in row]
    assert all(row.keys() <= {"input", "preferred_output", "non_preferred_output"} for row in openai_pairs)
    chat = by_format[ExportFormat.CHAT]
    assert {row.kind for row in parsed(*chat)} == {RowKind.DEMONSTRATION}
    assert len(chat) == 5 + 3 + 1  # demonstrations, corrections, one liked answer
    assert not any("completion_id" in row for row in chat)


def test_of_all_routes_where_none_is_named(db: Database, routes: Routes) -> None:
    import_rows(db, "support", parsed(EVERY_FORMAT[0]), 1.0)
    import_rows(db, "other", parsed(EVERY_FORMAT[5]), 1.0)
    assert [row["route"] for row in exported(db, None)] == ["support", "other"]
