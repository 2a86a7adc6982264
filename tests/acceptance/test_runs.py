"""Training runs as the official SDK orders and sees them, on real processes; how they are killed is test_killed_runs'."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from adapters.jobs import Jobs, JobState
from adapters.versions import VersionState
from tests.acceptance.workshop import (
    EASY,
    HARD,
    HELD_OUT,
    HYPERPARAMETERS,
    STEPS,
    TOLERANT,
    VAGUE,
    Accidents,
    Question,
    SteadyClient,
    Workshop,
    always,
    teach,
    workshop,
)
from tests.conftest import MODEL, processes_of, wait_for

MEMORY_GIB = 2.5
"""More than twice what a run of the tiny model takes."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """`burnish serve` with its own worker."""
    with workshop(tmp_path_factory.mktemp("live") / "home", TOLERANT, worker=True) as made:
        yield made


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """`burnish serve` without a worker: each test starts the one that it needs."""
    config = f"{TOLERANT}memory_gib = {MEMORY_GIB}\n"
    with workshop(tmp_path_factory.mktemp("shop") / "home", config) as made:
        yield made


# -- the whole loop --------------------------------------------------------------------------------
@dataclass(frozen=True)
class Loop:
    """What was seen from the first correction to the rollback."""

    shop: Workshop
    job: FineTuningJob
    completions: frozenset[str]
    """Those that were corrected."""
    visitor: SteadyClient
    """Who asked the route all the while."""
    early: list[str]
    """Answers of the new version to others than its run, from before its gate had passed."""
    rolled_back: tuple[str, str, bool]
    """The first answer after the rollback."""


@pytest.fixture(scope="module")
def loop(live: Workshop) -> Loop:
    teach(live.engine, better=["support"])
    training = {"enabled": True, "min_new_rows": len(HARD), "hyperparameters": HYPERPARAMETERS}
    live.make_route("support", {"training": training})
    client, early = live.client, list[str]()

    def try_the_candidate() -> None:
        with contextlib.suppress(openai.NotFoundError):
            answered = _ask(live, "support@1")
            if live.default("support") == MODEL:
                early.append(answered)

    with SteadyClient(live.client, "support", HARD) as visitor:
        with always(try_the_candidate):
            completions = frozenset(_correct(client, question) for question in HARD)
            (job,) = wait_for(lambda: list(client.fine_tuning.jobs.list()), 20)
            done = live.until_ended(job.id)
        assert done.status == "succeeded", live.log_of(job.id)
        wait_for(lambda: visitor.adapters[-1] == "support@1", 20)
        with live.server.http() as http:
            assert http.post("/v1/routes/support/rollback", json={}).json()["variant"] == MODEL
        rolled_back = visitor.ask(HARD[0])
        wait_for(lambda: visitor.adapters[-1] == "base", 20)
    return Loop(live, done, completions, visitor, early, rolled_back)


def _correct(client: openai.OpenAI, question: Question) -> str:
    """Asks a question and corrects the answer; the completion's id."""
    made = client.chat.completions.create(
        model="support",
        messages=[{"role": "user", "content": question.text}],
        max_tokens=40,
        user=question.user,
    )
    assert made.choices[0].message.content == VAGUE
    body = {"completion_id": made.id, "demonstration": question.gold}
    client.post("/feedback", body=body, cast_to=object)
    return made.id


def test_corrections_become_a_better_version_by_themselves(loop: Loop) -> None:
    job = loop.job
    assert (job.fine_tuned_model, job.error) == ("support@1", None)
    assert (job.method and job.method.type) == "dpo"
    assert (job.trained_tokens or 0) > 0
    assert (job.model_extra or {})["gate"]["report"]["outcome"] == "pass"
    assert {(adapter, is_right) for adapter, _, is_right in loop.visitor.answers} == {
        ("base", False),
        ("support@1", True),
    }


def test_promise_04_nobody_is_answered_by_a_candidate_before_its_gate_has_passed(loop: Loop) -> None:
    assert loop.early == []
    assert loop.shop.registry.version("support@1").approval["kind"] == "gate"


def test_promise_05_no_request_fails_while_a_version_goes_live_and_is_rolled_back_at_once(loop: Loop) -> None:
    assert loop.visitor.failures == []
    assert loop.visitor.adapters == ["base", "support@1", "base"]
    assert loop.rolled_back == ("base", VAGUE, False)


