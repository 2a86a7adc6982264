"""`burnish adapters`: import, list, show, approve, export and remove adapter versions."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from adapters.errors import Conflict, NotFound
from adapters.lineage import completions_behind, lineage_of
from adapters.versions import VersionRecord, VersionState, is_ref
from gateway.cli import terminal
from gateway.cli.export import export
from gateway.cli.records import Records, open_records
from gateway.cli.terminal import Json
from gateway.imports import a_gateway_is_alive, advance_removal, import_adapter
from gateway.shapes import adapter_shape, lineage_shape, listing, version_shape

POLL_SECONDS = 0.1

app = typer.Typer(help="Adapter versions: import, list, show, approve, export, remove.")

Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="how long to wait at most")]


@app.command("add")
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="the adapter; its next version is made")],
    path: Annotated[Path, typer.Argument(help="a PEFT LoRA folder")],
    base_model: Annotated[str | None, typer.Option(metavar="MODEL", help="the base model it is for")] = None,
    wait: Annotated[bool, typer.Option(help="wait until every engine has loaded and proved it")] = True,
    timeout: Timeout = 600.0,
    as_json: Json = False,
) -> None:
    """Import a PEFT LoRA folder as the next version of NAME."""
    with open_records(context) as records:
        source = path.expanduser().absolute()
        version = import_adapter(records.registry, records.settings, name, source, base_model, records.actor)
        alive = a_gateway_is_alive(records.placements)
        if alive and wait:
            version = _until_settled(records, version, timeout)
        if as_json:
            terminal.print_json(_shape(records, version))
        _refuse_unproved(version, alive and wait)
        if not as_json:
            print(f"{version.ref}  {version.state.value}  {version.digest}")
            terminal.note(_what_now(records, version, alive))


@app.command("list")
def list_(
    context: typer.Context,
    removed: Annotated[bool, typer.Option("--removed", help="the removed ones too")] = False,
    as_json: Json = False,
) -> None:
    """List all adapter versions."""
    with open_records(context) as records:
        versions = records.registry.versions(removed=removed)
        placements = records.placements.list()
    if as_json:
        terminal.print_json(listing(version_shape(version, placements) for version in versions))
    else:
        _print_versions(versions)


@app.command("show")
def show(
    context: typer.Context,
    ref: Annotated[str, typer.Argument(help="NAME@N, or NAME for all its versions")],
    as_json: Json = False,
) -> None:
    """Show one version (NAME@N), or an adapter with all its versions."""
    with open_records(context) as records:
        if not is_ref(ref):
            _show_adapter(records, ref, as_json)
            return
        version = records.registry.version(ref)
        shape = _shape(records, version)
        if (lineage := lineage_of(records.db, version)) is not None:
            shape["lineage"] = lineage_shape(lineage, completions_behind(records.db, version))
        routes = [route.name for route in records.routes.list() if ref in route.variants]
    if as_json:
        terminal.print_json(shape)
    else:
        terminal.print_fields(_fields(shape) | _lineage_fields(shape, routes))


@app.command("card")
def card(context: typer.Context, ref: Annotated[str, typer.Argument(help="NAME@N")]) -> None:
    """Print the model card that a version's run has written."""
    with open_records(context) as records:
        version = records.registry.version(ref)
        file = records.settings.card(version.ref)
    if not file.is_file():
        raise NotFound(f"{ref} has no card: none is written for adapters that were imported by hand")
    print(file.read_text(), end="")


Reason = Annotated[str, typer.Option("--reason", help="why; it is kept with the version")]


