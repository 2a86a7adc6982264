"""Asking a live gateway, as an evaluation does: with a pass, patiently, and never silently without an answer.

Owns which gateway is asked, the pass, the retries, and the file of answers that a killed run finds again. A request
that an engine refuses is the row's result; one that nobody answers in time ends the evaluation, since rows that drop
out unseen would bend what is measured. Does not know what is asked.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson

from adapters.errors import Unavailable
from adapters.keys import Key, Keys
from adapters.placements import Placements

GATEWAY_SILENT_SECONDS = 15.0
PASS_SECONDS = 3600.0
PATIENCE_SECONDS = 600.0
"""How long one question may wait for gateway and engines: a restart of all of them, and then some."""

ANSWER_SECONDS = 300.0
UNKNOWN_SECONDS = 15.0
"""A gateway needs a moment to hear of a new pass or candidate; then an unknown model stays unknown."""

BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
BUSY = frozenset({429, 502, 503, 504})

Body = dict[str, Any]


class Refused(Exception):
    """The engine or the gateway will not answer this question, however often it is asked."""


class Stopped(Exception):
    """The evaluation was told to stop while a question waited."""


class Asker:
    """A live gateway, whichever that is at the moment. Threads may share it."""

    def __init__(
        self, keys: Keys, placements: Placements, name: str, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        """`name` is what the pass is called in the audit log: the run's."""
        self._keys = keys
        self._placements = placements
        self._name = name
        self._patience_seconds = patience_seconds
        self._client = httpx.Client(timeout=httpx.Timeout(ANSWER_SECONDS, connect=5.0), trust_env=False)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._pass: tuple[Key, str] | None = None

    def post(self, path: str, body: Body) -> Body:
        """The answer to one question. Raises Refused, Unavailable when patience is over, Stopped."""
        began = time.monotonic()
        tries = 0
        while True:
            problem, wait = self._try(path, body, time.monotonic() - began)
            if isinstance(problem, dict):
                return problem
            if time.monotonic() - began > self._patience_seconds:
                raise Unavailable(
                    f"The evaluation got no answer within {self._patience_seconds:g} s: {problem}"
                )
            if self._stopping.wait(wait or BACKOFF_SECONDS[min(tries, len(BACKOFF_SECONDS) - 1)]):
                raise Stopped
            tries += 1

    @property
    def url(self) -> str:
        """Where a gateway listens. Raises Unavailable."""
        gateways = self._placements.live_gateways(GATEWAY_SILENT_SECONDS)
        if not gateways:
            raise Unavailable("No gateway is running that the evaluation could ask.")
        return gateways[0].url

    def secret(self, old: str | None = None) -> str:
        """The pass; a new one where `old` was not taken, or it is over soon."""
        with self._lock:
            known = self._pass
            if known is None or known[1] == old or (known[0].expires or 0) - time.time() < ANSWER_SECONDS:
                self._pass = self._keys.create_pass(self._name, PASS_SECONDS)
                if known is not None:
                    self._keys.end_pass(known[0].id)
            assert self._pass is not None
            return self._pass[1]

    @contextmanager
    def lend(self, seconds: float) -> Iterator[str]:
        """A pass for another program, which ends with the block."""
        made, secret = self._keys.create_pass(self._name, seconds)
        try:
            yield secret
        finally:
            self._keys.end_pass(made.id)

    def stop(self) -> None:
        """Questions that wait give up; to be called before threads are joined."""
        self._stopping.set()

    def close(self) -> None:
        self.stop()
        self._client.close()
        if self._pass is not None:
            self._keys.end_pass(self._pass[0].id)
            self._pass = None

    def _try(self, path: str, body: Body, waited_seconds: float) -> tuple[Body | str, float | None]:
        """The answer, or what is in its way for the moment and how long to wait. Raises Refused."""
        secret = self.secret()
        try:
            headers = {"authorization": f"Bearer {secret}"}
            answer = self._client.post(f"{self.url}{path}", json=body, headers=headers)
        except (httpx.TransportError, Unavailable) as error:
            return str(error) or type(error).__name__, None
        if answer.status_code == 200:
            return _object(answer), None
        if answer.status_code in BUSY:
            return _message(answer), _retry_after(answer)
        if answer.status_code == 401 and waited_seconds > UNKNOWN_SECONDS:
            self.secret(old=secret)
            return _message(answer), None
        may_pass = answer.status_code in (404, 500) and waited_seconds < UNKNOWN_SECONDS
        if answer.status_code == 401 or may_pass:
            return _message(answer), None
        raise Refused(_message(answer))


class Answers:
    """What was answered before, by question, in a file of JSON lines: a run that was killed asks only the rest."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known = dict(_lines(path))
        self._lock = threading.Lock()
        self._file = path.open("ab")
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._file.write(b"\n")  # the line that a kill has cut is passed over

    def get(self, question: str) -> Any:
        """None for what was not answered yet."""
        return self._known.get(question)

    def put(self, question: str, answer: Any) -> None:
        line = orjson.dumps({"question": question, "answer": answer}) + b"\n"
        with self._lock:
            self._known[question] = answer
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        self._file.close()


@contextmanager
def opened(path: Path) -> Iterator[Answers]:
    answers = Answers(path)
    try:
        yield answers
    finally:
        answers.close()


def question_key(path: str, body: Body) -> str:
    """Equal for the same question to the same model version, and for nothing else."""
    return hashlib.sha256(orjson.dumps([path, body], option=orjson.OPT_SORT_KEYS)).hexdigest()


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                value = orjson.loads(line)
                yield value["question"], value["answer"]
            except (orjson.JSONDecodeError, KeyError, TypeError):
                continue


def _object(answer: httpx.Response) -> Body:
    try:
        value = answer.json()
    except json.JSONDecodeError:
        raise Refused("an answer that is not JSON") from None
    if not isinstance(value, dict):
        raise Refused("an answer that is no object")
    return value


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"


def _retry_after(answer: httpx.Response) -> float | None:
    value = answer.headers.get("retry-after", "")
    return min(float(value), 30.0) if value.replace(".", "", 1).isdigit() else None
