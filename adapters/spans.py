"""Spans on their way to an OpenTelemetry collector: what they say of this process, and their export by OTLP over HTTP.

Owns the resource, the exporter and the outbox. Spans are made after the fact, from times and ids that are known by then,
in the outbox's thread: whoever has something to draw hands over a function that draws it. Knows neither requests nor
runs. There is no global provider and no current span here, and nothing that another library records comes this way.

Of OpenTelemetry's environment variables those of the exporter count beside the settings (OTEL_EXPORTER_OTLP_HEADERS,
_CERTIFICATE, _CLIENT_KEY, _CLIENT_CERTIFICATE, _COMPRESSION, and their _TRACES_ twins) and OTEL_RESOURCE_ATTRIBUTES.
"""

from __future__ import annotations

import importlib.metadata
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.util.re import parse_env_headers

from adapters.errors import SettingsError
from adapters.outbox import CLOSE_SECONDS, Outbox
from adapters.telemetry_settings import Tracing

__all__ = ["Draw", "Exporter", "Sketch", "SpanKind", "Spans", "headers_of", "traces_url", "version"]

TRACES_PATH = "/v1/traces"

BREATH_SECONDS = 0.0001
"""Between two drawings: whoever else wants the interpreter (the event loop) gets it after one, not after a group."""

MOST_WORDS = 300


@dataclass(slots=True)
class Sketch:
    """One span as it is to be: ids in hex, times in nanoseconds since 1970."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    began: int
    ended: int
    kind: SpanKind = SpanKind.INTERNAL
    attributes: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    """Why it failed, in a word; None: it did not."""
    is_parent_remote: bool = False
    trace_state: str | None = None


Draw = Callable[[], Sequence[Sketch]]


class Spans:
    """The spans of one process. `put` from any thread."""

    def __init__(self, settings: Tracing, *, instance: str, environ: Mapping[str, str]) -> None:
        """`settings.endpoint` is there. Raises SettingsError where a variable that it names is not."""
        assert settings.endpoint is not None
        self._exporter = Exporter(
            traces_url(settings.endpoint), headers_of(settings, environ), settings.timeout_seconds
        )
        self._resource = Resource.create(
            {
                "service.name": settings.service_name,
                "service.version": version(),
                "service.instance.id": instance,
            }
        )
        self._scope = InstrumentationScope("burnish", version())
        self._outbox = Outbox("traces", self._deliver, settings.max_queue, hurry=self._exporter.shutdown)

    @property
    def dropped(self) -> int:
        """How many drawings did not arrive."""
        return self._outbox.dropped

    def put(self, draw: Draw) -> None:
        """`draw` is called soon, in another thread. Never waits and never raises."""
        self._outbox.put(draw)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        self._outbox.close(seconds)

    def _deliver(self, draws: list[Draw]) -> str | None:
        spans: list[ReadableSpan] = []
        for draw in draws:
            spans += [self._span(sketch) for sketch in draw()]
            time.sleep(BREATH_SECONDS)
        self._exporter.export(spans)
        return self._exporter.take_failure()

    def _span(self, sketch: Sketch) -> ReadableSpan:
        state = TraceState() if sketch.trace_state is None else TraceState.from_header([sketch.trace_state])
        trace_id = int(sketch.trace_id, 16)
        parent = sketch.parent_id
        return ReadableSpan(
            name=sketch.name,
            context=_context(trace_id, sketch.span_id, False, state),
            parent=None if parent is None else _context(trace_id, parent, sketch.is_parent_remote, state),
            resource=self._resource,
            attributes=sketch.attributes,
            events=_NO_EVENTS,
            kind=sketch.kind,
            status=_UNSET if sketch.error is None else Status(StatusCode.ERROR, sketch.error),
            start_time=sketch.began,
            end_time=max(sketch.began, sketch.ended),
            instrumentation_scope=self._scope,
        )


_NO_EVENTS: tuple[Event, ...] = ()
_UNSET = Status()
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


def _context(trace_id: int, span_id: str, is_remote: bool, state: TraceState) -> SpanContext:
    return SpanContext(trace_id, int(span_id, 16), is_remote, _SAMPLED, state)


class Exporter(SpanExporter):
    """OpenTelemetry's own OTLP exporter, whose failures can be asked for instead of each being logged."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        timeout_seconds: float,
        compression: Compression | None = None,
    ) -> None:
        _listen()
        self._otlp = OTLPSpanExporter(
            endpoint=url, headers=dict(headers), timeout=timeout_seconds, compression=compression
        )
        self._failure: str | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        _last_words.words.pop(threading.get_ident(), None)
        result = self._otlp.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._failure = _last_words.take() or "it was not accepted"
        return result

    def take_failure(self) -> str | None:
        """What went wrong since this was asked last."""
        failure, self._failure = self._failure, None
        return failure

    def shutdown(self) -> None:
        self._otlp.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True


class _LastWords(logging.Handler):
    """What the exporter has said last, by thread: the only place where it says why an export has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.words: defaultdict[int, deque[str]] = defaultdict(lambda: deque(maxlen=2))

    def emit(self, record: logging.LogRecord) -> None:
        self.words[record.thread or 0].append(record.getMessage()[:MOST_WORDS])

    def take(self) -> str:
        return " ".join(self.words.pop(threading.get_ident(), ()))


_last_words = _LastWords()


def _listen() -> None:
    """The exporter's lines come here, and go no further: they would be one an export."""
    logger = logging.getLogger(OTLPSpanExporter.__module__)
    if _last_words not in logger.handlers:
        logger.addHandler(_last_words)
        logger.propagate = False


# -- pure ------------------------------------------------------------------------------------------
def traces_url(endpoint: str) -> str:
    """Where a collector takes traces: its base URL's /v1/traces, unless that is the path already."""
    parts = urlsplit(endpoint)
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith(TRACES_PATH) else path + TRACES_PATH))


def headers_of(settings: Tracing, environ: Mapping[str, str]) -> dict[str, str]:
    """The headers that the variable named by the settings holds. Raises SettingsError where it holds none."""
    name = settings.headers_env
    if name is None:
        return {}
    if not environ.get(name):
        raise SettingsError(f"tracing.headers_env names {name}, which is not set; export {name}=name=value,…")
    headers = dict(parse_env_headers(environ[name], liberal=True))
    if not headers:
        raise SettingsError(f"{name} (named by tracing.headers_env) is not of the form name=value,name=value")
    return headers


def version() -> str:
    """Of this installation."""
    try:
        return importlib.metadata.version("burnish")
    except importlib.metadata.PackageNotFoundError:  # run from a folder of sources
        return "0"
