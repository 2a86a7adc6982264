"""What one key may ask for: requests and tokens a minute, and requests at once.

Owns how much of its limits each key has used, in this process and in memory. Takes an estimate of a request's tokens
before the answer (`estimated_tokens`) and their true number after it (`Ticket.settle`). Knows nothing of HTTP and
counts no tokens itself.

A bucket is the generic cell rate algorithm (ITU-T I.371): one number, the moment at which the bucket is full again.
Made and used on one event loop: nothing here waits, locks or runs by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from adapters.errors import RateLimited
from adapters.keys import Quota
from gateway.access import Caller
from gateway.traffic import Traffic

MINUTE_SECONDS = 60.0
"""How long an empty bucket takes to be full again: what it holds is what may be used in a minute."""

SLACK_SECONDS = 1e-6
"""Seven sevenths of a minute are not always one: what is over a limit by less is within it."""

MAX_USAGES = 10_000
"""Keys that are remembered before those are forgotten that have nothing to remember."""

CHARACTERS_PER_TOKEN = 4
"""Of English text, by OpenAI's rule of thumb."""

UNNAMED_ANSWER_TOKENS = 256
"""What an answer is taken to need where the request sets no bound."""

ANSWER_BOUNDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
PROMPTS = ("messages", "prompt", "input", "system", "instructions")
TEXTS = ("content", "text", "tool_calls", "function", "arguments", "output")
"""Where text is in a prompt. What is not named, such as an image's bytes, is no text."""

MAX_DEPTH = 8
"""How deep text may lie: a tool call's arguments are at 6. A body nested by malice must not exhaust the stack."""


class Bucket:
    """What may be used in a minute. It fills evenly; no limit is a bucket in which nothing takes room."""

    __slots__ = ("full_at", "limit", "seconds_each")

    def __init__(self) -> None:
        self.full_at = -math.inf
        self.limit: int | None = None
        self.seconds_each = 0.0
        """How long the room that one takes needs to be there again."""

    def change(self, limit: int | None) -> None:
        """Another limit; the share that is used of it stays."""
        if limit is None:
            self.full_at = -math.inf
        self.limit = limit
        self.seconds_each = 0.0 if limit is None else MINUTE_SECONDS / limit

    def reset_seconds(self, now: float) -> float:
        """Until it is full."""
        full_at = self.full_at
        return full_at - now if full_at > now else 0.0

    def wait_seconds(self, count: int, leave_half: bool, now: float) -> float:
        """Until `count` may be taken; at most 0: now.

        `leave_half`: not from the lower half of it. What is more than half needs a full one.
        """
        cost = count * self.seconds_each
        most = min(MINUTE_SECONDS, max(cost, MINUTE_SECONDS / 2)) if leave_half else MINUTE_SECONDS
        return self.reset_seconds(now) + cost - most - SLACK_SECONDS

    def charge(self, seconds: float, now: float) -> None:
        """Takes what needs so long to be there again; less than 0: gives back."""
        full_at = self.full_at
        self.full_at = (full_at if full_at > now else now) + seconds

    def remaining(self, now: float) -> int:
        """What may be taken at once; of a bucket with a limit."""
        assert self.limit is not None
        left = int((MINUTE_SECONDS - self.reset_seconds(now) + SLACK_SECONDS) / self.seconds_each)
        return min(self.limit, max(0, left))

    def used(self, now: float) -> int:
        """Of a bucket with a limit. More than that where answers were longer than estimated."""
        return round(self.reset_seconds(now) / self.seconds_each)


