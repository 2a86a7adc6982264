"""Databases that have the newest schema from the start: the migrations run once a process, and a test gets a copy."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from adapters.database import Database


@functools.cache
def _newest() -> bytes:
    with tempfile.TemporaryDirectory(prefix="burnish-db-") as folder:
        database = Database(f"sqlite:///{folder}/burnish.db")
        database.upgrade()
        database.close()
        return (Path(folder) / "burnish.db").read_bytes()


def migrated(file: Path) -> Database:
    """A new SQLite database in `file`, in a folder that is made if need be; who asks closes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_newest())
    return Database(f"sqlite:///{file}")
