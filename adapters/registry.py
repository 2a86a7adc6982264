"""The registry: which base models and adapter versions there are, and what state each version is in.

Owns the `base_models`, `adapters` and `versions` tables, the import of an adapter, its approval and its removal.
Does not know which engine holds what (`placements`), nor how a version is proved: the reconciler and a run's gate do
that and say so here.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection

from adapters.artifacts import ABANDONED_SECONDS, ArtifactStore
from adapters.changes import changing, record, revision
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest, NotFound
from adapters.experiment_records import Experiment, open_experiments
from adapters.job_records import check, open_jobs
from adapters.keys import Key, all_keys
from adapters.records import (
    LIVE,
    BaseModel,
    adapter_base,
    all_base_models,
    existing_version,
    find_base_model,
    find_versions,
    insert_adapter,
    insert_version,
    move_version,
    next_number,
    put_base_model,
    update_version,
    used_digests,
)
from adapters.routes import Route, all_routes, find_route, insert_route
from adapters.versions import VersionRecord, VersionState, check_name


@dataclass(frozen=True, slots=True)
class RegistryRows:
    """All that a gateway's snapshot is made from, as of one revision."""

    revision: int
    base_models: tuple[BaseModel, ...]
    versions: tuple[VersionRecord, ...]  # removed ones left out
    routes: tuple[Route, ...]
    experiments: tuple[Experiment, ...]  # the open ones
    keys: tuple[Key, ...]  # revoked ones left out; passes are among them
    keys_required: bool  # a key (no pass) was made at some time, even if all are revoked now


