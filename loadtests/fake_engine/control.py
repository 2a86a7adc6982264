"""The /_fake routes, by which a test sets a fake engine's settings and reads its counts and requests.

No fault touches them, and no key guards them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from loadtests.fake_engine.settings import Settings, Stats
from loadtests.fake_engine.wire import Connection, Request


class Control:
    def __init__(
        self, settings: Settings, stats: Stats, log: Iterable[Request], forget: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._stats = stats
        self._log = log
        self._forget = forget
        self.routes = {
            ("POST", "/_fake/set"): self._set,
            ("POST", "/_fake/reset"): self._reset,
            ("GET", "/_fake/stats"): lambda _, wire: wire.respond(200, orjson.dumps(vars(stats))),
            ("GET", "/_fake/requests"): self._requests,
        }

    def _set(self, request: Request, wire: Connection) -> None:
        try:
            self._settings.update(orjson.loads(request.body))
        except (ValueError, TypeError) as problem:
            wire.respond(400, orjson.dumps({"error": str(problem)}))
        else:
            wire.respond(200, orjson.dumps(vars(self._settings)))

    def _reset(self, request: Request, wire: Connection) -> None:
        """Settings, counts and the log as at the start; adapters stay, requests in flight stay active."""
        self._settings.reset()
        self._stats.reset()
        self._forget()
        wire.respond(200, orjson.dumps(vars(self._settings)))

    def _requests(self, request: Request, wire: Connection) -> None:
        wire.respond(200, orjson.dumps([_logged(past) for past in self._log]))


def _logged(request: Request) -> dict[str, Any]:
    try:
        body = orjson.loads(request.body)
    except json.JSONDecodeError:
        body = request.body.decode(errors="replace")
    return {"method": request.method, "path": request.path, "headers": request.headers, "body": body}
