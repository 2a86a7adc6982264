from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from adapters.artifacts import ArtifactStore
from adapters.changes import changing, events
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest, NotFound, PreflightError, StaleWorker
from adapters.jobs import Jobs
from adapters.keys import Keys
from adapters.registry import Registry, settle
from adapters.routes import Routes
from adapters.versions import MOVES, VersionRecord, VersionState
from tests.lora import TINY_CONFIG, write_lora

BASE = "base-model"
DIGEST_1, DIGEST_2 = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def add(registry: Registry, folder: Path, name: str = "support", seed: int | None = None) -> VersionRecord:
    """Imports `folder`, rewritten with another seed's weights if one is given."""
    if seed is not None:
        write_lora(folder, TINY_CONFIG, seed=seed)
    return registry.import_adapter(name, folder, BASE, TINY_CONFIG, "anna")


def prove(registry: Registry, ref: str) -> VersionRecord:
    return registry.set_state(ref, VersionState.PROVED, None, "reconciler")


def candidate(
    registry: Registry, folder: Path, run: str = "run-1", name: str = "support", token: int | None = None
) -> VersionRecord:
    return registry.import_adapter(
        name,
        folder,
        BASE,
        TINY_CONFIG,
        "anna",
        origin=run,
        approval={"kind": "pending", "job": run},
        state=VersionState.CANDIDATE,
        fingerprint={"logprobs": [-1.0], "by": "trainer"},
        token=token,
    )


def decide(db: Database, ref: str, passed: bool) -> VersionRecord:
    approval = {"kind": "gate", "outcome": "pass" if passed else "fail"}
    with changing(db) as connection:
        return settle(connection, ref, passed, approval, None if passed else "it is worse", "run-1", 9.0)


def remove(registry: Registry, ref: str) -> VersionRecord:
    registry.begin_remove(ref, "anna")
    return registry.finish_remove(ref)


def test_an_imported_adapter_is_a_staged_version_with_its_facts(
    registry: Registry, artifacts: ArtifactStore, lora: Path
) -> None:
    version = registry.import_adapter("support", lora, BASE, TINY_CONFIG, "anna", now=12.5)
    assert version.ref == "support@1"
    assert version.served_name == f"support@1.{version.digest[7:19]}"
    assert (version.state, version.routable, version.origin) == (VersionState.STAGED, False, "import")
    assert (version.base_model, version.rank, version.target_modules) == (BASE, 8, ("q_proj", "v_proj"))
    assert version.created == 12.5
    assert artifacts.verify(version.digest)
    assert registry.version("support@1") == version
    assert registry.versions() == registry.versions("support") == (version,)


def test_promise_04_an_import_by_hand_is_on_record_as_an_override(registry: Registry, lora: Path) -> None:
    version = registry.import_adapter("support", lora, BASE, TINY_CONFIG, "anna", now=5.0)
    assert version.approval == {"kind": "override", "by": "anna", "reason": "imported by hand", "at": 5.0}


def test_a_training_run_brings_its_gate_and_its_origin(registry: Registry, lora: Path) -> None:
    gate = {"kind": "gate", "by": "run-1", "reason": "passed", "at": 5.0}
    version = registry.import_adapter(
        "support", lora, BASE, TINY_CONFIG, "trainer", origin="run-1", approval=gate
    )
    assert (version.approval, version.origin) == (gate, "run-1")


def test_the_first_version_makes_the_route_and_later_ones_leave_it(
    registry: Registry, db: Database, lora: Path
) -> None:
    add(registry, lora)
    (route,) = Routes(db).list()
    assert (route.name, route.variant, route.history) == ("support", "support@1", ())
    assert add(registry, lora, seed=1).ref == "support@2"
    assert Routes(db).list() == (route,)


def test_a_route_that_was_there_before_its_adapter_is_left_alone(
    registry: Registry, db: Database, lora: Path
) -> None:
    route = Routes(db).create("support", BASE, "anna")
    add(registry, lora)
    assert Routes(db).list() == (route,)


def test_the_same_files_under_the_same_name_are_the_version_they_already_are(
    registry: Registry, lora: Path
) -> None:
    first = add(registry, lora)
    revision = registry.revision()
    assert add(registry, lora) == first
    assert registry.revision() == revision
    assert add(registry, lora, name="other").ref == "other@1"
    assert add(registry, lora, name="other").digest == first.digest


