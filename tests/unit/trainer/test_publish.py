"""The one step from a verdict to a version that serves, or does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from adapters.artifacts import ArtifactStore
from adapters.changes import events
from adapters.database import Database
from adapters.errors import Conflict, NotFound, StaleWorker
from adapters.jobs import Job, Jobs, JobState
from adapters.placements import Placements, PlacementState
from adapters.registry import Registry, withdraw_orphans
from adapters.routes import Challenger, Routes
from adapters.settings import Settings
from adapters.versions import VersionRecord, VersionState
from tests.lora import TINY_CONFIG, write_lora
from tests.migrated import migrated
from trainer.evaluate import Contest, contest_of
from trainer.gate import Rules, Verdict, judge
from trainer.measures import Measure, Pair, Role
from trainer.publish import Origin, Proof, publish

BASE = "base-model"
ORIGIN = Origin(
    method="dpo",
    dataset="sha256:" + "d" * 64,
    trained_tokens=1234,
    data={
        "drawn": 20,
        "filters": [{"name": "duplicate", "count": 2, "examples": [{"text": "a secret prompt"}]}],
        "train": {"rows": 10, "units": 5, "kinds": {"preference": 10}},
        "held_out": {"rows": 8, "units": 8, "kinds": {"preference": 8}},
    },
    manifest={"recipe": {"method": "dpo", "seed": 7, "start_from": None}, "versions": {"trl": "1.16"}},
)


@dataclass
class Workshop:
    """A database with a claimed job and its candidate."""

    db: Database
    registry: Registry
    routes: Routes
    settings: Settings
    folder: Path

    def job(self, **payload: Any) -> Job:
        jobs = Jobs(self.db)
        values = {
            "adapter": "support",
            "route": "support",
            "base_model": BASE,
            "release": "promote",
            "gate": "require",
            "actor": "anna",
            **payload,
        }
        jobs.enqueue(kind="training", route=values["route"], payload=values)
        claimed = jobs.claim("worker", ["training"], 60.0)
        assert claimed is not None
        return claimed

    def candidate(self, job: Job, seed: int = 1, *, held: bool = True) -> VersionRecord:
        version = self.registry.import_adapter(
            job.payload["adapter"],
            write_lora(self.folder / f"lora-{seed}", TINY_CONFIG, seed=seed),
            BASE,
            TINY_CONFIG,
            "anna",
            origin=job.id,
            approval={"kind": "pending", "job": job.id},
            state=VersionState.CANDIDATE,
            fingerprint={"logprobs": [-1.0], "by": "trainer"},
        )
        if held:
            Placements(self.db).put("e0", version.ref, PlacementState.PROVED)
        return version

    def proof(self, version: VersionRecord, verdict: Verdict, job: Job) -> Proof:
        with self.db.read() as connection:
            contest = contest_of(connection, job.payload, version.ref)
        parity = {"rows": 3, "mean": 0.01, "worst_row_mean": 0.02, "max": 0.05}
        counts = {"rows": 12, "cap_tokens": 99, "cut": {"candidate": 0, "base": 7}, "refused": {}}
        return Proof(contest, verdict, counts, parity)

    def publish(self, job: Job, version: VersionRecord, verdict: Verdict) -> Job:
        return publish(self.db, self.settings, job, self.proof(version, verdict, job), ORIGIN, now=50.0)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    settings = Settings(home=tmp_path / "home")
    db = migrated(settings.home / "burnish.db")
    registry = Registry(db, ArtifactStore(settings.artifact_root), [])
    registry.register_base(BASE, None)
    yield Workshop(db, registry, Routes(db), settings, tmp_path)
    db.close()


def verdict(candidate: float, rival: float) -> Verdict:
    pairs = tuple(Pair(f"u{i}", candidate, rival, rival) for i in range(12))
    return judge([Measure("exact_match", Role.PRIMARY, pairs)], Rules(), has_incumbent=True)


PASS, FAIL, TIE = verdict(1.0, 0.0), verdict(0.0, 1.0), verdict(0.5, 0.5)


def test_a_pass_publishes_version_route_card_and_job_together(shop: Workshop) -> None:
    job = shop.job()
    shop.routes.create("support", BASE, "anna")
    version = shop.candidate(job)
    done = shop.publish(job, version, PASS)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert done.result is not None
    assert done.result["fine_tuned_model"] == "support@1"
    assert done.result["gate"]["outcome"] == "pass"
    assert done.result["release"] == {"route": "support", "default": "support@1"}
    published = shop.registry.version("support@1")
    assert published.state is VersionState.PROVED
    assert {key: published.approval[key] for key in ("kind", "by", "job", "outcome", "at")} == {
        "kind": "gate",
        "by": job.id,
        "job": job.id,
        "outcome": "pass",
        "at": 50.0,
    }
    assert shop.routes.get("support").history == (BASE,)
    assert shop.routes.rollback("support", actor="anna").variant == BASE


def test_the_card_tells_data_recipe_results_limits_and_lineage_and_no_text(shop: Workshop) -> None:
    job = shop.job()
    version = shop.candidate(job)
    shop.publish(job, version, PASS)
    card = shop.settings.card(version.ref).read_text()
    for heading in ("## Data", "## Recipe", "## Results", "## Limits", "## Lineage"):
        assert heading in card
    assert (
        "| exact match | primary | incumbent | 0.000 | 1.000 | 1.000 | 1.000 to 1.000 | 12 | better |" in card
    )
    assert "duplicate: 2 left out" in card
    assert "7 of the base's 12 answers were cut at 99 tokens" in card
    assert "trained from: the base model\n- route: support" in card
    assert "secret prompt" not in card


def test_the_first_version_of_a_name_makes_its_route(shop: Workshop) -> None:
    job = shop.job()
    shop.publish(job, shop.candidate(job), PASS)
    assert shop.routes.get("support").variant == "support@1"


def test_a_route_of_another_name_is_made_too(shop: Workshop) -> None:
    job = shop.job(route="help")
    shop.publish(job, shop.candidate(job), PASS)
    assert shop.routes.get("help").variant == shop.routes.get("support").variant == "support@1"


def test_release_ask_waits_for_a_person(shop: Workshop) -> None:
    job = shop.job(release="ask")
    shop.routes.create("support", BASE, "anna")
    done = shop.publish(job, shop.candidate(job), PASS)
    assert shop.registry.version("support@1").state is VersionState.PROVED
    assert shop.routes.get("support").variant == BASE
    assert done.result is not None
    assert done.result["release"]["waits"] == "for a promotion"
    assert shop.routes.promote("support", "support@1", "anna").variant == "support@1"


def test_release_challenge_gives_a_small_share_of_the_traffic(shop: Workshop) -> None:
    shop.routes.create("support", BASE, "anna")
    shop.routes.change_policy("support", {"training": {"challenger_share": 0.2}}, "anna")
    job = shop.job(release="challenge")
    done = shop.publish(job, shop.candidate(job), PASS)
    route = shop.routes.get("support")
    assert (route.variant, route.challengers) == (BASE, (Challenger("support@1", 0.2),))
    assert done.result is not None
    assert done.result["release"] == {
        "route": "support",
        "default": BASE,
        "challenger": "support@1",
        "share": 0.2,
    }


def test_a_challenger_that_finds_no_share_left_waits(shop: Workshop) -> None:
    shop.routes.create("support", BASE, "anna")
    shop.routes.change_policy("support", {"training": {"challenger_share": 0.6}}, "anna")
    for number in (1, 2):
        job = shop.job(release="challenge")
        done = shop.publish(job, shop.candidate(job, seed=number), PASS)
    assert shop.routes.get("support").challengers == (Challenger("support@1", 0.6),)
    assert done.state is JobState.SUCCEEDED
    assert done.result is not None
    assert "must be below 1" in done.result["release"]["waits"]


def test_a_job_without_a_route_moves_none(shop: Workshop) -> None:
    shop.routes.create("support", BASE, "anna")
    job = shop.job(route=None)
    shop.publish(job, shop.candidate(job), PASS)
    assert shop.routes.get("support").variant == BASE


def test_a_default_that_changed_meanwhile_is_not_replaced(shop: Workshop) -> None:
    """The candidate was shown to be better than something that serves no more."""
    shop.routes.create("support", BASE, "anna")
    job = shop.job()
    version = shop.candidate(job)
    proof = shop.proof(version, PASS, job)
    other = shop.registry.import_adapter(
        "support", write_lora(shop.folder / "other", TINY_CONFIG, seed=9), BASE, TINY_CONFIG, "anna"
    )
    shop.registry.set_state(other.ref, VersionState.PROVED, None, "reconcile")
    shop.routes.promote("support", other.ref, "anna")
    done = publish(shop.db, shop.settings, job, proof, ORIGIN)
    assert shop.routes.get("support").variant == other.ref
    assert done.result is not None
    assert "the default became support@2" in done.result["release"]["waits"]


@pytest.mark.parametrize(("told", "code"), [(FAIL, "gate_failed"), (TIE, "gate_inconclusive")])
def test_without_a_pass_nothing_is_published(shop: Workshop, told: Verdict, code: str) -> None:
    shop.routes.create("support", BASE, "anna")
    job = shop.job()
    done = shop.publish(job, shop.candidate(job), told)
    assert done.state is JobState.FAILED
    assert done.error is not None
    assert done.error["code"] == code
    assert "exact_match" in done.error["message"]
    rejected = shop.registry.version("support@1")
    assert rejected.state is VersionState.REJECTED
    assert rejected.reason is not None
    assert not rejected.may_serve
    assert shop.routes.get("support").variant == BASE
    with pytest.raises(Conflict):
        shop.routes.promote("support", "support@1", "anna")


def test_promise_04_a_job_ordered_with_gate_report_is_its_creators_override_on_record(shop: Workshop) -> None:
    job = shop.job(gate="report")
    assert shop.publish(job, shop.candidate(job), TIE).state is JobState.SUCCEEDED
    approval = shop.registry.version("support@1").approval
    assert (approval["kind"], approval["by"], approval["outcome"]) == ("override", "anna", "inconclusive")
    assert "gate 'report'" in approval["reason"]


def test_promise_04_what_no_engine_holds_is_not_published(shop: Workshop) -> None:
    job = shop.job()
    version = shop.candidate(job, held=False)
    with pytest.raises(Conflict) as caught:
        shop.publish(job, version, PASS)
    assert caught.value.code == "version_not_ready"
    Placements(shop.db).put("e0", version.ref, PlacementState.PROVED)
    Placements(shop.db).put("e1", version.ref, PlacementState.FAILED, "no slot")
    with pytest.raises(Conflict):
        shop.publish(job, version, PASS)
    assert shop.registry.version(version.ref).state is VersionState.CANDIDATE


def test_promise_08_a_stale_worker_publishes_nothing(shop: Workshop) -> None:
    shop.routes.create("support", BASE, "anna")
    job = shop.job()
    version = shop.candidate(job)
    Jobs(shop.db).release(job.id, job.token)
    assert Jobs(shop.db).claim("other", ["training"], 60.0) is not None
    before = shop.registry.revision()
    with pytest.raises(StaleWorker):
        origin = replace(ORIGIN, steps_csv=b"step,train_loss\n1,2.0\n")
        publish(shop.db, shop.settings, job, shop.proof(version, PASS, job), origin)
    assert shop.registry.revision() == before
    assert shop.registry.version(version.ref).state is VersionState.CANDIDATE
    assert shop.routes.get("support").variant == BASE
    assert not shop.settings.card(version.ref).exists()
    assert not shop.settings.file_root.exists()


def test_two_versions_of_the_same_bytes_have_a_card_each(shop: Workshop) -> None:
    for told in (FAIL, PASS):
        job = shop.job()
        shop.publish(job, shop.candidate(job), told)
    first, second = shop.registry.versions("support")
    assert first.digest == second.digest
    for version, outcome in ((first, "fail"), (second, "pass")):
        card = shop.settings.card(version.ref).read_text()
        assert card.startswith(f"# {version.ref}\n")
        assert f"Gate: **{outcome}**" in card


def test_promise_08_a_job_that_is_to_be_cancelled_publishes_nothing(shop: Workshop) -> None:
    job = shop.job()
    version = shop.candidate(job)
    Jobs(shop.db).cancel(job.id, "anna")
    with pytest.raises(StaleWorker):
        shop.publish(job, version, PASS)
    assert shop.registry.version(version.ref).state is VersionState.CANDIDATE
    with pytest.raises(NotFound):
        shop.routes.get("support")


def test_a_candidate_whose_run_has_ended_is_withdrawn(shop: Workshop) -> None:
    job = shop.job()
    version = shop.candidate(job)
    assert withdraw_orphans(shop.db) == ()
    Jobs(shop.db).fail(job.id, job.token, {"code": "out_of_memory", "message": "it grew"})
    assert withdraw_orphans(shop.db) == (version.ref,)
    assert shop.registry.version(version.ref).state is VersionState.REJECTED
    assert "its run ended" in str(events(shop.db, subject=version.ref)[0].detail)


def test_a_candidate_is_held_against_the_routes_default(shop: Workshop) -> None:
    def contest(**payload: Any) -> Contest:
        with shop.db.read() as connection:
            values = {"adapter": "support", "route": "support", "base_model": BASE, **payload}
            return contest_of(connection, values, "support@9")

    assert contest() == Contest("support@9", None, BASE)
    shop.routes.create("support", BASE, "anna")
    assert contest() == Contest("support@9", None, BASE, BASE)
    job = shop.job()
    shop.publish(job, shop.candidate(job), PASS)
    assert contest() == Contest("support@9", "support@1", BASE, "support@1")
    assert contest(route=None).incumbent == "support@1"
    shop.registry.set_state("support@1", VersionState.QUARANTINED, "forgotten user", "anna")
    assert contest() == Contest("support@9", None, BASE, "support@1")


# -- experiments -----------------------------------------------------------------------------------
def released(done: Job) -> dict[str, Any]:
    assert done.state is JobState.SUCCEEDED
    assert done.result is not None
    release: dict[str, Any] = done.result["release"]
    return release


def test_release_experiment_begins_one_by_the_routes_plan(shop: Workshop) -> None:
    shop.routes.create("support", BASE, "anna")
    shop.routes.change_policy("support", {"experiment": {"policy": "canary", "steps": [0.02, 0.5]}}, "anna")
    job = shop.job(release="experiment")
    done = shop.publish(job, shop.candidate(job), PASS)
    assert released(done) == {
        "route": "support",
        "default": BASE,
        "challenger": "support@1",
        "share": 0.02,
        "experiment": "support-1",
    }
    (begun,) = shop.registry.snapshot_rows().experiments
    assert (begun.name, begun.control, begun.actor, begun.created) == ("support-1", BASE, job.id, 50.0)
    assert begun.shares == {BASE: 0.98, "support@1": 0.02}
    assert begun.plan == shop.routes.get("support").policy.experiment.of(["support@1"])
    assert shop.routes.get("support").variant == BASE


@pytest.mark.parametrize("release", ["experiment", "promote", "challenge"])
def test_while_an_experiment_is_open_the_next_version_waits(shop: Workshop, release: str) -> None:
    """Whatever it was to become: what is being compared must not change under the experiment."""
    shop.routes.create("support", BASE, "anna")
    first = shop.job(release="experiment")
    shop.publish(first, shop.candidate(first), PASS)
    second = shop.job(release=release)
    done = shop.publish(second, shop.candidate(second, seed=2), PASS)
    assert released(done)["waits"] == "for a person, since experiment support-1 is running"
    assert shop.registry.version("support@2").state is VersionState.PROVED
    (running,) = shop.registry.snapshot_rows().experiments
    assert running.plan.variants == ("support@1",)
    assert shop.routes.get("support").variants == (BASE,)


def test_an_experiment_does_not_begin_beside_challengers(shop: Workshop) -> None:
    shop.routes.create("support", BASE, "anna")
    first = shop.job(release="challenge")
    shop.publish(first, shop.candidate(first), PASS)
    second = shop.job(release="experiment")
    done = shop.publish(second, shop.candidate(second, seed=2), PASS)
    assert "for an experiment: route 'support' has challengers" in released(done)["waits"]
    assert shop.registry.snapshot_rows().experiments == ()


def test_an_experiment_does_not_begin_by_a_score_that_is_none(shop: Workshop) -> None:
    shop.routes.create("support", BASE, "anna")
    shop.routes.change_policy("support", {"experiment": {"scores": ["stars"]}}, "anna")
    job = shop.job(release="experiment")
    done = shop.publish(job, shop.candidate(job), PASS)
    assert "the route declares no score 'stars'" in released(done)["waits"]
    assert shop.registry.version("support@1").state is VersionState.PROVED


def test_an_experiment_does_not_begin_against_a_default_that_was_moved(shop: Workshop) -> None:
    shop.routes.create("support", BASE, "anna")
    job = shop.job(release="experiment")
    version = shop.candidate(job)
    proof = shop.proof(version, PASS, job)
    other = shop.registry.import_adapter(
        "support", write_lora(shop.folder / "other", TINY_CONFIG, seed=9), BASE, TINY_CONFIG, "anna"
    )
    shop.registry.set_state(other.ref, VersionState.PROVED, None, "reconcile")
    shop.routes.promote("support", other.ref, "anna")
    done = publish(shop.db, shop.settings, job, proof, ORIGIN)
    assert "the default became support@2" in released(done)["waits"]
    assert shop.registry.snapshot_rows().experiments == ()


@pytest.mark.parametrize("told", [FAIL, TIE])
def test_without_a_pass_no_experiment_begins(shop: Workshop, told: Verdict) -> None:
    shop.routes.create("support", BASE, "anna")
    job = shop.job(release="experiment")
    assert shop.publish(job, shop.candidate(job), told).state is JobState.FAILED
    assert shop.registry.snapshot_rows().experiments == ()


def test_the_first_version_of_a_name_needs_no_experiment(shop: Workshop) -> None:
    job = shop.job(release="experiment")
    assert released(shop.publish(job, shop.candidate(job), PASS)) == {
        "route": "support",
        "default": "support@1",
    }
