"""Locust's users: who chats with one model, who mixes models, who judges the answers.

Each has one thing that it does, `act`, in the closed loop again and again with a pause between; in the open loop
`loadtests.arrivals` does it for them. Beside Locust's own entry of each request there are three of its answer: TTFT, ITL
(the answer's mean) and TOKENS/S. Does not know how long the run takes or what becomes of the figures.
"""

from __future__ import annotations

import itertools
import time
from typing import Any, ClassVar

from locust import FastHttpUser, task

from loadtests.asking import Answer, ask, call
from loadtests.figures import Act
from loadtests.plan import Plan, Question
from loadtests.workload import Message, question

LIKED_SHARE, CORRECTED_SHARE = 0.7, 0.2
"""Of what is judged: a thumb up; a correction in place of a thumb."""


class BurnishUser(FastHttpUser):
    """`plan` is set on the class before users are made. An act may run several times at once."""

    abstract = True
    plan: ClassVar[Plan]
    numbers: ClassVar[itertools.count[int]] = itertools.count()

    def __init__(self, environment: Any) -> None:
        self.network_timeout = self.connection_timeout = self.plan.options.timeout_seconds
        super().__init__(environment)
        self.number = next(self.numbers)
        self._pauses = self.plan.chance(-1 - self.number)

    def wait_time(self) -> float:
        """Exponential, as pauses of people who know nothing of each other."""
        mean = self.plan.options.think_seconds
        return self._pauses.expovariate(1 / mean) if mean else 0.0

    def on_stop(self) -> None:
        """Nothing goes on by itself."""

    @task
    def once(self) -> None:
        self.act(time.monotonic())

    def act(self, due: float) -> None:
        raise NotImplementedError

    def chat(
        self,
        due: float,
        model: str | None = None,
        before: tuple[Message, ...] = (),
        *,
        keeps_text: bool = False,
    ) -> tuple[Question, Answer]:
        """Asks the next question, of a model drawn by weight where none is named, and tells what it met."""
        plan = self.plan
        asked = plan.question(model)
        plan.measurement.in_flight += 1
        try:
            left = due + plan.options.timeout_seconds - time.monotonic()
            answer = ask(
                self.client,
                plan.body(asked, before, streams=True),
                plan.headers,
                seconds=left,
                name=asked.model,
                keeps_text=keeps_text,
            )
        finally:
            plan.measurement.in_flight -= 1
        self._tell(answer, asked.model, due)
        return asked, answer

    def _tell(self, answer: Answer, model: str, due: float) -> None:
        chat = answer.chat
        gaps, tokens = chat.gaps_seconds, chat.usage.get("completion_tokens") or len(chat.token_times)
        ttft = chat.token_times[0] - due if chat.token_times else None
        self.plan.tell(
            Act.CHAT,
            model,
            due,
            answer.sent,
            answer.ended,
            error=answer.error,
            ttft_seconds=ttft,
            gaps_seconds=gaps,
            prompt_tokens=chat.usage.get("prompt_tokens") or 0,
            answer_tokens=tokens,
        )
        if answer.error is None and ttft is not None:
            self._fire("TTFT", model, 1000 * ttft)
            if gaps and tokens > 1:
                self._fire("ITL", model, 1000 * sum(gaps) / len(gaps))
                self._fire("TOKENS/S", model, (tokens - 1) / sum(gaps))

    def _fire(self, kind: str, name: str, value: float) -> None:
        """A line of its own in Locust's statistics; what it calls milliseconds is for TOKENS/S the number."""
        self.environment.events.request.fire(
            request_type=kind, name=name, response_time=value, response_length=0, exception=None, context={}
        )


class ChatUser(BurnishUser):
    """Keeps to one model, drawn by weight, and to a conversation of `turns` questions."""

    _before: tuple[Message, ...] = ()

    def act(self, due: float) -> None:
        turns, model = self.plan.options.turns, self.plan.model(self.number)
        asked, answer = self.chat(due, model, self._before, keeps_text=turns > 1)
        if answer.error is None and len(self._before) < 2 * (turns - 1):
            said = {"role": "assistant", "content": answer.chat.text}
            self._before = (*self._before, question(asked.ask, asked.mark), said)
        else:
            self._before = ()


class MixedUser(BurnishUser):
    """Draws a model by weight for every question: many adapters at once on each engine."""

    def act(self, due: float) -> None:
        self.chat(due)


class FeedbackUser(BurnishUser):
    """Asks, then says what the answer is worth: a thumb, or what should have been answered."""

    def act(self, due: float) -> None:
        asked, answer = self.chat(due)
        if answer.error is None and answer.chat.id is not None:
            self._judge(asked, answer.chat.id)

    def _judge(self, asked: Question, completion_id: str) -> None:
        chance = self.plan.chance(asked.number)
        said: dict[str, Any] = {"completion_id": completion_id}
        if chance.random() < CORRECTED_SHARE:
            said["demonstration"] = f"It is {' '.join(asked.ask.prompt.split()[:8])}."
        else:
            said["value"] = chance.random() < LIKED_SHARE
        begun = time.monotonic()
        told = call(self.client, "POST", "/v1/feedback", self.plan.headers, name="/v1/feedback", json=said)
        self.plan.tell(Act.FEEDBACK, asked.model, begun, begun, time.monotonic(), error=told.error)