def test_a_failed_version_is_tried_again_when_its_files_are_added_again(
    registry: Registry, lora: Path
) -> None:
    first = add(registry, lora)
    registry.set_state(first.ref, VersionState.FAILED, "the engine had no room", "reconciler")
    again = add(registry, lora)
    assert (again.ref, again.digest) == (first.ref, first.digest)
    assert (again.state, again.reason) == (VersionState.STAGED, None)


def test_promise_03_other_bytes_under_the_same_name_are_the_next_version(
    registry: Registry, artifacts: ArtifactStore, lora: Path
) -> None:
    first = add(registry, lora)
    second = add(registry, lora, seed=1)
    assert (second.ref, second.digest != first.digest) == ("support@2", True)
    assert second.served_name != first.served_name
    assert registry.version("support@1") == first
    assert artifacts.verify(first.digest)
    assert artifacts.verify(second.digest)


def test_promise_03_a_number_is_never_given_again_after_removal(
    registry: Registry, artifacts: ArtifactStore, db: Database, lora: Path
) -> None:
    first = add(registry, lora)
    Routes(db).delete("support", "anna")
    assert remove(registry, "support@1").state is VersionState.REMOVED
    assert not artifacts.exists(first.digest)
    again = add(registry, lora)  # the very same bytes
    assert (again.ref, again.digest) == ("support@2", first.digest)
    assert artifacts.verify(first.digest)
    assert registry.version("support@1").state is VersionState.REMOVED
    assert registry.versions() == (again,)
    assert [v.ref for v in registry.versions(removed=True)] == ["support@1", "support@2"]
    assert Routes(db).get("support").variant == "support@2"  # it is the only one again


def test_promise_04_what_preflight_refuses_leaves_no_trace(
    registry: Registry, artifacts: ArtifactStore, db: Database, lora: Path
) -> None:
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    before = registry.snapshot_rows()
    with pytest.raises(PreflightError, match="peft_type"):
        add(registry, lora)
    (lora / "evil.py").touch()
    with pytest.raises(PreflightError, match=r"evil\.py"):
        add(registry, lora)
    assert registry.snapshot_rows() == before
    assert artifacts.digests() == frozenset()
    assert not any((artifacts.root / ".staging").iterdir())


def test_promise_04_an_adapter_of_other_base_weights_is_refused(registry: Registry, tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "a", TINY_CONFIG, provenance={"base_digest": DIGEST_1})
    assert add(registry, folder).base_digest is None
    registry.register_base(BASE, DIGEST_2)
    with pytest.raises(PreflightError, match="field base_digest"):
        add(registry, folder, name="other")


def test_an_unknown_base_model_is_told_with_the_known_ones(registry: Registry, lora: Path) -> None:
    with pytest.raises(NotFound, match=f"no base model 'llama'; known: {BASE}"):
        registry.import_adapter("support", lora, "llama", TINY_CONFIG, "anna")


def test_an_adapters_name_belongs_to_one_base_model(registry: Registry, lora: Path) -> None:
    add(registry, lora)
    registry.register_base("llama", None)
    with pytest.raises(Conflict, match="adapter 'support' is for base model 'base-model'"):
        registry.import_adapter("support", lora, "llama", TINY_CONFIG, "anna")


