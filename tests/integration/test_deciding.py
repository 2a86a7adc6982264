"""An experiment on real parts: a trained version against a useless one, judged by users who can check the answers.

One real vLLM with real adapters, the official client; a simulated user likes an answer exactly if it is right. The trained
version is that of `learned`; the others were made of random weights.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from loadtests.learning import Question, questions
from tests.conftest import RealStack
from tests.integration.learning import AT_ONCE, ROUTE, Learned, ask, give

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SHOP = "shop"
GOOD, USELESS, WORSE = f"{ROUTE}@1", "support@1", "sales@1"
MOST_USERS = 240
QUICK = {"least_voices": 10, "expected_voices": 60, "on_promote": "act"}
"""One version is right and the other is not: that shows within few voices, and an engine on two cores is slow."""


@pytest.fixture(scope="module")
def customers() -> Iterator[Question]:
    return itertools.chain.from_iterable(
        questions(seed, 10, [f"customer-{seed}-{n}" for n in range(10)]) for seed in itertools.count(1000)
    )


def serve_customers(client: openai.OpenAI, some: list[Question]) -> dict[str, str]:
    """Each asks, and gives a thumb; by which version each was answered."""

    def one(question: Question) -> tuple[str, str]:
        id, text, adapter = ask(client, question, SHOP)
        give(client, id, value=text == question.gold)
        return question.user, adapter.split(" ")[0]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(pool.map(one, some))


def until_ended(stack: RealStack, name: str, customers: Iterator[Question]) -> dict[str, Any]:
    """New customers come until the experiment has ended by itself."""
    client = stack.client(timeout=180)
    for _ in range(0, MOST_USERS, 20):
        serve_customers(client, list(itertools.islice(customers, 20)))
        time.sleep(1.5)  # a look
        with stack.http() as http:
            found: dict[str, Any] = http.get(f"/v1/experiments/{name}").json()
        if found["state"] == "ended":
            return found
    raise AssertionError(f"no decision after {MOST_USERS} customers: {found['current']}")


def begin(stack: RealStack, plan: dict[str, Any]) -> str:
    with stack.http() as http:
        made = http.post("/v1/experiments", json={"route": SHOP, "plan": {**QUICK, **plan}})
        assert made.status_code == 201, made.text
        return str(made.json()["name"])


def default_of(stack: RealStack) -> str:
    with stack.http() as http:
        return str(http.get(f"/v1/routes/{SHOP}").json()["variant"])


def test_the_better_version_is_found_and_promoted_and_a_worse_canary_is_gone(
    real_stack: RealStack,
    learned: Learned,
    customers: Iterator[Question],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with real_stack.http() as http:
        made = http.post("/v1/routes", json={"name": SHOP, "variant": USELESS})
        assert made.status_code == 201, made.text
    began = time.monotonic()
    first = until_ended(real_stack, begin(real_stack, {"challengers": [GOOD]}), customers)
    decided = time.monotonic()
    assert first["verdict"]["outcome"] == "promote", first["verdict"]
    assert default_of(real_stack) == GOOD
    canary = {"challengers": {WORSE: 0.4}, "policy": "canary", "steps": [0.4, 0.6], "step_seconds": 3600}
    second = until_ended(real_stack, begin(real_stack, canary), customers)
    assert second["verdict"]["outcome"] == "stopped by guardrail", second["verdict"]
    assert default_of(real_stack) == GOOD
    after = serve_customers(real_stack.client(timeout=180), list(itertools.islice(customers, 10)))
    assert {*after.values()} == {GOOD}
    with capsys.disabled():
        arms = [found["verdict"]["numbers"]["arms"] for found in (first, second)]
        voices = [{name: arm["scores"]["rating"]["voices"] for name, arm in of.items()} for of in arms]
        print(
            f"\ndeciding: {GOOD} promoted over {USELESS} after {voices[0]} voices, {decided - began:.0f} s; "
            f"canary {WORSE} gone after {voices[1]}, {time.monotonic() - decided:.0f} s"
        )
