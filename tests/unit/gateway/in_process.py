"""A real server in the test's own process: for what only its objects show."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from adapters.engine_settings import EngineSettings
from adapters.settings import Settings
from gateway.app import App, create_app
from gateway.runtime import Runtime
from gateway.wire import WireProtocol
from loadtests.fake_engine.process import FakeEngine
from tests.migrated import migrated


@contextlib.asynccontextmanager
async def serving(app: App, http: Any = WireProtocol) -> AsyncIterator[int]:
    """The port at which uvicorn serves the app, by our protocol or another of its own."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=http, lifespan="off", log_config=None, server_header=False)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve([listener]))
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def gateway(
    engine: FakeEngine, home: Path, http: Any = WireProtocol, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway over a fake engine."""
    by_url = EngineSettings(name="e0", kind="openai", model=engine.model, url=engine.url)
    db = migrated(home / "burnish.db")
    runtime = Runtime(Settings(home=home, engines=(by_url,), **settings), db, {})
    async with serving(create_app(runtime), http) as port:
        await runtime.start(f"http://127.0.0.1:{port}")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            while (await client.get("/healthz")).status_code != 200:
                await asyncio.sleep(0.05)
            yield client
        await runtime.stop()
    db.close()
