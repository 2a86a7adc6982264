"""`burnish forget`: an end user's rows go, and what has learned from them stops serving."""

from __future__ import annotations

from typing import Annotated

import typer

from adapters.forget import Forgotten, forget_user
from gateway.cli import terminal
from gateway.cli.records import open_records
from gateway.cli.terminal import Json
from gateway.shapes import forgotten_shape


def forget(
    context: typer.Context,
    user: Annotated[str, typer.Option(help="as clients name them in `safety_identifier` or `user`")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be done")] = False,
    as_json: Json = False,
) -> None:
    """Delete a user's requests and feedback, and quarantine the versions that learned from them."""
    with open_records(context) as records:
        done = forget_user(
            records.db,
            records.routes,
            user,
            records.actor,
            run_root=records.settings.run_root,
            dry_run=dry_run,
        )
    if as_json:
        terminal.print_json(forgotten_shape(user, done, dry_run=dry_run))
        return
    terminal.print_fields(_fields(done))
    terminal.note("nothing was changed" if dry_run else f"in the audit log as user:{done.user_digest}")


def _fields(done: Forgotten) -> dict[str, str]:
    return {
        "completions": str(done.completions),
        "feedback": str(done.feedback),
        "responses": str(done.responses),
        "jobs that learned": ", ".join(done.jobs) or "none",
        "jobs stopped": ", ".join(done.stopped) or "none",
        "quarantined": ", ".join(done.quarantined) or "none",
        "routes": ", ".join(f"{m.route}: {m.before} -> {m.after}" for m in done.routes) or "none moved",
    }