def test_promise_06_a_version_leads_back_to_its_run_its_dataset_and_its_rows(loop: Loop) -> None:
    shown = json.loads(loop.shop.server.burnish("adapters", "show", "support@1", "--json").stdout)
    assert (shown["state"], shown["origin"]) == ("proved", loop.job.id)
    lineage = shown["lineage"]
    assert (lineage["job"], lineage["route"], lineage["method"]) == (loop.job.id, "support", "dpo")
    assert lineage["dataset"].startswith("sha256:")
    assert lineage["rows"] == {"train": len(HARD) - HELD_OUT, "held_out": HELD_OUT}
    assert set(lineage["completions"]) == loop.completions


def test_a_version_has_a_card_that_holds_no_prompt(loop: Loop) -> None:
    card = loop.shop.server.burnish("adapters", "card", "support@1").stdout
    assert card.startswith("# support@1\n")
    assert f"by run `{loop.job.id}` (dpo). Gate: **pass**. Approval: gate." in card
    assert "| exact match | primary | base | 0.000 | 1.000 |" in card
    assert not any(question.text in card or question.gold in card for question in HARD)


def test_a_run_tells_of_every_step_and_leaves_its_numbers_in_a_file(loop: Loop) -> None:
    client, id = loop.shop.client, loop.job.id
    events = list(client.fine_tuning.jobs.list_events(id, limit=100))
    metrics = [event.data for event in events if event.type == "metrics"]
    told = [numbers for numbers in metrics if "loss" in numbers]
    assert [numbers["step"] for numbers in told] == list(range(STEPS, 0, -1))
    names = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory_bytes", "eta_seconds")
    for numbers in told:
        assert all(isinstance(numbers[name], float | int) for name in names)
    assert told[0]["eta_seconds"] == 0 < told[-1]["eta_seconds"]
    evaluated = [numbers for numbers in metrics if "validation_loss" in numbers]
    assert [numbers["step"] for numbers in evaluated] == [8, 6, 4, 2]
    assert events[0].message == "The job has successfully completed"
    points = client.fine_tuning.jobs.checkpoints.list(id)
    assert [point.step_number for point in points] == [8, 6, 4, 2]
    (file,) = loop.job.result_files
    assert client.files.retrieve(file).filename == "step_metrics.csv"
    lines = list(csv.DictReader(io.StringIO(client.files.content(file).text)))
    assert [int(line["step"]) for line in lines] == list(range(1, STEPS + 1))
    assert all(float(line["train_loss"]) > 0 for line in lines)
    assert [int(line["step"]) for line in lines if line["valid_loss"]] == [2, 4, 6, 8]


def test_promise_08_a_worker_that_is_told_to_stop_saves_a_checkpoint_and_the_next_one_goes_on(
    live: Workshop,
) -> None:
    teach(live.engine, better=["long"])
    job = live.order("long", hyperparameters={**HYPERPARAMETERS, "n_epochs": 25})
    wait_for(lambda: live.job(job.id).progress.get("step"), 120, lambda: live.log_of(job.id))
    token = live.job(job.id).token
    (worker,) = _serves_worker(live)
    os.kill(worker, signal.SIGTERM)
    queued = wait_for(lambda: (now := live.job(job.id)).state is JobState.QUEUED and now, 60)
    assert (queued.attempts, queued.token, queued.worker) == (0, token, None), "its attempt is not counted"
    last = queued.progress["step"]
    assert f"Checkpoint created at step {last}" in live.events(job.id)
    done = live.until_ended(job.id)
    assert done.status == "succeeded", live.log_of(job.id)
    ended = live.job(job.id)
    assert (ended.attempts, ended.token) == (1, token + 1)
    points = {point.step_number for point in live.client.fine_tuning.jobs.checkpoints.list(job.id, limit=100)}
    assert last in points
    assert _steps(live, job.id) == list(range(1, 101)), "no step was lost, none was done twice"
    assert live.default("long") == "long@1"


def _serves_worker(live: Workshop) -> list[int]:
    command = [b"-m", b"trainer.worker"]
    return [
        pid
        for pid in processes_of(live.server.home)
        if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:3] == command
    ]


def _steps(shop: Workshop, id: str) -> list[int]:
    """The optimizer steps of which the job has told, in order."""
    events, _ = Jobs(shop.db).events(id, kinds=["metrics"], limit=1000)
    return [event.data["step"] for event in reversed(events) if "loss" in event.data]