@app.command("approve")
def approve(
    context: typer.Context,
    ref: Annotated[str, typer.Argument(help="NAME@N")],
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Let a version that its gate has rejected be loaded and proved all the same, on record."""
    with open_records(context) as records:
        _print_settled(records, records.registry.approve(ref, records.actor, reason), as_json)


@app.command("release")
def release(
    context: typer.Context,
    ref: Annotated[str, typer.Argument(help="NAME@N")],
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Take a version out of quarantine: it is loaded and proved again."""
    with open_records(context) as records:
        _print_settled(records, records.registry.release(ref, records.actor, reason), as_json)


app.command("export")(export)


@app.command("remove")
def remove(
    context: typer.Context,
    ref: Annotated[str, typer.Argument(help="NAME@N")],
    timeout: Timeout = 600.0,
    as_json: Json = False,
) -> None:
    """Remove a version for ever, once the requests that use it have ended."""
    with open_records(context) as records:
        records.registry.begin_remove(ref, records.actor)
        version = advance_removal(records.registry, records.placements, ref)
        if version.state is VersionState.REMOVING:
            text = f"{ref}: waiting for the requests that use it ..."
            with terminal.progress(text):
                version = _poll(
                    lambda: advance_removal(records.registry, records.placements, ref),
                    lambda version: version.state is VersionState.REMOVING,
                    timeout,
                )
        if as_json:
            terminal.print_json(_shape(records, version))
    if version.state is VersionState.REMOVING:
        raise Conflict(
            f"{ref} takes no new request but is still in use after {timeout:g} s; its removal goes on"
        )
    if not as_json:
        print(f"{ref}  {version.state.value}")


def _print_settled(records: Records, version: VersionRecord, as_json: bool) -> None:
    if as_json:
        terminal.print_json(_shape(records, version))
        return
    print(f"{version.ref}  {version.state.value}")
    terminal.note(_what_now(records, version, a_gateway_is_alive(records.placements)))


def _until_settled(records: Records, version: VersionRecord, timeout: float) -> VersionRecord:
    """The version when it is staged no longer, when no gateway is left to prove it, or when time is up."""
    if version.state is not VersionState.STAGED:
        return version
    with terminal.progress(f"{version.ref}: waiting until every engine has loaded and proved it ...") as tell:

        def look() -> VersionRecord:
            placements = records.placements.list(ref=version.ref)
            seen = ", ".join(f"{placement.engine} {placement.state.value}" for placement in placements)
            tell(f"{version.ref}: {seen or 'waiting for the engines'} ...")
            return records.registry.version(version.ref)

        def is_unsettled(version: VersionRecord) -> bool:
            return version.state is VersionState.STAGED and a_gateway_is_alive(records.placements)

        return _poll(look, is_unsettled, timeout)


def _poll(
    look: Callable[[], VersionRecord], goes_on: Callable[[VersionRecord], bool], timeout: float
) -> VersionRecord:
    until = time.monotonic() + timeout
    while goes_on(version := look()) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    return version


def _refuse_unproved(version: VersionRecord, waited: bool) -> None:
    """Raises Conflict for a version that will take no traffic, or has not in the time it was given."""
    if version.state in (VersionState.FAILED, VersionState.QUARANTINED):
        raise Conflict(
            f"{version.ref} is {version.state.value}: {version.reason or 'no reason is on record'}; "
            f"it takes no traffic (burnish adapters show {version.ref})"
        )
    if waited and version.state is VersionState.STAGED:
        raise Conflict(
            f"{version.ref} is not proved yet; see `burnish engines`, and `burnish adapters show {version.ref}` later"
        )


def _what_now(records: Records, version: VersionRecord, alive: bool) -> str:
    if version.state is VersionState.STAGED and not alive:
        return "it will be loaded and proved when serving starts: burnish serve"
    if version.state is VersionState.STAGED:
        return f"it is being loaded and proved: burnish adapters show {version.ref}"
    routes = [route.name for route in records.routes.list() if version.ref in route.variants]
    if routes:
        return f"it answers for route {', '.join(routes)}"
    return f"it answers as {version.ref}; to make it the default: burnish promote {version.ref}"


def _show_adapter(records: Records, name: str, as_json: bool) -> None:
    versions = records.registry.versions(name, removed=True)
    if not versions:
        raise NotFound(f"there is no adapter {name!r}; `burnish adapters list` shows those there are")
    if as_json:
        terminal.print_json(adapter_shape(name, versions, records.placements.list()))
    else:
        _print_versions(versions)


def _print_versions(versions: tuple[VersionRecord, ...]) -> None:
    terminal.print_table(
        ("version", "state", "base model", "rank", "size", "digest", "created", "reason"),
        [
            (
                version.ref,
                version.state.value,
                version.base_model,
                str(version.rank),
                terminal.size(version.size_bytes),
                version.digest[:19],
                terminal.moment(version.created),
                version.reason or "",
            )
            for version in versions
        ],
    )


def _fields(shape: dict[str, Any]) -> dict[str, str]:
    approval = shape["approval"]
    fields = {
        "version": shape["id"],
        "state": shape["state"],
        "reason": shape["reason"],
        "digest": shape["digest"],
        "base model": shape["base_model"],
        "base digest": shape["base_digest"] or "unknown",
        "rank": str(shape["rank"]),
        "modules": ", ".join(shape["target_modules"]),
        "size": terminal.size(shape["size_bytes"]),
        "origin": shape["origin"],
        "approval": " ".join(str(approval[key]) for key in ("kind", "by", "reason") if approval.get(key)),
        "created": terminal.moment(shape["created"]),
    }
    for placement in shape["placements"]:
        reason = f": {placement['reason']}" if placement["reason"] else ""
        fields[f"on {placement['engine']}"] = placement["state"] + reason
    return {name: value for name, value in fields.items() if value}


def _lineage_fields(shape: dict[str, Any], routes: list[str]) -> dict[str, str]:
    """Where the version comes from and where it serves, a line each."""
    fields = {"answers for": ", ".join(routes) or "no route"}
    lineage = shape.get("lineage")
    if lineage is None:
        return fields
    rows = ", ".join(f"{count} {split}" for split, count in sorted(lineage["rows"].items()))
    fields |= {
        "run": lineage["job"],
        "method": lineage["method"] or "",
        "trained from": lineage["start_from"] or shape["base_model"],
        "dataset": lineage["dataset"] or "",
        "rows": f"{rows} (from {len(lineage['completions'])} completions)",
    }
    gate = lineage["gate"] or {}
    if gate:
        fields["gate"] = ": ".join([str(gate.get("outcome", "")), "; ".join(gate.get("reasons", ()))])
    return {name: value for name, value in fields.items() if value}


def _shape(records: Records, version: VersionRecord) -> dict[str, Any]:
    return version_shape(version, records.placements.list(ref=version.ref))
