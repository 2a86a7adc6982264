"""What one key may ask for, and what it is told when that is too much."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import RateLimited
from adapters.keys import MAX_LIMIT, UNLIMITED, Quota, Scope
from gateway import quotas
from gateway.access import ANYBODY, Caller
from gateway.protocol.errors import error_headers, openai_error
from gateway.quotas import Quotas, Ticket, duration, estimated_tokens
from gateway.traffic import Traffic

INTERACTIVE, BATCH, TRAINING = Traffic


class Clock:
    """Seconds that pass when a test says so. They begin where a machine has been up for months."""

    def __init__(self) -> None:
        self.now = 9_876_543.21

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limits(clock: Clock) -> Quotas:
    return Quotas(Quota(), clock)


def caller(quota: Quota, key_id: str = "key_1") -> Caller:
    return Caller(key_id, frozenset({Scope.INFERENCE}), quota=quota)


def refused(limits: Quotas, who: Caller, traffic: Traffic = INTERACTIVE, tokens: int = 0) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        limits.admit(who, traffic, tokens)
    return caught.value


def let_in(limits: Quotas, who: Caller, traffic: Traffic = INTERACTIVE, tokens: int = 0) -> int:
    """How many requests are let in at once until one is refused."""
    count = 0
    try:
        while count < 10_000:
            limits.admit(who, traffic, tokens).settle(None)
            count += 1
    except RateLimited:
        pass
    return count


def told(limits: Quotas, who: Caller) -> dict[str, str]:
    """The headers without what is the same in all their names."""
    return {name.decode()[12:]: value.decode() for name, value in limits.headers(who)}


# -- requests --------------------------------------------------------------------------------------
@pytest.mark.parametrize("limit", [1, 3, 7, 49, 60, 61, 1234])
def test_exactly_the_limit_is_let_in_at_once(limits: Quotas, limit: int) -> None:
    assert let_in(limits, caller(Quota(requests_per_minute=limit))) == limit


def test_a_refused_request_is_told_in_openais_words_and_may_come_back_when_it_says(
    limits: Quotas, clock: Clock
) -> None:
    who = caller(Quota(requests_per_minute=40))
    let_in(limits, who)
    error = refused(limits, who)
    assert openai_error(error)["error"] == {
        "message": "Rate limit reached for this key on requests per min (RPM): Limit 40, Used 40, Requested 1. "
        "Please try again in 1.5s.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert error.status == 429
    assert error_headers(error) == [(b"retry-after", b"2")]
    clock.pass_(1.4)
    assert "in 100ms" in refused(limits, who).message
    clock.pass_(0.1)
    assert let_in(limits, who) == 1


def test_what_was_used_is_there_again_after_a_minute_and_no_more_than_the_limit(
    limits: Quotas, clock: Clock
) -> None:
    who = caller(Quota(requests_per_minute=60))
    let_in(limits, who)
    clock.pass_(30)
    assert let_in(limits, who) == 30
    clock.pass_(3600)
    assert let_in(limits, who) == 60


def test_a_refusal_takes_nothing(limits: Quotas) -> None:
    who = caller(Quota(requests_per_minute=5, tokens_per_minute=100))
    refused(limits, who, tokens=101)
    limits.admit(who, INTERACTIVE, 60)
    refused(limits, who, tokens=60)
    assert told(limits, who)["remaining-requests"] == "4"
    assert told(limits, who)["remaining-tokens"] == "40"


def test_each_key_has_its_own(limits: Quotas) -> None:
    quota = Quota(requests_per_minute=2)
    assert let_in(limits, caller(quota, "key_1")) == 2
    assert let_in(limits, caller(quota, "key_2")) == 2


def test_a_key_that_says_nothing_has_the_defaults_and_zero_is_no_limit(clock: Clock) -> None:
    limits = Quotas(Quota(requests_per_minute=2), clock)
    assert let_in(limits, caller(Quota())) == 2
    assert let_in(limits, caller(Quota(requests_per_minute=3), "key_2")) == 3
    free = caller(Quota(requests_per_minute=0), "key_3")
    assert let_in(limits, free) == 10_000
    assert limits.headers(free) == ()


def test_all_who_ask_without_a_key_share_the_defaults(clock: Clock) -> None:
    limits = Quotas(Quota(requests_per_minute=2), clock)
    assert let_in(limits, ANYBODY) == 2
    assert "for requests without a key on" in refused(limits, ANYBODY).message


def test_an_evaluation_has_no_limits(clock: Clock) -> None:
    limits = Quotas(Quota(1, 1, 1), clock)
    tickets = [limits.admit(caller(UNLIMITED), TRAINING, 1000) for _ in range(500)]
    assert len(tickets) == 500
    assert not limits.counts_tokens(caller(UNLIMITED))


# -- tokens ----------------------------------------------------------------------------------------
def test_tokens_are_counted_by_the_estimate_and_put_right_by_the_answer(limits: Quotas) -> None:
    who = caller(Quota(tokens_per_minute=1000))
    assert limits.counts_tokens(who)
    less = limits.admit(who, INTERACTIVE, 600)
    assert told(limits, who)["remaining-tokens"] == "400"
    less.settle(100)
    assert told(limits, who)["remaining-tokens"] == "900"
    more = limits.admit(who, INTERACTIVE, 100)
    more.settle(800)
    assert told(limits, who)["remaining-tokens"] == "100"


def test_a_ticket_is_settled_once(limits: Quotas) -> None:
    who = caller(Quota(tokens_per_minute=1000, concurrent_requests=2))
    ticket = limits.admit(who, INTERACTIVE, 600)
    other = limits.admit(who, INTERACTIVE, 0)
    for _ in range(3):
        ticket.settle(500)
        ticket.give_back()
    assert told(limits, who)["remaining-tokens"] == "500"
    limits.admit(who, INTERACTIVE, 0)
    refused(limits, who)
    other.settle(None)


def test_an_answer_longer_than_all_there_was_is_paid_off_before_the_next(
    limits: Quotas, clock: Clock
) -> None:
    who = caller(Quota(tokens_per_minute=600))
    limits.admit(who, INTERACTIVE, 100).settle(1200)
    assert told(limits, who) == {"limit-tokens": "600", "remaining-tokens": "0", "reset-tokens": "2m0s"}
    error = refused(limits, who, tokens=10)
    assert "Limit 600, Used 1200, Requested 10. Please try again in 1m1s." in error.message
    assert (error.type, error.retry_after_seconds) == ("tokens", 61)
    clock.pass_(61)
    limits.admit(who, INTERACTIVE, 10)


def test_a_long_answer_counts_though_the_bucket_is_full_again_when_it_ends(
    limits: Quotas, clock: Clock
) -> None:
    who = caller(Quota(tokens_per_minute=1000))
    ticket = limits.admit(who, INTERACTIVE, 100)
    clock.pass_(3600)
    ticket.settle(700)
    assert told(limits, who)["remaining-tokens"] == "400"


def test_what_is_given_back_late_makes_no_more_than_there_can_be(limits: Quotas, clock: Clock) -> None:
    who = caller(Quota(tokens_per_minute=1000))
    ticket = limits.admit(who, INTERACTIVE, 1000)
    clock.pass_(3600)
    ticket.settle(0)
    assert let_in(limits, who, tokens=100) == 10


def test_a_request_larger_than_the_limit_is_told_so_and_not_to_come_back(limits: Quotas) -> None:
    who = caller(Quota(requests_per_minute=1, tokens_per_minute=1000))
    let_in(limits, who)
    for traffic in Traffic:
        error = refused(limits, who, traffic, tokens=1001)
        assert error.message == (
            "Request too large for this key on tokens per min (TPM): Limit 1000, Requested 1001. "
            "The input or output tokens must be reduced in order to run successfully."
        )
        assert (error.type, error.code) == ("tokens", "rate_limit_exceeded")
        assert error_headers(error) == [(b"x-should-retry", b"false")]  # no Retry-After, and SDKs let it be


def test_of_several_limits_the_one_is_told_that_takes_longest(limits: Quotas, clock: Clock) -> None:
    who = caller(Quota(requests_per_minute=2, tokens_per_minute=1000))
    limits.admit(who, INTERACTIVE, 500)
    limits.admit(who, INTERACTIVE, 500)
    assert refused(limits, who, tokens=100).type == "requests"
    error = refused(limits, who, tokens=900)
    assert (error.type, error.retry_after_seconds) == ("tokens", 54)
    clock.pass_(54)
    limits.admit(who, INTERACTIVE, 900)


def test_a_request_that_was_never_served_leaves_no_trace(limits: Quotas) -> None:
    who = caller(Quota(60, 1000, 1))
    before = told(limits, who)
    limits.admit(who, INTERACTIVE, 700).give_back()
    assert told(limits, who) == before
    limits.admit(who, INTERACTIVE, 1000)


@given(seed=st.integers(0, 2**32))
def test_however_wrong_the_estimates_what_is_answered_keeps_to_the_rate(seed: int) -> None:
    draw, clock = random.Random(seed), Clock()
    limits, who = Quotas(Quota(), clock), caller(Quota(tokens_per_minute=1000))
    began, answered = clock.now, 0
    running: list[tuple[Ticket, int]] = []
    for _ in range(300):
        clock.pass_(draw.expovariate(1.0))
        estimate = draw.randint(1, 400)
        with suppress(RateLimited):
            running.append((limits.admit(who, draw.choice(list(Traffic)), estimate), estimate))
        if running and draw.random() < 0.7:
            ticket, estimate = running.pop(draw.randrange(len(running)))
            tokens = draw.randint(0, estimate)
            ticket.settle(tokens)
            answered += tokens
    assert answered <= 1000 * (1 + (clock.now - began) / 60)


# -- classes ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("traffic", [BATCH, TRAINING])
def test_promise_07_a_batch_leaves_a_person_with_the_same_key_half_of_every_limit(
    limits: Quotas, traffic: Traffic
) -> None:
    who = caller(Quota(requests_per_minute=60))
    assert let_in(limits, who, traffic) == 30
    assert let_in(limits, who) == 30
    other = caller(Quota(tokens_per_minute=1000), "key_2")
    assert let_in(limits, other, traffic, tokens=100) == 5
    assert let_in(limits, other, tokens=100) == 5


def test_promise_07_a_batch_waits_until_half_is_left_above_what_it_takes(
    limits: Quotas, clock: Clock
) -> None:
    who = caller(Quota(requests_per_minute=60))
    for _ in range(45):
        limits.admit(who, INTERACTIVE, 0).settle(None)
    error = refused(limits, who, BATCH)
    assert (
        "Limit 60, Used 45, Requested 1. Batches leave half of it. Please try again in 16s." in error.message
    )
    assert error.retry_after_seconds == 16
    clock.pass_(15.9)
    refused(limits, who, BATCH)
    clock.pass_(0.1)
    limits.admit(who, BATCH, 0)


def test_a_batch_alone_gets_the_whole_rate(limits: Quotas, clock: Clock) -> None:
    who = caller(Quota(requests_per_minute=60))
    let_in(limits, who, BATCH)
    count = 0
    for _ in range(600):
        clock.pass_(0.1)
        count += let_in(limits, who, BATCH)
    assert count == 60


def test_a_batch_line_larger_than_half_goes_when_all_is_there(limits: Quotas, clock: Clock) -> None:
    who = caller(Quota(tokens_per_minute=1000))
    limits.admit(who, INTERACTIVE, 100)
    assert refused(limits, who, BATCH, tokens=900).retry_after_seconds == 6
    clock.pass_(6)
    limits.admit(who, BATCH, 900)


# -- at once ---------------------------------------------------------------------------------------
def test_no_more_run_at_once_than_the_limit(limits: Quotas) -> None:
    who = caller(Quota(concurrent_requests=2))
    first, _second = limits.admit(who, INTERACTIVE, 0), limits.admit(who, INTERACTIVE, 0)
    error = refused(limits, who)
    assert error.message == (
        "Rate limit reached for this key on concurrent requests: Limit 2, Used 2, Requested 1. "
        "Please try again in 1s."
    )
    assert (error.type, error.code, error.retry_after_seconds) == ("requests", "rate_limit_exceeded", 1)
    first.settle(5)
    limits.admit(who, INTERACTIVE, 0)
    refused(limits, who)
    assert limits.headers(who) == ()


@pytest.mark.parametrize(("limit", "by_batch"), [(1, 1), (2, 1), (5, 2), (8, 4)])
def test_promise_07_a_batch_runs_half_of_them(limits: Quotas, limit: int, by_batch: int) -> None:
    who = caller(Quota(concurrent_requests=limit))
    for _ in range(by_batch):
        limits.admit(who, BATCH, 0)
    refused(limits, who, BATCH)
    for _ in range(limit - by_batch):
        limits.admit(who, INTERACTIVE, 0)
    refused(limits, who)


# -- changes and memory ----------------------------------------------------------------------------
def test_changed_limits_hold_for_the_next_request_and_the_share_used_stays(limits: Quotas) -> None:
    old = caller(Quota(requests_per_minute=10))
    for _ in range(5):
        limits.admit(old, INTERACTIVE, 0).settle(None)
    assert told(limits, caller(Quota(requests_per_minute=100)))["remaining-requests"] == "50"
    assert told(limits, caller(Quota(requests_per_minute=4)))["remaining-requests"] == "2"
    assert let_in(limits, caller(Quota(requests_per_minute=0))) == 10_000
    assert let_in(limits, caller(Quota(requests_per_minute=4))) == 4


def test_the_same_limits_in_a_new_snapshot_change_nothing(limits: Quotas) -> None:
    let_in(limits, caller(Quota(requests_per_minute=10)))
    assert let_in(limits, caller(Quota(requests_per_minute=10))) == 0


def test_a_limit_that_comes_while_requests_run_counts_them(limits: Quotas) -> None:
    ticket = limits.admit(caller(Quota()), INTERACTIVE, 500)
    who = caller(Quota(tokens_per_minute=1000, concurrent_requests=1))
    refused(limits, who)
    ticket.settle(900)
    assert told(limits, who)["remaining-tokens"] == "1000", "nothing was counted of it when it began"
    limits.admit(who, INTERACTIVE, 1000)


def test_a_limit_lifted_while_an_answer_runs_stays_lifted(limits: Quotas) -> None:
    ticket = limits.admit(caller(Quota(tokens_per_minute=10)), INTERACTIVE, 10)
    free = caller(Quota(tokens_per_minute=0))
    limits.admit(free, INTERACTIVE, 0)
    ticket.settle(100_000)
    limits.admit(free, INTERACTIVE, 100_000)


def test_keys_with_nothing_to_remember_are_forgotten_and_no_others(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "MAX_USAGES", 10)
    limits = Quotas(Quota(), clock)
    quota = Quota(requests_per_minute=60, concurrent_requests=1)
    running = limits.admit(caller(quota, "running"), INTERACTIVE, 0)
    clock.pass_(120)
    let_in(limits, caller(quota, "busy"))
    for number in range(1000):
        clock.pass_(1e-4)
        limits.admit(caller(Quota(), f"key_{number}"), INTERACTIVE, 0).settle(None)
    assert len(limits._usages) <= 10
    refused(limits, caller(quota, "running"))
    assert "requests per min" in refused(limits, caller(quota, "busy")).message
    running.settle(None)
    limits.admit(caller(quota, "running"), INTERACTIVE, 0)


def test_more_busy_keys_than_are_remembered_lose_nothing(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "MAX_USAGES", 10)
    limits = Quotas(Quota(requests_per_minute=1), clock)
    everybody = [caller(Quota(), f"key_{number}") for number in range(50)]
    for who in everybody:
        limits.admit(who, INTERACTIVE, 0)
    for who in everybody:
        refused(limits, who)


# -- headers ---------------------------------------------------------------------------------------
def test_headers_say_what_is_left_and_when_it_is_all_there(limits: Quotas, clock: Clock) -> None:
    who = caller(Quota(requests_per_minute=600, tokens_per_minute=1000))
    assert dict(limits.headers(who)) == {
        b"x-ratelimit-limit-requests": b"600",
        b"x-ratelimit-remaining-requests": b"600",
        b"x-ratelimit-reset-requests": b"0s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"1000",
        b"x-ratelimit-reset-tokens": b"0s",
    }
    limits.admit(who, INTERACTIVE, 250)
    assert told(limits, who)["remaining-requests"] == "599"
    assert told(limits, who)["reset-requests"] == "100ms"
    assert told(limits, who)["reset-tokens"] == "15s"
    clock.pass_(7.5)
    assert told(limits, who)["remaining-tokens"] == "875"
    assert told(limits, who)["reset-tokens"] == "7.5s"


@pytest.mark.parametrize("limit", [1, 3, 11, 49, 60, 1234])
def test_as_many_are_let_in_as_the_headers_say_are_left(limits: Quotas, clock: Clock, limit: int) -> None:
    who = caller(Quota(requests_per_minute=limit))
    while (left := int(told(limits, who)["remaining-requests"])) > 0:
        limits.admit(who, INTERACTIVE, 0)
        assert int(told(limits, who)["remaining-requests"]) == left - 1
    refused(limits, who)


def test_the_largest_limit_is_left_whole(limits: Quotas) -> None:
    who = caller(Quota(tokens_per_minute=MAX_LIMIT))
    assert told(limits, who)["remaining-tokens"] == str(MAX_LIMIT)


def test_headers_name_only_limits_that_there_are(limits: Quotas) -> None:
    assert limits.headers(caller(Quota(concurrent_requests=4))) == ()
    assert set(told(limits, caller(Quota(tokens_per_minute=9), "key_2"))) == {
        "limit-tokens",
        "remaining-tokens",
        "reset-tokens",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (-1.0, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (0.9999, "1s"),
        (1.0, "1s"),
        (9.816, "9.816s"),
        (60.0, "1m0s"),
        (359.9999, "6m0s"),
        (90.5, "1m30.5s"),
        (4503.0, "75m3s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# -- estimates -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 5}, 10 + 5),
        ({"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 5}, 1 + 5),
        ({"messages": [{"role": "user", "content": "x" * 40}]}, 10 + 256),
        ({"messages": [{"content": [{"type": "text", "text": "x" * 40}]}], "max_tokens": 5, "n": 3}, 10 + 15),
        ({"messages": [{"content": None}, {"content": "x" * 8}], "max_tokens": None}, 2 + 256),
        ({"prompt": "x" * 40, "max_tokens": 0}, 10),
        ({"prompt": ["x" * 40, "x" * 40], "max_tokens": 5, "n": 2}, 20 + 20),
        ({"prompt": [1, 2, 3], "max_tokens": 5}, 3 + 5),
        ({"prompt": [[1, 2, 3], [4]], "max_tokens": 5}, 4 + 10),
        ({"input": "x" * 40, "instructions": "x" * 8, "max_output_tokens": 5}, 12 + 5),
        ({"input": [{"type": "function_call_output", "output": "x" * 8}], "max_output_tokens": 5}, 2 + 5),
        ({"system": [{"text": "x" * 8}], "messages": [{"content": "x" * 8}], "max_tokens": 5}, 4 + 5),
        (
            {"messages": [{"tool_calls": [{"function": {"arguments": "x" * 8}}]}], "max_tokens": 5},
            2 + 5,
        ),
        ({"messages": [{"content": [{"image_url": {"url": "x" * 4000}}]}], "max_tokens": 5}, 5),
    ],
)
def test_an_estimate_is_a_quarter_of_the_prompts_characters_and_all_that_may_be_answered(
    body: dict[str, object], tokens: int
) -> None:
    assert estimated_tokens(body) == tokens


def test_where_nothing_is_generated_nothing_is_counted_for_an_answer() -> None:
    assert estimated_tokens({"input": ["x" * 40, "x" * 40]}, unnamed=0) == 20


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*quotas.TEXTS, "n"]), inner),
)


@given(body=st.dictionaries(st.sampled_from([*quotas.PROMPTS, *quotas.ANSWER_BOUNDS, "n"]), JSON))
def test_any_body_has_an_estimate(body: dict[str, object]) -> None:
    assert estimated_tokens(body) >= 0


def test_a_body_nested_by_malice_has_one_too() -> None:
    nested: object = "x"
    for _ in range(100_000):
        nested = {"content": nested}
    assert estimated_tokens({"messages": [nested], "max_tokens": 5}) == 5
