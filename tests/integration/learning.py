"""A route that learns, on real parts: what the tests of learning and of deciding share.

The task is that of `loadtests.learning`: an order in a sentence is to be answered with one exact line of compact JSON,
which the base model never gives.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import openai

from loadtests.learning import Question, questions
from tests.conftest import RealStack, wait_for

ROUTE = "order-desk"
USERS = 40
ASKED = 80
HELD_OUT = 16
AT_ONCE = 16
"""Many at a time: on a CPU an engine answers eight in little more time than four."""
WRONG_TOKENS = 8
"""Of an answer that is corrected anyway: enough to see that it is wrong."""
PAUSE_SECONDS = 3.0
"""Of the visitor, between an answer and the next question."""


def ask(
    client: openai.OpenAI, question: Question, model: str = ROUTE, most: int = 40
) -> tuple[str, str, str]:
    """The answer's id, its text (at most so many tokens), and the adapter that its headers name."""
    raw = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": question.text}],
        max_tokens=most,
        temperature=0,
        safety_identifier=question.user,
    )
    answer = raw.parse()
    return answer.id, answer.choices[0].message.content or "", raw.headers["x-burnish-adapter"]


def exact_match(client: openai.OpenAI, asked: Sequence[Question]) -> float:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda question: ask(client, question)[1], asked))
    return sum(a == q.gold for a, q in zip(answers, asked, strict=True)) / len(asked)


@dataclass
class SteadyLoad:
    """Somebody who keeps asking, all the time; what they were answered with, and what failed."""

    client: openai.OpenAI
    asked: Sequence[Question]
    adapters: list[tuple[float, str]] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> SteadyLoad:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def first_answer_by(self, ref: str) -> float | None:
        return next((at for at, adapter in list(self.adapters) if adapter.startswith(f"{ref} ")), None)

    def _run(self) -> None:
        for question in itertools.cycle(self.asked):
            if self._stop.wait(PAUSE_SECONDS):
                return
            try:
                self.adapters.append((time.monotonic(), ask(self.client, question)[2]))
            except openai.OpenAIError as error:
                self.failures.append(error)


@dataclass(frozen=True)
class Learned:
    """What came of the first run: everything that the tests below look at."""

    asked: Sequence[Question]
    held_out: Sequence[Question]
    completions: frozenset[str]
    job: Any
    before: float
    after: float
    seconds: float
    """From the last feedback to the first answer by the new version."""
    load: SteadyLoad


def make_route(stack: RealStack) -> None:
    """A new route on the base model that trains by itself once all of the feedback is in."""
    training = {
        "enabled": True,
        "min_new_rows": ASKED,
        "cooldown_seconds": 86400,
        "release": "promote",
        "method": "supervised",
        "hyperparameters": {"n_epochs": 1, "batch_size": 4},
    }
    with stack.http() as http:
        made = http.post("/v1/routes", json={"name": ROUTE, "variant": stack.model})
        assert made.status_code == 201, made.text
        changed = http.patch(f"/v1/routes/{ROUTE}", json={"policy": {"training": training}})
        assert changed.status_code == 200, changed.text


def give(client: openai.OpenAI, completion: str, **said: Any) -> None:
    client.post("/feedback", body={"completion_id": completion, **said}, cast_to=object)


def learn(real_stack: RealStack) -> Learned:
    """The whole loop, once: questions, feedback, the trigger, a run, its gate, a new default; asked all the while."""
    make_route(real_stack)
    client = real_stack.client(timeout=180)
    asked = questions(1, ASKED, [f"user-{number}" for number in range(USERS)])
    known = {question.text for question in asked}
    held_out = [q for q in questions(2, HELD_OUT, ["somebody-else"]) if q.text not in known]
    before = exact_match(client, held_out)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda question: ask(client, question, most=WRONG_TOKENS), asked))
    with SteadyLoad(client, held_out) as load:
        for number, (question, (id, text, _)) in enumerate(zip(asked, answers, strict=True)):
            if number % 13 == 12:  # most get the right answer told, the rest a thumb
                give(client, id, value=text == question.gold)
            else:
                give(client, id, demonstration=question.gold)
        last_feedback = time.monotonic()
        job = wait_for(lambda: _job(client), 30)
        done = wait_for(lambda: _ended(client, job.id), 1200, lambda: _events(client, job.id))
        assert done.status == "succeeded", f"{done.error} {_events(client, job.id)}"
        went_live = wait_for(lambda: load.first_answer_by(done.fine_tuned_model), 60)
        after = exact_match(client, held_out)
    completions = frozenset(id for id, _, _ in answers)
    return Learned(asked, held_out, completions, done, before, after, went_live - last_feedback, load)


def _job(client: openai.OpenAI) -> Any:
    return next(iter(client.fine_tuning.jobs.list(limit=1)), None)


def _ended(client: openai.OpenAI, id: str) -> Any:
    job = client.fine_tuning.jobs.retrieve(id)
    return job if job.status in ("succeeded", "failed", "cancelled") else None


def _events(client: openai.OpenAI, id: str) -> str:
    events = client.fine_tuning.jobs.list_events(id, limit=30)
    return "\n".join(
        f"{event.created_at} {event.level} {event.message}" for event in reversed(list(events.data))
    )