class Registry:
    """`models`: names that engines answer to without being in the registry; no adapter may have one of them."""

    def __init__(self, db: Database, artifacts: ArtifactStore, models: Collection[str] = ()) -> None:
        self._db = db
        self._artifacts = artifacts
        self._models = frozenset(models)

    @property
    def artifacts(self) -> ArtifactStore:
        return self._artifacts

    def register_base(self, name: str, digest: str | None, now: float | None = None) -> BaseModel:
        """Makes a base model known, or a known one's digest; what is known already changes nothing.

        Raises Conflict if its weights have changed, or if an adapter or a route has the name.
        """
        at = _at(now)
        with changing(self._db) as connection:
            known = find_base_model(connection, name)
            if known is None:
                _refuse_taken(connection, name)
            elif digest is None or known.digest == digest:
                return known
            elif known.digest is not None:
                raise _base_changed(known, digest)
            base = BaseModel(name, digest, at if known is None else known.created)
            put_base_model(connection, base)
            detail = {"digest": digest}
            record(
                connection,
                actor="burnish",
                action="base_model.registered",
                subject=name,
                detail=detail,
                now=at,
            )
        return base

    def base_models(self) -> tuple[BaseModel, ...]:
        with self._db.read() as connection:
            return all_base_models(connection)

    def import_adapter(
        self,
        name: str,
        path: Path,
        base_model: str,
        base_config: Mapping[str, Any] | None,
        actor: str,
        *,
        max_rank: int = 64,
        origin: str = "import",
        approval: Mapping[str, Any] | None = None,
        state: VersionState = VersionState.STAGED,
        fingerprint: Mapping[str, Any] | None = None,
        token: int | None = None,
        now: float | None = None,
    ) -> VersionRecord:
        """A new version of adapter `name` from a PEFT directory, state `staged`; the first makes the route too.

        The same files under the same name are the version that they already are; one that had failed is tried
        again. `approval` is the gate's; without one the import counts as the actor's override. With `state`
        CANDIDATE it is its run's alone and makes no route; `settle` decides. `fingerprint`: what the trainer saw,
        which every engine must agree with. With a `token`, only for the worker that holds the job `origin`.
        Raises InvalidRequest, PreflightError, NotFound, Conflict, StaleWorker.
        """
        if state not in (VersionState.STAGED, VersionState.CANDIDATE):
            raise ValueError("an import is staged or a candidate")
        from adapters import preflight  # numpy takes longer to import than most verbs of the CLI

        at = _at(now)
        self._check_adapter_name(name)
        base = self._known_base(base_model)
        preflight.refuse_unsafe_files(path)
        override = {"kind": "override", "by": actor, "reason": "imported by hand", "at": at}
        with self._artifacts.stage(path) as staged:
            # Our own copy is what is checked: nobody can change it between the check and the rename.
            facts = preflight.inspect(
                staged.path, max_rank=max_rank, base_config=base_config, base_digest=base.digest
            )
            digest = staged.digest  # hashing is slow, so: outside the transaction
            with changing(self._db) as connection:
                if token is not None:
                    check(connection, origin, token)
                # Removals delete files inside a `changing` transaction too, so none can come between the rename
                # and the row. If the row is refused, the files lie there unused until the next `sweep`.
                size_bytes = staged.publish().size_bytes
                version = VersionRecord(
                    name=name,
                    number=next_number(connection, name),
                    digest=digest,
                    base_model=base_model,
                    base_digest=base.digest,
                    rank=facts.rank,
                    target_modules=facts.target_modules,
                    size_bytes=size_bytes,
                    state=state,
                    reason=None,
                    origin=origin,
                    approval=dict(approval or override),
                    fingerprint=None if fingerprint is None else dict(fingerprint),
                    created=at,
                )
                return _add_version(connection, version, actor)

    def versions(self, name: str | None = None, *, removed: bool = False) -> tuple[VersionRecord, ...]:
        """All versions, by name and number; of one adapter if named; those removed only if asked for."""
        with self._db.read() as connection:
            return find_versions(connection, name, removed=removed)

    def version(self, ref: str) -> VersionRecord:
        """Raises InvalidRequest, NotFound(code="version_not_found")."""
        with self._db.read() as connection:
            return existing_version(connection, ref)

    def set_state(
        self, ref: str, state: VersionState, reason: str | None, actor: str, now: float | None = None
    ) -> VersionRecord:
        """Moves a version to another state; the state it is in already changes nothing.

        For REMOVING and REMOVED use `begin_remove` and `finish_remove`. Raises Conflict(code="state_conflict").
        """
        if state in (VersionState.REMOVING, VersionState.REMOVED):
            raise ValueError("begin_remove and finish_remove do that")
        with changing(self._db) as connection:
            return move_version(connection, existing_version(connection, ref), state, reason, actor, _at(now))

    def record_fingerprint(
        self, ref: str, fingerprint: Mapping[str, Any], actor: str = "canary", now: float | None = None
    ) -> VersionRecord:
        """Keeps what the canary saw. Raises NotFound."""
        with changing(self._db) as connection:
            version = existing_version(connection, ref)
            update_version(connection, version, fingerprint=dict(fingerprint))
            record(connection, actor=actor, action="adapter.fingerprinted", subject=ref, now=_at(now))
            return existing_version(connection, ref)

    def approve(self, ref: str, actor: str, reason: str, now: float | None = None) -> VersionRecord:
        """A rejected version is to be proved all the same, by a person's word, which is kept with it.

        Raises InvalidRequest without a reason, NotFound, Conflict(code="state_conflict").
        """
        at = _at(now)
        with changing(self._db) as connection:
            version = existing_version(connection, ref)
            if version.state is not VersionState.REJECTED:
                raise Conflict(
                    f"{ref} is {version.state}, and only a rejected version needs a person's approval",
                    code="state_conflict",
                )
            approved = _overridden(connection, version, actor, reason, at)
            _ensure_route(connection, approved, actor, at)
            return move_version(connection, approved, VersionState.STAGED, None, actor, at)

    def release(self, ref: str, actor: str, reason: str, now: float | None = None) -> VersionRecord:
        """A quarantined version is to be proved again. The person's word stands for a gate that it did not pass.

        Raises InvalidRequest without a reason, NotFound, Conflict(code="state_conflict").
        """
        at = _at(now)
        with changing(self._db) as connection:
            version = existing_version(connection, ref)
            if version.state is not VersionState.QUARANTINED:
                raise Conflict(f"{ref} is {version.state}, not quarantined", code="state_conflict")
            released = _overridden(connection, version, actor, reason, at)
            return move_version(connection, released, VersionState.STAGED, None, actor, at)

    def begin_remove(self, ref: str, actor: str, now: float | None = None) -> VersionRecord:
        """Takes a version out of routing for ever; its files stay until `finish_remove`.

        Raises Conflict(code="version_in_use") while it answers for a route.
        """
        with changing(self._db) as connection:
            version = existing_version(connection, ref)
            _refuse_used(connection, ref)
            return move_version(connection, version, VersionState.REMOVING, None, actor, _at(now))

    def finish_remove(self, ref: str, actor: str = "burnish", now: float | None = None) -> VersionRecord:
        """Deletes the files of a version that nobody uses any more; its row stays, so that its number does too.

        Raises Conflict(code="state_conflict") without `begin_remove`.
        """
        with changing(self._db) as connection:
            version = existing_version(connection, ref)
            removed = move_version(connection, version, VersionState.REMOVED, None, actor, _at(now))
            # Inside the transaction: an import of the same files waits for it and then sees that they are gone.
            # After a crash right here the version is still `removing`, and the next call does the same again.
            if version.digest not in used_digests(connection):
                self._artifacts.delete(version.digest)
            return removed

    def sweep(self, older_than_seconds: float = ABANDONED_SECONDS) -> int:
        """Deletes what crashed imports left in the artifact store, if it is old enough. For the start of a process."""
        with changing(self._db) as connection:
            unused = self._artifacts.delete_unused(used_digests(connection), older_than_seconds)
        return unused + self._artifacts.clean_staging(older_than_seconds)

    def revision(self) -> int:
        """Grows with every change of what `snapshot_rows` returns."""
        with self._db.read() as connection:
            return revision(connection)

    def snapshot_rows(self) -> RegistryRows:
        """Everything a gateway routes by, of one moment."""
        with self._db.read() as connection:
            keys = all_keys(connection)
            return RegistryRows(
                revision=revision(connection),
                base_models=all_base_models(connection),
                versions=find_versions(connection, removed=False),
                routes=all_routes(connection),
                experiments=open_experiments(connection),
                keys=tuple(key for key in keys if key.revoked is None),
                keys_required=any(key.expires is None for key in keys),
            )

    def _check_adapter_name(self, name: str) -> None:
        check_name(name)
        if name in self._models:
            raise Conflict(f"{name!r} is the name of a model", param="name", code="name_taken")

    def _known_base(self, name: str) -> BaseModel:
        with self._db.read() as connection:
            base = find_base_model(connection, name)
            known = ", ".join(model.name for model in all_base_models(connection)) or "none"
        if base is None:
            raise NotFound(
                f"there is no base model {name!r}; known: {known}", param="base_model", code="model_not_found"
            )
        return base


