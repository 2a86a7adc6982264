"""The settings of what is told about the system: metrics, traces, Langfuse, and what an engine costs.

Owns `[metrics]`, `[tracing]`, `[langfuse]` and `[costs]`. Secrets are named, never held: `*_env` is a variable's name.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from adapters.engine_settings import Count, Seconds, Section


def _http_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not http(s)://host[:port][/path]")
    return url


HttpUrl = Annotated[str, AfterValidator(_http_url)]
Share = Annotated[float, Field(ge=0, le=1)]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Metrics(Section):
    """What /metrics tells."""

    max_series: Count = 500
    scrape_engines: bool = True
    gpus: bool = True
    records_seconds: Seconds = 5.0


class Tracing(Section):
    """Spans over OTLP/HTTP, where an endpoint is given: a collector's base URL, or the whole URL of its traces."""

    endpoint: HttpUrl | None = None
    headers_env: str | None = None
    service_name: Annotated[str, Field(min_length=1)] = "burnish"
    sample_share: Share = 1.0
    prompts: bool = False
    timeout_seconds: Seconds = 10.0
    max_queue: Count = 2048


class Langfuse(Section):
    """Generations and scores in Langfuse (the extra `langfuse`)."""

    enabled: bool = False
    host: HttpUrl = "https://cloud.langfuse.com"
    public_key_env: str = "LANGFUSE_PUBLIC_KEY"
    secret_key_env: str = "LANGFUSE_SECRET_KEY"
    sample_share: Share = 1.0
    prompts: bool = False
    max_queue: Count = 2048


class Costs(Section):
    """What an hour of one engine costs; `[[engines]]` may say otherwise for itself. 0: nobody counts."""

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    engine_hour: Price = 0.0
