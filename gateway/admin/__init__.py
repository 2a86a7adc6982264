"""The control plane over HTTP: adapters, routes, experiments, keys, engines, traffic, users and the audit log. One module a noun.

Everything here needs a key of scope `admin` once there are keys. Until then anybody on this machine may call it,
a web page in its browser excepted: the browser would send another site's request along without a question.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request

from adapters.errors import Forbidden
from gateway.admin import adapters, engines, events, experiments, keys, routes, traffic, users
from gateway.deps import TheRuntime

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def refuse_foreign_pages(request: Request, runtime: TheRuntime) -> None:
    """While no key is needed, pages of other sites may not act here (nor by a name that points here)."""
    origin = request.headers.get("origin")
    if origin is None or runtime.snapshot.keyed or origin in runtime.settings.cors_origins:
        return
    if urlsplit(origin).hostname not in LOOPBACK:
        raise Forbidden(
            f"Pages of {origin} may not do this; add it to cors_origins.", code="origin_not_allowed"
        )


router = APIRouter(prefix="/v1", dependencies=[Depends(refuse_foreign_pages)])
for noun in (adapters, routes, experiments, engines, traffic, keys, users, events):
    router.include_router(noun.router)
