"""The ASGI application: the hot paths to `inference`, everything else to FastAPI.

Owns the surface: which path is whose, OpenAI's shape for every error there is, `x-request-id` on every answer,
CORS. Knows no engine and no table.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from adapters.errors import BurnishError, InvalidRequest, NotFound
from gateway import (
    admin,
    batches,
    completions,
    feedback,
    files,
    fine_tuning,
    metrics,
    models,
    stored_responses,
)
from gateway.endpoints import ENDPOINTS
from gateway.ids import hex_id
from gateway.protocol.errors import error_headers, openai_error
from gateway.reply import WIRE, HttpScope, Message, Receive, Send
from gateway.runtime import Runtime

log = logging.getLogger("burnish.app")

App = Callable[[HttpScope, Receive, Send], Awaitable[None]]

CLIENT_HEADERS = [
    "x-request-id",
    "x-burnish-adapter",
    "x-burnish-completion",
    "x-burnish-recorded",
    "x-burnish-route",
    "retry-after",
    *(
        f"x-ratelimit-{what}-{kind}"
        for kind in ("requests", "tokens")
        for what in ("limit", "remaining", "reset")
    ),
]
"""What a page in a browser may read of an answer's headers."""


def create_app(runtime: Runtime) -> App:
    """The whole surface of one gateway."""
    rest = _with_request_id(_rest(runtime))

    async def app(scope: HttpScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "POST" and scope["path"] in ENDPOINTS:
            await runtime.inference(scope, receive, send)
        elif scope["method"] == "OPTIONS":
            await _options(send)
        else:
            scope.pop(WIRE, None)
            await rest(scope, receive, send)

    if not runtime.settings.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=list(runtime.settings.cors_origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=CLIENT_HEADERS,
    )


def _rest(runtime: Runtime) -> App:
    app = FastAPI(title="Burnish", version="0.1.0", docs_url="/docs", redoc_url=None)
    app.state.runtime = runtime
    # POST never comes this way (see create_app); any other method on these paths is a 405 here.
    app.router.routes.extend(Route(path, runtime.inference, methods=["POST"]) for path in ENDPOINTS)
    app.include_router(models.router)
    app.include_router(stored_responses.router)
    app.include_router(completions.router)
    app.include_router(feedback.router)
    for router in (files.files_router, files.uploads_router, files.parts_router, fine_tuning.router):
        app.include_router(router)
    app.include_router(batches.router)
    app.include_router(batches.list_router)
    app.include_router(metrics.router)
    app.include_router(admin.router)
    app.add_exception_handler(BurnishError, _on_burnish_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_any_error)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        """Whether this process serves: 200 while an engine is up, else 503. Needs no key, tells nothing else."""
        is_up = any(engine.state == "up" for engine in runtime.engines.all)
        return Response(status_code=200 if is_up else 503)

    return app


def _with_request_id(app: App) -> App:
    async def tagged(scope: HttpScope, receive: Receive, send: Send) -> None:
        request_id = b"req_" + hex_id().encode()

        async def send_tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        await app(scope, receive, send_tagged)

    return tagged


async def _options(send: Send) -> None:
    """OPTIONS needs no key and says no more than that the server is there."""
    headers = [(b"allow", b"GET, POST, PATCH, DELETE, OPTIONS"), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _shaped(error: BurnishError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error_headers(error)}
    text = json.dumps(openai_error(error), ensure_ascii=False)
    # An error may repeat half a character, which JSON can hold and UTF-8 cannot; `\ud800` is both.
    body = text.encode("utf-8", "backslashreplace")
    return Response(body, error.status, headers, media_type="application/json")


async def _on_burnish_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BurnishError)
    return _shaped(error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's 422 is OpenAI's 400, naming the first field that is wrong."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    within = (
        first["loc"][1:] if first["type"] != "json_invalid" else ()
    )  # before it: "body", "query" or "path"
    where = [str(part) for part in within]
    param = ".".join(where) or None
    named = f"'{param}'" if param else "the body"
    return _shaped(
        InvalidRequest(f"Invalid value for {named}: {first['msg']}.", param=param, code="invalid_value")
    )


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _shaped(NotFound(f"Invalid URL ({request.method} {request.url.path})", code="unknown_url"))
    shaped = InvalidRequest(str(error.detail))
    if error.status_code == 405:
        words = f"Not allowed to {request.method} on {request.url.path}."
        shaped = InvalidRequest(words, code="method_not_supported")
    shaped.status = error.status_code
    answer = _shaped(shaped)
    answer.headers.update(error.headers or {})
    return answer


async def _on_any_error(request: Request, error: Exception) -> Response:
    log.exception("request_failed path=%s", request.url.path, exc_info=error)
    body = openai_error(BurnishError("The server had an error while processing your request."))
    return Response(orjson.dumps(body), 500, media_type="application/json")
