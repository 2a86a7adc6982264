"""A fake engine as a child process, for tests and load tests: start, set, read, stop, kill, restart.

    with FakeEngine("smollm2-135m-instruct") as engine:
        engine.set(itl_seconds=0.01, fault="close_mid_stream", fault_count=1)
        ... engine.url ...
        assert engine.stats()["aborted"] == 0

Talks to it over HTTP only, by a client of its own that no fault touches.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

_SOURCE = Path(__file__).resolve().parents[2]
_START_SECONDS = 20.0


class FakeEngine:
    """One fake engine. A restart keeps its place and forgets adapters, settings and counts, as a real one."""

    def __init__(
        self,
        model: str = "smollm2-135m-instruct",
        *,
        port: int = 0,
        uds: Path | str | None = None,
        max_loras: int = 4,
        max_model_len: int = 4096,
        seed: int = 0,
        api_key: str | None = None,
        embedding_size: int = 0,
    ) -> None:
        self.model = model
        self.port = port
        self.uds = None if uds is None else str(uds)
        self._options = [
            *("--model", model, "--max-loras", str(max_loras)),
            *("--max-model-len", str(max_model_len), "--seed", str(seed)),
            *("--embedding-size", str(embedding_size)),
            *(("--api-key", api_key) if api_key else ()),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._client: httpx.Client | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Where it is.

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, or `unix:///path.sock`."""
        return f"http://127.0.0.1:{self.port}" if self.uds is None else f"unix://{self.uds}"

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def client(self) -> httpx.Client:
        """A client bound to it, on TCP or its Unix socket: `engine.client.get("/v1/models")`."""
        if self._client is None:
            self._client = httpx.Client(
                transport=httpx.HTTPTransport(uds=self.uds),
                base_url="http://fake-engine" if self.uds else self.url,
                timeout=30.0,
            )
        return self._client

    # What it does.

    def set(self, **settings: Any) -> dict[str, Any]:
        """Change settings (see settings.Settings), return them all. Raises ValueError for an unknown one."""
        response = self.client.post("/_fake/set", json=settings)
        if response.status_code == 400:
            raise ValueError(response.json()["error"])
        return self._json(response)

    def stats(self) -> dict[str, Any]:
        """The counts of settings.Stats."""
        return self._json(self.client.get("/_fake/stats"))

    def requests(self, path: str | None = None) -> list[dict[str, Any]]:
        """The last generation, load and unload requests, oldest first: method, path, headers, body.

        A gateway asks a question of its own now and then (of `/v1/completions`): whoever wants a client's names its path.
        """
        logged: list[dict[str, Any]] = self.client.get("/_fake/requests").raise_for_status().json()
        return [request for request in logged if path in (None, request["path"])]

    def reset(self) -> None:
        """Settings, counts and log as at the start; adapters stay loaded."""
        self.client.post("/_fake/reset").raise_for_status()

    def load(self, name: str, path: Path | str) -> None:
        body = {"lora_name": name, "lora_path": str(path)}
        self.client.post("/v1/load_lora_adapter", json=body).raise_for_status()

    def wait_for(self, timeout_seconds: float = 5.0, **counts: int) -> dict[str, Any]:
        """Wait until the named counts are these, and return all. Raises TimeoutError with the last ones."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            stats = self.stats()
            if all(stats[name] == value for name, value in counts.items()):
                return stats
            if time.monotonic() > deadline:
                raise TimeoutError(f"wanted {counts}, have { ({name: stats[name] for name in counts}) }")
            time.sleep(0.01)

    # Its life.

    def start(self) -> None:
        """Start it and wait until it listens. Raises RuntimeError where it does not."""
        place = ["--uds", self.uds] if self.uds is not None else ["--port", str(self.port)]
        path = os.pathsep.join(filter(None, [str(_SOURCE), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtests.fake_engine", *place, *self._options, "--exit-with-stdin"],
            stdin=subprocess.PIPE,  # closes with this process, however that ends
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the fake engine did not start: exit code {self._process.wait(_START_SECONDS)}"
            )
        self.port = json.loads(line).get("port", self.port)

    def kill(self) -> None:
        """SIGKILL: every connection breaks at once."""
        if self.alive:
            self._running().kill()
        self._reap()

    def stop(self) -> None:
        """SIGSTOP: it still accepts connections and answers nothing."""
        self._running().send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT: it goes on where it was stopped."""
        self._running().send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill it if it runs, and start it anew in the same place."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Kill it, and close the client."""
        self.kill()
        if self._client is not None:
            self._client.close()
            self._client = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the fake engine is not running")
        return self._process

    def _reap(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        values: dict[str, Any] = response.raise_for_status().json()
        return values
