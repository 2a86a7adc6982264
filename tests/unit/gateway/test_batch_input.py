"""What the input file of a batch must be, line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapters.errors import InvalidRequest
from adapters.rows import MAX_LINE_BYTES
from gateway.batch_input import (
    BATCH_ENDPOINTS,
    MAX_CUSTOM_ID_CHARS,
    MAX_PROBLEMS,
    Examined,
    examine,
    parse_line,
    window_seconds,
)
from gateway.endpoints import ENDPOINTS

CHAT = "/v1/chat/completions"


def request(custom_id: str = "a", **changes: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changes}


def written(*requests: Any) -> list[bytes]:
    return [json.dumps(value).encode() + b"\n" for value in requests]


def looked(*lines: bytes, most: int = 100) -> Examined:
    return examine(lines, CHAT, most)


def only_problem(*lines: bytes) -> tuple[str, int | None, str | None]:
    found = looked(*lines)
    (problem,) = found.problems
    assert found.problem_count == 1
    return problem.code, problem.line, problem.param


def test_a_sound_file_has_its_requests_counted_and_its_one_model_named() -> None:
    lines = written(request("a"), request("b"), request("c"))
    found = looked(*lines)
    assert (found.total, found.model, found.problems, found.problem_count) == (3, "m", (), 0)
    second = parse_line(2, lines[1])
    assert second is not None
    assert (second.number, second.custom_id, second.body) == (2, "b", request()["body"])


def test_lines_of_several_models_leave_the_batch_without_one() -> None:
    other = request("b", body={"model": "n", "messages": []})
    assert looked(*written(request("a"), other)).model is None


def test_blank_lines_are_no_requests_and_no_problem() -> None:
    (line,) = written(request())
    found = looked(b"\n", line, b"  \r\n", b"")
    assert (found.total, found.problem_count) == (1, 0)
    assert parse_line(1, b"\n") is None
    assert parse_line(3, b"  \r\n") is None


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    (line,) = written(request())
    assert looked(b"\xef\xbb\xbf" + line).problem_count == 0
    first = parse_line(1, b"\xef\xbb\xbf" + line)
    assert first is not None
    assert first.custom_id == "a"
    assert only_problem(line, b"\xef\xbb\xbf" + line)[:2] == ("invalid_json_line", 2)


def test_an_empty_file_is_a_problem_of_the_file() -> None:
    for lines in ((), (b"\n",), (b"\xef\xbb\xbf\n",)):
        assert only_problem(*lines) == ("empty_file", None, None)


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{nope\n", "invalid_json_line", None),
        (b'{"custom_id": "\xff"}\n', "invalid_json_line", None),
        (b"[1, 2]\n", "invalid_json_line", None),
        (b"null\n", "invalid_json_line", None),
        (b'{"custom_id": "\\ud800"}\n', "invalid_json_line", None),
        (b" " * MAX_LINE_BYTES + b"x", "line_too_long", None),
        *(
            (json.dumps(value).encode(), code, param)
            for value, code, param in [
                ({}, "missing_required_parameter", "custom_id"),
                (request(custom_id=7), "invalid_type", "custom_id"),
                (request(custom_id=""), "invalid_value", "custom_id"),
                (request(custom_id="x" * (MAX_CUSTOM_ID_CHARS + 1)), "invalid_value", "custom_id"),
                (request(method="GET"), "invalid_value", "method"),
                (request(method=None), "missing_required_parameter", "method"),
                (request(url="/v1/embeddings"), "invalid_url", "url"),
                (request(url=None), "missing_required_parameter", "url"),
                (request(body=None), "missing_required_parameter", "body"),
                (request(body=[]), "invalid_type", "body"),
                (request(body={}), "missing_required_parameter", "body.model"),
                (request(body={"model": 7}), "invalid_type", "body.model"),
                (request(body={"model": "m", "stream": True}), "invalid_value", "body.stream"),
            ]
        ),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong_in_it(line: bytes, code: str, param: str | None) -> None:
    (good,) = written(request("good"))
    assert only_problem(good, line) == (code, 2, param)


def test_what_only_an_engine_can_judge_is_no_problem_of_the_file() -> None:
    odd = {"model": "nobody's", "stream": False, "temperature": "hot", "messages": 7}
    assert looked(*written(request(body=odd))).problem_count == 0


def test_a_body_nested_deeper_than_can_be_written_is_a_problem() -> None:
    for depth, code in ((200, None), (400, "invalid_value")):
        nested = b'{"a":' * depth + b"1" + b"}" * depth
        line = json.dumps(request(body={"model": "m", "deep": "HERE"})).encode().replace(b'"HERE"', nested)
        assert [problem.code for problem in looked(line).problems] == ([code] if code else [])


def test_a_custom_id_may_be_used_once_and_the_line_that_has_it_is_told() -> None:
    found = looked(*written(request("a"), request("b"), request("a"), request("a")))
    assert [(p.code, p.line, p.param) for p in found.problems] == [
        ("duplicate_custom_id", 3, "custom_id"),
        ("duplicate_custom_id", 4, "custom_id"),
    ]
    assert "line 1" in found.problems[0].message


def test_too_many_requests_end_the_reading() -> None:
    def endless() -> Iterator[bytes]:
        number = 0
        while True:
            yield from written(request(str(number)))
            number += 1

    found = examine(endless(), CHAT, 5)
    assert [(p.code, p.line) for p in found.problems] == [("too_many_requests", 6)]
    assert looked(*written(*(request(str(n)) for n in range(5))), most=5).problem_count == 0


def test_a_thousand_bad_lines_are_named_and_the_others_counted() -> None:
    found = examine([b"{nope\n"] * (MAX_PROBLEMS + 234), CHAT, 10_000)
    assert found.problem_count == MAX_PROBLEMS + 234
    assert len(found.problems) == MAX_PROBLEMS + 1
    assert [p.line for p in found.problems[:-1]] == list(range(1, MAX_PROBLEMS + 1))
    assert (found.problems[-1].line, found.problems[-1].message) == (None, "234 more lines are wrong")
    assert len(examine([b"{nope\n"] * MAX_PROBLEMS, CHAT, 10_000).problems) == MAX_PROBLEMS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
nearly = st.fixed_dictionaries(
    {},
    optional={
        "custom_id": st.sampled_from(["a", "b", ""]) | json_values,
        "method": st.sampled_from(["POST", "GET"]) | json_values,
        "url": st.sampled_from([CHAT, "/v1/files"]) | json_values,
        "body": st.fixed_dictionaries({}, optional={"model": json_values, "stream": json_values})
        | json_values,
    },
).map(lambda value: json.dumps(value).encode())


@given(st.lists(st.binary() | nearly | st.sampled_from(written(request(), request("b"))), max_size=6))
@example([b"\xef\xbb\xbf", b"\xff\xfe{"])
@example([b"\xef\xbb\xbf{", b"[" * 2000])
def test_any_bytes_get_a_verdict_and_what_is_sound_can_be_read(lines: list[bytes]) -> None:
    found = examine(lines, CHAT, 4)
    assert found.problem_count == len(found.problems)
    assert all(problem.message and problem.code for problem in found.problems)
    if found.problem_count:
        return
    read = [parse_line(number, raw) for number, raw in enumerate(lines, 1)]
    ids = [line.custom_id for line in read if line is not None]
    assert len(ids) == len(set(ids)) == found.total
    assert all(isinstance(line.body["model"], str) for line in read if line is not None)


@pytest.mark.parametrize(
    ("window", "seconds"), [("24h", 86400), ("1s", 1), ("30d", 2_592_000), ("90m", 5400), ("007s", 7)]
)
def test_windows_are_a_number_and_a_unit(window: str, seconds: int) -> None:
    assert window_seconds(window) == seconds


@pytest.mark.parametrize("window", ["", "24", "h", "0s", "31d", "99999999s", "-1h", "1.5h", "24h\n", "٢s"])
def test_other_windows_are_refused(window: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        window_seconds(window)
    assert caught.value.param == "completion_window"


def test_every_endpoint_of_batches_is_one_that_is_served() -> None:
    assert set(BATCH_ENDPOINTS) <= set(ENDPOINTS)
