"""One request of Locust's quick client: a streamed chat read event by event as it comes, and plain JSON calls.

Owns the reading, the time limit and the words for what failed. Does not know what is asked, or what is counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gevent
import orjson
from geventhttpclient.response import HTTPParseError
from locust.contrib.fasthttp import FastHttpSession, ResponseContextManager

from loadtests.chat_stream import ChatStream
from loadtests.workload import CHAT

ONE_READ_SECONDS = 0.0001
"""Events that follow each other so quickly lay in the buffer together: one read brought them."""
PROBLEM_CHARS = 300

TOO_LATE = "no whole answer in time"


@dataclass(frozen=True, slots=True)
class Answer:
    """A chat, and when it was sent and over, in seconds of time.monotonic's clock."""

    chat: ChatStream
    sent: float
    ended: float
    error: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """What a plain call was answered; `error` in place of JSON where it failed."""

    json: Any
    error: str | None


def ask(
    session: FastHttpSession,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    seconds: float,
    name: str,
    keeps_text: bool = False,
) -> Answer:
    """The whole answer, or why there is none within `seconds`. Locust counts it under the `name`."""
    content: Any = orjson.dumps(body)  # Locust's types know of text alone, which it makes bytes of
    chat = ChatStream(keeps_text=keeps_text)
    sent = time.monotonic()
    with (
        gevent.Timeout(max(0.001, seconds), False),
        session.post(
            CHAT,
            data=content,
            headers=_headers(headers),
            name=name,
            stream=True,
            catch_response=True,
        ) as response,
    ):
        error = _read(response, chat)
        if not response.status_code and time.monotonic() - sent >= seconds:
            error = TOO_LATE  # the client makes an answer of it that has no status
        response.request_meta["response_time"] = 1000 * (time.monotonic() - sent)
        if error is not None:
            response.failure(error)
        return Answer(chat, sent, time.monotonic(), error)
    session.request_event.fire(
        request_type="POST",
        name=name,
        response_time=1000 * (time.monotonic() - sent),
        response_length=0,
        exception=TimeoutError(TOO_LATE),
        context={},
    )
    return Answer(chat, sent, time.monotonic(), TOO_LATE)


def call(
    session: FastHttpSession,
    method: str,
    path: str,
    headers: Mapping[str, str],
    *,
    name: str,
    json: Any = None,
    data: bytes | None = None,
) -> Told:
    """A request that is answered with JSON."""
    content: Any = orjson.dumps(json) if json is not None else data
    with session.request(
        method, path, data=content, headers=_headers(headers), name=name, catch_response=True
    ) as response:
        if response.status_code not in (200, 201):
            error = _refusal(response)
            response.failure(error)
            return Told(None, error)
        try:
            return Told(orjson.loads(response.content or b""), None)
        except orjson.JSONDecodeError:
            response.failure("the answer is no JSON")
            return Told(None, "the answer is no JSON")
    raise AssertionError("the block above returns")


def _read(response: ResponseContextManager, chat: ChatStream) -> str | None:
    """To its end; what is wrong with it."""
    if response.status_code != 200:
        return _refusal(response)
    last = 0.0
    try:
        while event := response.stream.readline(b"\n\n"):
            at = time.monotonic()
            last = last if at - last < ONE_READ_SECONDS else at
            chat.take(event[:-2], last)
    except (OSError, HTTPParseError) as problem:
        return f"the connection was closed: {problem or 'early'}"
    return chat.problem()


def _refusal(response: ResponseContextManager) -> str:
    """Status and message of what was not answered."""
    if not response.status_code:
        return f"no answer: {getattr(response, 'error', None) or 'closed'}"
    text = response.content or b""
    try:
        told = str(orjson.loads(text)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        told = text.decode(errors="replace")
    return f"{response.status_code}: {' '.join(told.split())[:PROBLEM_CHARS]}"


def _headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Nothing is to be compressed: a compressor may hold back events of a stream."""
    return {"content-type": "application/json", "accept-encoding": "identity", **headers}
