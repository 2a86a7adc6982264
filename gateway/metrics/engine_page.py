"""/metrics/engines: what every engine tells Prometheus of itself, on one page.

Owns what is done to the engines' pages: each sample says by `engine` whose it is, and models go by the names that our own
metrics have. An engine that does not tell is left out and has a 0 in `burnish_engine_metrics_up`. Knows no engine's
metrics but for those that must not be passed on.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from adapters.engine_settings import EngineSettings
from adapters.errors import NotFound
from gateway.control import Control, ControlError
from gateway.deps import Admin, TheRuntime
from gateway.engines import Engine
from gateway.exposition import BadPage, Pages, escaped
from gateway.gently import gently

TIMEOUT_SECONDS = 2.0
"""A scrape waits for no engine longer: Prometheus itself gives up after ten."""

OF_PROCESSES = ("process_", "python_")
"""Of the engine's HTTP process, under the names that the gateway's own process has."""

UNBOUNDED = ("vllm:lora_requests_info",)
"""vLLM makes a series of every set of adapters that was ever in use together, and forgets none."""

MODEL_LABELS = ("model_name", "model")
SERVED_NAME = re.compile(r"([a-z0-9][a-z0-9._-]{0,62}@[1-9][0-9]{0,8})\.[0-9a-f]{12}")
"""A version as engines know it (`versions.served_name`)."""

log = logging.getLogger("burnish.engine_page")
router = APIRouter(tags=["health"])


@router.get("/metrics/engines", include_in_schema=False)
async def engine_metrics(runtime: TheRuntime, caller: Admin) -> Response:
    """Prometheus' text format, as /metrics, and for the same keys."""
    if not runtime.settings.metrics.scrape_engines:
        raise NotFound(
            "The engines' metrics are not passed on here: metrics.scrape_engines is off.", code="unknown_url"
        )
    told = await asyncio.gather(*(_ask(engine, control) for engine, control in runtime.controls.items()))
    page = await asyncio.to_thread(merged, dict(zip(runtime.controls, told, strict=True)))
    return Response(page, media_type=CONTENT_TYPE_PLAIN_0_0_4)


async def _ask(engine: Engine, control: Control) -> str | None:
    try:
        return await control.metrics(TIMEOUT_SECONDS)
    except ControlError as error:
        log.debug("engine_without_metrics engine=%s: %s", engine.name, error)
        return None


def merged(told: Mapping[Engine, str | None]) -> str:
    """The pages of all engines as one; None: it did not tell. Rests between two of them, for the sake of requests."""
    pages, up = Pages(_is_wanted), {}
    for engine, page in gently(told.items(), lambda: None):
        up[engine.name] = page is not None and _add(pages, engine, page)
    lines = [
        "# HELP burnish_engine_metrics_up Whether the engine has told its own metrics.",
        "# TYPE burnish_engine_metrics_up gauge",
        *(f'burnish_engine_metrics_up{{engine="{name}"}} {int(is_up)}' for name, is_up in up.items()),
    ]
    return "\n".join(lines) + "\n" + pages.text()


def _add(pages: Pages, engine: Engine, page: str) -> bool:
    try:
        pages.add(page, relabelling(engine.settings))
    except BadPage as error:
        log.debug("engine_metrics_refused engine=%s: %s", engine.name, error)
        return False
    return True


def relabelling(settings: EngineSettings) -> Callable[[Mapping[str, str]], Mapping[str, str]]:
    """`engine` is ours; one of the page's own is called `exported_engine` then, as Prometheus does it."""

    def relabel(labels: Mapping[str, str]) -> dict[str, str]:
        others = {"exported_engine" if name == "engine" else name: labels[name] for name in labels}
        named = {name: public_name(settings, others[name]) for name in MODEL_LABELS if name in others}
        return {"engine": escaped(settings.name), **others, **named}

    return relabel


def public_name(settings: EngineSettings, name: str) -> str:
    """A model's name at the engine as clients know it; one that we do not know stays as it is."""
    version = SERVED_NAME.fullmatch(name)
    if version is not None:
        return version[1]
    return settings.served_models[0] if name == settings.upstream_model else name


def _is_wanted(family: str) -> bool:
    return not family.startswith(OF_PROCESSES) and family not in UNBOUNDED
