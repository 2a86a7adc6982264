"""What the verbs work on: the settings of this call and the records they lead to, opened and closed."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from adapters.artifacts import ArtifactStore
from adapters.database import Database
from adapters.experiments import Experiments
from adapters.keys import Keys
from adapters.placements import Placements
from adapters.registry import Registry
from adapters.routes import Routes
from adapters.settings import Settings, load_settings


@dataclass(frozen=True, slots=True)
class Records:
    settings: Settings
    registry: Registry
    routes: Routes
    keys: Keys
    placements: Placements
    actor: str
    """Who runs the command, for the audit log."""
    db: Database
    experiments: Experiments


def settings_of(context: typer.Context) -> Settings:
    """The settings by `--config` and the environment. Raises SettingsError."""
    config = context.obj
    return load_settings(config if isinstance(config, Path) else None, os.environ)


@contextmanager
def open_records(context: typer.Context) -> Iterator[Records]:
    """The records at the newest schema. Raises SettingsError, DatabaseError."""
    settings = settings_of(context)
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = Database(settings.database)
    try:
        db.upgrade()
        routes = Routes(db, settings.models)
        yield Records(
            settings,
            Registry(db, ArtifactStore(settings.artifact_root), settings.models),
            routes,
            Keys(db),
            Placements(db),
            _actor(),
            db,
            Experiments(db, routes),
        )
    finally:
        db.close()


def _actor() -> str:
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a user id without a name, as in many containers
        return f"cli:uid-{os.getuid()}"
