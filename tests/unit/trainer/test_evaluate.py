"""Asking an engine, as an evaluation does; a fake engine stands where the gateway would."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.database import Database
from adapters.errors import EngineFailed, Unavailable
from adapters.jobs import Wish
from adapters.keys import Keys
from adapters.placements import Placements
from adapters.rows import Row
from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, wait_for
from tests.lora import TINY_CONFIG, write_lora
from tests.migrated import migrated
from tests.unit.trainer.tiny import row, tokenizer
from trainer import evaluate
from trainer.asking import Answers, Asker, Refused
from trainer.evaluate import Contest, Evaluation, Probe
from trainer.gate import Outcome, Rules, judge
from trainer.measures import Measure
from trainer.progress import Cancelled, Paused, Unwatched
from trainer.rendering import Rendering

CANDIDATE, INCUMBENT = "support@2", "support@1"
MAX_MODEL_LEN = 4096


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = migrated(tmp_path / "burnish.db")
    yield made
    made.close()


@pytest.fixture
def loaded(engine: FakeEngine, tmp_path: Path) -> FakeEngine:
    """An engine with two adapters, whose answers end by themselves after 12 tokens."""
    for seed, name in enumerate((INCUMBENT, CANDIDATE), 1):
        engine.load(name, write_lora(tmp_path / name, TINY_CONFIG, seed=seed))
    engine.set(tokens=12)
    return engine


@pytest.fixture
def asker(db: Database, loaded: FakeEngine) -> Iterator[Asker]:
    Placements(db).heartbeat("gateway", loaded.url)
    made = Asker(Keys(db), Placements(db), "run-1", patience_seconds=5.0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def rendering() -> Rendering:
    return Rendering(tokenizer())


def text_of(engine: FakeEngine, model: str) -> str:
    """What the fake engine says as that model, whatever it is asked."""
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 100}
    answer = engine.client.post("/v1/chat/completions", json=body).json()
    return str(answer["choices"][0]["message"]["content"])


def rows_for(answer: str, count: int = 10) -> list[Row]:
    return [row(f"question {i}", answer) for i in range(count)]


def run(asker: Asker, rendering: Rendering, cache: Path, rows: list[Row], **more: Any) -> Evaluation:
    values: dict[str, Any] = {
        "contest": Contest(CANDIDATE, INCUMBENT, MODEL),
        "cases": [],
        "watch": Unwatched(),
        "method": "supervised",
        "max_model_len": MAX_MODEL_LEN,
        **more,
    }
    contest, cases, watch = values.pop("contest"), values.pop("cases"), values.pop("watch")
    return evaluate.evaluate(asker, contest, rows, cases, rendering, cache, watch, **values)


def named(found: Evaluation, name: str) -> Measure:
    return next(measure for measure in found.measures if measure.name == name)


def test_all_sides_are_asked_the_same_with_the_same_cap(
    loaded: FakeEngine, asker: Asker, rendering: Rendering, tmp_path: Path
) -> None:
    rows = rows_for(text_of(loaded, CANDIDATE))
    before = len(loaded.requests())
    found = run(asker, rendering, tmp_path / "answers.jsonl", rows)
    exact = named(found, "exact_match")
    assert {(p.candidate, p.incumbent, p.base) for p in exact.pairs} == {(1.0, 0.0, 0.0)}
    assert all(None not in (p.candidate, p.incumbent, p.base) for p in named(found, "nll").pairs)
    asked: dict[str, list[Any]] = {}
    for request in loaded.requests()[before:]:
        body = dict(request["body"])
        asked.setdefault(body.pop("model"), []).append(repr(sorted(body.items())))
    assert set(asked) == {CANDIDATE, INCUMBENT, MODEL}
    assert len({tuple(sorted(bodies)) for bodies in asked.values()}) == 1
    answer_ids = len(rendering.ids(rows[0].prompt, rows[0].answer)[1])
    assert found.counts["cap_tokens"] == 2 * answer_ids + 64
    assert found.counts["cut"] == {"candidate": 0, "incumbent": 0, "base": 0}


def test_a_better_candidate_passes_the_gate(
    loaded: FakeEngine, asker: Asker, rendering: Rendering, tmp_path: Path
) -> None:
    found = run(asker, rendering, tmp_path / "answers.jsonl", rows_for(text_of(loaded, CANDIDATE), 12))
    verdict = judge([m for m in found.measures if "nll" not in m.name], Rules(), has_incumbent=True)
    assert verdict.outcome is Outcome.PASS  # its likelihoods are the fake engine's dice


def test_answers_that_were_cut_are_counted_and_compared_with_nothing(
    loaded: FakeEngine, asker: Asker, rendering: Rendering, tmp_path: Path
) -> None:
    rows = rows_for("short")
    loaded.set(tokens=5000)
    found = run(asker, rendering, tmp_path / "answers.jsonl", rows)
    assert found.counts["cut"] == {"candidate": 10, "incumbent": 10, "base": 10}
    assert {p.candidate for p in named(found, "chrf").pairs} == {None}
    assert {p.candidate for p in named(found, "ended").pairs} == {0.0}


def test_the_engines_likelihoods_are_of_the_answers_tokens_alone(
    loaded: FakeEngine, asker: Asker, rendering: Rendering, tmp_path: Path
) -> None:
    rows = rows_for("yes", 1)
    nll = named(run(asker, rendering, tmp_path / "a.jsonl", rows), "nll").pairs[0].candidate
    prompt, answer = rendering.ids(rows[0].prompt, rows[0].answer)
    body = {"model": CANDIDATE, "prompt": [*prompt, *answer], "max_tokens": 1, "echo": True, "logprobs": 1}
    logprobs = loaded.client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    values = logprobs["token_logprobs"][len(prompt) : len(prompt) + len(answer)]
    assert nll == pytest.approx(-sum(values) / len(answer))


def test_promise_08_an_evaluation_that_was_killed_asks_only_the_rest(
    loaded: FakeEngine, asker: Asker, rendering: Rendering, tmp_path: Path
) -> None:
    cache, rows = tmp_path / "answers.jsonl", rows_for("yes", 4)
    whole = run(asker, rendering, cache, rows)
    asked = loaded.stats()["requests"]
    lines = cache.read_bytes().splitlines(keepends=True)
    cache.write_bytes(b"".join(lines[:-3]) + lines[-3][:20])  # killed while the third last was written
    again = run(asker, rendering, cache, rows)
    assert again.measures == whole.measures
    assert loaded.stats()["requests"] == asked + 3
    assert len(Answers(cache)._known) == len(lines)


@pytest.mark.parametrize(("wish", "raised"), [(Wish.CANCEL, Cancelled), (Wish.PAUSE, Paused)])
def test_a_wish_is_obeyed_between_questions(
    loaded: FakeEngine,
    asker: Asker,
    rendering: Rendering,
    tmp_path: Path,
    wish: Wish,
    raised: type[Exception],
) -> None:
    class Impatient(Unwatched):
        def step(self, metrics: dict[str, Any]) -> Wish | None:
            return wish if metrics["evaluated"] >= 3 else None

    loaded.set(tokens=12, ttft_seconds=0.5)  # a wave of questions takes longer than to hear the wish
    with pytest.raises(raised):
        run(asker, rendering, tmp_path / "a.jsonl", rows_for("yes", 30), watch=Impatient())
    assert loaded.stats()["requests"] <= 3 + 2 * evaluate.AT_ONCE  # of 90


def test_a_busy_gateway_is_asked_again(
    loaded: FakeEngine, asker: Asker, rendering: Rendering, tmp_path: Path
) -> None:
    loaded.set(fault="refuse", fault_count=6, tokens=12)
    found = run(asker, rendering, tmp_path / "a.jsonl", rows_for("yes", 4))
    assert all(None not in (p.candidate, p.incumbent, p.base) for p in named(found, "exact_match").pairs)
    assert found.counts["refused"] == {}


def test_a_gateway_that_comes_back_elsewhere_is_found(db: Database, loaded: FakeEngine, asker: Asker) -> None:
    Placements(db).heartbeat("gateway", "http://127.0.0.1:9")
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    threading.Timer(0.5, lambda: Placements(db).heartbeat("gateway", loaded.url)).start()
    assert asker.post("/v1/completions", body)["choices"]


def test_nobody_there_ends_the_evaluation_rather_than_dropping_rows(db: Database) -> None:
    asker = Asker(Keys(db), Placements(db), "run-1", patience_seconds=0.5)
    with pytest.raises(Unavailable, match=r"no answer within 0\.5 s: No gateway is running"):
        asker.post("/v1/completions", {"model": MODEL})
    asker.close()


def test_a_question_that_is_refused_leaves_a_hole_that_shows(
    loaded: FakeEngine, asker: Asker, rendering: Rendering, tmp_path: Path
) -> None:
    with pytest.raises(Refused):
        asker.post("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 10**6})
    found = run(asker, rendering, tmp_path / "a.jsonl", rows_for("yes", 2), max_model_len=10**6)
    assert found.counts["refused"] == {}
    long = [row("x" * 5000, "yes")]  # longer than the engine's context, which the caller is wrong about
    found = run(asker, rendering, tmp_path / "b.jsonl", long, max_model_len=10**6)
    assert [(p.candidate, p.base) for p in named(found, "nll").pairs] == [(None, None)]
    assert sum(found.counts["refused"].values()) > 0


def test_only_what_the_rival_answers_right_can_be_broken(
    loaded: FakeEngine, asker: Asker, rendering: Rendering, tmp_path: Path
) -> None:
    right, wrong = rows_for(text_of(loaded, INCUMBENT), 3), [row("other", "else")]
    found = run(asker, rendering, tmp_path / "a.jsonl", rows_for("yes", 1), cases=[*right, *wrong])
    broken = named(found, "regressions")
    assert [(p.candidate, p.incumbent) for p in broken.pairs] == [(0.0, 1.0)] * 3
    held = run(asker, rendering, tmp_path / "a.jsonl", rows_for("yes", 1), cases=wrong)
    assert "regressions" not in [measure.name for measure in held.measures]


def test_a_rival_whose_answer_begins_otherwise_is_not_heard_to_the_end(
    loaded: FakeEngine, asker: Asker, rendering: Rendering, tmp_path: Path
) -> None:
    right, wrong = rows_for(text_of(loaded, INCUMBENT), 2), [row(f"other {i}", "else") for i in range(4)]
    before = len(loaded.requests())
    found = run(asker, rendering, tmp_path / "a.jsonl", [], cases=[*right, *wrong])
    assert [(p.candidate, p.incumbent) for p in named(found, "regressions").pairs] == [(0.0, 1.0)] * 2
    bodies = [request["body"] for request in loaded.requests()[before:]]
    caps = {
        model: sorted(body["max_tokens"] for body in bodies if body["model"] == model)
        for model in (CANDIDATE, INCUMBENT)
    }
    short = evaluate.BEGINNING_TOKENS
    assert caps[INCUMBENT] == [short] * 6 + caps[CANDIDATE]
    assert len(caps[CANDIDATE]) == 2
    assert min(caps[CANDIDATE]) > short


def test_a_rival_that_may_call_tools_is_heard_to_the_end_at_once(
    loaded: FakeEngine, asker: Asker, rendering: Rendering, tmp_path: Path
) -> None:
    """The beginning of a call is no call, and would be taken for words."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    case = dataclasses.replace(row("other", "else"), tools=[tool])
    before = len(loaded.requests())
    run(asker, rendering, tmp_path / "a.jsonl", [], cases=[case])
    (asked,) = loaded.requests()[before:]
    assert asked["body"]["max_tokens"] > evaluate.BEGINNING_TOKENS