@pytest.mark.parametrize("name", ["", "A", "a@1", "a/b", "a:b", "-a", ".a", "a" * 64, "a b", "ä", "a\n"])
def test_a_name_outside_the_grammar_is_refused(registry: Registry, lora: Path, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        add(registry, lora, name=name)
    assert (caught.value.code, caught.value.param) == ("invalid_name", "name")


def test_names_of_models_adapters_and_routes_do_not_collide(
    db: Database, artifacts: ArtifactStore, lora: Path
) -> None:
    registry = Registry(db, artifacts, models=("cloud",))
    registry.register_base(BASE, None)
    for name in (BASE, "cloud"):
        with pytest.raises(Conflict) as caught:
            add(registry, lora, name=name)
        assert caught.value.code == "name_taken"
    add(registry, lora)
    Routes(db).create("assistant", BASE, "anna")
    for name in ("support", "assistant"):
        with pytest.raises(Conflict, match="is the name of an adapter or a route"):
            registry.register_base(name, None)
    assert artifacts.digests() == {registry.version("support@1").digest}


def test_a_base_models_digest_is_learnt_once_and_never_changes(registry: Registry) -> None:
    registry.register_base(BASE, DIGEST_1)
    revision = registry.revision()
    assert registry.register_base(BASE, DIGEST_1).digest == DIGEST_1
    assert registry.register_base(BASE, None).digest == DIGEST_1
    assert registry.revision() == revision
    with pytest.raises(Conflict) as caught:
        registry.register_base(BASE, DIGEST_2)
    assert caught.value.code == "base_model_changed"
    assert [base.digest for base in registry.base_models()] == [DIGEST_1]


@pytest.mark.parametrize(
    "ref", ["support", "support@0", "support@01", "support@-1", "support@1.abc", "@1", "support@1\n"]
)
def test_what_is_no_version_ref_is_a_bad_request(registry: Registry, ref: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        registry.version(ref)
    assert caught.value.code == "invalid_version_ref"


def test_an_unknown_version_is_not_found(registry: Registry) -> None:
    with pytest.raises(NotFound) as caught:
        registry.version("support@1")
    assert caught.value.code == "version_not_found"


SETTABLE = [s for s in VersionState if s not in (VersionState.REMOVING, VersionState.REMOVED)]


def put_in(registry: Registry, db: Database, state: VersionState) -> None:
    """Brings support@1 into a state by the moves that lead there."""
    if state in (VersionState.CANDIDATE, VersionState.REJECTED):
        registry.set_state("support@1", state, "why", "anna")
        return
    Routes(db).delete("support", "anna")
    if state in (VersionState.REMOVING, VersionState.REMOVED):
        registry.begin_remove("support@1", "anna")
        if state is VersionState.REMOVED:
            registry.finish_remove("support@1")
    else:
        registry.set_state("support@1", state, "why", "anna")


@pytest.mark.parametrize("before", list(VersionState))
@pytest.mark.parametrize("after", SETTABLE)
def test_states_move_as_drawn_and_no_other_way(
    registry: Registry, db: Database, lora: Path, before: VersionState, after: VersionState
) -> None:
    candidates = (VersionState.CANDIDATE, VersionState.REJECTED)
    _ = candidate(registry, lora) if before in candidates else add(registry, lora)
    put_in(registry, db, before)
    revision = registry.revision()
    if before is after:
        assert registry.set_state("support@1", after, "again", "anna").state is after
        assert registry.revision() == revision
    elif after in MOVES[before]:
        moved = registry.set_state("support@1", after, "new", "anna")
        assert (moved.state, moved.reason) == (after, "new")
        assert registry.version("support@1") == moved
        assert registry.revision() == revision + 1
    else:
        with pytest.raises(Conflict) as caught:
            registry.set_state("support@1", after, None, "anna")
        assert caught.value.code == "state_conflict"
        assert registry.version("support@1").state is before


def test_removal_cannot_be_skipped_to(registry: Registry, lora: Path) -> None:
    add(registry, lora)
    with pytest.raises(ValueError, match="begin_remove and finish_remove"):
        registry.set_state("support@1", VersionState.REMOVED, None, "anna")
    with pytest.raises(Conflict, match="is staged and cannot become removed"):
        registry.finish_remove("support@1")


def test_the_default_of_a_route_is_not_removed(registry: Registry, db: Database, lora: Path) -> None:
    add(registry, lora)
    with pytest.raises(Conflict, match=r"support@1 answers for route support; promote another"):
        registry.begin_remove("support@1", "anna")
    add(registry, lora, seed=1)
    prove(registry, "support@2")
    Routes(db).promote("support", "support@2", "anna")
    assert registry.begin_remove("support@1", "anna").state is VersionState.REMOVING


def test_a_version_being_removed_keeps_its_files_until_the_end(
    registry: Registry, artifacts: ArtifactStore, db: Database, lora: Path
) -> None:
    version = add(registry, lora)
    Routes(db).delete("support", "anna")
    registry.begin_remove("support@1", "anna")
    assert artifacts.verify(version.digest)
    assert registry.begin_remove("support@1", "anna").state is VersionState.REMOVING
    assert registry.snapshot_rows().versions[0].state is VersionState.REMOVING
    registry.finish_remove("support@1")
    assert not artifacts.exists(version.digest)
    assert registry.finish_remove("support@1").state is VersionState.REMOVED
    assert registry.snapshot_rows().versions == ()


def test_files_that_another_version_has_too_stay(
    registry: Registry, artifacts: ArtifactStore, db: Database, lora: Path
) -> None:
    digest = add(registry, lora).digest
    add(registry, lora, name="other")
    Routes(db).delete("support", "anna")
    remove(registry, "support@1")
    assert artifacts.verify(digest)
    Routes(db).delete("other", "anna")
    remove(registry, "other@1")
    assert not artifacts.exists(digest)


def test_a_version_being_removed_is_not_joined_by_an_import_of_its_files(
    registry: Registry, artifacts: ArtifactStore, db: Database, lora: Path
) -> None:
    add(registry, lora)
    Routes(db).delete("support", "anna")
    registry.begin_remove("support@1", "anna")
    again = add(registry, lora)
    registry.finish_remove("support@1")
    assert again.ref == "support@2"
    assert artifacts.verify(again.digest)


def test_imports_and_removals_of_the_same_files_at_once_never_lose_them(
    registry: Registry, artifacts: ArtifactStore, db: Database, lora: Path
) -> None:
    problems: list[BaseException] = []

    def import_and_remove(name: str) -> None:
        try:
            for _ in range(8):
                version = add(registry, lora, name=name)
                if not artifacts.verify(version.digest):
                    problems.append(AssertionError(f"{version.ref} has lost its files"))
                Routes(db).delete(name, "anna")
                remove(registry, version.ref)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=import_and_remove, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert [len(registry.versions(name, removed=True)) for name in "abc"] == [8, 8, 8]
    assert artifacts.digests() == frozenset()


def test_versions_imported_at_once_get_numbers_without_gaps(registry: Registry, tmp_path: Path) -> None:
    folders = [write_lora(tmp_path / str(seed), TINY_CONFIG, seed=seed) for seed in range(8)]
    threads = [threading.Thread(target=add, args=(registry, folder)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [v.number for v in registry.versions("support")] == list(range(1, 9))


def test_a_fingerprint_is_kept_with_its_version(registry: Registry, lora: Path) -> None:
    assert add(registry, lora).fingerprint is None
    seen = {"prompt": "x", "difference": 0.25}
    assert registry.record_fingerprint("support@1", seen).fingerprint == seen
    assert registry.version("support@1").fingerprint == seen


def test_every_change_is_an_event_and_a_new_revision(registry: Registry, db: Database, lora: Path) -> None:
    start = registry.revision()
    add(registry, lora)
    prove(registry, "support@1")
    registry.set_state("support@1", VersionState.QUARANTINED, "bad answers", "bob")
    log = events(db, limit=4)
    assert [(e.action, e.subject, e.actor) for e in reversed(log)] == [
        ("adapter.imported", "support@1", "anna"),
        ("route.created", "support", "anna"),
        ("adapter.proved", "support@1", "reconciler"),
        ("adapter.quarantined", "support@1", "bob"),
    ]
    assert log[0].detail == {"from": "proved", "reason": "bad answers"}
    assert registry.revision() == start + 4
    assert [e.action for e in events(db, subject="support")] == ["route.created"]


def test_a_snapshot_holds_all_that_a_gateway_needs(registry: Registry, db: Database, lora: Path) -> None:
    assert registry.snapshot_rows().keys_required is False
    add(registry, lora)
    key, _secret = Keys(db).create("laptop", ["inference"], "anna")
    rows = registry.snapshot_rows()
    assert rows.revision == registry.revision()
    assert [base.name for base in rows.base_models] == [BASE]
    assert [version.ref for version in rows.versions] == ["support@1"]
    assert [route.name for route in rows.routes] == ["support"]
    assert rows.keys == (key,)
    Keys(db).revoke(key.id, "anna")
    rows = registry.snapshot_rows()
    assert (rows.keys, rows.keys_required) == ((), True)  # revoking the last key opens nothing


def test_sweeping_at_start_spares_what_versions_use(
    registry: Registry, artifacts: ArtifactStore, lora: Path, tmp_path: Path
) -> None:
    used = add(registry, lora).digest
    orphan = artifacts.put_directory(write_lora(tmp_path / "o", TINY_CONFIG, seed=9)).digest
    assert registry.sweep() == 0
    assert registry.sweep(older_than_seconds=0) == 1
    assert artifacts.verify(used)
    assert not artifacts.exists(orphan)


# -- candidates ------------------------------------------------------------------------------------
def test_promise_04_a_candidate_makes_no_route_and_a_pass_does(
    registry: Registry, db: Database, lora: Path
) -> None:
    version = candidate(registry, lora)
    assert (version.state, version.origin) == (VersionState.CANDIDATE, "run-1")
    assert version.fingerprint == {"logprobs": [-1.0], "by": "trainer"}
    assert Routes(db).list() == ()
    assert decide(db, "support@1", passed=True).state is VersionState.PROVED
    assert Routes(db).get("support").variant == "support@1"
    assert registry.version("support@1").approval["outcome"] == "pass"


def test_a_run_taken_up_again_finds_its_candidate(registry: Registry, lora: Path) -> None:
    assert candidate(registry, lora) == candidate(registry, lora)
    assert candidate(registry, lora, run="run-2").ref == "support@2"


def test_promise_08_a_worker_that_has_lost_its_run_imports_nothing(
    registry: Registry, db: Database, lora: Path
) -> None:
    jobs = Jobs(db)
    jobs.enqueue(kind="training", route=None, payload={})
    job = jobs.claim("worker", ["training"], 60.0)
    assert job is not None
    assert candidate(registry, lora, run=job.id, token=job.token).ref == "support@1"
    jobs.cancel(job.id, "anna")
    jobs.release(job.id, job.token)
    with pytest.raises(StaleWorker):
        candidate(registry, write_lora(lora, TINY_CONFIG, seed=5), run=job.id, token=job.token)
    assert [version.ref for version in registry.versions()] == ["support@1"]
    assert len(registry.artifacts.digests()) == 1


def test_a_pass_leaves_the_route_that_is_there(registry: Registry, db: Database, lora: Path) -> None:
    add(registry, lora)
    candidate(registry, write_lora(lora, TINY_CONFIG, seed=5))
    decide(db, "support@2", passed=True)
    assert Routes(db).get("support").variant == "support@1"


def test_promise_04_a_rejected_version_serves_by_a_persons_word_alone(
    registry: Registry, db: Database, lora: Path
) -> None:
    candidate(registry, lora)
    assert decide(db, "support@1", passed=False).reason == "it is worse"
    with pytest.raises(InvalidRequest) as caught:
        registry.approve("support@1", "anna", "  ")
    assert caught.value.param == "reason"
    approved = registry.approve("support@1", "anna", "I read the answers", now=12.0)
    assert approved.state is VersionState.STAGED
    assert approved == registry.version("support@1")
    assert {key: approved.approval[key] for key in ("kind", "by", "reason", "at")} == {
        "kind": "override",
        "by": "anna",
        "reason": "I read the answers",
        "at": 12.0,
    }
    assert approved.approval["over"]["outcome"] == "fail"
    assert Routes(db).get("support").variant == "support@1"


@pytest.mark.parametrize("state", [VersionState.STAGED, VersionState.PROVED, VersionState.FAILED])
def test_only_a_rejected_version_is_approved(
    registry: Registry, db: Database, lora: Path, state: VersionState
) -> None:
    add(registry, lora)
    put_in(registry, db, state)
    with pytest.raises(Conflict) as caught:
        registry.approve("support@1", "anna", "why not")
    assert caught.value.code == "state_conflict"


def test_a_gate_speaks_once(registry: Registry, db: Database, lora: Path) -> None:
    candidate(registry, lora)
    decide(db, "support@1", passed=False)
    with pytest.raises(Conflict):
        decide(db, "support@1", passed=True)


def test_promise_04_an_import_by_hand_joins_nothing_that_no_gate_let_through(
    registry: Registry, db: Database, lora: Path
) -> None:
    candidate(registry, lora)
    registry.set_state("support@1", VersionState.FAILED, "engine e0: no slot", "reconcile")
    imported = add(registry, lora)
    assert (imported.ref, imported.approval["kind"]) == ("support@2", "override")
    assert registry.version("support@1").state is VersionState.FAILED
    assert Routes(db).get("support").variant == "support@2"


def test_a_released_version_keeps_its_gates_word_or_gets_a_persons(
    registry: Registry, db: Database, lora: Path
) -> None:
    candidate(registry, lora)
    decide(db, "support@1", passed=True)
    registry.set_state("support@1", VersionState.QUARANTINED, "forgotten user", "anna")
    released = registry.release("support@1", "anna", "it never saw the rows")
    assert (released.state, released.approval["kind"]) == (VersionState.STAGED, "gate")
    other = candidate(registry, write_lora(lora, TINY_CONFIG, seed=5))
    decide(db, other.ref, passed=False)
    registry.set_state(other.ref, VersionState.QUARANTINED, "forgotten user", "anna")
    assert registry.release(other.ref, "anna", "all the same").approval["kind"] == "override"
    with pytest.raises(Conflict):
        registry.release(other.ref, "anna", "again")