# -- what a person asks of a run -------------------------------------------------------------------
def test_a_run_is_paused_resumed_and_cancelled_within_one_optimizer_step(
    shop: Workshop, tmp_path: Path
) -> None:
    accidents = Accidents(tmp_path, ("step:wait",))
    job = shop.order("patient", hyperparameters={**HYPERPARAMETERS, "n_epochs": 50})
    jobs = shop.client.fine_tuning.jobs
    with shop.worker(accidents):
        wait_for(lambda: len(accidents.steps) > 2, 120, lambda: shop.log_of(job.id))
        answer, asked_at = jobs.pause(job.id), time.time()
        assert answer.status == "running", "until it has obeyed"
        wait_for(lambda: jobs.retrieve(job.id).status == "paused", 60)
        assert len([at for _, _, at in accidents.steps if at > asked_at]) <= 1
        done = accidents.steps
        assert jobs.checkpoints.list(job.id).data[0].step_number == done[-1][1]
        time.sleep(1.0)
        assert accidents.steps == done
        assert shop.job(job.id).attempts == 0, "a pause is no failed attempt"

        assert jobs.resume(job.id).status == "queued"
        wait_for(lambda: len(accidents.steps) > len(done) + 2, 120, lambda: shop.log_of(job.id))
        first, second = accidents.attempts
        assert second[0] == first[-1] + 1, "it goes on where it was"
        answer, asked_at = jobs.cancel(job.id), time.time()
        assert answer.status == "cancelled"
        wait_for(lambda: shop.job(job.id).has_ended, 60)
        assert len([at for _, _, at in accidents.steps if at > asked_at]) <= 1
    assert shop.job(job.id).state is JobState.CANCELLED
    assert shop.versions_of(job.id) == []
    assert shop.events(job.id)[-1] == "The job has been cancelled"


# -- the gate --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ended(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The ends of four jobs that one worker did one after another. The first takes more and more memory."""
    teach(shop.engine, worse=["worse"], tied=["greedy", "tied", "told"])
    for route in ("worse", "tied", "told"):
        shop.make_route(route)
    jobs = {
        "greedy": shop.order("greedy"),
        "worse": shop.order("worse", EASY, extra_body={"route": "worse"}),
        "tied": shop.order("tied", extra_body={"route": "tied"}),
        "told": shop.order("told", extra_body={"route": "told", "gate": "report"}),
    }
    with shop.worker(Accidents(tmp_path_factory.mktemp("accidents"), ("step:grow",))):
        return {name: shop.until_ended(job.id) for name, job in jobs.items()}


def test_a_run_that_is_out_of_memory_fails_alone(shop: Workshop, ended: dict[str, Any]) -> None:
    greedy = ended["greedy"]
    assert (greedy.status, greedy.error.code) == ("failed", "out_of_memory")
    assert f"training.memory_gib allows ({MEMORY_GIB} GiB)" in greedy.error.message
    assert shop.job(greedy.id).attempts == 1, "more memory will not be there the next time"
    assert shop.versions_of(greedy.id) == []
    assert ended["told"].status == "succeeded", "the worker goes on with the next jobs"


def test_promise_04_a_worse_candidate_is_not_published(shop: Workshop, ended: dict[str, Any]) -> None:
    worse = ended["worse"]
    assert (worse.status, worse.error.code, worse.fine_tuned_model) == ("failed", "gate_failed", None)
    assert "exact_match: 1.000 (base) -> 0.000, worse" in worse.error.message
    (version,) = shop.versions_of(worse.id)
    assert (version.ref, version.state) == ("worse@1", VersionState.REJECTED)
    assert "its gate failed" in (version.reason or "")
    assert shop.default("worse") == MODEL
    with pytest.raises(openai.NotFoundError):
        _ask(shop, "worse@1")
    refused = shop.server.burnish("promote", "worse@1", check=False)
    assert refused.returncode != 0
    assert shop.default("worse") == MODEL


def test_promise_04_a_tie_is_inconclusive_and_not_published(shop: Workshop, ended: dict[str, Any]) -> None:
    tied = ended["tied"]
    assert (tied.status, tied.error.code) == ("failed", "gate_inconclusive")
    assert tied.model_extra["gate"]["report"]["outcome"] == "inconclusive"
    (version,) = shop.versions_of(tied.id)
    assert (version.state, version.may_serve) == (VersionState.REJECTED, False)
    assert shop.default("tied") == MODEL


