"""The loop on real parts: corrections and thumbs in, a proven and better version out, and no request failed meanwhile.

One real vLLM, the real trainer, the official client. The task is that of `loadtests.learning`: an order in a sentence is
to be answered with one exact line of compact JSON, which the base model never gives.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest

from loadtests.learning import Question, questions
from tests.conftest import RealStack, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROUTE = "order-desk"
USERS = 52
ASKED = 104
HELD_OUT = 16
BAD = 32
MARGIN = 0.8
"""By how much the exact match on questions of users that nobody has learned from must rise. Stated beforehand."""


def ask(client: openai.OpenAI, question: Question, model: str = ROUTE) -> tuple[str, str, str]:
    """The answer's id, its text, and the adapter that its headers name."""
    raw = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": question.text}],
        max_tokens=40,
        temperature=0,
        safety_identifier=question.user,
    )
    answer = raw.parse()
    return answer.id, answer.choices[0].message.content or "", raw.headers["x-burnish-adapter"]


def exact_match(client: openai.OpenAI, asked: Sequence[Question]) -> float:
    with ThreadPoolExecutor(4) as pool:
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
            if self._stop.wait(1.0):
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
        "hyperparameters": {"n_epochs": 2, "batch_size": 8},
    }
    with stack.http() as http:
        made = http.post("/v1/routes", json={"name": ROUTE, "variant": stack.model})
        assert made.status_code == 201, made.text
        changed = http.patch(f"/v1/routes/{ROUTE}", json={"policy": {"training": training}})
        assert changed.status_code == 200, changed.text


def give(client: openai.OpenAI, completion: str, **said: Any) -> None:
    client.post("/feedback", body={"completion_id": completion, **said}, cast_to=object)


@pytest.fixture(scope="module")
def learned(real_stack: RealStack) -> Learned:
    """The whole loop, once: questions, feedback, the trigger, a run, its gate, a new default; asked all the while."""
    make_route(real_stack)
    client = real_stack.client(timeout=180)
    asked = questions(1, ASKED, [f"user-{number}" for number in range(USERS)])
    known = {question.text for question in asked}
    held_out = [q for q in questions(2, HELD_OUT, ["somebody-else"]) if q.text not in known]
    before = exact_match(client, held_out)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda question: ask(client, question), asked))
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


def test_corrections_become_a_proven_version_that_goes_live(
    learned: Learned, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(
            f"\nlearning: {learned.seconds:.0f} s from the last feedback to the first answer by "
            f"{learned.job.fine_tuned_model}; held-out exact match {learned.before:.2f} -> {learned.after:.2f}; "
            f"{len(learned.load.adapters)} requests meanwhile"
        )
    assert learned.after - learned.before >= MARGIN
    assert learned.job.gate["report"]["outcome"] == "pass"


def test_promise_05_no_request_fails_while_a_route_learns_and_changes_its_default(learned: Learned) -> None:
    assert learned.load.failures == []
    ref = learned.job.fine_tuned_model
    assert {adapter.split(" ")[0] for _, adapter in learned.load.adapters} == {"base", ref}


def test_promise_04_the_engine_agrees_with_the_trainer_on_what_was_trained(learned: Learned) -> None:
    parity = learned.job.gate["report"]["parity"]
    assert parity["rows"] > 0
    assert parity["worst_row_mean"] <= 0.25


def test_promise_06_a_version_leads_back_to_the_completions_that_it_learned_from(
    real_stack: RealStack, learned: Learned
) -> None:
    shown = json.loads(real_stack.server.burnish("adapters", "show", f"{ROUTE}@1", "--json").stdout)
    assert shown["origin"] == learned.job.id
    assert shown["approval"]["kind"] == "gate"
    lineage = shown["lineage"]
    assert lineage["dataset"].startswith("sha256:")
    assert {*lineage["completions"]} <= learned.completions
    assert len(lineage["completions"]) == lineage["rows"]["train"] + lineage["rows"]["held_out"]
    card = real_stack.server.burnish("adapters", "card", f"{ROUTE}@1").stdout
    assert "Gate: **pass**" in card


def test_rolling_back_and_forth_is_immediate(real_stack: RealStack, learned: Learned) -> None:
    client = real_stack.client()
    for verb, version in (("rollback", "base"), ("promote", f"{ROUTE}@1")):
        real_stack.server.burnish(verb, ROUTE if verb == "rollback" else version)
        wait_for(lambda version=version: ask(client, learned.held_out[0])[2].startswith(version), 5)


def test_promise_10_a_planted_bad_batch_does_not_pass_the_gate(
    real_stack: RealStack, learned: Learned, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody's key sends wrong corrections in the names of many users: what was right becomes wrong by them."""
    made = real_stack.server.burnish("keys", "create", "--name", "planted", "--scope", "inference")
    planted = real_stack.server.client(api_key=made.stdout.strip(), timeout=180)
    known = {question.text for question in (*learned.asked, *learned.held_out)}
    bad = [q for q in questions(3, BAD, [f"ghost-{n}" for n in range(BAD)]) if q.text not in known]
    wait_for(lambda: _may(planted))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda question: ask(planted, question), bad))
    right = [(id, q) for q, (id, text, _) in zip(bad, answers, strict=True) if text == q.gold]
    assert len(right) > 0.8 * len(bad)
    for id, question in right:
        wrong = json.dumps({**json.loads(question.gold), "color": "none", "count": 0}, separators=(",", ":"))
        give(planted, id, demonstration=wrong)
    refused = real_stack.server.burnish("train", ROUTE, check=False, timeout=900)
    assert refused.returncode == 1
    assert "gate_failed" in refused.stderr or "gate_inconclusive" in refused.stderr
    version = json.loads(real_stack.server.burnish("adapters", "show", f"{ROUTE}@2", "--json").stdout)
    assert version["state"] == "rejected"
    with capsys.disabled():
        print(f"\nplanted: {version['reason']}")
    assert exact_match(real_stack.client(timeout=180), learned.held_out) == learned.after
    route = json.loads(real_stack.server.burnish("routes", "show", ROUTE, "--json").stdout)
    assert route["variant"] == f"{ROUTE}@1"


def _may(client: openai.OpenAI) -> bool:
    try:
        client.models.list()
    except openai.AuthenticationError:
        return False
    return True


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