class Usage:
    """What one key may use, and has used."""

    __slots__ = ("concurrent", "is_limited", "quota", "requests", "running", "tokens")

    def __init__(self) -> None:
        self.quota: Quota | None = None
        """As the key has it, without the defaults."""
        self.requests = Bucket()
        self.tokens = Bucket()
        self.concurrent: int | None = None
        self.running = 0
        self.is_limited = False

    def change(self, quota: Quota, defaults: Quota) -> None:
        self.quota = quota
        whole = quota.over(defaults)
        self.requests.change(whole.requests_per_minute or None)
        self.tokens.change(whole.tokens_per_minute or None)
        self.concurrent = whole.concurrent_requests or None
        self.is_limited = self.requests.limit is not None or self.tokens.limit is not None

    def is_idle(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        return not self.running and self.requests.full_at <= now and self.tokens.full_at <= now


class Ticket:
    """One request that was let in. It is over with the first call of one of its methods; a later one does nothing."""

    __slots__ = ("_clock", "_request_seconds", "_token_seconds", "_tokens", "_usage")

    def __init__(self, usage: Usage, tokens: int, clock: Callable[[], float]) -> None:
        self._usage: Usage | None = usage
        self._tokens = tokens
        # What it was charged by: the limits may change before it is over.
        self._request_seconds = usage.requests.seconds_each
        self._token_seconds = usage.tokens.seconds_each
        self._clock = clock

    def settle(self, tokens: int | None) -> None:
        """The request took so many tokens, of prompt and answer; None: nobody knows, the estimate stands."""
        usage, self._usage = self._usage, None
        if usage is None:
            return
        usage.running -= 1
        if tokens is not None and usage.tokens.limit is not None:
            usage.tokens.charge((tokens - self._tokens) * self._token_seconds, self._clock())

    def give_back(self) -> None:
        """The request was never served, and not for a fault of its own: it will be asked anew, or need not count."""
        if self._usage is not None and self._usage.requests.limit is not None:
            self._usage.requests.charge(-self._request_seconds, self._clock())
        self.settle(0)


class Quotas:
    """The use of every key, as this process has seen it."""

    def __init__(self, defaults: Quota, clock: Callable[[], float] = time.monotonic) -> None:
        """`defaults`: what holds for a key that says nothing else, and for all requests without a key together."""
        self._defaults = defaults
        self._clock = clock
        self._usages: dict[str | None, Usage] = {}
        self._forget_at = MAX_USAGES

    def counts_tokens(self, caller: Caller) -> bool:
        """Whether `admit` needs an estimate of the tokens."""
        return self._usage(caller).tokens.limit is not None

    def admit(self, caller: Caller, traffic: Traffic, tokens: int) -> Ticket:
        """Lets a request in that will take about so many tokens, or raises RateLimited and takes nothing.

        What is not interactive leaves half of each limit to what is: a batch never stops a person with the same key.
        """
        usage = self._usage(caller)
        now = self._clock()
        leave_half = traffic is not Traffic.INTERACTIVE
        requests, limited = usage.requests, usage.tokens
        if (
            requests.wait_seconds(1, leave_half, now) > 0.0
            or limited.wait_seconds(tokens, leave_half, now) > 0.0
            or (usage.concurrent is not None and usage.running >= _at_once(usage.concurrent, leave_half))
        ):
            raise _refusal(usage, caller, leave_half, tokens, now)
        requests.charge(requests.seconds_each, now)
        limited.charge(tokens * limited.seconds_each, now)
        usage.running += 1
        return Ticket(usage, tokens, self._clock)

    def headers(self, caller: Caller) -> tuple[tuple[bytes, bytes], ...]:
        """OpenAI's `x-ratelimit-…`, of the limits that there are. Reset: until it is all there again."""
        usage = self._usage(caller)
        if not usage.is_limited:
            return ()
        now = self._clock()
        return _headers(b"requests", usage.requests, now) + _headers(b"tokens", usage.tokens, now)

    def _usage(self, caller: Caller) -> Usage:
        usage = self._usages.get(caller.key_id)
        if usage is None:
            if len(self._usages) >= self._forget_at:
                self._forget()
            usage = self._usages[caller.key_id] = Usage()
        if usage.quota is not caller.quota:  # a new snapshot brings new objects; what they say is seldom new
            usage.change(caller.quota, self._defaults)
        return usage

    def _forget(self) -> None:
        """Drops what is as good as new. So many keys at once that are not are let be, and looked at again later."""
        now = self._clock()
        self._usages = {key: usage for key, usage in self._usages.items() if not usage.is_idle(now)}
        self._forget_at = max(MAX_USAGES, 2 * len(self._usages))


def estimated_tokens(body: dict[str, Any], *, unnamed: int = UNNAMED_ANSWER_TOKENS) -> int:
    """About how many tokens a request will take: a quarter of its prompt's characters, and all that may be answered.

    `body` is any of the inference endpoints'. `unnamed`: an answer's tokens where the body sets no bound (0 where the
    endpoint generates none).
    """
    characters = sum(_characters(body[field], MAX_DEPTH) for field in PROMPTS if field in body)
    bounds = (body.get(field) for field in ANSWER_BOUNDS)
    answer = next((bound for bound in bounds if type(bound) is int), unnamed)
    return -(-characters // CHARACTERS_PER_TOKEN) + max(0, answer) * _answers(body)


def duration(seconds: float) -> str:
    """As OpenAI's headers and messages have it: "120ms", "1s", "9.816s", "6m0s"; never too short."""
    milliseconds = math.ceil(seconds * 1000 - 1e-3)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(max(0, milliseconds), 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"


def _answers(body: dict[str, Any]) -> int:
    """How many answers a request asks for: `n` for each prompt."""
    each = body.get("n")
    prompt = body.get("prompt")
    prompts = len(prompt) if type(prompt) is list and prompt and type(prompt[0]) is not int else 1
    return max(1, each if type(each) is int else 1) * prompts


def _characters(value: object, depth: int) -> int:
    """Of the text in a part of a prompt; a token's number stands for one token."""
    if type(value) is str:
        return len(value)
    if depth == 0:
        return 0
    inner: Iterable[object] = ()
    if type(value) is dict:
        inner = (value[field] for field in TEXTS if field in value)
    elif type(value) is list:
        if value and type(value[0]) is int:
            return CHARACTERS_PER_TOKEN * len(value)
        inner = value
    count = 0
    for each in inner:  # most are strings, and a call costs more than the test
        count += len(each) if type(each) is str else _characters(each, depth - 1)
    return count


def _at_once(concurrent: int, leave_half: bool) -> int:
    return max(1, concurrent // 2) if leave_half else concurrent


def _headers(kind: bytes, bucket: Bucket, now: float) -> tuple[tuple[bytes, bytes], ...]:
    if bucket.limit is None:
        return ()
    return (
        (b"x-ratelimit-limit-" + kind, b"%d" % bucket.limit),
        (b"x-ratelimit-remaining-" + kind, b"%d" % bucket.remaining(now)),
        (b"x-ratelimit-reset-" + kind, duration(bucket.reset_seconds(now)).encode()),
    )


def _refusal(usage: Usage, caller: Caller, leave_half: bool, tokens: int, now: float) -> RateLimited:
    """What a request that may not go is told, in OpenAI's words; of several limits the one it waits longest for."""
    whose = "this key" if caller.key_id is not None else "requests without a key"
    most = usage.tokens.limit
    if most is not None and tokens > most:
        return _told(
            "tokens",
            f"Request too large for {whose} on tokens per min (TPM): Limit {most}, Requested {tokens}. "
            "The input or output tokens must be reduced in order to run successfully.",
        )
    by_requests = usage.requests.wait_seconds(1, leave_half, now)
    by_tokens = usage.tokens.wait_seconds(tokens, leave_half, now)
    if by_requests > max(0.0, by_tokens):
        kind, wait = "requests", by_requests
        counts = f"requests per min (RPM): Limit {usage.requests.limit}, Used {usage.requests.used(now)}, Requested 1"
    elif by_tokens > 0.0:
        kind, wait = "tokens", by_tokens
        counts = f"tokens per min (TPM): Limit {most}, Used {usage.tokens.used(now)}, Requested {tokens}"
    else:  # nobody knows when a request will have ended
        kind, wait = "requests", 1.0
        counts = f"concurrent requests: Limit {usage.concurrent}, Used {usage.running}, Requested 1"
    half = " Batches leave half of it." if leave_half else ""
    return _told(
        kind,
        f"Rate limit reached for {whose} on {counts}.{half} Please try again in {duration(wait)}.",
        max(1, math.ceil(wait)),
    )


def _told(kind: str, message: str, retry_after_seconds: int | None = None) -> RateLimited:
    error = RateLimited(message, retry_after_seconds=retry_after_seconds)
    error.type = kind  # OpenAI's: what was too much, rather than the class of the error
    return error
