"""The loop on real parts: corrections and thumbs in, a proven and better version out, and no request failed meanwhile.

One real vLLM, the real trainer, the official client (see `tests.integration.learning`).
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from loadtests.learning import questions
from tests.conftest import RealStack, wait_for
from tests.integration.learning import AT_ONCE, ROUTE, Learned, ask, exact_match, give

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

BAD = 32
MARGIN = 0.8
"""By how much the exact match on questions of users that nobody has learned from must rise. Stated beforehand."""


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
    with ThreadPoolExecutor(AT_ONCE) as pool:
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
