"""`burnish serve`: one command from nothing to an answer, and back to nothing.

Order: settings → the port (so that a taken one fails before anything is started) → database → weights → engines
→ gateway → a real completion through the front door → the greeting. SIGINT and SIGTERM stop in the reverse order:
no new requests, those in flight finish (up to `drain_seconds`), the loops end, the engines end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import uvicorn
import uvloop

from adapters.database import Database
from adapters.errors import SettingsError
from adapters.keys import Keys
from adapters.settings import Settings
from adapters.spans import headers_of
from gateway import generations
from gateway.app import create_app
from gateway.runtime import Runtime
from gateway.supervisor import SupervisedEngine, SupervisedProcess
from gateway.weights import ensure_weights
from gateway.wire import WireProtocol

log = logging.getLogger("burnish.serve")

ENGINE_STOP_SECONDS = 10.0
TRAINER_STOP_SECONDS = 20.0
"""A run in progress saves a checkpoint after its current step; without that it goes on from the last one."""
READY_POLL_SECONDS = 0.25


def serve(settings: Settings) -> int:
    """Runs until SIGINT or SIGTERM; the process's exit status. Raises SettingsError for what a person must mend."""
    _log_to_stderr(settings)
    _refuse_untold(settings)
    with _listen(settings) as listener:
        db = open_database(settings)
        try:
            _refuse_open_door(settings, Keys(db))
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_serve(settings, db, listener))
        finally:
            db.close()


def open_database(settings: Settings) -> Database:
    """The database of these settings, at the newest schema."""
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = Database(settings.database)
    db.upgrade()
    return db


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: a signal stops the engines too, so `_serve` takes it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(settings: Settings, db: Database, listener: socket.socket) -> int:
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, _on_signal, stop)
    weights = asyncio.create_task(asyncio.to_thread(_all_weights, settings))
    if await _first(weights, stop):
        return 0
    async with _engines(settings, weights.result()) as processes, _trainer(settings):
        runtime = Runtime(settings, db, processes)
        server = _Server(_server_config(settings, runtime))
        await runtime.start(_url(listener))
        gc.collect()
        gc.freeze()  # what there is now stays; to look through it took 100 ms, in which nobody had a token
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        greeting = asyncio.create_task(_greet(settings, runtime, _url(listener)))
        try:
            await _first(serving, stop)
            _say("stopping: requests in flight may finish ...")
            server.should_exit = True
            await serving
        finally:
            greeting.cancel()
            await runtime.stop()
    _say("stopped")
    return 0


def _on_signal(stop: asyncio.Event) -> None:
    if stop.is_set():  # asked twice: the person means now
        _say("stopping at once")
        os.kill(os.getpid(), signal.SIGKILL)
    stop.set()


async def _first(task: asyncio.Task[Any], stop: asyncio.Event) -> bool:
    """Waits for the task or for the signal; whether the signal came. The task's error is raised."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not stop.is_set():
        task.result()
    return stop.is_set()


@contextlib.asynccontextmanager
async def _engines(
    settings: Settings, weights: dict[str, Path]
) -> AsyncIterator[dict[str, SupervisedEngine]]:
    """The supervised engines by name, running for as long as the block does."""
    # Mode 0700, and short, since a socket's path holds 107 bytes.
    sockets = Path(tempfile.mkdtemp(prefix="burnish-"))
    engines = {
        engine.name: SupervisedEngine(
            engine,
            settings.home,
            weights[engine.name],
            sockets,
            training_share=settings.training.gpu_memory_share,
        )
        for engine in settings.engines
        if engine.kind == "supervised"
    }
    try:
        for name, engine in engines.items():
            await engine.start()
            _say(f"starting engine {name} (its log: {settings.home / 'logs' / f'engine-{name}.log'})")
        yield engines
    finally:
        await asyncio.gather(*(engine.stop(ENGINE_STOP_SECONDS) for engine in engines.values()))
        shutil.rmtree(sockets, ignore_errors=True)


@contextlib.asynccontextmanager
async def _trainer(settings: Settings) -> AsyncIterator[None]:
    """The trainer's worker, running for as long as the block does, where the settings want one and it can serve."""
    if not (settings.training.worker and any(engine.takes_adapters for engine in settings.engines)):
        yield
        return
    command = [sys.executable, "-m", "trainer.worker"]
    worker = SupervisedProcess("trainer", command, os.environ, settings.home / "logs" / "trainer.log")
    await worker.start()
    try:
        yield
    finally:
        await worker.stop(TRAINER_STOP_SECONDS)


def _all_weights(settings: Settings) -> dict[str, Path]:
    return {e.name: ensure_weights(settings, e) for e in settings.engines if e.kind == "supervised"}


def _server_config(settings: Settings, runtime: Runtime) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(runtime),
        http=WireProtocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a tenth of a request's cost, and nothing here goes by the client's address
        date_header=True,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        timeout_keep_alive=75,
        backlog=2048,
    )


async def _greet(settings: Settings, runtime: Runtime, url: str) -> None:
    """Waits until every base model has really answered through the front door, then says how to use it."""
    began = time.monotonic()
    waiting = [engine.settings.served_models[0] for engine in runtime.engines.all]
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=120) as client:
        for model in dict.fromkeys(waiting):
            while not await _answers(client, model, runtime):
                await asyncio.sleep(READY_POLL_SECONDS)
    models = [model.id for model in runtime.snapshot.models]
    first = waiting[0] if waiting else (models[0] if models else "MODEL")
    _say(GREETING.format(seconds=time.monotonic() - began, url=url, models=", ".join(models), model=first))


async def _answers(client: httpx.AsyncClient, model: str, runtime: Runtime) -> bool:
    up = [e for e in runtime.engines.all if e.state == "up" and model in e.settings.served_models]
    # Without a key of ours to knock with, and where an answer costs money, the health watch's word is enough.
    if not up or runtime.snapshot.keyed or not up[0].takes_adapters:
        return bool(up)
    ask = [{"role": "user", "content": "Say hello."}]
    body = {"model": model, "messages": ask, "max_tokens": 4, "store": False}
    answer = await client.post("/v1/chat/completions", json=body)
    return answer.status_code == 200


GREETING = """
Burnish is ready (after {seconds:.0f} s): {url}/v1
models: {models}

  curl {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  answer = client.chat.completions.create(
      model="{model}", messages=[{{"role": "user", "content": "What is the capital of France?"}}])
  print(answer.choices[0].message.content)

Ctrl-C stops everything.
"""


def _listen(settings: Settings) -> socket.socket:
    """The listening socket. Raises SettingsError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; set BURNISH_PORT to a free port"
        ) from None
    listener.set_inheritable(False)
    return listener


def _refuse_open_door(settings: Settings, keys: Keys) -> None:
    """Promise 12: without keys it listens on loopback and nowhere else."""
    if is_loopback(settings.host) or any(key.revoked is None for key in keys.list()):
        return
    raise SettingsError(
        f"refusing to listen on {settings.host} without keys: everybody who reaches it could use it; "
        "make one first: burnish keys create --name NAME --scope inference"
    )


def _refuse_untold(settings: Settings) -> None:
    """What traces and Langfuse need is looked for before anything is started."""
    if settings.tracing.endpoint is not None:
        headers_of(settings.tracing, os.environ)
    if settings.langfuse.enabled:
        generations.check(settings.langfuse, os.environ)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def _log_to_stderr(settings: Settings) -> None:
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(_JsonLines() if settings.log_json else text)
    root = logging.getLogger("burnish")
    root.handlers, root.propagate = [handler], False
    root.setLevel(logging.INFO)