def _add_version(connection: Connection, version: VersionRecord, actor: str) -> VersionRecord:
    """The rows of a new version: all of them or, if the caller's transaction ends early, none (promise 8)."""
    base = adapter_base(connection, version.name)
    if base is None:
        if find_base_model(connection, version.name) is not None:
            raise Conflict(f"{version.name!r} is the name of a base model", param="name", code="name_taken")
        insert_adapter(connection, version.name, version.base_model, version.created)
    elif base != version.base_model:
        raise Conflict(
            f"adapter {version.name!r} is for base model {base!r}, not {version.base_model!r}; use another name",
            param="base_model",
            code="adapter_base_mismatch",
        )
    live = [v for v in find_versions(connection, version.name, removed=False) if v.state in LIVE]
    same = next((v for v in live if _is_same(v, version)), None)
    is_import = version.state is VersionState.STAGED
    if same is not None and same.state is VersionState.FAILED and is_import:
        # the engine may have been mended since
        return move_version(connection, same, VersionState.STAGED, None, actor, version.created)
    if same is not None:
        return same
    insert_version(connection, version)
    detail = {"digest": version.digest, "origin": version.origin, "approval": version.approval}
    record(
        connection,
        actor=actor,
        action="adapter.imported",
        subject=version.ref,
        detail=detail,
        now=version.created,
    )
    if is_import and not any(v.may_serve for v in live):
        _ensure_route(connection, version, actor, version.created)
    return version


