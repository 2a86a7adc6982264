"""The live gateway that the published clients are pointed at, read from the environment.

Owns the coordinates (`BURNISH_TEST_*`) and the plain clients built from them. Does not know how the gateway
was started, nor anything of its code: the suite judges what any OpenAI-compatible URL answers.
"""

import gc
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import httpx
import openai
import pytest

# The clients are imported once a process, hundreds of thousands of objects that stay: no use in looking through them on the way.
gc.set_threshold(50_000, 20, 20)

# Some clients phone home by default; a test of a local gateway has no business with that.
os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True", LANGSMITH_TRACING="false", OPENAI_AGENTS_DISABLE_TRACING="1"
)


@dataclass(frozen=True)
class Gateway:
    """Where the gateway is and what it serves."""

    base_url: str  # ends in /v1
    model: str
    adapter: str  # the name of a route to an adapter
    key: str  # sent always; some word where the gateway needs none
    needs_key: bool

    @property
    def root_url(self) -> str:
        return self.base_url.removesuffix("/v1")


@pytest.fixture(scope="session")
def gateway() -> Gateway:
    missing = [
        name for name in ("BASE_URL", "MODEL", "ADAPTER") if not os.environ.get(f"BURNISH_TEST_{name}")
    ]
    if missing:
        pytest.exit(
            f"set {', '.join(f'BURNISH_TEST_{name}' for name in missing)} to a running gateway", returncode=2
        )
    key = os.environ.get("BURNISH_TEST_KEY", "")
    return Gateway(
        base_url=os.environ["BURNISH_TEST_BASE_URL"].rstrip("/"),
        model=os.environ["BURNISH_TEST_MODEL"],
        adapter=os.environ["BURNISH_TEST_ADAPTER"],
        key=key or "none-needed",
        needs_key=bool(key),
    )


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    """OpenAI's client without retries, so that each test sees the first answer."""
    with openai.OpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
async def aclient(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=gateway.base_url, api_key=gateway.key, max_retries=0, timeout=60
    ) as made:
        yield made


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    """Plain HTTP, for what the clients' types would hide or their request builders forbid."""
    headers = {"authorization": f"Bearer {gateway.key}"}
    with httpx.Client(base_url=gateway.base_url, headers=headers, timeout=60) as made:
        yield made