def test_cases_are_the_newest_answers_that_were_put_right() -> None:
    fixed = [row(f"q{i}", rejected="no", created=float(i), feedback_id=f"f{i}") for i in range(5)]
    thumb = row("thumb", liked=False, feedback_id="f9")
    from_file = row("file", rejected="no")
    cases = evaluate.regression_cases([*fixed, thumb, from_file], held_out=[fixed[4]], most=3)
    assert cases == [fixed[3], fixed[2], fixed[1]]


def test_a_judge_is_asked_twice_with_the_sides_swapped(
    loaded: FakeEngine, asker: Asker, rendering: Rendering, tmp_path: Path
) -> None:
    found = run(asker, rendering, tmp_path / "a.jsonl", rows_for("yes", 2), judge_model=MODEL)
    asked = [
        r["body"]["messages"][0]["content"] for r in loaded.requests() if r["body"].get("max_tokens") == 16
    ]
    assert len(asked) == 4
    assert len(set(asked)) == 4
    assert {p.candidate for p in named(found, "judge").pairs} == {None}  # "I am base." is no word


# -- parity ----------------------------------------------------------------------------------------
def probe(engine: FakeEngine, rendering: Rendering, shift: float = 0.0) -> Probe:
    """What a trainer would have seen, were it `shift` nats a token away from the engine in the precision that is
    nearer to it."""
    prompt, answer = rendering.ids(
        [{"role": "user", "content": "probe"}], {"role": "assistant", "content": "yes"}
    )
    ids = [*prompt, *answer]
    body = {"model": CANDIDATE, "prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1}
    values = engine.client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"][
        "token_logprobs"
    ]
    of_answer = values[len(prompt) : len(ids)]
    views = [tuple(value + away for value in of_answer) for away in (shift + 5.0, shift)]
    return Probe(tuple(ids), len(prompt), tuple(views))


