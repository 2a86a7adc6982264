"""What is counted of requests that are over, and under which labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from adapters.completions import Status
from adapters.errors import (
    BurnishError,
    Conflict,
    ContextTooLong,
    EngineFailed,
    EngineTimeout,
    Forbidden,
    InvalidRequest,
    NotFound,
    NotRecorded,
    Overloaded,
    PreflightError,
    RateLimited,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from gateway.access import ANYBODY
from gateway.answer_tally import MOST_CHARS, AnswerTally
from gateway.endpoints import ENDPOINTS, Call
from gateway.labels import NOWHERE, OTHER, Labels
from gateway.passage import Attempt, Ending, Passage
from gateway.routing import Target
from gateway.tally import Tally, error_kind
from gateway.traffic import Traffic
from tests.unit.adapters.test_completions import completion
from tests.unit.gateway.test_engines import version

PATH = "/v1/chat/completions"
BATCH, INTERACTIVE = Traffic.BATCH, Traffic.INTERACTIVE
CHAT = ("chat", "support@1")


def target(route: str = "chat", number: int | None = 1) -> Target:
    return Target(route, "base", None if number is None else replace(version(), number=number), ())


def passage(to: Target | None = None, **more: Any) -> Passage:
    """One that went well, from 100.0 to 102.0, unless `more` says otherwise."""
    asked = to or target()
    call = Call(ENDPOINTS[PATH], "req_1", ANYBODY, asked, {})
    values = {"began": 100.0, "ended": 102.0, "queued": 100.0, "placed": 100.5, "route": asked.name}
    return Passage("req_1", PATH, **{**values, "call": call, **more})


def tally(most: int = 10) -> Tally:
    return Tally(Labels(most))


def test_a_request_is_counted_by_class_route_and_variant() -> None:
    counts = tally()
    counts.ended(passage(prompt_tokens=7, answer_tokens=5))
    counts.ended(passage(prompt_tokens=1, answer_tokens=2, traffic=BATCH))
    counts.ended(passage(target(number=2)))
    counts.ended(passage(target("base", None)))
    assert set(counts.requests) == {
        (INTERACTIVE, CHAT),
        (BATCH, CHAT),
        (INTERACTIVE, ("chat", "support@2")),
        (INTERACTIVE, ("base", "base")),
    }
    mine = counts.requests[INTERACTIVE, CHAT]
    assert (mine.endings, mine.errors) == ({Ending.COMPLETE: 1}, {})
    assert (mine.prompt_tokens, mine.answer_tokens) == (7, 5)
    assert (mine.seconds.count, mine.seconds.total) == (1, 2.0)
    waited = counts.queued[INTERACTIVE, "base"]
    assert (waited.count, waited.total) == (3, 1.5)


@pytest.mark.parametrize("ending", [Ending.LEFT, Ending.EVICTED, Ending.INTERRUPTED])
def test_what_did_not_come_to_its_end_has_no_duration_and_is_no_error(ending: Ending) -> None:
    counts = tally()
    counts.ended(passage(ending=ending))
    mine = counts.requests[INTERACTIVE, CHAT]
    assert (mine.endings, mine.errors, mine.seconds.count) == ({ending: 1}, {}, 0)


def test_a_refusal_before_anything_was_known_is_counted_under_no_route() -> None:
    counts = tally()
    refused = passage(route="", call=None)
    refused.fail(NotFound("no model 'sk-secret'"))
    counts.ended(refused)
    mine = counts.requests[INTERACTIVE, NOWHERE]
    assert (mine.endings, mine.errors) == ({Ending.ERROR: 1}, {"not_found": 1})
    assert not counts.queued


def test_a_refusal_before_a_variant_was_chosen_is_counted_under_its_route() -> None:
    counts = tally()
    refused = passage(call=None)
    refused.fail(RateLimited("slowly"))
    counts.ended(refused)
    assert counts.requests[INTERACTIVE, ("chat", "")].errors == {"rate_limited": 1}


def test_a_fail_over_is_the_variants_error_and_the_controls_answer() -> None:
    counts = tally()
    counts.ended(passage(failed_over_from=target(number=2), failed_over_for=Unavailable("away")))
    variant, control = counts.requests[INTERACTIVE, ("chat", "support@2")], counts.requests[INTERACTIVE, CHAT]
    assert (variant.endings, variant.errors) == ({}, {"unavailable": 1})
    assert (control.endings, control.errors) == ({Ending.COMPLETE: 1}, {})
    assert counts.fail_overs == {("chat", "support@2"): 1}


def test_attempts_that_another_followed_are_retries_of_their_engines() -> None:
    counts = tally()
    counts.ended(passage(attempts=[Attempt("e0", 1.0), Attempt("e1", 2.0), Attempt("e0", 3.0)]))
    counts.ended(passage(attempts=[Attempt("e2", 1.0)]))
    assert counts.retries == {"e0": 1, "e1": 1}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BurnishError("x"), "server_error"),
        (InvalidRequest("x"), "invalid_request"),
        (PreflightError("x"), "invalid_request"),
        (ContextTooLong("x"), "context_too_long"),
        (Unauthorized("x"), "unauthorized"),
        (Forbidden("x"), "forbidden"),
        (NotFound("x"), "not_found"),
        (Conflict("x"), "conflict"),
        (TooLarge("x"), "too_large"),
        (RateLimited("x"), "rate_limited"),
        (EngineFailed("x", code="stream_broken"), "engine_failed"),
        (Unavailable("x"), "unavailable"),
        (Overloaded("x"), "overloaded"),
        (NotRecorded("x"), "not_recorded"),
        (EngineTimeout("x"), "engine_timeout"),
    ],
)
def test_an_error_is_counted_by_its_kind(error: BurnishError, kind: str) -> None:
    assert error_kind(error) == kind


def test_promise_12_a_thousand_routes_make_no_more_series_than_there_is_room_for() -> None:
    counts = tally(most=3)
    for number in range(1000):
        counts.ended(passage(target(f"route-{number}")))
    assert len(counts.requests) == 4
    assert counts.requests[INTERACTIVE, OTHER].endings == {Ending.COMPLETE: 997}


def test_what_made_room_is_forgotten_when_something_new_comes() -> None:
    now = [0.0]
    counts = Tally(Labels(1, lambda: now[0]))
    counts.ended(passage(failed_over_from=target(), failed_over_for=Unavailable("away")))
    now[0] += 4000
    counts.ended(passage(target("new")))
    assert set(counts.requests) == {(INTERACTIVE, ("new", "support@1"))}
    assert not counts.fail_overs


# -- answers ---------------------------------------------------------------------------------------
def answer(text: str | None, **more: Any) -> Any:
    output = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    return completion("c", **{"route": "chat", "variant": "support@1", "output": output, **more})


def test_answers_are_measured_by_route_and_variant() -> None:
    answers = AnswerTally(Labels(10))
    answers.made(answer("I'm sorry, but I can't help with that.", completion_tokens=12))
    answers.made(answer("one two three four " * 25, completion_tokens=100))
    answers.made(answer("All is well.", completion_tokens=4, variant="support@2"))
    found = answers.answers[CHAT]
    assert (found.texts, found.refusals, found.tokens.count, found.tokens.total) == (2, 1, 2, 112)
    assert dict(found.repetition.cumulative())[0.9] == 1, "the other has said nearly all of it before"
    assert answers.answers["chat", "support@2"].texts == 1


def test_only_whole_answers_count_and_only_words_have_manners() -> None:
    answers = AnswerTally(Labels(10))
    answers.made(answer("half an", status=Status.INCOMPLETE))
    answers.made(answer(None, status=Status.ERROR, output=None))
    assert not answers.answers
    answers.made(answer(None, completion_tokens=9))
    found = answers.answers[CHAT]
    assert (found.tokens.count, found.texts, found.repetition.count) == (1, 0, 0)


def test_texts_are_looked_at_for_a_twentieth_of_the_time_at_most() -> None:
    now, worked = [0.0], [0.0]

    def clock_of_work() -> float:
        worked[0] += 0.05
        return worked[0]

    answers = AnswerTally(Labels(10), lambda: now[0], clock_of_work)
    for _ in range(1000):
        now[0] += 0.1
        answers.made(answer("All is well.", completion_tokens=4))
    found = answers.answers[CHAT]
    assert found.tokens.count == 1000, "to count them costs next to nothing"
    spent = 0.05 * found.texts
    assert 0.045 * now[0] < spent < 0.055 * now[0]


def test_of_a_very_long_text_its_end_is_looked_at() -> None:
    answers = AnswerTally(Labels(10))
    new = " ".join(str(number) for number in range(10_000))
    assert len(new) > 2 * MOST_CHARS
    answers.made(answer(new + " again and again and" * (MOST_CHARS // 10)))
    assert dict(answers.answers[CHAT].repetition.cumulative())[0.9] == 0
