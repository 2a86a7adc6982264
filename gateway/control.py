"""What the gateway asks of an engine besides inference: what it holds, load, unload, and its fingerprint.

The control plane: httpx, a few requests a second at most. The only code that knows vLLM's adapter endpoints,
which no client can reach through the gateway (promise 12). Decides nothing.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from adapters.engine_settings import EngineSettings
from adapters.probe import PROBE_TEXT
from gateway.upstream import Address

LOAD_TIMEOUT_SECONDS = 120.0

MAX_METRICS_BYTES = 8 * 1024 * 1024
"""Many times what a vLLM tells, with as many adapters as it takes."""


class ControlError(Exception):
    """The engine could not be asked, or did not understand. `unreachable`: nobody listens."""

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


class Refused(Exception):
    """The engine will not load this adapter; the message says why in its words."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Log-probabilities (nats) of the probe text's tokens after the first, as one model sees them."""

    logprobs: tuple[float, ...]

    def distance(self, other: Fingerprint) -> float:
        """The largest difference at any token; infinite where the tokens are not the same number."""
        return max(self._gaps(other))

    def mean_distance(self, other: Fingerprint) -> float:
        """The average difference a token: what two ways of computing agree on (an engine in bfloat16, the trainer in
        float32), of which one unlikely token says little."""
        gaps = self._gaps(other)
        return sum(gaps) / len(gaps)

    def _gaps(self, other: Fingerprint) -> list[float]:
        if not self.logprobs or len(self.logprobs) != len(other.logprobs):
            return [float("inf")]
        return [abs(a - b) for a, b in zip(self.logprobs, other.logprobs, strict=True)]


def engine_key(settings: EngineSettings) -> str | None:
    """The engine's own API key, from the variable that the settings name."""
    return os.environ.get(settings.api_key_env) if settings.api_key_env else None


class Control:
    """The control plane of one engine."""

    def __init__(self, settings: EngineSettings, url: str, artifact_root: Path) -> None:
        address = Address.parse(url)
        scheme = "https" if address.tls else "http"
        key = engine_key(settings)
        self._settings = settings
        self._artifact_root = artifact_root
        self._client = httpx.AsyncClient(
            base_url=f"{scheme}://{address.authority}{address.prefix}",
            transport=httpx.AsyncHTTPTransport(uds=address.uds),
            headers={"authorization": f"Bearer {key}"} if key else {},
            trust_env=False,
        )

    async def models(self, timeout_seconds: float) -> frozenset[str]:
        """The names that the engine lists. Raises ControlError."""
        body = await self._ask("GET", "/v1/models", None, timeout_seconds)
        try:
            return frozenset(str(model["id"]) for model in body["data"])
        except (KeyError, TypeError):
            raise ControlError("its list of models is not one") from None

    async def load(self, served: str, path: Path) -> None:
        """Loads the adapter at `path` (in our artifact store). Raises ControlError, Refused."""
        if self._settings.adapter_root is not None:
            path = Path(self._settings.adapter_root) / path.relative_to(self._artifact_root)
        body = {"lora_name": served, "lora_path": str(path)}
        try:
            await self._ask("POST", "/v1/load_lora_adapter", body, LOAD_TIMEOUT_SECONDS)
        except Refused as error:
            if "already been loaded" not in str(error) and "already loaded" not in str(error):
                raise

    async def unload(self, served: str) -> None:
        """Makes the engine forget an adapter; one it does not know is fine. Raises ControlError."""
        try:
            await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": served}, LOAD_TIMEOUT_SECONDS)
        except Refused as error:
            if "cannot be found" not in str(error) and "not found" not in str(error).lower():
                raise ControlError(str(error)) from None

    async def fingerprint(self, model: str, timeout_seconds: float) -> Fingerprint:
        """How the model sees the probe text: a real forward pass. Raises ControlError, Refused."""
        body = {
            "model": model,
            "prompt": PROBE_TEXT,
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }
        answer = await self._ask("POST", "/v1/completions", body, timeout_seconds)
        try:
            values = answer["choices"][0]["logprobs"]["token_logprobs"]
            prompt_tokens = int(answer["usage"]["prompt_tokens"])
            return Fingerprint(tuple(float(value) for value in values[1:prompt_tokens]))
        except (KeyError, IndexError, TypeError, ValueError):
            raise ControlError("its log-probabilities are not to be had") from None

    async def answer(self, model: str, timeout_seconds: float) -> None:
        """Returns once the model has really answered. Raises ControlError, Refused."""
        body = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        await self._ask("POST", "/v1/completions", body, timeout_seconds)

    async def metrics(self, timeout_seconds: float) -> str:
        """Its own page for Prometheus, in the text format. Raises ControlError."""
        accept = {"accept": "text/plain;version=0.0.4"}
        try:
            async with asyncio.timeout(timeout_seconds):
                answer = await self._client.get("/metrics", headers=accept, timeout=timeout_seconds)
        except (TimeoutError, httpx.HTTPError) as error:
            raise ControlError(str(error) or f"no metrics within {timeout_seconds:g} s") from error
        if answer.status_code != 200 or len(answer.content) > MAX_METRICS_BYTES:
            raise ControlError(f"HTTP {answer.status_code}, {len(answer.content)} bytes of metrics")
        return answer.text

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, method: str, path: str, body: Any, timeout_seconds: float) -> Any:
        try:
            answer = await self._client.request(method, path, json=body, timeout=timeout_seconds)
        except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError) as error:
            raise ControlError(str(error) or "it cannot be reached", unreachable=True) from error
        except httpx.TimeoutException:
            raise ControlError(f"no answer to {path} within {timeout_seconds:g} s") from None
        except httpx.HTTPError as error:
            raise ControlError(str(error)) from error
        if answer.status_code in (401, 403):
            raise ControlError("it refuses our key (api_key_env)")
        if answer.status_code >= 400:
            raise Refused(_message(answer))
        try:
            return answer.json()
        except ValueError:
            if path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
                return None  # vLLM says "Success: …" in plain text
            raise ControlError(f"its answer to {path} is not JSON") from None


def _message(answer: httpx.Response) -> str:
    try:
        body = answer.json()
        error = body.get("error", body)
        return str(error.get("message") or error.get("detail") or error)
    except (ValueError, AttributeError):
        return f"HTTP {answer.status_code}"
