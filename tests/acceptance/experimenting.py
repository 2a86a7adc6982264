"""What experiments have observed, for tests: begun over HTTP, read from the gateway's own database while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from adapters import schema
from adapters.completions import Completion, Completions
from adapters.database import Database
from adapters.packed import unpack
from tests.conftest import Server, wait_for

ROUTE = "support"
CONTROL = "support@1"
CHALLENGER = "support@2"


def begin(server: Server, **plan: Any) -> str:
    """An experiment on ROUTE that this gateway goes by at once; its name."""
    with server.http() as http:
        made = http.post("/v1/experiments", json={"route": ROUTE, "plan": plan})
        assert made.status_code == 201, made.text
        return str(made.json()["name"])


def shown(server: Server, name: str) -> dict[str, Any]:
    with server.http() as http:
        found: dict[str, Any] = http.get(f"/v1/experiments/{name}").raise_for_status().json()
        return found


def stop(server: Server, name: str) -> None:
    with server.http() as http:
        http.post(f"/v1/experiments/{name}/stop", json={}).raise_for_status()


def served_name(server: Server, variant: str) -> str:
    """What engines call a version."""
    with server.http() as http:
        digest = http.get(f"/v1/adapters/{variant}").raise_for_status().json()["digest"]
    return f"{variant}.{digest.removeprefix('sha256:')[:12]}"


def user_of(server: Server, variant: str) -> str:
    """A user whom the route gives this variant."""
    client = server.client()
    for number in range(1000):
        user = f"somebody-{number}"
        raw = client.chat.completions.with_raw_response.create(
            model=ROUTE, messages=[{"role": "user", "content": "who"}], max_tokens=1, safety_identifier=user
        )
        if raw.headers["x-burnish-adapter"].split()[0] == variant:
            return user
    raise AssertionError(f"none of a thousand users gets {variant}")


@dataclass(frozen=True)
class Observed:
    """The rows of `observations`, and the completions beside them."""

    db: Database

    def rows(self, **values: Any) -> list[Any]:
        """Those that have these values, the oldest first."""
        table = schema.observations
        which = [table.c[name].is_not_distinct_from(value) for name, value in values.items()]
        with self.db.read() as connection:
            return list(connection.execute(sa.select(table).where(*which).order_by(table.c.number)))

    def of(self, id: str) -> Any:
        """What was observed of a completion."""
        return self.rows(id=id)[0]

    def shadows(self) -> list[Any]:
        table = schema.observations
        query = sa.select(table).where(table.c.shadow_of.is_not(None)).order_by(table.c.number)
        with self.db.read() as connection:
            return list(connection.execute(query))

    def wait_for_shadows(self, count: int, seconds: float = 10.0) -> list[Any]:
        return list(wait_for(self._at_least(count), seconds))

    def completions(self) -> tuple[Completion, ...]:
        return Completions(self.db).list(None, all_keys=True, limit=10_000)[0]

    def _at_least(self, count: int) -> Callable[[], list[Any] | None]:
        return lambda: found if len(found := self.shadows()) >= count else None


def output_of(row: Any) -> dict[str, Any]:
    """A shadow's answer."""
    found: dict[str, Any] = unpack(row.output)
    return found