def _is_same(known: VersionRecord, new: VersionRecord) -> bool:
    """Whether an import brings what is there. A candidate is its run's alone, and an import by hand must not put
    into service what no gate has let through."""
    if known.digest != new.digest:
        return False
    return known.origin == new.origin if new.state is VersionState.CANDIDATE else known.may_serve


def settle(
    connection: Connection,
    ref: str,
    passed: bool,
    approval: Mapping[str, Any],
    reason: str | None,
    actor: str,
    now: float,
) -> VersionRecord:
    """The gate's word on a candidate, in the caller's `changing` transaction: proved, and a route of its name if
    there is none, or rejected for `reason`. Raises NotFound, Conflict(code="state_conflict")."""
    version = existing_version(connection, ref)
    if version.state is not VersionState.CANDIDATE:
        raise Conflict(f"{ref} is {version.state}, and no candidate any more", code="state_conflict")
    update_version(connection, version, approval=dict(approval))
    version = replace(version, approval=dict(approval))
    if not passed:
        return move_version(connection, version, VersionState.REJECTED, reason, actor, now)
    version = move_version(connection, version, VersionState.PROVED, None, actor, now)
    _ensure_route(connection, version, actor, now)
    return version


def withdraw_orphans(db: Database, now: float | None = None) -> tuple[str, ...]:
    """Rejects the candidates whose run has ended without a word on them: cancelled, failed, or lost for good.

    Their names; engines give them up like any rejected version. Cheap where there are none.
    """
    at = _at(now)
    with db.read() as connection:
        if not any(v.state is VersionState.CANDIDATE for v in find_versions(connection, removed=False)):
            return ()
    with changing(db) as connection:
        running = open_jobs(connection)
        orphans = [
            version
            for version in find_versions(connection, removed=False)
            if version.state is VersionState.CANDIDATE and version.origin not in running
        ]
        for version in orphans:
            reason = "its run ended before its gate did"
            move_version(connection, version, VersionState.REJECTED, reason, "burnish", at)
    return tuple(version.ref for version in orphans)


def _overridden(
    connection: Connection, version: VersionRecord, actor: str, reason: str, now: float
) -> VersionRecord:
    """The version with a person's word in the place of a gate's, unless what is there lets it serve already."""
    if not reason.strip():
        raise InvalidRequest("say why: it is kept with the version", param="reason", code="invalid_value")
    detail = {"reason": reason}
    record(connection, actor=actor, action="adapter.approved", subject=version.ref, detail=detail, now=now)
    if version.may_serve:
        return version
    approval = {"kind": "override", "by": actor, "reason": reason, "at": now, "over": version.approval}
    update_version(connection, version, approval=approval)
    return replace(version, approval=approval)


def _refuse_used(connection: Connection, ref: str) -> None:
    users = [route.name for route in all_routes(connection) if ref in route.variants]
    if users:
        raise Conflict(
            f"{ref} answers for route {', '.join(users)}; promote another version, end its share or delete the route",
            code="version_in_use",
        )
    experiments = [each.name for each in open_experiments(connection) if ref in each.variants]
    if experiments:
        raise Conflict(
            f"{ref} is in experiment {', '.join(experiments)}; stop or decide it first", code="version_in_use"
        )


def _ensure_route(connection: Connection, version: VersionRecord, actor: str, now: float) -> None:
    """A route of the adapter's name, if nothing has that name."""
    if find_route(connection, version.name) is None:
        insert_route(connection, Route(version.name, version.ref, (), now), actor)


def _refuse_taken(connection: Connection, name: str) -> None:
    if adapter_base(connection, name) is not None or find_route(connection, name) is not None:
        raise Conflict(f"{name!r} is the name of an adapter or a route", param="name", code="name_taken")


def _base_changed(known: BaseModel, digest: str) -> Conflict:
    return Conflict(
        f"the weights of base model {known.name!r} have changed since it was registered "
        f"({digest[:19]}…, not {(known.digest or '')[:19]}…); serve them under another name",
        code="base_model_changed",
    )


def _at(now: float | None) -> float:
    return time.time() if now is None else now