def test_parity_is_the_difference_of_the_trainers_numbers_and_the_engines(
    loaded: FakeEngine, asker: Asker, rendering: Rendering, tmp_path: Path
) -> None:
    found = evaluate.parity(
        asker, CANDIDATE, [probe(loaded, rendering, 0.1)], tmp_path / "a.jsonl", Unwatched(), 0.25
    )
    assert (found.rows, found.mean, found.max) == (1, pytest.approx(0.1), pytest.approx(0.1))


def test_promise_04_an_engine_that_serves_something_else_fails_the_run(
    loaded: FakeEngine, asker: Asker, rendering: Rendering, tmp_path: Path
) -> None:
    trained = probe(loaded, rendering)
    with pytest.raises(EngineFailed) as caught:
        evaluate.parity(asker, INCUMBENT, [trained], tmp_path / "a.jsonl", Unwatched(), 0.25)
    assert caught.value.code == "parity_failed"


def test_a_pass_is_used_and_gone_afterwards(db: Database, loaded: FakeEngine, asker: Asker) -> None:
    asker.post("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 1})
    (made,) = Keys(db).list(passes=True)
    assert made.name == "run-1"
    sent = loaded.requests()[-1]["headers"]
    assert any("sk-burnish-pass-" in str(value) for value in sent.values())
    asker.close()
    wait_for(lambda: not Keys(db).list(passes=True))