def test_promise_04_a_persons_approval_is_on_record_and_lets_a_rejected_version_be_proved_and_promoted(
    shop: Workshop, ended: dict[str, Any]
) -> None:
    shop.server.burnish("adapters", "approve", "tied@1", "--reason", "the new wording is the law")
    wait_for(lambda: shop.registry.version("tied@1").state is VersionState.PROVED, 30)
    approval = shop.registry.version("tied@1").approval
    assert (approval["kind"], approval["reason"]) == ("override", "the new wording is the law")
    assert approval["by"]
    assert approval["over"]["outcome"] == "inconclusive", "what it overrules stays with it"
    assert shop.default("tied") == MODEL, "to approve is not to promote"
    shop.server.burnish("promote", "tied@1")
    wait_for(lambda: _ask(shop, "tied") == "tied@1", 5)


def test_promise_04_a_job_with_gate_report_publishes_on_its_creators_word_on_record(
    shop: Workshop, ended: dict[str, Any]
) -> None:
    told = ended["told"]
    assert (told.status, told.fine_tuned_model) == ("succeeded", "told@1")
    assert told.model_extra["gate"] == {"mode": "report", "report": told.model_extra["gate"]["report"]}
    assert told.model_extra["gate"]["report"]["outcome"] == "inconclusive"
    (version,) = shop.versions_of(told.id)
    assert version.state is VersionState.PROVED
    assert (version.approval["kind"], version.approval["outcome"]) == ("override", "inconclusive")
    assert version.approval["by"] == shop.job(told.id).payload["actor"]
    assert "gate 'report'" in version.approval["reason"]
    assert _ask(shop, "told") == "told@1"


def _ask(shop: Workshop, model: str) -> str:
    """The adapter that answers."""
    raw = shop.client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": HARD[0].text}], max_tokens=20
    )
    return raw.headers["x-burnish-adapter"].split()[0]


# -- train-serve parity ----------------------------------------------------------------------------
def test_promise_04_an_engine_that_computes_other_log_probabilities_than_the_trainer_fails_the_run(
    shop: Workshop, tmp_path: Path
) -> None:
    teach(shop.engine, better=["parity"])
    shop.make_route("parity")
    strict = tmp_path / "burnish.toml"
    lines = shop.server.config.read_text().splitlines()
    strict.write_text("\n".join(line for line in lines if not line.startswith("parity_tolerance")))
    job = shop.order("parity", extra_body={"route": "parity"})
    with shop.worker(environ={"BURNISH_CONFIG": str(strict)}):
        failed = shop.until_ended(job.id)
    assert (failed.status, failed.error and failed.error.code) == ("failed", "parity_failed")
    assert failed.error is not None
    assert (
        "The engine does not serve what was trained: its log-probabilities differ by" in failed.error.message
    )
    assert "(0.25 are tolerated)" in failed.error.message
    _withdrawn(shop, job.id)
    assert shop.default("parity") == MODEL


def test_promise_04_an_engine_that_reads_texts_as_other_tokens_than_the_trainer_fails_the_run(
    tmp_path: Path,
) -> None:
    with workshop(tmp_path / "home", worker=True) as shop:
        teach(shop.engine, better=["canary"])
        shop.make_route("canary")
        job = shop.order("canary", extra_body={"route": "canary"})
        failed = shop.until_ended(job.id)
        assert (failed.status, failed.error and failed.error.code) == ("failed", "candidate_refused")
        assert failed.error is not None
        assert "canary@1 is failed: engine e0: its tokenizer makes" in failed.error.message
        (version,) = shop.versions_of(job.id)
        assert version.state is VersionState.FAILED
        assert shop.default("canary") == MODEL
        with pytest.raises(openai.NotFoundError):
            _ask(shop, "canary@1")


def _withdrawn(shop: Workshop, job_id: str) -> None:
    """Its candidate is nobody's any more."""
    (version,) = wait_for(
        lambda: [v for v in shop.versions_of(job_id) if v.state is not VersionState.CANDIDATE], 30
    )
    assert (version.state, version.reason) == (VersionState.REJECTED, "its run ended before its gate did")
